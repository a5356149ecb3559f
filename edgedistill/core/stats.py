"""Statistics of the verdict: pure, seeded, standard library only.

Intervals are two-sided at `confidence`; a one-sided decision at level alpha uses confidence 1 - 2 alpha.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A point estimate with its confidence interval."""

    estimate: float
    low: float
    high: float


def percentile(values: Sequence[float], p: float) -> float:
    """Linear-interpolated percentile, `p` in [0, 100].

    Raises:
        ValueError: no values, or `p` outside its range.
    """
    if not values or not 0 <= p <= 100:
        raise ValueError(f"expected values and p in [0, 100], found {len(values)} values and p = {p}")
    ordered = sorted(values)
    place = (len(ordered) - 1) * p / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def wilson_interval(successes: int, trials: int, confidence: float) -> Interval:
    """Wilson score interval of a proportion (Wilson 1927).

    Raises:
        ValueError: `trials` is not positive or `successes` lies outside it.
    """
    if trials <= 0 or not 0 <= successes <= trials:
        raise ValueError(f"expected 0 <= successes <= trials, trials > 0; found {successes} of {trials}")
    z = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2)) / (1 + z * z / trials)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def block_interval(
    blocks: Sequence[Sequence[float]],
    *,
    confidence: float,
    seed: int,
    statistic: Callable[[Sequence[float]], float] = statistics.median,
    resamples: int = 2000,
) -> Interval:
    """Median over blocks of each block's statistic, with a hierarchical bootstrap over blocks, then samples in them.

    Raises:
        ValueError: no block, or an empty one.
    """
    _require_blocks(blocks)
    rng = random.Random(seed)
    estimate = statistics.median([statistic(block) for block in blocks])
    draws = []
    for _ in range(resamples):
        chosen = rng.choices(blocks, k=len(blocks))
        draws.append(statistics.median([statistic(rng.choices(block, k=len(block))) for block in chosen]))
    return _interval(estimate, draws, confidence)


def paired_ratio_interval(
    ours: Sequence[Sequence[float]],
    theirs: Sequence[Sequence[float]],
    *,
    confidence: float,
    seed: int,
    statistic: Callable[[Sequence[float]], float] = statistics.median,
    resamples: int = 2000,
) -> Interval:
    """Ratio ours ÷ theirs from blocks paired by position: median log-ratio of block statistics, bootstrapped by pair.

    Raises:
        ValueError: different numbers of blocks, an empty block, or a statistic that is not positive.
    """
    _require_blocks(ours)
    _require_blocks(theirs)
    if len(ours) != len(theirs):
        raise ValueError(f"expected paired blocks, found {len(ours)} and {len(theirs)}")
    rng = random.Random(seed)
    pairs = list(zip(ours, theirs, strict=True))

    def log_ratio(a: Sequence[float], b: Sequence[float]) -> float:
        above, below = statistic(a), statistic(b)
        if above <= 0 or below <= 0:
            raise ValueError(f"expected positive values for a ratio, found {above} and {below}")
        return math.log(above / below)

    estimate = statistics.median([log_ratio(a, b) for a, b in pairs])
    draws = []
    for _ in range(resamples):
        chosen = rng.choices(pairs, k=len(pairs))
        draws.append(
            statistics.median([log_ratio(rng.choices(a, k=len(a)), rng.choices(b, k=len(b))) for a, b in chosen])
        )
    interval = _interval(estimate, draws, confidence)
    return Interval(math.exp(interval.estimate), math.exp(interval.low), math.exp(interval.high))


def paired_proportion_ratio(
    ours: Sequence[bool], theirs: Sequence[bool], *, confidence: float, seed: int, resamples: int = 4000
) -> Interval:
    """Ratio of two proportions measured on the same items (retention), bootstrapped over items.

    Raises:
        ValueError: different or zero numbers of items, or theirs is never true.
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"expected the same items for both, found {len(ours)} and {len(theirs)}")
    if not any(theirs):
        raise ValueError("expected a reference that is right at least once, found none")
    rng = random.Random(seed)
    # Items fall into four kinds, so a resample is a draw of counts: same distribution, far fewer operations.
    kinds = [(a, b) for a in (True, False) for b in (True, False)]
    counts = [sum((a, b) == kind for a, b in zip(ours, theirs, strict=True)) for kind in kinds]
    draws = []
    for _ in range(resamples):
        drawn = rng.choices(kinds, weights=counts, k=len(ours))
        below = sum(b for _, b in drawn)
        if below:
            draws.append(sum(a for a, _ in drawn) / below)
    return _interval(sum(ours) / sum(theirs), draws, confidence)


def percentile_supported(*, n: int, p: float, confidence: float) -> bool:
    """Whether `n` samples can bound the p-th percentile from above: 1 - (p/100)^n >= confidence (binomial rule)."""
    return 1 - (p / 100) ** n >= confidence


def _require_blocks(blocks: Sequence[Sequence[float]]) -> None:
    if not blocks or any(not block for block in blocks):
        raise ValueError("expected at least one block and no empty block")


def _interval(estimate: float, draws: Sequence[float], confidence: float) -> Interval:
    tail = (1 - confidence) / 2 * 100
    return Interval(estimate, percentile(draws, tail), percentile(draws, 100 - tail))
