"""Budgets that a run keeps, proposed from its own intervals: each limit just outside of the worst one.

Pure: no clock, no file, no environment.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from edgedistill.core.budget import Budget
from edgedistill.core.metric import METRICS, Metric
from edgedistill.core.sequential import Look
from edgedistill.gate.estimate import estimate, estimate_ratio
from edgedistill.gate.rundata import RunData, UnmeasuredError
from edgedistill.gate.words import number

TEACHER = "teacher"
ROOM = 0.02  # between the worst interval's end and the limit
# metric, the limit that is proposed for it; ratios are against the teacher
ANYWHERE = ((Metric.ARTIFACT_BYTES, "max"), (Metric.EXACT_MATCH_RATIO, "min_ratio"), (Metric.KLD_NATS, "max"))
ON_TARGET = ((Metric.RESPONSE_MS, "max_ratio"), (Metric.TPOT_MS, "max_ratio"), (Metric.REQUESTS_PER_HOUR, "min_ratio"),
             (Metric.PEAK_RSS_BYTES, "max"))  # fmt: skip


def suggest(
    data: RunData, *, release: Sequence[str], targets: Sequence[str], confidence: float, looks: Sequence[Look] = ()
) -> str:
    """`[budget.<id>]` tables as TOML; a figure that cannot be told is a comment with the reason."""
    wanted = [(metric, kind, None) for metric, kind in ANYWHERE]
    wanted += [(metric, kind, target) for target in targets for metric, kind in ON_TARGET]
    parts = [_budget(data, metric, kind, target, release, confidence, looks) for metric, kind, target in wanted]
    return "\n".join(parts)


def _budget(
    data: RunData,
    metric: Metric,
    kind: str,
    target: str | None,
    release: Sequence[str],
    confidence: float,
    looks: Sequence[Look],
) -> str:
    name = f"{f'{target}-' if target else ''}{metric.value.replace('_', '-')}"
    try:
        if not release:
            raise UnmeasuredError("the recipe releases no artifact")
        ends = [end for model in release for end in _ends(data, metric, kind, target, model, confidence, looks)]
    except UnmeasuredError as e:
        return f"# {name}: cannot be told, because {e}\n"
    limit = _limit(min(ends) if kind.startswith("min") else max(ends), up=kind.startswith("max"))
    fields = {"metric": metric.value, "target": target, kind: limit}
    Budget.model_validate(fields)  # what is proposed must load
    unit = f"× {TEACHER}" if kind.endswith("ratio") else METRICS[metric].unit
    lines = [f"[budget.{name}]  # measured: {number(min(ends))} to {number(max(ends))} {unit}"]
    lines += [f"{key} = {_toml(value)}" for key, value in fields.items() if value is not None]
    return "\n".join([*lines, ""])


def _ends(
    data: RunData,
    metric: Metric,
    kind: str,
    target: str | None,
    model: str,
    confidence: float,
    looks: Sequence[Look],
) -> Iterator[float]:
    """Both ends of the interval at every look: the first look that decides must find the limit kept."""
    benched = METRICS[metric].source == "bench"
    for look in looks if looks and benched else [Look(0, confidence)]:
        how = {
            "metric": metric, "model": model, "target": target, "confidence": look.confidence,
            "rounds": look.blocks if looks and benched else None,
        }  # fmt: skip
        found = estimate_ratio(data, against=TEACHER, **how) if kind.endswith("ratio") else estimate(data, **how)
        yield from (found.interval.low, found.interval.high)


def _limit(end: float, *, up: bool) -> float:
    """`end` with room, rounded away from it to three digits; whole where it is large."""
    value = end * (1 + ROOM if up else 1 - ROOM)
    if value == 0:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(abs(value))) - 2)
    rounded = (math.ceil if up else math.floor)(value / step) * step
    return float(f"{rounded:.12g}")


def _toml(value: str | float) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    return str(int(value)) if value == int(value) and abs(value) >= 1000 else repr(float(value))
