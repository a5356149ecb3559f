"""A metric now over the same metric in the stored baseline, or the reason why the two cannot be compared.

Pure: no clock, no file, no environment.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from edgedistill.core.measurement import Measurement
from edgedistill.core.metric import METRICS, Metric
from edgedistill.core.stats import Interval, unpaired_ratio_interval
from edgedistill.gate.estimate import estimate, percentile_ratio, require_blocks, rows_of, samples_of, weakest
from edgedistill.gate.quality import correct_of, item_ratio, retention, scored_of
from edgedistill.gate.rundata import PER_ITEM, STATISTICS, Blocks, Estimate, RunData, UnmeasuredError, exact, seed_of

NAME = "its baseline"
TEACHER = "teacher"
TIMES = ("ms", "tokens/s", "requests/h")
# What must have been the same for two rows to be comparable; other settings vary by round or say how it went.
CONDITIONS = ("threads", "max_new_tokens", "warmup", "prompts", "prefill_tokens", "decode_tokens", "repetitions",
              "memory_limit_wanted_bytes", "dtype", "compiled")  # fmt: skip


def baseline_of(data: RunData) -> RunData:
    """The stored baseline.

    Raises:
        UnmeasuredError: there is none, or it is another host's.
    """
    if isinstance(data.previous, str):
        raise UnmeasuredError(data.previous)
    if data.previous.host_id != data.host_id:
        raise UnmeasuredError(f"the baseline was measured on host {data.previous.host_id}, this is {data.host_id}")
    return data.previous


def estimate_previous(
    data: RunData,
    *,
    metric: Metric,
    model: str,
    target: str | None,
    confidence: float,
    statistic: str = "median",
    workload: str | None = None,
    rounds: int | None = None,
) -> Estimate:
    """The metric's value now over that in the baseline.

    Times and speeds of the two are each taken beside the teacher, where it is the same as then, so that a host that was
    slower on one of the days favours neither.

    Raises:
        UnmeasuredError: as for `estimate`, of either; or the baseline is missing, stale, or another host's.
    """
    then = baseline_of(data)
    if model not in then.models:
        raise UnmeasuredError(f"the baseline has no {model}; save one that has")
    if METRICS[metric].source == "bench":
        return _bench_ratio(
            data, then, metric=metric, model=model, target=target, confidence=confidence, statistic=statistic,
            workload=workload, rounds=rounds,
        )  # fmt: skip
    if metric is Metric.EXACT_MATCH_RATIO:
        ours, theirs = correct_of(data, model), correct_of(then, model)
        return retention(ours, theirs, model=model, against=NAME, confidence=confidence)
    if metric in PER_ITEM:
        scored = scored_of(data, metric, model), scored_of(then, metric, model)
        return item_ratio(*scored, model=model, against=NAME, confidence=confidence)
    over, under = (
        estimate(side, metric=metric, model=model, target=target, confidence=confidence) for side in (data, then)
    )
    if under.interval.estimate == 0:
        raise UnmeasuredError(f"the baseline has a {metric.value} of 0, which nothing can be divided by")
    return exact(over.interval.estimate / under.interval.estimate, samples=min(over.samples, under.samples))


def _bench_ratio(
    data: RunData,
    then: RunData,
    *,
    metric: Metric,
    model: str,
    target: str | None,
    confidence: float,
    statistic: str,
    workload: str | None,
    rounds: int | None,
) -> Estimate:
    def rows(side: RunData, name: str) -> list[Measurement]:
        most = rounds if side is data else None
        return rows_of(side, metric=metric, model=name, target=target, workload=workload, rounds=most)

    new, old = rows(data, model), rows(then, model)
    _require_same_conditions(new, old)
    require_blocks(min(len(new), len(old)), "blocks now or in the baseline")
    evidence = weakest([*new, *old])
    if statistic not in STATISTICS:
        interval = percentile_ratio(
            samples_of(new, metric), samples_of(old, metric), confidence=confidence, statistic=statistic
        )
        return Estimate(interval, len(new), evidence)
    if model == TEACHER or METRICS[metric].unit not in TIMES or not _same_teacher(data, then, metric, target):
        interval = _two_times(samples_of(new, metric), samples_of(old, metric), None, None, confidence, statistic)
        return Estimate(interval, len(new), evidence)
    anchors = rows(data, TEACHER), rows(then, TEACHER)
    _require_same_conditions(*anchors)
    (new, new_anchor), (old, old_anchor) = (
        _common(rows, anchor) for rows, anchor in zip((new, old), anchors, strict=True)
    )
    require_blocks(min(len(new), len(old)), "rounds beside the teacher, now or in the baseline")
    four = (samples_of(rows, metric) for rows in (new, old, new_anchor, old_anchor))
    interval = _two_times(*four, confidence, statistic)
    return Estimate(interval, len(new), evidence, note=", both taken beside the same teacher")


def _same_teacher(data: RunData, then: RunData, metric: Metric, target: str | None) -> bool:
    """Whether the teacher is the same files as then, measured by the same engine both times."""
    if TEACHER not in data.models or TEACHER not in then.models:
        return False
    engines = [
        {r.engine for r in side.measurements if (r.model, r.target) == (TEACHER, target) and metric in r.samples}
        for side in (data, then)
    ]
    return data.models[TEACHER].digest == then.models[TEACHER].digest and engines[0] == engines[1] != set()


def _require_same_conditions(new: Sequence[Measurement], old: Sequence[Measurement]) -> None:
    def said(rows: Sequence[Measurement]) -> dict[str, list[str]]:
        found = {name: sorted({str(row.settings.get(name)) for row in rows}) for name in CONDITIONS}
        return {"engine": sorted({row.engine for row in rows})} | found

    now, then = said(new), said(old)
    for name, value in now.items():
        if value != then[name]:
            raise UnmeasuredError(
                f"the baseline is stale: {name} was {' or '.join(then[name])}, is {' or '.join(value)}; save a new one"
            )


def _common(rows: Sequence[Measurement], anchor: Sequence[Measurement]) -> tuple[list[Measurement], list[Measurement]]:
    beside = {row.pair: row for row in anchor}
    found = [row for row in rows if row.pair in beside]
    return found, [beside[row.pair] for row in found]


@functools.cache
def _two_times(
    new: Blocks, old: Blocks, new_anchor: Blocks | None, old_anchor: Blocks | None, confidence: float, statistic: str
) -> Interval:
    try:
        return unpaired_ratio_interval(
            new, old, now_anchor=new_anchor, then_anchor=old_anchor, confidence=confidence,
            seed=seed_of([new, old, new_anchor, old_anchor]), statistic=STATISTICS[statistic],
        )  # fmt: skip
    except ValueError as e:
        raise UnmeasuredError(str(e)) from None
