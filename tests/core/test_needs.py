"""What a recipe lacks for a late stage is told before the first one begins."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from edgedistill import plan
from edgedistill.core.config import validate
from edgedistill.core.errors import InputError, MissingError
from edgedistill.core.model_reference import hub_id
from edgedistill.core.needs import NEEDS, check_needs
from edgedistill.core.recipe import Recipe, load_recipe, shipped_recipes
from edgedistill.core.runfolder import SilentReporter
from edgedistill.stages import STAGES

WHOLE = {"generator": "home-commands", "gold": 4, "valid": 4, "heldout": 4, "prompts": 4}


def recipe(**changed: Any) -> Recipe:
    raw = {"name": "x", "data": WHOLE, "teacher": {"model": "org/t"}, "student": {"model": "org/s"}} | changed
    return validate(Recipe, raw, source="x.toml")


@pytest.mark.parametrize(
    ("stage", "changed", "sentence"),
    [
        ("data", {"data": {"generator": "home-commands", "heldout": 4}}, "expected data.gold or data.prompts for the"),
        ("teacher", {"teacher": {"model": "./gone"}}, "teacher.model: expected a model folder, a .gguf file, a Hub id"),
        ("teacher", {"teacher": {"model": "gone.gguf"}}, "found 'gone.gguf', which is none of them; correct the ref"),
        (
            "teacher",
            {"teacher": {"model": "org/t", "adapt": {}}, "data": WHOLE | {"valid": 0}},
            "expected data.valid to hold the adapted teacher against, found none; give some, or drop [teacher.adapt]",
        ),
        (
            "teacher",
            {"teacher": {"model": "org/t", "adapt": {}}, "data": WHOLE | {"gold": 0}},
            "expected data.gold to adapt the teacher to, found none",
        ),
        ("synth", {"data": WHOLE | {"prompts": 0}, "synth": {"label_gold": False}}, "set data.prompts, or synth.label"),
        ("synth", {"teacher": {"model": "org/t", "engine": "llamacpp"}}, "expects a GGUF teacher, found 'org/t'; use"),
        ("train", {"student": {"model": "student"}}, "student.model: expected a model folder, a .gguf file, a Hub id"),
        (
            "train",
            {"train": {"teacher": "online", "further_teachers": [{"model": "../other", "weight": 0.3}]}},
            "train.further_teachers.0.model: expected a model folder",
        ),
        ("train", {"train": {"gold": True}, "data": WHOLE | {"gold": 0}}, "expected data.gold with train.gold = true"),
        ("eval", {"data": WHOLE | {"heldout": 0}}, "expected held-out items to judge the models on, found none; set"),
        ("bench", {"export": {"variants": [], "release": [], "teacher_variants": []}}, "expected export.variants to"),
    ],
)
def test_each_need_is_told_of_the_first_stage_that_has_it(
    tmp_path: Path, stage: str, changed: dict[str, Any], sentence: str
) -> None:
    run = plan.Run(recipe(**changed), tmp_path / "run")
    refused = []
    for name in STAGES:
        try:
            check_needs(run.recipe, name)
        except InputError as e:
            refused.append((name, str(e)))
    assert refused[0][0] == stage and sentence in refused[0][1]
    with pytest.raises(InputError) as told:
        plan.check(run, plan.plan(run))
    with pytest.raises(InputError) as stopped:
        plan.execute(run, SilentReporter())
    assert str(told.value) == str(stopped.value) == refused[0][1]
    assert not run.folder.exists()


def test_what_is_there_or_not_asked_for_is_no_lack(tmp_path: Path) -> None:
    for path in shipped_recipes().values():
        for stage in NEEDS:
            check_needs(load_recipe(path), stage)
    divided = {"gold": "gold.jsonl", "prompts": "p.jsonl", "split": {"valid": 0.1, "heldout": 0.1}}
    whole = recipe(data=divided, teacher={"model": str(tmp_path), "adapt": {}})
    for stage in STAGES:
        check_needs(whole, stage)
    phase1 = plan.Run(recipe(data={"generator": "home-commands", "prompts": 4}), tmp_path)
    plan.check(phase1, plan.plan(phase1, until="synth"))


def test_grading_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    graded = recipe(task={"kind": "summarization"})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match=r"expected the package rouge_score to grade a summarization, found it not"):
        check_needs(graded, "eval")
    check_needs(recipe(task={"kind": "math"}), "eval")


def test_a_path_is_no_hub_id() -> None:
    found = hub_id("org/name@v1")
    assert found is not None and (found["id"], found["revision"]) == ("org/name", "v1")
    assert not any(map(hub_id, ("./name", "../name", "~/name", "/org/name", "org/name.gguf", "name")))
