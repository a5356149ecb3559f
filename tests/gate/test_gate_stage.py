"""The gate on a run's folder: its files, the release and when there is none, and what changed files lead to."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from edgedistill.core.artifact import load_artifact
from edgedistill.core.budget import Verdict
from edgedistill.core.errors import InputError
from edgedistill.core.files import read_json, read_jsonl, sha256_file, write_json, write_jsonl
from edgedistill.core.recipe import Recipe

Gate = Callable[[Path, Recipe], tuple[Path, list[str]]]
MakeRecipe = Callable[..., Recipe]
IMPOSSIBLE = {"size": {"metric": "artifact_bytes", "max": "1 KB"}}


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished_run, tmp_path / "synthetic")


def verdict(folder: Path) -> Verdict:
    return Verdict.model_validate(read_json(folder / "verdict.json"))


def test_a_pass_writes_every_report_and_the_release(run: Path, recipe: MakeRecipe, run_gate: Gate) -> None:
    folder, notes = run_gate(run, recipe())
    found = verdict(folder)
    assert (found.outcome, len(found.checks), found.run) == ("pass", 8, "synthetic")
    assert set(found.inputs) == {"budgets", "data", "teacher", "synth", "train", "export", "eval", "bench"}
    assert notes == ["verdict: pass, 8 of 8 checks pass"]
    for name in ("verdict.md", "junit.xml", "report.html", "comparison.json", "manifest.json"):
        assert (folder / name).is_file()
    assert sorted(p.name for p in (folder / "release").iterdir()) == ["gguf-q4_0", "manifest.json", "onnx-int4"]
    rows = read_json(folder / "comparison.json")["rows"]
    assert {row["model"] for row in rows if row["target"] is None} == {"untrained", "control", "student"}
    (teacher,) = [row for row in rows if (row["model"], row["target"]) == ("teacher", "local-cpu")]
    assert (teacher["artifact_bytes"], teacher["parameters"]) == (4 * 134_515, 134_515)


def test_the_release_is_whole_moves_and_says_its_hashes(run: Path, recipe: MakeRecipe, run_gate: Gate) -> None:
    folder, _ = run_gate(run, recipe())
    moved = shutil.copytree(folder / "release", run.parent / "elsewhere")
    manifest = read_json(moved / "manifest.json")
    listed = {entry["path"]: entry for entry in manifest["files"]}
    present = {p.relative_to(moved).as_posix() for p in moved.rglob("*") if p.is_file()} - {"manifest.json"}
    assert listed.keys() == present
    for path, entry in listed.items():
        assert (entry["size"], entry["sha256"]) == ((moved / path).stat().st_size, sha256_file(moved / path))
    for variant, said in manifest["artifacts"].items():
        artifact = load_artifact(moved / variant)
        assert (said["bytes"], said["entry"]) == (artifact.total_bytes, artifact.entry)


@pytest.mark.parametrize(
    ("budgets", "outcome"),
    [
        (IMPOSSIBLE, "fail"),
        ({"latency": {"metric": "response_ms", "target": "local-cpu", "max_ratio": 0.04, "artifacts": ["gguf-q4_0"]}},
         "inconclusive"),
        ({"tokens": {"metric": "answer_score_ratio", "min_ratio": 1.0}}, "error"),
        ({}, "error"),
    ],
)  # fmt: skip
def test_without_a_pass_there_is_no_release(
    run: Path, recipe: MakeRecipe, run_gate: Gate, budgets: dict, outcome: str
) -> None:
    run_gate(run, recipe())
    folder, notes = run_gate(run, recipe(budgets))
    assert verdict(folder).outcome == outcome
    assert not (folder / "release").exists()
    assert notes[-1].startswith(f"verdict: {outcome}")
    assert len(notes) == 1 + len(verdict(folder).checks)


def test_a_baseline_that_is_named_must_be_one_even_if_no_budget_asks(
    run: Path, recipe: MakeRecipe, run_gate: Gate, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"expected a baseline to compare with, found none: .*nope\.json is missing"):
        run_gate(run, recipe(gate={"baseline": str(tmp_path / "nope.json")}))
    folder, _ = run_gate(run, recipe())
    saved = shutil.copy(folder / "baseline.json", tmp_path / "saved.json")
    _, notes = run_gate(run, recipe(gate={"baseline": str(saved)}))
    assert notes[0] == 'no budget has against = "previous": nothing is compared with the baseline'


def test_an_artifact_that_no_budget_applies_to_is_not_released(run: Path, recipe: MakeRecipe, run_gate: Gate) -> None:
    budgets = {"size": {"metric": "artifact_bytes", "max_ratio": 0.1, "artifacts": ["gguf-q4_0"]}}
    folder, notes = run_gate(run, recipe(budgets))
    assert sorted(p.name for p in (folder / "release").iterdir()) == ["gguf-q4_0", "manifest.json"]
    assert "onnx-int4 is not released: no budget applies to it" in notes


def test_the_same_run_is_judged_to_the_same_bytes(run: Path, recipe: MakeRecipe, run_gate: Gate) -> None:
    names = ("verdict.json", "verdict.md", "junit.xml", "comparison.json", "report.html", "release/manifest.json")
    folder, _ = run_gate(run, recipe())
    first = {name: (folder / name).read_bytes() for name in names}
    folder, _ = run_gate(run, recipe())
    assert {name: (folder / name).read_bytes() for name in names} == first


@pytest.mark.parametrize(
    ("path", "last", "reason"),
    [
        ("30-export/gguf-q4_0/model.gguf", b"", "gguf-q4_0 is not as it was exported"),
        ("30-export/gguf-q4_0/model.gguf", b"\xff", "gguf-q4_0 is not as it was exported"),
        ("05-teacher/config.json", b"", "teacher is not as it was exported"),
        ("05-teacher/model.safetensors", b"", "teacher is not as it was exported"),
    ],
)
def test_a_file_that_changed_is_an_error_and_no_release(
    run: Path, recipe: MakeRecipe, run_gate: Gate, path: str, last: bytes, reason: str
) -> None:
    (run / path).write_bytes((run / path).read_bytes()[:-1] + last)
    folder, _ = run_gate(run, recipe())
    found = verdict(folder)
    assert found.outcome == "error"
    assert any(reason in check.reason for check in found.checks)
    assert not (folder / "release").exists()


def test_an_artifact_exported_anew_makes_its_measurements_stale(run: Path, recipe: MakeRecipe, run_gate: Gate) -> None:
    folder = run / "30-export" / "gguf-q4_0"
    (folder / "tokenizer.json").write_bytes(b'{"a":1}')
    artifact = read_json(folder / "artifact.json")
    for entry in artifact["files"]:
        path = folder / entry["path"]
        entry |= {"size": path.stat().st_size, "sha256": sha256_file(path)}
    write_json(folder / "artifact.json", artifact)
    gated, _ = run_gate(run, recipe())
    outcomes = {(c.budget, c.artifact): c.outcome for c in verdict(gated).checks}
    assert outcomes["latency", "gguf-q4_0"] == outcomes["mobile-memory", "gguf-q4_0"] == "error"
    assert outcomes["latency", "onnx-int4"] == "pass"


def test_a_run_that_was_not_benched_does_not_pass(run: Path, recipe: MakeRecipe, run_gate: Gate) -> None:
    shutil.rmtree(run / "50-bench")
    folder, _ = run_gate(run, recipe())
    assert verdict(folder).outcome == "error"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pair": "first"}, r"line 1 has 1 error:\n  pair: found 'first'"),
        ({"target": "mobile-class"}, "expected a row of gguf-q4_0, local-cpu, prompts, found one of gguf-q4_0, mobile"),
        ({"samples": {"response_ms": ["fast"]}}, "samples.response_ms.0: found 'fast'"),
    ],
)
def test_a_damaged_row_stops_the_gate(
    run: Path, recipe: MakeRecipe, run_gate: Gate, change: dict, message: str
) -> None:
    path = run / "50-bench" / "local-cpu" / "gguf-q4_0" / "prompts.jsonl"
    rows = read_jsonl(path)
    write_jsonl(path, [rows[0] | change, *rows[1:]])
    with pytest.raises(InputError, match=message):
        run_gate(run, recipe())
    assert not (run / "60-gate" / "manifest.json").exists()


def test_nan_in_a_row_stops_the_gate(run: Path, recipe: MakeRecipe, run_gate: Gate) -> None:
    path = run / "50-bench" / "local-cpu" / "gguf-q4_0" / "memory.jsonl"
    path.write_text(path.read_text().replace('"peak_file_bytes":[0.0]', '"peak_file_bytes":[NaN]', 1))
    with pytest.raises(InputError, match="found nan; input should be a finite number"):
        run_gate(run, recipe())


def test_a_summary_that_is_no_object_stops_the_gate(run: Path, recipe: MakeRecipe, run_gate: Gate) -> None:
    write_json(run / "40-eval" / "summary.json", [])
    with pytest.raises(InputError, match=r"expected an object of model to quality in .*summary\.json, found list"):
        run_gate(run, recipe())


def test_junit_counts_every_check_and_only_a_pass_succeeds(run: Path, recipe: MakeRecipe, run_gate: Gate) -> None:
    budgets = {
        "broken": IMPOSSIBLE["size"],
        "hint": IMPOSSIBLE["size"] | {"level": "warn"},
        "kept": {"metric": "artifact_bytes", "max": "1 GB"},
        "near": {"metric": "exact_match_ratio", "min_ratio": 0.98},
        "unmeasured": {"metric": "answer_score_ratio", "min_ratio": 1.0},
    }
    folder, _ = run_gate(run, recipe(budgets))
    suite = ElementTree.parse(folder / "junit.xml").getroot().find("testsuite")
    assert suite is not None
    assert {k: suite.get(k) for k in ("tests", "failures", "errors", "skipped")} == {
        "tests": "10",
        "failures": "2",
        "errors": "4",
        "skipped": "2",
    }
    kinds = {(case.get("classname"), child.tag, child.get("type")) for case in suite for child in case}
    assert kinds == {
        ("budget.broken", "failure", "fail"),
        ("budget.hint", "skipped", None),
        ("budget.near", "error", "inconclusive"),
        ("budget.unmeasured", "error", "error"),
    }
    first = suite.find("testcase/failure")
    assert first is not None
    assert first.get("message") == "gguf-q4_0: artifact_bytes is 16 kB, over the limit of 1 kB"


def test_junit_of_no_budget_is_an_error(run: Path, recipe: MakeRecipe, run_gate: Gate) -> None:
    folder, _ = run_gate(run, recipe({}))
    root = ElementTree.parse(folder / "junit.xml").getroot()
    assert (root.get("tests"), root.get("errors")) == ("1", "1")
    assert "nothing was judged" in (folder / "verdict.md").read_text()


def test_markdown_has_a_row_for_each_check_and_a_reason_for_what_did_not_pass(
    run: Path, recipe: MakeRecipe, run_gate: Gate
) -> None:
    folder, _ = run_gate(run, recipe(IMPOSSIBLE | {"kept": {"metric": "artifact_bytes", "max_ratio": 0.1}}))
    text, _, _ = (folder / "verdict.md").read_text().partition("## Arms")
    assert text.startswith("# synthetic: fail\n")
    assert text.count("\n| ") == 1 + 4
    assert text.count("\n- **size** (error): ") == 2
    assert "| ≤ 0.1× teacher |" in text
