"""The verdict for GitHub and badges: workflow annotations and a shields.io endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgedistill.core.budget import Check, Verdict

COLORS = {"pass": "brightgreen", "fail": "red", "error": "red", "inconclusive": "yellow"}


def annotations(verdict: Verdict, places: Mapping[str, tuple[Path, int]]) -> list[str]:
    """One workflow command for each check that did not pass, at the budget's line.

    Format: docs.github.com, "Workflow commands for GitHub Actions".
    """
    return [_annotation(check, *places[check.budget]) for check in verdict.checks if check.outcome != "pass"]


def badge(verdict: Verdict) -> dict[str, object]:
    """A shields.io endpoint (shields.io/badges/endpoint-badge): how many checks pass."""
    passed = sum(check.outcome == "pass" for check in verdict.checks)
    waived = sum(check.waived for check in verdict.checks)
    said = f"{verdict.outcome}, {passed} of {len(verdict.checks)}" + (f", {waived} waived" if waived else "")
    return {"schemaVersion": 1, "label": verdict.run, "message": said, "color": COLORS[verdict.outcome]}


def relative(path: Path) -> Path:
    """`path` from the working folder, as CI systems want it, or whole where it lies outside."""
    here = Path.cwd().resolve()
    return path.resolve().relative_to(here) if path.resolve().is_relative_to(here) else path


def _annotation(check: Check, path: Path, line: int) -> str:
    mild = check.level == "warn" or check.outcome == "inconclusive"
    command = "notice" if check.waived else "warning" if mild else "error"
    title = f"budget {check.budget}: {check.outcome}{', waived' if check.waived else ''}"
    properties = {"file": relative(path).as_posix(), "line": str(line), "title": title}
    told = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    return f"::{command} {told}::{_data(check.reason)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
