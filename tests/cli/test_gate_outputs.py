"""What `edgedistill gate` hands to files and CI systems: JUnit, SARIF, annotations, summary, badge, budgets."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from edgedistill import plan
from edgedistill.cli import github, verdict
from edgedistill.cli.main import app
from edgedistill.cli.sarif import sarif
from edgedistill.core.budget import Verdict
from edgedistill.core.errors import InputError
from edgedistill.core.files import write_json, write_text
from edgedistill.core.recipe import load_recipe, shipped_recipes

TOML = """# comment
[bench]
blocks = 6

[budget.size]
metric = "artifact_bytes"
max = "1 KB"

[ budget . "speed" ]
metric = "x"

[budget.tokens.waiver]
reason = "r"

[budget]
inline = { metric = "artifact_bytes", max = 1 }
dotted.metric = "artifact_bytes"
"""


def check(budget: str, outcome: str, **changed: Any) -> dict[str, Any]:
    return {
        "budget": budget, "artifact": "gguf-q4_0", "metric": "artifact_bytes", "unit": "bytes", "target": None,
        "limit_kind": "max", "limit": 1.0, "against": None, "estimate": 2.0, "low": 2.0, "high": 2.0,
        "confidence": 0.95, "samples": 1, "evidence": "measured", "outcome": outcome, "level": "error",
        "reason": f"gguf-q4_0: 50 % is, {outcome}: ok",
    } | changed  # fmt: skip


WAIVED = {"waived": True, "waiver": {"reason": "known", "expires": "2030-01-01"}}
VERDICT = Verdict.model_validate(
    {
        "run": "r",
        "outcome": "fail",
        "inputs": {"bench": "d"},
        "checks": [
            check("size", "fail"), check("size", "pass", artifact="onnx-int4"), check("speed", "inconclusive"),
            check("tokens", "error"), check("tokens", "fail", level="warn", artifact="a"),
            check("inline", "fail", **WAIVED),
        ],
    }
)  # fmt: skip


@pytest.mark.parametrize(
    ("budget", "line"), [("size", 5), ("speed", 9), ("tokens", 12), ("inline", 16), ("dotted", 17), ("siz", None)]
)
def test_a_budget_s_line_is_found(budget: str, line: int | None) -> None:
    assert tomllib.loads(TOML)["budget"].keys() >= ({budget} if line else set())
    assert verdict.line_in_toml(TOML, budget) == line
    assert verdict.line_in_toml(f"budget.{budget}.max = 1\n", budget) == 1


def test_every_budget_of_every_shipped_recipe_has_a_line() -> None:
    found = 0
    for path in shipped_recipes().values():
        lines = path.read_text(encoding="utf-8").splitlines()
        for budget in load_recipe(path).budget:
            assert lines[verdict.line_in_toml("\n".join(lines), budget) - 1].startswith(f"[budget.{budget}]")
            found += 1
    assert found >= 8


def test_without_its_recipe_a_run_points_at_its_lock_file(tmp_path: Path) -> None:
    recipe = load_recipe(shipped_recipes()["quickstart"])
    write_json(tmp_path / plan.LOCK_FILE, recipe.model_dump(mode="json"))
    run = plan.Run(recipe, tmp_path, tmp_path / "gone.toml")
    path, line = verdict.place_of(run, "size")
    assert path.read_text().splitlines()[line - 1] == '  "size": {'
    assert verdict.place_of(plan.Run(recipe, tmp_path, shipped_recipes()["quickstart"]), "size")[0].suffix == ".toml"


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Path, int]]:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a,b:c.toml"
    path.write_text(TOML)
    return {name: (path, verdict.line_in_toml(TOML, name)) for name in ("size", "speed", "tokens", "inline")}


def test_sarif_has_a_rule_a_budget_and_a_result_for_each_that_did_not_pass(places: dict[str, Any]) -> None:
    log = json.loads(json.dumps(sarif(VERDICT, places)))
    assert log["version"] == "2.1.0" and log["$schema"].endswith("sarif-schema-2.1.0.json")
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    assert [rule["id"] for rule in driver["rules"]] == [f"budget.{n}" for n in ("inline", "size", "speed", "tokens")]
    assert [(r["ruleId"], r["level"]) for r in run["results"]] == [
        ("budget.size", "error"), ("budget.speed", "warning"), ("budget.tokens", "error"), ("budget.tokens", "warning"),
        ("budget.inline", "error"),
    ]  # fmt: skip
    for result in run["results"]:
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        (location,) = result["locations"]
        assert location["physicalLocation"]["artifactLocation"]["uri"] == "a,b:c.toml"
        assert location["physicalLocation"]["region"]["startLine"] == places[result["ruleId"].split(".")[1]][1]
        assert result["message"]["text"]
    assert len({r["partialFingerprints"]["edgedistillCheck/v1"] for r in run["results"]}) == 5
    suppressed = [r["suppressions"][0]["justification"] for r in run["results"] if "suppressions" in r]
    assert suppressed == ["known"] and run["invocations"] == [{"executionSuccessful": True}]


def test_annotations_are_escaped_and_stand_at_the_budget(places: dict[str, Any]) -> None:
    lines = github.annotations(VERDICT, places)
    assert lines[0] == ("::error file=a%2Cb%3Ac.toml,line=5,title=budget size%3A fail::gguf-q4_0: 50 %25 is, fail: ok")
    assert [line.split()[0] for line in lines] == ["::error", "::warning", "::error", "::warning", "::notice"]
    assert "title=budget inline%3A fail%2C waived" in lines[-1]
    evil = VERDICT.model_copy(update={"checks": (VERDICT.checks[0].model_copy(update={"reason": "a\n::error::b\r"}),)})
    (line,) = github.annotations(evil, places)
    assert line.endswith("::a%0A::error::b%0D") and "\n" not in line


def test_the_badge_is_a_shields_endpoint() -> None:
    assert github.badge(VERDICT) == {
        "schemaVersion": 1, "label": "r", "message": "fail, 1 of 6, 1 waived", "color": "red",
    }  # fmt: skip
    assert {github.COLORS[outcome] for outcome in ("pass", "inconclusive")} == {"brightgreen", "yellow"}


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder whose gate is done: the verdict above, without running a stage."""
    monkeypatch.chdir(tmp_path)
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "recipe.toml"
    path.write_text(shipped_recipes()["quickstart"].read_text(encoding="utf-8"))
    made = VERDICT.model_copy(update={"checks": (VERDICT.checks[0],)})

    def execute(run: plan.Run, report: object, **_: Any) -> None:
        from edgedistill.gate.written import junit, markdown

        folder = run.folder / "60-gate"
        write_json(folder / "verdict.json", made.model_dump(mode="json"))
        write_text(folder / "verdict.md", markdown(made))
        write_text(folder / "junit.xml", junit(made))
        write_text(folder / "suggested.toml", '[budget.a]\nmetric = "artifact_bytes"\nmax = 1\n')
        write_json(folder / "baseline.json", {"baseline": str(run.recipe.gate.baseline)})

    monkeypatch.setattr(plan, "execute", execute)
    return path


