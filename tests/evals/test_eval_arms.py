"""The eval stage tells all arms in one table, from rows that stand already, so that no model is asked."""

from __future__ import annotations

from pathlib import Path

import eval_run

from edgedistill.core.arms import ArmsTable
from edgedistill.core.files import read_json, write_json, write_jsonl
from edgedistill.core.records import EvalItem
from edgedistill.evals import stage

RIGHT = {"teacher": 8, "untrained": 0, "gold": 4, "control": 5, "control-s2": 5, "student": 6, "student-s2": 7}


def answered(run: Path, right: dict[str, int]) -> Path:
    """A run whose every model has answered: the first `right` items as they should be."""
    items = eval_run.prompts()
    write_jsonl(run / "00-data" / "heldout.jsonl", [item.model_dump(mode="json") for item in items])
    for model, count in right.items():
        write_json(run / "05-teacher" / "config.json" if model == "teacher" else _config(run, model), {})
        rows = [
            EvalItem(
                id=item.id, answer=item.answer or "", output="", output_ids=(2,), finish="stop", correct=place < count
            ).model_dump(mode="json")
            for place, item in enumerate(items)
        ]
        write_jsonl(run / "40-eval" / f"{model}.jsonl", rows)
        write_json(run / "40-eval" / "scores" / f"{model}.json", {"bits_per_byte": 1.0})
    return run


def _config(run: Path, model: str) -> Path:
    return run / "20-train" / model / "config.json"


def test_every_arm_and_seed_stands_in_the_table(tmp_path: Path) -> None:
    run = answered(tmp_path, RIGHT)
    write_json(_config(run, "student-wide"), {})  # what a student went through is no arm
    context = eval_run.context(run)
    stage.run(context)
    assert not any("asked in" in note for note in context.report.notes)
    assert set(read_json(run / "40-eval" / "summary.json")) == set(RIGHT)
    table = ArmsTable.model_validate(read_json(run / "40-eval" / "arms.json"))
    assert {row.arm: row.models for row in table.rows} == {
        "teacher": ("teacher",), "untrained": ("untrained",), "gold": ("gold",), "control": ("control", "control-s2"),
        "student": ("student", "student-s2"),
    }  # fmt: skip
    assert {row.arm: row.score for row in table.rows}["student"] == 13 / 16
    assert table.difference == 3 / 16 and table.outcome == "no difference shown"
    assert context.report.notes[-1] == table.sentence
    assert context.figures["arms"] == {"outcome": "no difference shown", "difference": 3 / 16}


def test_a_run_without_a_control_claims_nothing(tmp_path: Path) -> None:
    run = answered(tmp_path, {"teacher": 8, "untrained": 0, "student": 8})
    context = eval_run.context(run)
    stage.run(context)
    assert context.report.notes[-1].startswith("no control trained, so nothing is claimed of distillation")
