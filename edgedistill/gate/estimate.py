"""What a run measured of a model, as an estimate with its interval, or the reason why it cannot be told.

Pure: no clock, no file, no environment. Equal rows give equal estimates; the seed of a bootstrap is their digest.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from edgedistill.core.budget import Evidence
from edgedistill.core.config import did_you_mean
from edgedistill.core.measurement import Measurement
from edgedistill.core.metric import METRICS, Metric
from edgedistill.core.stats import (
    Interval,
    block_interval,
    paired_ratio_interval,
    percentile_interval,
    wilson_interval,
)
from edgedistill.gate.quality import correct_of, item_mean, item_ratio, quality_figure, retention, scored_of
from edgedistill.gate.rundata import (
    EVIDENCE,
    MIN_BLOCKS,
    PER_ITEM,
    STATISTICS,
    WORKLOADS,
    Blocks,
    Estimate,
    ModelFacts,
    RunData,
    UnmeasuredError,
    exact,
    require_undamaged,
    seed_of,
)

# Nothing may be mapped, and not to fit is a finding; a time, a speed or a peak of nothing is a broken measurement.
MAY_BE_NOTHING = (Metric.PEAK_FILE_BYTES, Metric.MEM_FITS)


def estimate(
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
    """The metric's value for one model; a quantity that is known exactly has an interval of zero width.

    Of a benchmark's rows only those of the first `rounds` count, but every one must be sound.

    Raises:
        UnmeasuredError: it is missing, stale, invalid, from another host, not finite, or rests on too few blocks.
    """
    source = METRICS[metric].source
    if source == "artifact":
        return exact(float(_facts(data, model).bytes), samples=1)
    if source == "bench":
        rows = rows_of(data, metric=metric, model=model, target=target, workload=workload, rounds=rounds)
        require_blocks(len(rows))
        interval = _block_interval(samples_of(rows, metric), confidence=confidence, statistic=statistic)
        return Estimate(interval, len(rows), weakest(rows))
    if metric is Metric.EXACT_MATCH_RATIO:
        correct = correct_of(data, model)
        return Estimate(wilson_interval(sum(correct.values()), len(correct), confidence), len(correct), "measured")
    if metric in PER_ITEM:
        return item_mean(data, metric, model=model, confidence=confidence)
    value, samples = quality_figure(data, metric, model)
    return exact(value, samples=samples)


def estimate_ratio(
    data: RunData,
    *,
    metric: Metric,
    model: str,
    against: str,
    target: str | None,
    confidence: float,
    statistic: str = "median",
    workload: str | None = None,
    rounds: int | None = None,
) -> Estimate:
    """The metric's value for `model` over that of `against`, paired by round or item where both were measured.

    Raises:
        UnmeasuredError: as for `estimate`, of either model; or the two cannot be paired or divided.
    """
    if METRICS[metric].source == "bench":
        ours, theirs = (
            {
                row.pair: row
                for row in rows_of(data, metric=metric, model=name, target=target, workload=workload, rounds=rounds)
            }
            for name in (model, against)
        )
        common = sorted(ours.keys() & theirs.keys())
        mine, other = [ours[pair] for pair in common], [theirs[pair] for pair in common]
        if len(hosts := _hosts([*mine, *other])) > 1:
            raise UnmeasuredError(f"{model} and {against} were measured on different hosts ({', '.join(hosts)})")
        require_blocks(len(common), f"rounds that measured both {model} and {against}")
        interval = _ratio_interval(
            samples_of(mine, metric), samples_of(other, metric), confidence=confidence, statistic=statistic
        )
        return Estimate(interval, len(common), weakest([*mine, *other]))
    if metric is Metric.EXACT_MATCH_RATIO:
        ours, theirs = correct_of(data, model), correct_of(data, against)
        return retention(ours, theirs, model=model, against=against, confidence=confidence)
    if metric in PER_ITEM:
        ours, theirs = scored_of(data, metric, model), scored_of(data, metric, against)
        return item_ratio(ours, theirs, model=model, against=against, confidence=confidence)
    over, under = (
        estimate(data, metric=metric, model=name, target=target, confidence=confidence) for name in (model, against)
    )
    if under.interval.estimate == 0:
        raise UnmeasuredError(f"{against} has a {metric.value} of 0, which nothing can be divided by")
    return exact(over.interval.estimate / under.interval.estimate, samples=min(over.samples, under.samples))


def rows_of(
    data: RunData,
    *,
    metric: Metric,
    model: str,
    target: str | None,
    workload: str | None = None,
    rounds: int | None = None,
) -> list[Measurement]:
    """The rows that carry a bench metric of one model on one target, by round; of the first `rounds` if given.

    Raises:
        UnmeasuredError: there are none, or one of them cannot be trusted.
    """
    facts = _facts(data, model)
    on_target = [row for row in data.measurements if row.target == target]
    if workload is None:
        # A metric belongs to the first workload that measures it; a row that failed may not even carry it.
        workload = next((w for w in WORKLOADS if any(r.workload == w and metric in r.samples for r in on_target)), None)
    workloads = WORKLOADS if workload is None else (workload,)
    rows = sorted((r for r in on_target if r.model == model and r.workload in workloads), key=lambda row: row.pair)
    broken = next((row for row in rows if not row.valid), None)
    if broken is not None:
        reason = broken.invalid_reason or "no reason given"
        raise UnmeasuredError(f"round {broken.pair} of {model} is invalid ({reason})")
    if workload is None or not rows:
        raise UnmeasuredError(f"{model} has no measurement of {metric.value}{_by(workload)}")
    for row in rows:
        _require_sound(row, metric=metric, facts=facts, host_id=data.host_id)
    if len({row.pair for row in rows}) < len(rows):
        raise UnmeasuredError(f"a round of {model} was measured more than once")
    if len(engines := {row.engine for row in rows}) > 1:
        raise UnmeasuredError(f"{model} was measured with different engines ({', '.join(sorted(engines))})")
    return rows if rounds is None else [row for row in rows if row.pair < rounds]


def _by(workload: str | None) -> str:
    return f" by the workload {workload}" if workload else ""


def _facts(data: RunData, model: str) -> ModelFacts:
    require_undamaged(data, model)
    if model not in data.models:
        raise UnmeasuredError(f"the run has no model named {model!r}{did_you_mean(model, data.models)}")
    return data.models[model]


def _require_sound(row: Measurement, *, metric: Metric, facts: ModelFacts, host_id: str) -> None:
    name = f"round {row.pair} of {row.model}"
    if row.artifact_digest != facts.digest:
        raise UnmeasuredError(f"{name} is stale: it measured other files than the run has now")
    measured_on = row.environment.get("host_id")
    if measured_on != host_id:
        raise UnmeasuredError(f"{name} was measured on host {measured_on or 'unknown'}, this is {host_id}")
    samples = row.samples.get(metric)
    if not samples:
        raise UnmeasuredError(f"{name} has no sample of {metric.value}")
    for value in samples:
        if not math.isfinite(value) or value < 0 or (value == 0 and metric not in MAY_BE_NOTHING):
            raise UnmeasuredError(f"{name} has {value} as a sample of {metric.value}, which no measurement gives")


def require_blocks(found: int, what: str = "blocks") -> None:
    if found < MIN_BLOCKS:
        raise UnmeasuredError(f"found {found} {what}, an interval needs at least {MIN_BLOCKS}")


def _hosts(rows: Sequence[Measurement]) -> list[str]:
    return sorted({str(row.environment.get("host_id")) for row in rows})


def weakest(rows: Sequence[Measurement]) -> Evidence:
    return min((row.evidence for row in rows), key=EVIDENCE.index)


def samples_of(rows: Sequence[Measurement], metric: Metric) -> Blocks:
    return tuple(tuple(row.samples[metric]) for row in rows)


@functools.cache
def _block_interval(blocks: Blocks, *, confidence: float, statistic: str) -> Interval:
    if statistic not in STATISTICS:
        return _percentile_interval(blocks, confidence=confidence, statistic=statistic)
    return block_interval(blocks, confidence=confidence, seed=seed_of(blocks), statistic=STATISTICS[statistic])


@functools.cache
def _ratio_interval(ours: Blocks, theirs: Blocks, *, confidence: float, statistic: str) -> Interval:
    seed = seed_of([ours, theirs])
    if statistic not in STATISTICS:
        return percentile_ratio(ours, theirs, confidence=confidence, statistic=statistic)
    try:
        return paired_ratio_interval(ours, theirs, confidence=confidence, seed=seed, statistic=STATISTICS[statistic])
    except ValueError as e:
        raise UnmeasuredError(str(e)) from None


def _percentile_interval(blocks: Blocks, *, confidence: float, statistic: str) -> Interval:
    """Percentile of the raw samples of all blocks, each bound at `confidence` by the binomial rule."""
    values = [value for block in blocks for value in block]
    try:
        return percentile_interval(values, p=float(statistic.removeprefix("p")), confidence=confidence)
    except ValueError as e:
        raise UnmeasuredError(str(e)) from None


def percentile_ratio(ours: Blocks, theirs: Blocks, *, confidence: float, statistic: str) -> Interval:
    """Ratio of two percentiles; each gets half of the error, then the ratio of their bounds errs no more than said."""
    over, under = (
        _percentile_interval(blocks, confidence=1 - (1 - confidence) / 2, statistic=statistic)
        for blocks in (ours, theirs)
    )
    return Interval(over.estimate / under.estimate, over.low / under.high, over.high / under.low)
