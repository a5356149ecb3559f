"""`report.html`: the verdict, the comparison, plots and provenance in one file that opens without a network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgedistill.core.artifact import Manifest
from edgedistill.core.budget import Check, Verdict
from edgedistill.core.metric import METRICS
from edgedistill.gate.plots import Line, Point, curves, scatter, thin
from edgedistill.gate.rundata import ROLES
from edgedistill.gate.words import number, quantity, span, times
from edgedistill.gate.written import interval_text

NONE = "–"
ARMS = {"student": "student", "control": "control"}


def render_report(
    *,
    verdict: Verdict,
    comparison: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    parity: Mapping[str, Mapping[str, Any]],
    manifests: Sequence[tuple[str, Manifest]],
    counts: Sequence[tuple[str, Any, str]],
) -> str:
    """The report as HTML; equal inputs give equal bytes.

    Args:
        metrics: rows of the training log.
        parity: variant → the proof of its artifact.
        manifests: (folder name, manifest) of each stage, in order.
        counts: (what, how many, the file that says so) of the data.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "quantity": _or_none(quantity),
        "span": lambda ends, unit: span(*ends, unit),
        "times": _or_none(times),
        "change": _or_none(lambda pct: f"{pct:+.1f} %".replace("-", "−")),
        "percent": _or_none(lambda pct: f"{number(pct)} %"),
        "count": _or_none(number),
        "plain": _or_none(number),
    }
    rows = comparison["rows"]
    return environment.get_template("report.html.j2").render(
        verdict=verdict,
        comparison=comparison,
        summary=_summary(verdict, manifests),
        headlines=_headlines(rows, comparison["targets"]),
        checks=[_check(check) for check in verdict.checks],
        targets=_targets(rows, comparison["targets"]),
        quality=_first_of_each(rows),
        problems=list(dict.fromkeys(problem for row in rows for problem in row["problems"])),
        plots=[(caption, Markup(svg)) for caption, svg in _plots(rows, comparison["targets"])],
        training=Markup(svg) if (svg := _training(metrics)) else None,
        counts=[
            (name, number(value) if isinstance(value, int | float) else value, path) for name, value, path in counts
        ],
        parity=_parity(parity),
        provenance=_provenance(verdict, comparison, manifests),
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


def _check(check: Check) -> dict[str, Any]:
    def shown(value: float) -> str:
        return times(value) if check.against else quantity(value, check.unit)

    sign = "≤" if check.limit_kind.startswith("max") else "≥"
    whose = f" {check.against}" if check.against else ""
    return {
        "check": check,
        "estimate": NONE if check.estimate is None else shown(check.estimate),
        "spread": interval_text(check),
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


def _parity(parity: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One column a variant, one row a figure; the bounds that every finished export keeps are left out."""
    flat = {
        variant: dict(_flat({k: v for k, v in proof.items() if k != "bounds"})) for variant, proof in parity.items()
    }
    names = list(dict.fromkeys(name for cells in flat.values() for name in cells))
    return {
        "variants": list(flat),
        "rows": [(name, [cells.get(name, NONE) for cells in flat.values()]) for name in names],
    }


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for name, inner in value.items():
        label = f"{prefix} {name}".strip().replace("_", " ")
        if isinstance(inner, Mapping):
            found += _flat(inner, label)
        elif isinstance(inner, bool):
            found.append((label, "yes" if inner else "no"))
        elif isinstance(inner, int | float):
            found.append((label, number(inner)))
        elif inner is not None:
            found.append((label, ", ".join(map(str, inner)) or "none" if isinstance(inner, list) else str(inner)))
    return found


def _provenance(
    verdict: Verdict, comparison: Mapping[str, Any], manifests: Sequence[tuple[str, Manifest]]
) -> list[tuple[str, str]]:
    found = [("run", verdict.run), ("host", str(comparison["host_id"]))]
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


def _stage(folder: str, manifest: Manifest) -> dict[str, Any]:
    return {
        "stage": manifest.stage,
        "folder": folder,
        "finished": _when(manifest.finished),
        "seconds": manifest.seconds,
        "commit": (manifest.environment.get("commit") or NONE)[:12],
        "output": manifest.output_digest[:12],
    }
