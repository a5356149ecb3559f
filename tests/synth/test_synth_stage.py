"""The synth stage on a tiny random teacher, through the real engines: kills, rejects, joins and refusals."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgedistill.core.artifact import Manifest
from edgedistill.core.config import validate
from edgedistill.core.errors import InputError, StageError
from edgedistill.core.files import read_json, read_jsonl, write_json
from edgedistill.core.recipe import Recipe
from edgedistill.core.runfolder import FOLDERS, SilentReporter, StageContext, run_stage
from edgedistill.runtimes.logit_cache import open_cache
from edgedistill.synth import label, stage
from edgedistill.synth.label import read_records

DATA = {"generator": "home-commands", "gold": 6, "valid": 0, "heldout": 0, "prompts": 18}


class Killed(BaseException):
    """What no code of ours catches."""


def context(run: Path, name: str, **tables: Any) -> StageContext:
    raw = {
        "name": "t",
        "threads": 1,
        "teacher": {"model": "unused"},
        "student": {"cut": {"layers": 1}},
        "data": DATA,
        "task": {"max_new_tokens": 12},
        "synth": {"batch_size": 4, "shard_size": 8, "top_k": 3},
        **tables,
    }
    return StageContext(validate(Recipe, raw, source="test"), run, name, SilentReporter(), {})


def do(run: Path, name: str, **tables: Any) -> Manifest:
    body = {"data": stage.run_data, "synth": stage.run_synth}[name]
    return run_stage(context=context(run, name, **tables), version=1, parameters=tables, inputs={}, body=body)


@pytest.fixture
def run(tmp_path: Path, tiny_llama: Path) -> Path:
    """A run folder with data and a teacher that ends an answer at one token in eight."""

    def copy(made: StageContext) -> None:
        shutil.copytree(tiny_llama, made.folder, dirs_exist_ok=True)
        settings = read_json(made.folder / "generation_config.json")
        write_json(made.folder / "generation_config.json", settings | {"eos_token_id": [2, *range(4, 384, 8)]})

    do(tmp_path, "data")
    run_stage(context=context(tmp_path, "teacher"), version=1, parameters={}, inputs={}, body=copy)
    return tmp_path


def outputs(run: Path) -> dict[str, bytes]:
    folder = run / FOLDERS["synth"]
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in (".jsonl", ".safetensors")}


def test_records_hold_what_the_teacher_said_and_join_their_distributions(run: Path) -> None:
    manifest = do(run, "synth")
    figures = manifest.figures
    assert figures["asked"] == 24 == figures["kept"] + sum(figures["rejected"].values())
    assert figures["kept"] > 0 and figures["rejected"]["truncated"] > 0
    folder = run / FOLDERS["synth"]
    assert f"{figures['kept']} of 24 answers kept" in (folder / "data.html").read_text()
    assert sorted(p.name for p in folder.glob("records-*")) == [f"records-0000{i}.jsonl" for i in range(3)]
    cache = open_cache(sorted(folder.glob("logits-*")))
    for _, records in read_records(folder):
        for record in records:
            row = cache.row(prompt_ids=record.prompt_ids, answer_ids=record.answer_ids, record=record.id)
            taken = row.ids == np.array(record.answer_ids)[:, None]
            behind = row.logprobs[:, 0] - row.logprobs[taken]  # greedy: the likeliest token was taken, if 8 bits tell
            assert taken.any(1).all() and (behind < 0.05).all()
            assert row.ids.shape[1] == 3 and record.answer_ids[-1] % 8 in (2, 4)


def test_tokens_are_drawn_if_the_recipe_says_so(run: Path) -> None:
    synth = {"batch_size": 4, "shard_size": 8, "top_k": 40, "kept": "drawn"}
    answers = {r.prompt_id: r.answer for _, records in _after(run, synth=synth) for r in records}
    cache = open_cache(sorted((run / FOLDERS["synth"]).glob("logits-*")))
    assert cache.identity.draws == 40
    for _, records in read_records(run / FOLDERS["synth"]):
        for record in records:
            row = cache.row(prompt_ids=record.prompt_ids, answer_ids=record.answer_ids, record=record.id)
            shares = np.where(row.ids >= 0, np.exp(row.logprobs), 0) * 40
            np.testing.assert_allclose(shares, np.rint(shares), atol=1e-4)
            np.testing.assert_allclose(shares.sum(1), 40, atol=1e-3)
    do(run, "synth")
    assert answers == {r.prompt_id: r.answer for _, records in _after(run) for r in records}


def _after(run: Path, **tables: Any) -> list[Any]:
    do(run, "synth", **tables)
    return list(read_records(run / FOLDERS["synth"]))


def test_gold_is_left_out_if_the_recipe_says_so(run: Path) -> None:
    synth = {"batch_size": 4, "shard_size": 8, "top_k": 3, "label_gold": False}
    assert do(run, "synth", synth=synth).figures["asked"] == 18


@pytest.mark.parametrize("step", range(9))
def test_a_run_killed_at_any_write_goes_on_and_ends_in_the_same_bytes(
    run: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, left = Path.replace, step

    def counting(self: Path, target: Path) -> Path:
        nonlocal left
        if target.name.startswith(("logits-", "records-", "rejected")):
            if left == 0:
                raise Killed
            left -= 1
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", counting)
    with pytest.raises(Killed):
        do(run, "synth")
    monkeypatch.undo()
    assert not (run / FOLDERS["synth"] / "manifest.json").exists()
    asked: list[int] = []
    monkeypatch.setattr(label, "_checked", counted(asked))
    do(run, "synth")
    assert sum(asked) == 24 - 8 * (step // 3)
    resumed = outputs(run)
    shutil.rmtree(run / FOLDERS["synth"])
    do(run, "synth")
    assert outputs(run) == resumed


def counted(asked: list[int]) -> Any:
    checked = label._checked

    def wrapped(ask: Any, batch: list, **named: Any) -> Any:
        asked.append(len(batch))
        return checked(ask, batch, **named)

    return wrapped


def test_json_tasks_reject_what_breaks_the_schema(run: Path) -> None:
    with pytest.raises(StageError, match=r"all 24 answers of the teacher were rejected \("):
        do(run, "synth", task={"answer": "json", "answer_schema": {"type": "object"}, "max_new_tokens": 12})
    rejected = read_jsonl(run / FOLDERS["synth"] / "rejected.jsonl")
    reasons = {row["reason"] for row in rejected}
    assert len(rejected) == 24 and "not-json" in reasons and reasons <= {"not-json", "truncated", "empty"}


def test_answers_that_name_no_label_are_rejected_and_told(run: Path) -> None:
    with pytest.raises(StageError, match=r"all 24 answers of the teacher were rejected \("):
        do(run, "synth", task={"kind": "classification", "labels": ["yes it is"], "max_new_tokens": 12})
    rejected = read_jsonl(run / FOLDERS["synth"] / "rejected.jsonl")
    reasons = {row["reason"] for row in rejected}
    assert len(rejected) == 24 and "no-answer" in reasons and reasons <= {"no-answer", "truncated", "empty"}
    assert "expected one of yes it is" in {row["detail"] for row in rejected}


def test_what_is_missing_or_contradicts_is_said_before_the_teacher_is_asked(run: Path) -> None:
    with pytest.raises(InputError, match=r"task.answer_schema is no valid JSON Schema"):
        do(run, "synth", task={"answer": "json", "answer_schema": {"type": "nothing"}})
    engine = {"model": str(run / FOLDERS["teacher"]), "engine": "llamacpp"}
    with pytest.raises(InputError, match=r'teacher.engine = "llamacpp" expects a GGUF teacher, found'):
        do(run, "synth", teacher=engine)
    os.remove(run / FOLDERS["teacher"] / "manifest.json")
    with pytest.raises(StageError, match=r"expected the teacher in .*, found no finished one"):
        do(run, "synth")
    (run / FOLDERS["data"] / "prompts.jsonl").write_text("")
    with pytest.raises(InputError, match="expected prompts for the teacher to label, found none"):
        stage._prompts(context(run, "synth", synth={"label_gold": False}))


def test_another_teacher_asks_everything_again(run: Path) -> None:
    do(run, "synth")
    ids = {r.id for _, records in read_records(run / FOLDERS["synth"]) for r in records}
    path = run / FOLDERS["teacher"] / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"output_digest": "0" * 64}))
    do(run, "synth")
    again = {r.id for _, records in read_records(run / FOLDERS["synth"]) for r in records}
    assert len(ids) == len(again) and not ids & again
