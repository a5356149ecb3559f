"""The stored baseline as a file, and budgets proposed from a run: both must hold for the very run they came from."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
from gate_builders import run_data
from scripts_outside import ROOT, script

from edgedistill.core.budget import Budget, Verdict
from edgedistill.core.files import read_json, write_json
from edgedistill.core.recipe import Recipe
from edgedistill.core.sequential import plan_looks
from edgedistill.gate.baseline import read_baseline
from edgedistill.gate.check import judge
from edgedistill.gate.rundata import RunData
from edgedistill.gate.suggest import suggest

Gate = Callable[[Path, Recipe], tuple[Path, list[str]]]
MakeRecipe = Callable[..., Recipe]
AGAINST = {
    "speed": {"metric": "response_ms", "target": "local-cpu", "max_ratio": 1.2, "against": "previous"},
    "quality": {"metric": "exact_match_ratio", "min_ratio": 0.9, "against": "previous"},
    "size": {"metric": "artifact_bytes", "max_ratio": 1.0, "against": "previous"},
}


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished_run, tmp_path / "synthetic")


@pytest.fixture
def saved(run: Path, recipe: MakeRecipe, run_gate: Gate, tmp_path: Path) -> Path:
    folder, _ = run_gate(run, recipe())
    return Path(shutil.copy(folder / "baseline.json", tmp_path / "main.json"))


def outcomes(run: Path, recipe: MakeRecipe, run_gate: Gate, baseline: Path | None) -> tuple[str, list[str]]:
    gate = {"baseline": str(baseline) if baseline else None}
    folder, _ = run_gate(run, recipe(AGAINST, gate=gate))
    found = Verdict.model_validate(read_json(folder / "verdict.json"))
    assert ("baseline" in found.inputs) == bool(baseline and baseline.is_file())
    return found.outcome, [check.reason for check in found.checks]


def test_a_run_passes_against_its_own_baseline(run: Path, recipe: MakeRecipe, run_gate: Gate, saved: Path) -> None:
    outcome, reasons = outcomes(run, recipe, run_gate, saved)
    assert outcome == "pass" and len(reasons) == 6
    content = read_json(saved)
    assert content["schema_version"] == 1 and content["host_id"] and content["inputs"]["bench"] and content["measured"]
    assert set(content["models"]) == {"teacher", "gguf-q4_0", "onnx-int4"}
    assert {row["model"] for row in content["estimates"]} == set(content["models"])
    assert not any(item["output"] or item["answer"] for items in content["items"].values() for item in items)
    assert saved.stat().st_size < 1_000_000


def test_a_missing_or_unnamed_baseline_is_an_error(
    run: Path, recipe: MakeRecipe, run_gate: Gate, tmp_path: Path
) -> None:
    outcome, reasons = outcomes(run, recipe, run_gate, tmp_path / "none.json")
    assert outcome == "error" and all("is missing; save one with gate --save-baseline" in said for said in reasons)
    outcome, reasons = outcomes(run, recipe, run_gate, None)
    assert outcome == "error" and all("no baseline is named" in said for said in reasons)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c["measurements"][0].update(pair=9), "is not as it was saved"),
        (lambda c: c.update(host_id="elsewhere"), "is not as it was saved"),
        (lambda c: c.update(schema_version=2), "main.json is damaged (schema_version: found 2; "),
        (lambda c: c.update(extra=1), "extra: unknown name"),
        (lambda c: c.pop("models"), "models: expected a value, found none"),
    ],
)
def test_a_changed_baseline_is_an_error(
    run: Path, recipe: MakeRecipe, run_gate: Gate, saved: Path, change: Callable[[dict], object], reason: str
) -> None:
    content = read_json(saved)
    change(content)
    write_json(saved, content)
    outcome, reasons = outcomes(run, recipe, run_gate, saved)
    assert outcome == "error" and reason in reasons[0]


def test_a_badly_damaged_baseline_is_one_short_sentence(saved: Path) -> None:
    content = read_json(saved)
    for row in content["measurements"]:
        row["pair"] = "a round " + 500 * "x"
    write_json(saved, content)
    said = str(read_baseline(str(saved)))
    assert said.startswith(f"the baseline {saved} is damaged (measurements.0.pair: found ")
    assert said.endswith(" …); restore it or save a new one") and "\n" not in said
    assert len(said) < 200 + len(str(saved))


def test_a_baseline_that_is_no_json_or_has_nan_is_an_error(saved: Path) -> None:
    assert isinstance(read_baseline(str(saved)), RunData)
    text = saved.read_text()
    saved.write_text(text.replace('"exact_match_ratio": 0.97', '"exact_match_ratio": NaN'))
    assert "finite number" in str(read_baseline(str(saved)))
    saved.write_text(text[:1000])
    assert "is not valid JSON" in str(read_baseline(str(saved)))


@pytest.mark.parametrize("looks", [(), plan_looks(blocks=3, further=3, confidence=0.95)])
def test_proposed_budgets_load_and_the_same_run_keeps_them(looks: tuple) -> None:
    release, targets = ("gguf-q4_0", "onnx-int4"), ("local-cpu", "mobile-class")
    data = run_data()
    text = suggest(data, release=release, targets=targets, confidence=0.95, looks=looks)
    tables = tomllib.loads(text)["budget"]
    assert len(tables) == 3 + 2 * 4
    budgets = {name: Budget.model_validate(table) for name, table in tables.items()}
    verdict = judge(run="x", budgets=budgets, release=release, data=data, confidence=0.95, inputs={}, looks=looks)
    assert [check.reason for check in verdict.checks if check.outcome != "pass"] == []
    assert len(verdict.checks) == 2 * len(tables)


def test_what_cannot_be_told_is_proposed_as_a_comment() -> None:
    text = suggest(RunData(host_id="h"), release=("gguf-q4_0",), targets=("local-cpu",), confidence=0.95)
    assert tomllib.loads(text) == {} and text.count("cannot be told, because") == 7
    assert "the recipe releases no artifact" in suggest(run_data(), release=(), targets=(), confidence=0.95)


def test_the_schema_of_the_verdict_is_current_and_a_verdict_keeps_it(
    run: Path, recipe: MakeRecipe, run_gate: Gate
) -> None:
    renderer = script("scripts/render_schema.py")
    schema = json.loads((ROOT / "edgedistill" / "gate" / "verdict.schema.json").read_text(encoding="utf-8"))
    assert schema == renderer.schema(), "run: python scripts/render_schema.py"
    waiver = {"reason": "known", "expires": "2999-12-31"}
    budgets = {"size": {"metric": "artifact_bytes", "max": "1 KB", "waiver": waiver}}
    folder, _ = run_gate(run, recipe(budgets))
    verdict = read_json(folder / "verdict.json")
    jsonschema.Draft202012Validator(schema).validate(verdict)
    for wrong in ({"outcome": "fine"}, {"checks": [verdict["checks"][0] | {"extra": 1}]}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.Draft202012Validator(schema).validate(verdict | wrong)


def test_a_waiver_is_shown_wherever_the_verdict_is(run: Path, recipe: MakeRecipe, run_gate: Gate) -> None:
    waiver = {"reason": "known <issue>", "expires": "2999-12-31"}
    folder, notes = run_gate(run, recipe({"size": {"metric": "artifact_bytes", "max": "1 KB", "waiver": waiver}}))
    assert read_json(folder / "verdict.json")["outcome"] == "pass"
    assert "| fail, waived | size |" in (folder / "verdict.md").read_text()
    assert "- **size** (waived): " in (folder / "verdict.md").read_text()
    assert '<skipped message="gguf-q4_0: artifact_bytes is 16 kB' in (folder / "junit.xml").read_text()
    assert "waived until 2999-12-31: known &lt;issue&gt;" in (folder / "report.html").read_text()
    assert sum("waived until" in note for note in notes) == 2
    assert len(read_json(folder / "release" / "manifest.json")["waived"]) == 2
