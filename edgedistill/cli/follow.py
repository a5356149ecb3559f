"""What the commands have in common: run stages while telling how it goes, judge, and read what a run left."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from edgedistill import plan
from edgedistill.cli import entries, show
from edgedistill.cli.progress import reporter
from edgedistill.core.artifact import Manifest
from edgedistill.core.budget import Verdict
from edgedistill.core.config import validate
from edgedistill.core.errors import (
    EXIT_GATE_FAILED,
    EXIT_INCONCLUSIVE,
    EXIT_OK,
    EXIT_STAGE_FAILED,
    InputError,
)
from edgedistill.core.files import read_json
from edgedistill.core.runfolder import FOLDERS, check_launch, read_manifest

EXIT_OF = {
    "pass": EXIT_OK,
    "fail": EXIT_GATE_FAILED,
    "inconclusive": EXIT_INCONCLUSIVE,
    "error": EXIT_STAGE_FAILED,
}
REPORT_FILES = ("report.html", "verdict.md", "verdict.json", "junit.xml", "comparison.json")


def follow(
    reference: str,
    overrides: tuple[str, ...],
    *,
    runs_dir: Path,
    verify: bool = False,
    until: str | None = None,
    launch: str | None = None,
) -> int:
    """Run what is not done up to `until` (default: all) and say so; returns the exit code, the verdict's after gate."""
    run = plan.resolve(reference, overrides, runs_dir=runs_dir)
    if launch is not None:
        check_launch(launch)
    began = time.monotonic()
    with reporter() as report:
        report.note(f"{run.recipe.name} in {run.folder}")

        def tell(step: plan.Step) -> None:
            if step.state in ("done", "running", "ran"):
                report.note(show.step_line(step, figures=_figures(step) if step.state != "running" else {}))

        steps = plan.execute(run, report, until=until, verify=verify, on_step=tell, launch=launch)
    ran = [step.stage for step in steps if step.state == "ran"]
    if ran:
        print(f"ran {', '.join(ran)} in {show.duration(time.monotonic() - began)}")
    else:
        took = show.duration(sum(step.seconds or 0 for step in steps))
        print(f"nothing to do: all {len(steps)} stages are done (they took {took})")
    if until is not None:
        print(f"results: {run.folder / FOLDERS[until]}")
        return EXIT_OK
    return _conclude(run)


def looked_at(reference: str, overrides: tuple[str, ...], *, runs_dir: Path, count: int) -> tuple[Any, str]:
    """`count` of the teacher's answers, or for 0 what they would take, as JSON values and as text."""
    if count:
        rows = sample_of(reference, overrides, runs_dir=runs_dir, count=count)
        return rows, show.sample_text(rows)
    found = estimate_of(reference, overrides, runs_dir=runs_dir)
    return found, show.estimate_text(found)


def estimate_of(reference: str, overrides: tuple[str, ...], *, runs_dir: Path) -> dict[str, Any]:
    """What the teacher's answers would take: the prompts are made, as they must be, and nothing is asked."""
    run = plan.resolve(reference, overrides, runs_dir=runs_dir)
    with reporter() as report:
        plan.execute(run, report, until="data")
    return entries.estimate(run)


def sample_of(reference: str, overrides: tuple[str, ...], *, runs_dir: Path, count: int) -> list[dict[str, Any]]:
    """`count` of the teacher's answers, made first if they are not there."""
    run = plan.resolve(reference, overrides, runs_dir=runs_dir)
    with reporter() as report:
        plan.execute(run, report, until="synth")
    return entries.sample_records(run.folder / FOLDERS["synth"], count)


def report_files(reference: str, overrides: tuple[str, ...], *, runs_dir: Path) -> dict[str, str]:
    """File name → path of what the gate reports in, brought up to date."""
    run = plan.resolve(reference, overrides, runs_dir=runs_dir)
    with reporter() as report:
        plan.execute(run, report, only="gate")
    folder = run.folder / FOLDERS["gate"]
    return {name: str(folder / name) for name in REPORT_FILES if (folder / name).is_file()}


def state_of(reference: str, *, runs_dir: Path, verify: bool) -> dict[str, Any]:
    """A run's stages, their figures and its verdict, as JSON values."""
    run = plan.resolve(reference, runs_dir=runs_dir)
    steps = plan.plan(run, verify=verify)
    done = {step.stage for step in steps if step.state == "done"}
    stages = [row | {"figures": _figures(step)} for row, step in zip(show.steps_json(steps), steps, strict=True)]
    return {
        "run": run.recipe.name,
        "folder": str(run.folder),
        "stages": stages,
        "verdict": verdict_of(run).outcome if "gate" in done else None,
    }


def comparison_of(reference: str, *, runs_dir: Path) -> dict[str, Any]:
    """A run's `comparison.json`: every artifact beside the teacher.

    Raises:
        InputError: the run has none yet.
    """
    run = plan.resolve(reference, runs_dir=runs_dir)
    path = run.folder / FOLDERS["gate"] / "comparison.json"
    if not path.is_file():
        raise InputError(f"expected {path}, found none; run `{run.command()}` first, to the end")
    return read_json(path)


def _conclude(run: plan.Run) -> int:
    folder = run.folder / FOLDERS["gate"]
    if (folder / "comparison.json").is_file():
        print(show.comparison_table(read_json(folder / "comparison.json")))
    verdict = verdict_of(run)
    print(show.verdict_table(verdict, only_open=True))
    for title, path in (("report", folder / "report.html"), ("release", folder / "release")):
        if path.exists():
            print(f"{title}: {path}")
    return EXIT_OF[verdict.outcome]


def verdict_of(run: plan.Run) -> Verdict:
    path = run.folder / FOLDERS["gate"] / "verdict.json"
    return validate(Verdict, read_json(path), source=str(path))


def _figures(step: plan.Step) -> dict[str, Any]:
    manifest: Manifest | None = read_manifest(step.folder)
    return manifest.figures if manifest else {}
