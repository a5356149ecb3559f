"""What a run measured of a model, as an estimate with its interval, or the reason why it cannot be told.

Pure: no clock, no file, no environment. Equal rows give equal estimates; the seed of a bootstrap is their digest.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from edgedistill.core.budget import Evidence
from edgedistill.core.config import did_you_mean
from edgedistill.core.files import digest_of
from edgedistill.core.measurement import Measurement, Workload
from edgedistill.core.metric import METRICS, Metric
from edgedistill.core.records import EvalItem, Quality
from edgedistill.core.stats import (
    Interval,
    block_interval,
    paired_proportion_ratio,
    paired_ratio_interval,
    ratio_of_sums_interval,
    wilson_interval,
)

Role = Literal["teacher", "quantized teacher", "untrained", "control", "student", "artifact"]
Blocks = tuple[tuple[float, ...], ...]

MIN_BLOCKS = 3
ROLES: tuple[Role, ...] = get_args(Role)
WORKLOADS: tuple[Workload, ...] = get_args(Workload)
EVIDENCE: tuple[Evidence, ...] = get_args(Evidence)  # worst to best
PER_ITEM = (Metric.KLD_NATS, Metric.TOP1_RATIO)
STATISTICS = {"median": statistics.median, "mean": statistics.fmean}


class UnmeasuredError(ValueError):
    """The reason, as the end of a sentence, why a figure cannot be told from a run's rows."""


@dataclass(frozen=True)
class ModelFacts:
    """A model's files as they are now: bytes that ship (the teacher's: fp32 weights), parameters, and their digest."""

    role: Role
    format: str
    bytes: int
    parameters: int
    bits_per_weight: float
    digest: str


@dataclass(frozen=True)
class RunData:
    """Everything a verdict rests on. `damaged` holds models whose files are not what they were, and how."""

    host_id: str
    models: Mapping[str, ModelFacts] = field(default_factory=dict)
    damaged: Mapping[str, str] = field(default_factory=dict)
    measurements: Sequence[Measurement] = ()
    items: Mapping[str, Sequence[EvalItem]] = field(default_factory=dict)
    qualities: Mapping[str, Quality] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimate:
    """An estimate with its interval; `samples` counts what it rests on: blocks, items or tokens."""

    interval: Interval
    samples: int
    evidence: Evidence


def estimate(
    data: RunData, *, metric: Metric, model: str, target: str | None, confidence: float, statistic: str = "median"
) -> Estimate:
    """The metric's value for one model; a quantity that is known exactly has an interval of zero width.

    Raises:
        UnmeasuredError: it is missing, stale, invalid, from another host, not finite, or rests on too few blocks.
    """
    source = METRICS[metric].source
    if source == "artifact":
        return _exact(float(_facts(data, model).bytes), samples=1)
    if source == "bench":
        rows = rows_of(data, metric=metric, model=model, target=target)
        _require_blocks(len(rows))
        interval = _block_interval(_samples(rows, metric), confidence=confidence, statistic=statistic)
        return Estimate(interval, len(rows), _weakest(rows))
    if metric is Metric.EXACT_MATCH_RATIO:
        correct = _correct(data, model)
        return Estimate(wilson_interval(sum(correct.values()), len(correct), confidence), len(correct), "measured")
    if metric in PER_ITEM:
        return _item_mean(data, metric, model=model, confidence=confidence)
    value, samples = _quality_figure(data, metric, model)
    return _exact(value, samples=samples)


def estimate_ratio(
    data: RunData,
    *,
    metric: Metric,
    model: str,
    against: str,
    target: str | None,
    confidence: float,
    statistic: str = "median",
) -> Estimate:
    """The metric's value for `model` over that of `against`, paired by round or item where both were measured.

    Raises:
        UnmeasuredError: as for `estimate`, of either model; or the two cannot be paired or divided.
    """
    if METRICS[metric].source == "bench":
        ours = {row.pair: row for row in rows_of(data, metric=metric, model=model, target=target)}
        theirs = {row.pair: row for row in rows_of(data, metric=metric, model=against, target=target)}
        rounds = sorted(ours.keys() & theirs.keys())
        mine, other = [ours[pair] for pair in rounds], [theirs[pair] for pair in rounds]
        if len(hosts := _hosts([*mine, *other])) > 1:
            raise UnmeasuredError(f"{model} and {against} were measured on different hosts ({', '.join(hosts)})")
        _require_blocks(len(rounds), f"rounds that measured both {model} and {against}")
        interval = _ratio_interval(
            _samples(mine, metric), _samples(other, metric), confidence=confidence, statistic=statistic
        )
        return Estimate(interval, len(rounds), _weakest([*mine, *other]))
    if metric is Metric.EXACT_MATCH_RATIO:
        return _retention(data, model=model, against=against, confidence=confidence)
    if metric in PER_ITEM:
        return _item_ratio(data, metric, model=model, against=against, confidence=confidence)
    over, under = (
        estimate(data, metric=metric, model=name, target=target, confidence=confidence) for name in (model, against)
    )
    if under.interval.estimate == 0:
        raise UnmeasuredError(f"{against} has a {metric.value} of 0, which nothing can be divided by")
    return _exact(over.interval.estimate / under.interval.estimate, samples=min(over.samples, under.samples))


