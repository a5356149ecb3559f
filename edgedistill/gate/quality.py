"""Quality of a model from its answers, item by item, each held against the summary of the same evaluation.

Pure: no clock, no file, no environment.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

from edgedistill.core.metric import Metric
from edgedistill.core.stats import Interval, paired_proportion_ratio, ratio_of_sums_interval, wilson_interval
from edgedistill.gate.rundata import Estimate, RunData, UnmeasuredError, require_undamaged, seed_of


def correct_of(data: RunData, model: str) -> dict[str, bool]:
    """Item id → whether the model's answer was right; checked against the summary of the same evaluation."""
    require_undamaged(data, model)
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


def retention(
    ours: Mapping[str, bool], theirs: Mapping[str, bool], *, model: str, against: str, confidence: float
) -> Estimate:
    """Ratio of the right answers (item id → right) of two models to the same items, paired.

    Raises:
        UnmeasuredError: the items differ, or there is nothing to retain.
    """
    if ours.keys() != theirs.keys():
        both = len(ours.keys() & theirs.keys())
        raise UnmeasuredError(f"{model} and {against} answered different items ({both} in common)")
    try:
        interval = paired_proportion_ratio(list(ours.values()), [theirs[item] for item in ours], confidence=confidence)
    except ValueError:
        raise UnmeasuredError(f"{against} answered no item right, so nothing can be retained") from None
    return Estimate(interval, len(ours), "measured")


def scored_of(data: RunData, metric: Metric, model: str) -> dict[str, tuple[float, int]]:
    """Item id → the metric's mean over the item's positions, and their number; checked against the summary."""
    value, _ = quality_figure(data, metric, model)
    found = {}
    for item in data.items.get(model, ()):
        mean = getattr(item, metric.value)
        if mean is not None:
            # The answer's end is predicted too; a score is the whole answer's.
            found[item.id] = (mean, 1 if metric is Metric.ANSWER_SCORE_RATIO else item.answer_tokens + 1)
    if not found:
        raise UnmeasuredError(f"{model} has {metric.value} in its summary and in none of its answers")
    share = math.fsum(mean * places for mean, places in found.values()) / sum(p for _, p in found.values())
    if not math.isclose(value, share, rel_tol=1e-6, abs_tol=1e-9):
        raise UnmeasuredError(f"the {metric.value} of {model} ({value:.4g}) is not that of its answers ({share:.4g})")
    return dict(sorted(found.items()))


def item_mean(data: RunData, metric: Metric, *, model: str, confidence: float) -> Estimate:
    """Mean over positions, bootstrapped over items, because the positions of one answer are alike."""
    scored = scored_of(data, metric, model)
    places = tuple(float(number) for _, number in scored.values())
    interval = sums_interval(tuple(mean * number for mean, number in scored.values()), places, confidence=confidence)
    if metric is Metric.TOP1_RATIO:
        # Where every position agrees a bootstrap sees no spread; their number still bounds the share.
        total = round(sum(places))
        bound = wilson_interval(round(interval.estimate * total), total, confidence)
        interval = Interval(interval.estimate, min(interval.low, bound.low), max(interval.high, bound.high))
    return Estimate(interval, len(scored), "measured")


def item_ratio(
    ours: Mapping[str, tuple[float, int]],
    theirs: Mapping[str, tuple[float, int]],
    *,
    model: str,
    against: str,
    confidence: float,
) -> Estimate:
    """Ratio of two models' means over the positions of the same items (item id → mean, positions).

    Raises:
        UnmeasuredError: the items differ, or there is nothing to divide by.
    """
    if ours.keys() != theirs.keys():
        both = len(ours.keys() & theirs.keys())
        raise UnmeasuredError(f"{model} and {against} were scored on different items ({both} in common)")
    over, under = (tuple(mean * number for mean, number in scored.values()) for scored in (ours, theirs))
    return Estimate(sums_interval(over, under, confidence=confidence), len(ours), "measured")


@functools.cache
def sums_interval(over: tuple[float, ...], under: tuple[float, ...], *, confidence: float) -> Interval:
    try:
        return ratio_of_sums_interval(over, under, confidence=confidence, seed=seed_of([over, under]))
    except ValueError as e:
        raise UnmeasuredError(str(e)) from None


def quality_figure(data: RunData, metric: Metric, model: str) -> tuple[float, int]:
    """A figure of the summary, and on how many tokens or items it rests.

    Raises:
        UnmeasuredError: it is missing, not finite, or of a damaged model.
    """
    require_undamaged(data, model)
    quality = data.qualities.get(model)
    value = getattr(quality, metric.value, None)
    if quality is None or value is None:
        raise UnmeasuredError(f"{model} has no measurement of {metric.value}")
    if not math.isfinite(value):
        raise UnmeasuredError(f"{model} has {value} as its {metric.value}, which no measurement gives")
    return float(value), quality.scored_tokens or quality.items
