"""The data stage: generated or read, without overlap, faults named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgedistill.core.config import validate
from edgedistill.core.errors import InputError
from edgedistill.core.files import read_jsonl
from edgedistill.core.recipe import Recipe
from edgedistill.core.runfolder import StageContext
from edgedistill.synth import stage
from edgedistill.synth.home import ANSWER_SCHEMA


class Notes:
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.done: list[tuple[float, float]] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def progress(self, done: float, total: float, unit: str, **figures: object) -> None:
        self.done.append((done, total))


def context(run: Path, data: dict[str, Any], **tables: Any) -> StageContext:
    student = {"cut": {"layers": 1}}
    raw = {"name": "t", "teacher": {"model": "x"}, "student": student, "data": data, **tables}
    return StageContext(validate(Recipe, raw, source="test"), run, "data", Notes(), {})


def lines(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def asked(path: Path) -> list[str]:
    return [row["messages"][-1]["content"] for row in read_jsonl(path)]


def test_the_generator_writes_four_splits_the_same_for_the_same_seed(tmp_path: Path) -> None:
    data = {"generator": "home-commands", "gold": 40, "valid": 20, "heldout": 20, "prompts": 60}
    task = {"answer": "json", "answer_schema": ANSWER_SCHEMA, "system": "be brief"}
    for name in ("one", "two"):
        made = context(tmp_path / name, data, task=task, seed=3)
        stage.run_data(made)
        assert made.figures == {"gold": 40, "valid": 20, "heldout": 20, "prompts": 60}
    files = sorted(p.name for p in (tmp_path / "one" / "00-data").iterdir())
    assert files == ["gold.jsonl", "heldout.jsonl", "prompts.jsonl", "valid.jsonl"]
    for name in files:
        assert (tmp_path / "one/00-data" / name).read_bytes() == (tmp_path / "two/00-data" / name).read_bytes()
    rows = read_jsonl(tmp_path / "one/00-data/gold.jsonl")
    assert all([m["role"] for m in row["messages"]] == ["system", "user"] and row["answer"] for row in rows)
    assert {"none.refuse", "light.on"} <= {row["kind"] for row in rows}
    assert all(row["answer"] is None for row in read_jsonl(tmp_path / "one/00-data/prompts.jsonl"))


def test_files_are_read_without_overlap_and_what_is_left_out_is_reported(tmp_path: Path) -> None:
    data = {
        "heldout": lines(tmp_path / "h.jsonl", {"prompt": "h", "answer": "1"}),
        "gold": lines(tmp_path / "g.jsonl", {"prompt": "g", "answer": "1"}, {"prompt": "h", "answer": "1"}),
        "prompts": lines(tmp_path / "p.jsonl", *({"prompt": t} for t in ("p", "", "p", "h", "g", "q"))),
    }
    made = context(tmp_path, data)
    stage.run_data(made)
    folder = tmp_path / "00-data"
    assert asked(folder / "gold.jsonl") == ["g"] and asked(folder / "prompts.jsonl") == ["p", "q"]
    assert asked(folder / "valid.jsonl") == []
    assert made.report.notes == [
        f"{data['prompts']}: left out 1 empty prompts (lines 2)",
        f"{data['prompts']}: left out 1 repeated prompts (lines 3)",
        "gold: left out 1 prompts that stand in heldout",
        "prompts: left out 2 prompts that stand in gold or heldout",
    ]


def test_a_gold_answer_that_breaks_the_schema_names_its_line(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "answer": '{"x":1}'}, {"prompt": "b", "answer": '{"x":"1"}'}]
    task = {"answer": "json", "answer_schema": {"properties": {"x": {"type": "integer"}}}}
    with pytest.raises(InputError, match=r"g.jsonl line 2: the answer is not what the task says \(schema: x: '1'"):
        stage.run_data(context(tmp_path, {"gold": lines(tmp_path / "g.jsonl", *rows)}, task=task))


def test_nothing_to_label_and_an_absent_file_are_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected data.gold or data.prompts for the teacher to label"):
        stage.run_data(context(tmp_path, {}))
    with pytest.raises(InputError, match=r"expected a JSONL file of prompts at .*no.jsonl, found nothing there"):
        stage.run_data(context(tmp_path, {"gold": str(tmp_path / "no.jsonl")}))
