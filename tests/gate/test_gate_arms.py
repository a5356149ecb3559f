"""Arms in the gate's reports: further seeds count in the table alone, and damaged answers claim nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from gate_builders import answers, quality

from edgedistill.cli.show import comparison_table
from edgedistill.core.artifact import Manifest, list_files
from edgedistill.core.files import read_json, read_jsonl, write_json, write_jsonl
from edgedistill.core.recipe import Recipe
from edgedistill.core.runfolder import NOT_OUTPUT

Gate = Callable[[Path, Recipe], tuple[Path, list[str]]]


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A run with a second seed of student and control, and an arm on gold."""
    run = shutil.copytree(finished_run, tmp_path / "synthetic")
    train, evaluation = run / "20-train", run / "40-eval"
    summary = read_json(evaluation / "summary.json")
    for name, count in {"student-s2": 96, "control-s2": 92, "gold": 80}.items():
        shutil.copytree(train / "student", train / name)
        items = answers(count, seed=50 + count)
        write_jsonl(evaluation / f"{name}.jsonl", [item.model_dump(mode="json") for item in items])
        summary[name] = quality(name, items).model_dump(mode="json")
    write_json(evaluation / "summary.json", summary)
    for folder in (train, evaluation):
        manifest = Manifest.model_validate(read_json(folder / "manifest.json"))
        listed = manifest.model_copy(update={"files": list_files(folder, skip=NOT_OUTPUT)})
        write_json(folder / "manifest.json", listed.model_dump(mode="json"))
    return run


def test_reports_tell_arms_and_give_further_seeds_no_row(
    run: Path, recipe: Callable[..., Recipe], run_gate: Gate
) -> None:
    folder, _ = run_gate(run, recipe())
    comparison = read_json(folder / "comparison.json")
    assert {row["model"] for row in comparison["rows"] if row["target"] is None} == {
        "untrained", "gold", "control", "student",
    }  # fmt: skip
    assert next(row["role"] for row in comparison["rows"] if row["model"] == "gold") == "gold"
    rows = {row["arm"]: row for row in comparison["arms"]["rows"]}
    assert rows["student"]["models"] == ["student", "student-s2"] and comparison["arms"]["pairs"] == 2
    sentence = comparison["arms"]["sentence"]
    assert sentence.startswith("no difference shown: distillation minus SFT on the same text is +")
    markdown = (folder / "verdict.md").read_text(encoding="utf-8")
    assert "## Arms: no difference shown" in markdown and f"{sentence[1:]}." in markdown
    assert "| SFT on gold | 1 |" in markdown and "| distillation | 2 |" in markdown
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "What distillation is worth" in html and f"{sentence[1:]}." in html and "<td>2</td>" in html
    shown = comparison_table(comparison)
    assert shown.splitlines()[-1] == sentence and "SFT on the teacher's text" in shown
    assert "student-s2" not in shown.partition("SFT on gold")[0]


def test_answers_that_are_not_those_of_the_summary_make_no_arm(
    run: Path, recipe: Callable[..., Recipe], run_gate: Gate
) -> None:
    path = run / "40-eval" / "control.jsonl"
    write_jsonl(path, [row | {"correct": False} for row in read_jsonl(path)])
    second = run / "40-eval" / "control-s2.jsonl"
    write_jsonl(second, [row | {"correct": False} for row in read_jsonl(second)])
    arms = read_json(run_gate(run, recipe())[0] / "comparison.json")["arms"]
    assert arms["outcome"] == "no control" and "control" not in {row["arm"] for row in arms["rows"]}


def test_arms_of_other_items_make_no_table(run: Path, recipe: Callable[..., Recipe], run_gate: Gate) -> None:
    path = run / "40-eval" / "gold.jsonl"
    write_jsonl(path, [row | {"id": f"other-{row['id']}"} for row in read_jsonl(path)])
    assert read_json(run_gate(run, recipe())[0] / "comparison.json")["arms"] is None
