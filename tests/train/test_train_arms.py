"""Arms of a run: seeds beside the first, SFT on gold for as many steps, and what a change of their number keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import test_stage
from pydantic import ValidationError
from tiny_training import fresh_accelerator, load

from edgedistill.core.errors import StageError
from edgedistill.core.files import read_jsonl, sha256_file, write_jsonl
from edgedistill.train.data import Example
from edgedistill.train.stage import run, run_teacher
from edgedistill.train.wanted import gold_lesson, wanted_arms

pytestmark = pytest.mark.usefixtures(fresh_accelerator.__name__)
deep = test_stage.deep
TRAIN = {"lr": 3e-3, "epochs": 2, "batch_size": 4, "valid_share": 0.2, "dtype": "fp32", "control": {}}
ALL = {**TRAIN, "arms": {"seeds": 2, "gold": True}}


def weights_of(folder: Path) -> str:
    return sha256_file(folder / "model.safetensors")


def test_arms_come_seed_by_seed_and_only_the_student_has_the_teacher() -> None:
    arms = wanted_arms(seed=7, seeds=2, kd_weight=0.5, control=True, gold=True, cuts=1)
    assert [(a.name, a.kind, a.seed, a.kd_weight) for a in arms] == [
        ("student", "student", 7, 0.5), ("control", "control", 7, 0.0), ("gold", "gold", 7, 0.0),
        ("student-s2", "student", 8, 0.5), ("control-s2", "control", 8, 0.0), ("gold-s2", "gold", 8, 0.0),
    ]  # fmt: skip
    twice = wanted_arms(seed=0, seeds=2, kd_weight=0.5, control=False, gold=False, cuts=2)
    assert [(a.name, a.start, a.wide) for a in twice] == [
        ("student-wide", "untrained", None), ("student", "student-narrow", "student-wide"),
        ("student-s2-wide", "untrained", None), ("student-s2", "student-s2-narrow", "student-s2-wide"),
    ]  # fmt: skip


@pytest.mark.parametrize(("gold", "epochs", "steps"), [(6, 2.0, 50), (400, 2.0, 50), (6, 0.1, 3), (6, 0.99, 25)])
def test_gold_is_gone_through_for_the_steps_of_the_arm_beside(gold: int, epochs: float, steps: int) -> None:
    examples = [Example(f"g{i}", np.arange(4), 2) for i in range(gold)]
    how = {"share": 0.0, "seed": 0, "epochs": epochs, "batch_size": 4, "evals_per_epoch": 5}
    lesson = gold_lesson(examples, beside=100, **how)
    assert (len(lesson.train), lesson.valid, lesson.steps, lesson.eval_every) == (gold, [], steps, 5)
    with pytest.raises(StageError, match="expected right answers to train the arm on gold with, found none that fit"):
        gold_lesson([], beside=100, **how)


def test_every_arm_of_every_seed_is_trained_alike(tmp_path: Path, deep: Path) -> None:
    run_teacher(test_stage.context(tmp_path, "teacher", deep))
    test_stage.label(test_stage.context(tmp_path, "synth", deep))
    gold = [{**row, "answer": row["answer"].upper()} for row in read_jsonl(tmp_path / "00-data" / "gold.jsonl")[:5]]
    ctx = test_stage.context(tmp_path, "train", deep, train=ALL)
    write_jsonl(tmp_path / "00-data" / "gold.jsonl", gold)  # of other words than the teacher's, and fewer
    run(ctx)
    arms = ("student", "control", "gold", "student-s2", "control-s2", "gold-s2")
    assert {path.parent.name for path in ctx.folder.glob("*/config.json")} == {"untrained", *arms}
    assert len({weights_of(ctx.folder / arm) for arm in ("untrained", *arms)}) == 7
    assert {ctx.figures[arm]["steps"] for arm in arms} == {6} and ctx.figures["gold_trained_on"] == 4
    assert [ctx.figures[arm]["seed"] for arm in arms] == [0, 0, 0, 1, 1, 1]
    rows = {arm: [r for r in read_jsonl(ctx.folder / "metrics.jsonl") if r["arm"] == arm] for arm in arms}
    for arm in arms:
        assert all((row["kl"] > 0) == arm.startswith("student") for row in rows[arm] if "loss" in row)
        assert [row["step"] for row in rows[arm] if "valid_loss" in row] == [3, 6]
    assert rows["student"][0]["ce"] != rows["student-s2"][0]["ce"] and rows["gold"][0]["ce"] != rows["control"][0]["ce"]
    # What gold alone says, the student's vocabulary holds.
    assert load(ctx.folder / "gold").config.vocab_size == 352


def test_further_seeds_are_added_and_the_first_ones_stay(tmp_path: Path, deep: Path) -> None:
    ctx = test_stage.trained(tmp_path, deep, train=TRAIN)
    before = {arm: weights_of(ctx.folder / arm) for arm in ("student", "control")}
    report = test_stage.Notes()
    more = test_stage.context(tmp_path, "train", deep, report, train={**TRAIN, "arms": {"seeds": 2}})
    run(more)
    assert {arm for arm, _ in report.steps} == {"student-s2", "control-s2"}
    assert {arm: weights_of(more.folder / arm) for arm in before} == before
    assert more.figures["student"] == ctx.figures["student"]
    whole = test_stage.trained(tmp_path / "whole", deep, train={**TRAIN, "arms": {"seeds": 2}})
    assert test_stage.hashes(whole.folder) == test_stage.hashes(more.folder)


def test_an_arm_on_gold_without_gold_is_refused(tmp_path: Path, deep: Path) -> None:
    with pytest.raises(ValidationError, match=r"expected data\.gold with train\.arms\.gold = true, found none"):
        test_stage.context(tmp_path, "train", deep, train=ALL, data={"valid": "valid.jsonl"})