def rows_of(data: RunData, *, metric: Metric, model: str, target: str | None) -> list[Measurement]:
    """The rows that carry a bench metric of one model on one target, by round.

    Raises:
        UnmeasuredError: there are none, or one of them cannot be trusted.
    """
    facts = _facts(data, model)
    on_target = [row for row in data.measurements if row.target == target]
    # A metric belongs to the first workload that measures it; a row that failed may not even carry it.
    workload = next((w for w in WORKLOADS if any(r.workload == w and metric in r.samples for r in on_target)), None)
    workloads = WORKLOADS if workload is None else (workload,)
    rows = sorted((r for r in on_target if r.model == model and r.workload in workloads), key=lambda row: row.pair)
    broken = next((row for row in rows if not row.valid), None)
    if broken is not None:
        reason = broken.invalid_reason or "no reason given"
        raise UnmeasuredError(f"round {broken.pair} of {model} is invalid ({reason})")
    if workload is None or not rows:
        raise UnmeasuredError(f"{model} has no measurement of {metric.value}")
    for row in rows:
        _require_sound(row, metric=metric, facts=facts, host_id=data.host_id)
    if len({row.pair for row in rows}) < len(rows):
        raise UnmeasuredError(f"a round of {model} was measured more than once")
    if len(engines := {row.engine for row in rows}) > 1:
        raise UnmeasuredError(f"{model} was measured with different engines ({', '.join(sorted(engines))})")
    return rows


def _exact(value: float, *, samples: int) -> Estimate:
    return Estimate(Interval(value, value, value), samples, "measured")


def _require_undamaged(data: RunData, model: str) -> None:
    if model in data.damaged:
        raise UnmeasuredError(f"{model} is not as it was exported: {data.damaged[model]}")


def _facts(data: RunData, model: str) -> ModelFacts:
    _require_undamaged(data, model)
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
        # Mapped memory may be nothing; a time, a speed or a peak of nothing is a broken measurement.
        if not math.isfinite(value) or value < 0 or (value == 0 and metric is not Metric.PEAK_FILE_BYTES):
            raise UnmeasuredError(f"{name} has {value} as a sample of {metric.value}, which no measurement gives")


def _require_blocks(found: int, what: str = "blocks") -> None:
    if found < MIN_BLOCKS:
        raise UnmeasuredError(f"found {found} {what}, an interval needs at least {MIN_BLOCKS}")


def _hosts(rows: Sequence[Measurement]) -> list[str]:
    return sorted({str(row.environment.get("host_id")) for row in rows})


def _weakest(rows: Sequence[Measurement]) -> Evidence:
    return min((row.evidence for row in rows), key=EVIDENCE.index)


def _samples(rows: Sequence[Measurement], metric: Metric) -> Blocks:
    return tuple(tuple(row.samples[metric]) for row in rows)


def _seed(values: object) -> int:
    return int(digest_of(values)[:15], 16)


@functools.cache
def _block_interval(blocks: Blocks, *, confidence: float, statistic: str) -> Interval:
    return block_interval(blocks, confidence=confidence, seed=_seed(blocks), statistic=STATISTICS[statistic])


@functools.cache
def _ratio_interval(ours: Blocks, theirs: Blocks, *, confidence: float, statistic: str) -> Interval:
    seed = _seed([ours, theirs])
    try:
        return paired_ratio_interval(ours, theirs, confidence=confidence, seed=seed, statistic=STATISTICS[statistic])
    except ValueError as e:
        raise UnmeasuredError(str(e)) from None


