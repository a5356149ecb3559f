"""What `edgedistill gate` does besides judging: settle, and hand the verdict to files and to a CI system."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgedistill import plan
from edgedistill.cli import github
from edgedistill.cli.follow import verdict_of
from edgedistill.cli.outputs import require_no_folders
from edgedistill.cli.progress import reporter
from edgedistill.cli.sarif import sarif
from edgedistill.core.budget import Verdict
from edgedistill.core.errors import InputError
from edgedistill.core.files import atomic_path, write_json
from edgedistill.core.runfolder import FOLDERS

BASELINES = Path("baselines")
Place = tuple[Path, int]


def gate(
    reference: str,
    overrides: tuple[str, ...],
    *,
    runs_dir: Path,
    settle: bool = False,
    baseline: Path | None = None,
    outputs: Mapping[str, Path | None],
    save_baseline: str | None = None,
) -> tuple[Verdict, Path]:
    """The verdict on what a run has measured, written wherever asked, and the gate's folder.

    Args:
        settle: measure further blocks while a binding check is inconclusive, as many as the recipe declares.
        baseline: replaces the recipe's own.
        outputs: `junit`, `sarif`, `badge`, `summary` → where to write; None: nowhere.

    Raises:
        InputError: a file to write is a folder, the baseline is not there, or a stage before the gate is not done.
    """
    require_no_folders({**outputs, "save-baseline": None if save_baseline is None else baseline_path(save_baseline)})
    if baseline is not None:
        if not baseline.is_file():
            raise InputError(
                f"--baseline: expected a stored baseline at {baseline}, found none; keep one first by "
                "`edgedistill gate RUN --save-baseline NAME`"
            )
        overrides = (*overrides, f"gate.baseline={json.dumps(str(baseline.resolve()))}")
    run = plan.resolve(reference, overrides, runs_dir=runs_dir)
    with reporter() as report:
        if settle:
            run = plan.settle(
                run,
                report,
                wanted=lambda: _undecided(verdict_of(run)),
                on_run=lambda later: report.note(f"measuring {later.recipe.bench.further_blocks} further blocks"),
            )
        else:
            plan.execute(run, report, only="gate")
    verdict, folder = verdict_of(run), run.folder / FOLDERS["gate"]
    places = {name: place_of(run, name) for name in {check.budget for check in verdict.checks}}
    writers: dict[str, Callable[[Path], None]] = {
        "junit": lambda path: _copy(folder / "junit.xml", path),
        "sarif": lambda path: write_json(path, sarif(verdict, places)),
        "badge": lambda path: write_json(path, github.badge(verdict)),
        "summary": lambda path: _append(path, (folder / "verdict.md").read_text(encoding="utf-8")),
    }
    for name, path in outputs.items():
        if path is not None:
            writers[name](path)
    if save_baseline is not None:
        path = baseline_path(save_baseline)
        _copy(folder / "baseline.json", path)
        print(f"baseline kept in {path}; compare with it: edgedistill gate RUN --baseline {path}", file=sys.stderr)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        # On stderr, which the runner reads too: stdout may be JSON for another program.
        print("\n".join(github.annotations(verdict, places)), file=sys.stderr)
    return verdict, folder


def baseline_path(name: str) -> Path:
    """Where a baseline of that name or path is kept: a bare name stands in `baselines/`."""
    path = Path(name)
    return path if path.suffix == ".json" or len(path.parts) > 1 else BASELINES / f"{name}.json"


def place_of(run: plan.Run, budget: str) -> Place:
    """The file and line that define a budget: in the recipe's TOML, or in the run's lock file where that is gone."""
    for path, pattern in ((run.source, line_in_toml), (run.folder / plan.LOCK_FILE, line_in_lock)):
        if path is not None and path.is_file():
            line = pattern(path.read_text(encoding="utf-8"), budget)
            if line:
                return path, line
    return run.source or run.folder / plan.LOCK_FILE, 1


def line_in_toml(text: str, budget: str) -> int | None:
    """The line of `[budget.ID]`, `budget.ID…`, or `ID…` in `[budget]`; counted from 1."""
    name = rf"""(?:{re.escape(budget)}|"{re.escape(budget)}"|'{re.escape(budget)}')"""
    header = re.compile(rf"\s*\[\s*budget\s*\.\s*{name}\s*[.\]]")
    keys = {"": re.compile(rf"\s*budget\s*\.\s*{name}\s*[.=]"), "budget": re.compile(rf"\s*{name}\s*[.=]")}
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header.match(line) or (table in keys and keys[table].match(line)):
            return number
        if found := re.match(r"\s*\[\s*([^\[\]]*?)\s*\]", line):
            table = found[1]
    return None


def line_in_lock(text: str, budget: str) -> int | None:
    """The line of the budget's key in a lock file, which is JSON of one key a line."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith(' "budget": {')), len(lines))
    wanted = f"  {json.dumps(budget, ensure_ascii=False)}: {{"
    return next((i + 1 for i in range(start, len(lines)) if lines[i].startswith(wanted)), None)


def _undecided(verdict: Verdict) -> bool:
    """Whether further blocks can decide a check that binds, and nothing else stands in the way of a pass."""
    binding = [check for check in verdict.checks if check.level == "error" and not check.waived]
    if any(check.outcome in ("fail", "error") for check in binding):
        return False  # what more blocks cannot mend is told at once
    return any(check.outcome == "inconclusive" and check.target is not None for check in binding)


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        temporary.write_bytes(source.read_bytes())


def _append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as f:
        f.write(text + "\n")


def suggested(folder: Path) -> str:
    """The budgets that the gate proposed, as TOML."""
    return (folder / "suggested.toml").read_text(encoding="utf-8").rstrip("\n")


def shown(verdict: Verdict, *, as_json: bool) -> Any:
    """The verdict as the command prints it."""
    from edgedistill.cli import show

    return verdict.model_dump(mode="json") if as_json else show.verdict_table(verdict)
