"""Intervals of models that were trained with several seeds and asked the same items: pure, seeded, standard library.

Scores are `[seeds][items]`, each in [0, 1] but for `crossed_gap`. Seeds and items are drawn anew independently (a
two-way bootstrap), because a mean over both varies with either. Few seeds' bootstrap claims more than it keeps, and
none has a width where nothing disagrees, so an interval is never narrower than Student's t over the seeds, nor than
the score interval of the items.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Iterator, Sequence

from edgedistill.core.stats import Interval, paired_proportion_ratio, percentile, student_quantile, wilson_interval

Scores = Sequence[Sequence[float]]


def crossed_mean(scores: Scores, *, confidence: float, seed: int, resamples: int = 2000) -> Interval:
    """Mean over seeds and items; at least as wide as Wilson's interval of as many items.

    Raises:
        ValueError: no seed, no item, or seeds of different items.
    """
    _require_same_items(scores)
    found = _bootstrapped(scores, confidence=confidence, seed=seed, resamples=resamples)
    count = len(scores[0])
    least = wilson_interval(round(found.estimate * count), count, confidence)
    return _clipped(_hull(found, least, _student_interval(_means(scores), confidence)), low=0.0)


def crossed_difference(
    ours: Scores, theirs: Scores, *, confidence: float, seed: int, resamples: int = 2000
) -> Interval:
    """Mean of ours minus theirs, paired by seed and item.

    At least as wide as Wald's interval over the items with half an item added to each outcome of a pair (Agresti & Min
    2005, Statistics in Medicine 24:729): four items that all speak for one side do not exclude 0.

    Raises:
        ValueError: different numbers of seeds or items, or none.
    """
    away = _paired(ours, theirs)
    found = _bootstrapped(away, confidence=confidence, seed=seed, resamples=resamples)
    least = _added_interval([statistics.fmean(item) for item in zip(*away, strict=True)], confidence)
    return _clipped(_hull(found, least, _student_interval(_means(away), confidence)), low=-1.0)


def crossed_gap(ours: Scores, theirs: Scores, *, confidence: float, seed: int, resamples: int = 2000) -> Interval:
    """Mean of ours minus theirs of scores without bounds, such as bits per byte, paired by seed and item.

    At least as wide as Student's t over the seeds, and over the items.

    Raises:
        ValueError: different numbers of seeds or items, or none.
    """
    away = _paired(ours, theirs)
    found = _bootstrapped(away, confidence=confidence, seed=seed, resamples=resamples)
    items = [statistics.fmean(item) for item in zip(*away, strict=True)]
    return _hull(found, _student_interval(_means(away), confidence), _student_interval(items, confidence))


def crossed_ratio(
    ours: Scores, theirs: Sequence[float], *, confidence: float, seed: int, resamples: int = 2000
) -> Interval:
    """Mean of ours over that of one model on the same items; where all are right or wrong, as wide as score intervals.

    Raises:
        ValueError: no seed, different or no items, or theirs sums to nothing.
    """
    _require_same_items([*ours, theirs])
    total = math.fsum(theirs)
    if not ours or total <= 0:
        raise ValueError(f"expected seeds, and a reference that scores at all, found {len(ours)} and {total:g}")
    ratios = [math.fsum(one) / total for one in ours]
    draws = []
    for columns, rng in _drawn_seeds(ours, seed=seed, resamples=resamples):
        drawn = rng.choices(list(zip(columns, theirs, strict=True)), k=len(theirs))
        below = math.fsum(b for _, b in drawn)
        if below > 0:
            draws.append(math.fsum(a for a, _ in drawn) / below)
    found = _percentiles(statistics.fmean(ratios), draws, confidence)
    parts = [found, _student_interval(ratios, confidence)]
    if {*theirs, *itertools.chain(*ours)} <= {0, 1}:
        each = [paired_proportion_ratio(list(map(bool, one)), list(map(bool, theirs)), confidence=confidence)
                for one in ours]  # fmt: skip
        parts.append(
            Interval(found.estimate, statistics.fmean(i.low for i in each), statistics.fmean(i.high for i in each))
        )
    return _clipped(_hull(*parts), low=0.0, high=math.inf)


def _paired(ours: Scores, theirs: Scores) -> list[list[float]]:
    _require_same_items([*ours, *theirs])
    if len(ours) != len(theirs):
        raise ValueError(f"expected the same seeds for both, found {len(ours)} and {len(theirs)}")
    return [[a - b for a, b in zip(one, other, strict=True)] for one, other in zip(ours, theirs, strict=True)]


def _bootstrapped(scores: Scores, *, confidence: float, seed: int, resamples: int) -> Interval:
    count = len(scores[0])
    draws = [
        math.fsum(rng.choices(column, k=count)) / count
        for column, rng in _drawn_seeds(scores, seed=seed, resamples=resamples)
    ]
    return _percentiles(statistics.fmean(_means(scores)), draws, confidence)


def _drawn_seeds(scores: Scores, *, seed: int, resamples: int) -> Iterator[tuple[list[float], random.Random]]:
    """Of each resample the items' means over the seeds drawn for it, and the generator that draws items next."""
    rng = random.Random(seed)
    known: dict[tuple[int, ...], list[float]] = {}
    for _ in range(resamples):
        drawn = tuple(sorted(rng.choices(range(len(scores)), k=len(scores))))
        if drawn not in known:
            rows = [scores[i] for i in drawn]
            known[drawn] = [math.fsum(item) / len(rows) for item in zip(*rows, strict=True)]
        yield known[drawn], rng


def _means(scores: Scores) -> list[float]:
    return [statistics.fmean(one) for one in scores]


def _student_interval(values: Sequence[float], confidence: float) -> Interval:
    """Student's t over the values of seeds or items; of one the value alone, which says nothing of another."""
    middle = statistics.fmean(values)
    if len(values) < 2:
        return Interval(middle, middle, middle)
    half = student_quantile(0.5 + confidence / 2, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(middle, middle - half, middle + half)


def _added_interval(differences: Sequence[float], confidence: float) -> Interval:
    count = len(differences) + 2
    middle = math.fsum(differences) / count
    variance = (math.fsum(d * d for d in differences) + 1) / count - middle**2
    half = statistics.NormalDist().inv_cdf(0.5 + confidence / 2) * math.sqrt(max(0.0, variance) / count)
    return Interval(middle, middle - half, middle + half)


def _percentiles(estimate: float, draws: Sequence[float], confidence: float) -> Interval:
    tail = (1 - confidence) / 2 * 100
    return Interval(estimate, percentile(draws, tail), percentile(draws, 100 - tail))


def _hull(first: Interval, *others: Interval) -> Interval:
    """The first's estimate within bounds that hold every interval."""
    both = (first, *others)
    return Interval(first.estimate, min(i.low for i in both), max(i.high for i in both))


def _clipped(interval: Interval, *, low: float, high: float = 1.0) -> Interval:
    return Interval(interval.estimate, max(low, interval.low), min(high, interval.high))


def _require_same_items(scores: Scores) -> None:
    if not scores or not scores[0] or len({len(one) for one in scores}) > 1:
        raise ValueError(f"expected scores of the same items for every seed, found {[len(one) for one in scores]}")
