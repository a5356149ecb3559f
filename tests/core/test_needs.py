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
from edgedistill.core.needs import check_needs, lack_of
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
        for stage in STAGES:
            check_needs(load_recipe(path), stage)
            assert lack_of(load_recipe(path), stage) is None
    divided = {"gold": "gold.jsonl", "prompts": "p.jsonl", "split": {"valid": 0.1, "heldout": 0.1}}
    whole = recipe(data=divided, teacher={"model": str(tmp_path), "adapt": {}})
    for stage in STAGES:
        check_needs(whole, stage)
        assert lack_of(whole, stage) is None


API = {"model": "m", "engine": "openai"}
PHASE_1 = {"data": {"generator": "home-commands", "prompts": 4}}
NO_HELDOUT = (
    "expected held-out items to judge the models on, found none; set data.heldout, or data.split.heldout, in the recipe"
)
NO_VARIANTS = {"export": {"variants": [], "release": [], "teacher_variants": []}}


@pytest.mark.parametrize(
    ("changed", "blocked", "refusal"),
    [
        (
            PHASE_1,
            {"eval": "", "gate": "needs eval"},
            f"{NO_HELDOUT}, or run only `edgedistill bench x.toml` (or export, train, synth)",
        ),
        (
            NO_VARIANTS,
            {"bench": "", "gate": "needs bench"},
            "expected export.variants to measure, found none; name some, or run only `edgedistill eval x.toml` (or "
            "export, train, synth)",
        ),
        (
            PHASE_1 | NO_VARIANTS,
            {"eval": "", "bench": "expected export.variants to", "gate": "needs eval, bench"},
            f"{NO_HELDOUT}, or run only `edgedistill export x.toml` (or train, synth)",
        ),
    ],
)
def test_a_recipe_that_is_meant_to_stop_early_has_a_plan_and_is_not_run_to_the_end(
    tmp_path: Path, changed: dict[str, Any], blocked: dict[str, str], refusal: str
) -> None:
    run = plan.Run(recipe(**changed), tmp_path / "run", asked=("x.toml",))
    steps = plan.plan(run)
    plan.check(run, steps)
    found = {step.stage: step.why for step in steps if step.state == "blocked"}
    assert found.keys() == blocked.keys() and all(found[name].startswith(why) for name, why in blocked.items())
    assert next(iter(found.values())) == refusal
    for until, only in ((None, None), (next(iter(blocked)), None), (None, "gate")):
        with pytest.raises(InputError) as stopped:
            plan.execute(run, SilentReporter(), until=until, only=only)
        assert str(stopped.value) == refusal
    assert not run.folder.exists()
    assert {step.state for step in plan.plan(run, until="export")} == {"todo"}


def test_variants_of_a_teacher_behind_an_api_are_none_to_measure() -> None:
    export = {"variants": [], "release": [], "teacher_variants": ["gguf-q4_0"]}
    assert lack_of(recipe(export=export), "bench") is None
    assert "expected export.variants" in str(lack_of(recipe(export=export, teacher=API), "bench"))


def test_grading_needs_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    graded = recipe(task={"kind": "summarization"})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match=r"expected the package rouge_score to grade a summarization, found it not"):
        plan.execute(plan.Run(graded, tmp_path / "run"), SilentReporter())
    assert lack_of(recipe(task={"kind": "math"}), "eval") is None


def test_a_path_is_no_hub_id() -> None:
    found = hub_id("org/name@v1")
    assert found is not None and (found["id"], found["revision"]) == ("org/name", "v1")
    assert not any(map(hub_id, ("./name", "../name", "~/name", "/org/name", "org/name.gguf", "name")))