def test_the_command_writes_what_it_is_asked_for_and_exits_with_the_verdict(judged: Path) -> None:
    files = [f"--{name}={name}.out" for name in ("junit", "sarif", "badge", "github-summary")]
    done = CliRunner().invoke(app, ["gate", str(judged), *files, "--json", "--save-baseline", "main"])
    assert done.exit_code == 1 and json.loads(done.stdout)["outcome"] == "fail"
    assert ElementTree.parse("junit.out").getroot().find("testsuite/testcase/failure") is not None
    assert json.loads(Path("badge.out").read_text())["message"] == "fail, 0 of 1"
    location = json.loads(Path("sarif.out").read_text())["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
    assert location["artifactLocation"]["uri"] == "recipe.toml"
    lines = judged.read_text().splitlines()
    assert lines[location["region"]["startLine"] - 1] == "[budget.size]"
    assert Path("github-summary.out").read_text().startswith("# r: fail")
    assert Path("baselines/main.json").is_file() and "--baseline baselines/main.json" in done.stderr
    assert "::error" not in done.stderr


@pytest.mark.parametrize("option", ["junit", "sarif", "badge", "github-summary", "save-baseline"])
def test_a_folder_is_no_file_to_write(judged: Path, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("judged before it was known where to write")

    monkeypatch.setattr(plan, "execute", never)
    folder = Path("out.d/here.json")
    folder.mkdir(parents=True)
    done = CliRunner().invoke(app, ["gate", str(judged), f"--{option}", str(folder)])
    assert isinstance(done.exception, InputError) and done.exception.exit_code == 2
    assert str(done.exception) == f"--{option}: expected a file to write, found the folder {folder}; name a file in it"


def test_in_github_actions_it_annotates_and_appends_the_summary_by_itself(
    judged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    Path("summary.md").write_text("earlier\n")
    done = CliRunner().invoke(app, ["gate", str(judged)])
    assert done.exit_code == 1
    assert "::error file=recipe.toml,line=" in done.stderr and "::error" not in done.stdout
    assert Path("summary.md").read_text().startswith("earlier\n# r: fail")


def test_proposed_budgets_go_to_stdout_as_toml(judged: Path) -> None:
    done = CliRunner().invoke(app, ["gate", str(judged), "--suggest"])
    assert done.exit_code == 0 and tomllib.loads(done.stdout)["budget"]["a"]["max"] == 1


def test_a_named_baseline_replaces_the_recipe_s(judged: Path) -> None:
    with pytest.raises(InputError, match=r"--baseline: expected a stored baseline at here\.json, found none; keep one"):
        CliRunner().invoke(app, ["gate", str(judged), "--baseline", "here.json"], catch_exceptions=False)
    Path("here.json").touch()
    CliRunner().invoke(app, ["gate", str(judged), "--baseline", "here.json", "--save-baseline", "out/x"])
    assert json.loads(Path("out/x").read_text())["baseline"] == str(Path("here.json").resolve())


@pytest.mark.parametrize(
    ("checks", "wanted"),
    [
        ([("inconclusive", "t", {})], True),
        ([("inconclusive", None, {})], False),
        ([("inconclusive", "t", {"level": "warn"})], False),
        ([("inconclusive", "t", WAIVED)], False),
        ([("inconclusive", "t", {}), ("fail", "t", {})], False),
        ([("inconclusive", "t", {}), ("error", "t", {})], False),
        ([("inconclusive", "t", {}), ("fail", "t", {"level": "warn"}), ("pass", "t", {})], True),
        ([("pass", "t", {})], False),
    ],
)
def test_further_blocks_are_measured_only_where_they_can_decide(checks: list[Any], wanted: bool) -> None:
    made = [check("b", outcome, target=target, **changed) for outcome, target, changed in checks]
    assert verdict._undecided(Verdict.model_validate({"run": "r", "outcome": "fail", "checks": made})) is wanted
