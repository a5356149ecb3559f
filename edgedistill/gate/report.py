"""`report.html`: the verdict, the comparison, plots and provenance in one file that opens without a network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgedistill.core.arms import COLUMNS, ArmsTable, arm_cells
from edgedistill.core.artifact import Manifest
from edgedistill.core.budget import Check, Verdict
from edgedistill.core.metric import METRICS
from edgedistill.core.page import page_environment
from edgedistill.core.sequential import Look
from edgedistill.gate.plots import Line, Point, curves, scatter, thin
from edgedistill.gate.proof import NONE, proof_table
from edgedistill.gate.rundata import ROLES
from edgedistill.gate.words import number, quantity, sentence_case, span, times
from edgedistill.gate.written import interval_text

ARMS = {"student": "student", "control": "control", "gold": "gold"}


def render_report(
    *,
    verdict: Verdict,
    comparison: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    parity: Mapping[str, Mapping[str, Any]],
    manifests: Sequence[tuple[str, Manifest]],
    counts: Sequence[tuple[str, Any, str]],
    looks: Sequence[Look] = (),
    architecture: Mapping[str, str] | None = None,
) -> str:
    """The report as HTML; equal inputs give equal bytes.

    Args:
        metrics: rows of the training log.
        parity: variant → the proof of its artifact.
        manifests: (folder name, manifest) of each stage, in order.
        counts: (what, how many, the file that says so) of the data.
        looks: where growing measurements are judged, and how strictly; none: once.
        architecture: model → what it is made of.
    """
    from markupsafe import Markup

    environment = page_environment(Path(__file__).parent)
    environment.filters |= {
        "quantity": _or_none(quantity),
        "arm_cells": arm_cells,
        "sentence": sentence_case,
        "span": lambda ends, unit: span(*ends, unit),
        "times": _or_none(times),
        "change": _or_none(lambda pct: f"{pct:+.1f} %".replace("-", "−")),
        "percent": _or_none(lambda pct: f"{number(pct)} %"),
        "count": _or_none(number),
        "plain": _or_none(number),
    }
    rows = comparison["rows"]
    environment.globals["arm_columns"] = COLUMNS
    return environment.get_template("report.html.j2").render(
        verdict=verdict,
        comparison=comparison,
        summary=_summary(verdict, manifests),
        headlines=_headlines(rows, comparison["targets"]),
        rule=_rule(comparison["confidence"], looks),
        checks=[_check(check, confidence=comparison["confidence"]) for check in verdict.checks],
        targets=_targets(rows, comparison["targets"]),
        quality=_first_of_each(rows),
        arms=ArmsTable.model_validate(comparison["arms"]) if comparison.get("arms") else None,
        problems=list(dict.fromkeys(problem for row in rows for problem in row["problems"])),
        plots=[(caption, Markup(svg)) for caption, svg in _plots(rows, comparison["targets"])],
        training=Markup(svg) if (svg := _training(metrics)) else None,
        counts=[
            (name, number(value) if isinstance(value, int | float) else value, path) for name, value, path in counts
        ],
        parity=proof_table(parity),
        provenance=_provenance(verdict, comparison, manifests, architecture or {}),
        stages=[_stage(folder, manifest) for folder, manifest in manifests],
        definitions=[(metric.value, f"{info.definition} ({info.unit})") for metric, info in METRICS.items()],
    )


def _or_none(function: Any) -> Any:
    return lambda value, *arguments: NONE if value is None else function(value, *arguments)


def _summary(verdict: Verdict, manifests: Sequence[tuple[str, Manifest]]) -> str:
    passed = sum(check.outcome == "pass" for check in verdict.checks)
    judged = f"{passed} of {len(verdict.checks)} checks pass" if verdict.checks else "nothing was judged"
    if not manifests:
        return judged
    last = manifests[-1][1]
    host = last.environment.get("hardware", {}).get("cpu", "an unknown host")
    return f"{judged} · measured {_when(last.finished)} on {host}"


def _when(finished: str) -> str:
    return finished[:16].replace("T", " ") + " UTC"


def _headlines(rows: Sequence[Mapping[str, Any]], targets: Sequence[str]) -> list[Mapping[str, Any]]:
    """The release on the first target it was measured on."""
    return [row for row in _first_of_each(rows) if row["release"] and row["target"] in targets]


def _first_of_each(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return list({row["model"]: row for row in reversed(rows)}.values())[::-1]


def _targets(rows: Sequence[Mapping[str, Any]], targets: Sequence[str]) -> list[dict[str, Any]]:
    found = []
    for target in targets:
        here = [row for row in rows if row["target"] == target]
        if here:
            evidence = ", ".join(sorted({row["evidence"] for row in here if row["evidence"]}))
            found.append({"name": target, "evidence": evidence, "rows": here})
    return found


def _rule(confidence: float, looks: Sequence[Look]) -> str:
    """At which confidence intervals are judged, the looks of growing measurements each with its own."""
    if len(looks) < 2:
        return f"the whole {number(100 * confidence)} % interval"
    each = ", ".join(f"{_confidence(look.confidence)} with {look.blocks} blocks" for look in looks)
    return (
        f"its whole interval ({each}: as further blocks may be measured, each look is stricter than the "
        f"{number(100 * confidence)} % asked for, so that all together err no more often)"
    )


def _confidence(value: float) -> str:
    return f"{100 * value:.4g} %"


def _check(check: Check, *, confidence: float) -> dict[str, Any]:
    def shown(value: float) -> str:
        return times(value) if check.against else quantity(value, check.unit)

    sign = "≤" if check.limit_kind.startswith("max") else "≥"
    whose = f" {check.against}" if check.against else ""
    own = check.confidence != confidence and check.low != check.high
    return {
        "check": check,
        "estimate": NONE if check.estimate is None else shown(check.estimate),
        "spread": interval_text(check),
        "at": f"at {_confidence(check.confidence)}" if own else "",
        "limit": f"{sign} {shown(check.limit)}{whose}",
        "bar": _bar(check),
    }


def _bar(check: Check) -> tuple[float, float] | None:
    """Left end and width of the interval in percent of a logarithmic scale from a tenth to ten times the limit."""
    if check.low is None or check.high is None or check.limit <= 0 or check.high <= 0:
        return None
    low, high = (50 + 50 * math.log10(max(value, 1e-9) / check.limit) for value in (check.low, check.high))
    left, right = (min(97.0, max(0.0, place)) for place in (low, high))
    return round(left, 1), round(right - left, 1)


def _plots(rows: Sequence[Mapping[str, Any]], targets: Sequence[str]) -> list[tuple[str, str]]:
    points = [
        Point(row["model"], row["role"], row["artifact_bytes"] / 1e6, 100 * row["exact_match_ratio"],
              *(100 * end for end in row.get("exact_match_ratio_interval", ())), strong=row["release"])
        for row in _first_of_each(rows)
        if row["artifact_bytes"] and row["exact_match_ratio"] is not None and row["role"] != "untrained"
    ]  # fmt: skip
    plots = []
    if points:
        svg = scatter(
            points, series=ROLES, x="bytes, MB", y="exact match, %", title="Accuracy against size", log_y=False
        )
        plots.append(("Accuracy against size", svg))
    for target in targets:
        points = [
            Point(row["model"], row["role"], row["artifact_bytes"] / 1e6, row["requests_per_hour"],
                  *row.get("requests_per_hour_interval", ()), strong=row["release"])
            for row in rows
            if row["target"] == target and row["artifact_bytes"] and row["requests_per_hour"]
        ]  # fmt: skip
        if points:
            title = f"Speed against size on {target}"
            svg = scatter(points, series=ROLES, x="bytes, MB", y="requests per hour", title=title, log_y=True)
            plots.append((title, svg))
    return plots


def _training(metrics: Sequence[Mapping[str, Any]]) -> str | None:
    """Cross-entropy of each arm by step: of the training batches, and of what was held back from them."""
    lines = []
    for arm, series in ARMS.items():
        for key, name in (("ce", arm), ("valid_ce", f"{arm}, not trained on")):
            rows = [row for row in metrics if row.get("arm") == arm and isinstance(row.get(key), int | float)]
            if rows:
                held = key == "valid_ce"
                x, y = [float(row["step"]) for row in rows], [float(row[key]) for row in rows]
                lines.append(Line(name, series, *((x, y) if held else thin(x, y)), dashed=held))
    if not lines:
        return None
    return curves(lines, series=tuple(ARMS), x="step", y="nats per token", title="Training")


def _provenance(
    verdict: Verdict,
    comparison: Mapping[str, Any],
    manifests: Sequence[tuple[str, Manifest]],
    architecture: Mapping[str, str],
) -> list[tuple[str, str]]:
    found = [("recipe", verdict.run), *architecture.items()]
    if manifests:
        found.append(("all stages together", _duration(sum(manifest.seconds for _, manifest in manifests))))
    found.append(("host", str(comparison["host_id"])))
    if manifests:
        environment = manifests[-1][1].environment
        hardware = environment.get("hardware", {})
        found.append(("hardware", ", ".join(f"{name} {said}" for name, said in hardware.items())))
        found.append(("kernel", str(environment.get("kernel", NONE))))
        versions = environment.get("versions", {})
        found.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
        found.append(("commit", str(environment.get("commit") or NONE)))
    evidence = {row["target"]: row["evidence"] for row in comparison["rows"] if row["evidence"]}
    found.append(("evidence", ", ".join(f"{target}: {what}" for target, what in evidence.items()) or NONE))
    return [*found, ("budgets", verdict.inputs.get("budgets", NONE))]


def _duration(seconds: float) -> str:
    """`48 s`, `12 min 5 s`, `3 h 4 min`."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{left} s"


def _stage(folder: str, manifest: Manifest) -> dict[str, Any]:
    return {
        "stage": manifest.stage,
        "folder": folder,
        "finished": _when(manifest.finished),
        "seconds": manifest.seconds,
        "commit": (manifest.environment.get("commit") or NONE)[:12],
        "output": manifest.output_digest[:12],
    }