def _correct(data: RunData, model: str) -> dict[str, bool]:
    """Item id → whether the model's answer was right; checked against the summary of the same evaluation."""
    _require_undamaged(data, model)
    items = data.items.get(model)
    if not items:
        raise UnmeasuredError(f"{model} has no answers to the held-out items")
    correct = {item.id: item.correct for item in items}
    if len(correct) < len(items):
        raise UnmeasuredError(f"{model} answered an item more than once")
    quality = data.qualities.get(model)
    if quality is None:
        raise UnmeasuredError(f"{model} has no quality figures")
    share = sum(correct.values()) / len(correct)
    if quality.items != len(correct) or not math.isclose(quality.exact_match_ratio, share, abs_tol=1e-9):
        raise UnmeasuredError(
            f"the quality of {model} ({quality.exact_match_ratio:.4g} of {quality.items} items) is not that of its "
            f"answers ({share:.4g} of {len(correct)})"
        )
    return correct


def _retention(data: RunData, *, model: str, against: str, confidence: float) -> Estimate:
    ours, theirs = _correct(data, model), _correct(data, against)
    if ours.keys() != theirs.keys():
        both = len(ours.keys() & theirs.keys())
        raise UnmeasuredError(f"{model} and {against} answered different items ({both} in common)")
    try:
        interval = paired_proportion_ratio(list(ours.values()), [theirs[item] for item in ours], confidence=confidence)
    except ValueError:
        raise UnmeasuredError(f"{against} answered no item right, so nothing can be retained") from None
    return Estimate(interval, len(ours), "measured")


def _scored(data: RunData, metric: Metric, model: str) -> dict[str, tuple[float, int]]:
    """Item id → the metric's mean over the item's positions, and their number; checked against the summary."""
    value, _ = _quality_figure(data, metric, model)
    found = {}
    for item in data.items.get(model, ()):
        mean = getattr(item, metric.value)
        if mean is not None:
            found[item.id] = (mean, item.answer_tokens + 1)  # the answer's end is predicted too
    if not found:
        raise UnmeasuredError(f"{model} has {metric.value} in its summary and in none of its answers")
    share = math.fsum(mean * places for mean, places in found.values()) / sum(p for _, p in found.values())
    if not math.isclose(value, share, rel_tol=1e-6, abs_tol=1e-9):
        raise UnmeasuredError(f"the {metric.value} of {model} ({value:.4g}) is not that of its answers ({share:.4g})")
    return dict(sorted(found.items()))


def _item_mean(data: RunData, metric: Metric, *, model: str, confidence: float) -> Estimate:
    """Mean over positions, bootstrapped over items, because the positions of one answer are alike."""
    scored = _scored(data, metric, model)
    places = tuple(float(number) for _, number in scored.values())
    interval = _sums_interval(tuple(mean * number for mean, number in scored.values()), places, confidence=confidence)
    if metric is Metric.TOP1_RATIO:
        # Where every position agrees a bootstrap sees no spread; their number still bounds the share.
        total = round(sum(places))
        bound = wilson_interval(round(interval.estimate * total), total, confidence)
        interval = Interval(interval.estimate, min(interval.low, bound.low), max(interval.high, bound.high))
    return Estimate(interval, len(scored), "measured")


def _item_ratio(data: RunData, metric: Metric, *, model: str, against: str, confidence: float) -> Estimate:
    ours, theirs = _scored(data, metric, model), _scored(data, metric, against)
    if ours.keys() != theirs.keys():
        both = len(ours.keys() & theirs.keys())
        raise UnmeasuredError(f"{model} and {against} were scored on different items ({both} in common)")
    over, under = (tuple(mean * number for mean, number in scored.values()) for scored in (ours, theirs))
    return Estimate(_sums_interval(over, under, confidence=confidence), len(ours), "measured")


@functools.cache
def _sums_interval(over: tuple[float, ...], under: tuple[float, ...], *, confidence: float) -> Interval:
    try:
        return ratio_of_sums_interval(over, under, confidence=confidence, seed=_seed([over, under]))
    except ValueError as e:
        raise UnmeasuredError(str(e)) from None


def _quality_figure(data: RunData, metric: Metric, model: str) -> tuple[float, int]:
    _require_undamaged(data, model)
    quality = data.qualities.get(model)
    value = getattr(quality, metric.value, None)
    if quality is None or value is None:
        raise UnmeasuredError(f"{model} has no measurement of {metric.value}")
    if not math.isfinite(value):
        raise UnmeasuredError(f"{model} has {value} as its {metric.value}, which no measurement gives")
    return float(value), quality.scored_tokens or quality.items
