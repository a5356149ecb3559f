"""Statistics of the verdict: pure, seeded, standard library only.

Intervals are two-sided at `confidence`; a one-sided decision at level alpha uses confidence 1 - 2 alpha.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

INNER_RESAMPLES = 200  # of the samples in a block; blocks, which differ more, are resampled more often


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

    The interval is at least as wide as the one of the block values alone (`_values_interval`).

    Raises:
        ValueError: no block, or an empty one.
    """
    _require_blocks(blocks)
    rng = random.Random(seed)
    values = [statistic(block) for block in blocks]
    pools = [[statistic(rng.choices(block, k=len(block))) for _ in range(_replicates(block))] for block in blocks]
    interval = _median_interval(values, pools, confidence=confidence, rng=rng, resamples=resamples)
    if min(values) > 0:
        # Positive quantities vary by factors: so taken, their bounds stay positive.
        least = _values_interval([math.log(value) for value in values], confidence)
        down, up = least.low - least.estimate, least.high - least.estimate
        return _at_least(interval, low=interval.estimate * math.exp(down), high=interval.estimate * math.exp(up))
    least = _values_interval(values, confidence)
    return _at_least(interval, low=least.low, high=least.high)


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

    The interval is at least as wide as the one of the pairs' log-ratios alone (`_values_interval`).

    Raises:
        ValueError: different numbers of blocks, an empty block, or a statistic that is not positive.
    """
    rng = random.Random(seed)
    values, pools = _log_ratios(ours, theirs, statistic=statistic, rng=rng)
    interval = _median_interval(values, pools, confidence=confidence, rng=rng, resamples=resamples)
    least = _values_interval(values, confidence)
    return _exponential(_at_least(interval, low=least.low, high=least.high))


def unpaired_ratio_interval(
    now: Sequence[Sequence[float]],
    then: Sequence[Sequence[float]],
    *,
    now_anchor: Sequence[Sequence[float]] | None = None,
    then_anchor: Sequence[Sequence[float]] | None = None,
    confidence: float,
    seed: int,
    statistic: Callable[[Sequence[float]], float] = statistics.median,
    resamples: int = 2000,
) -> Interval:
    """Ratio now ÷ then of blocks that were measured at two times: difference of the medians of log block statistics.

    An anchor is what did not change between the two, measured in the same rounds: each block is divided by its round's
    anchor first, so that a host that became slower for both cancels. The two times are bootstrapped apart; the interval
    is at least Welch's with the fewer blocks' degrees of freedom, because no order statistic bounds a difference.

    Raises:
        ValueError: fewer than two blocks at a time, an anchor of other rounds, or a statistic that is not positive.
    """
    if min(len(now), len(then)) < 2:
        raise ValueError(f"expected at least two blocks at each time, found {len(now)} and {len(then)}")
    rng = random.Random(seed)
    one = [[1.0]]
    (new, new_pools), (old, old_pools) = (
        _log_ratios(blocks, anchor or one * len(blocks), statistic=statistic, rng=rng)
        for blocks, anchor in ((now, now_anchor), (then, then_anchor))
    )
    draws = [
        statistics.median([rng.choice(pool) for pool in rng.choices(new_pools, k=len(new_pools))])
        - statistics.median([rng.choice(pool) for pool in rng.choices(old_pools, k=len(old_pools))])
        for _ in range(resamples)
    ]
    interval = _interval(statistics.median(new) - statistics.median(old), draws, confidence)
    error = math.sqrt(statistics.variance(new) / len(new) + statistics.variance(old) / len(old))
    half = student_quantile(0.5 + confidence / 2, min(len(new), len(old)) - 1) * error
    return _exponential(_at_least(interval, low=interval.estimate - half, high=interval.estimate + half))


def paired_proportion_ratio(ours: Sequence[bool], theirs: Sequence[bool], *, confidence: float) -> Interval:
    """Ratio of two proportions measured on the same items (retention), with its score interval.

    The limits are the ratios `r` whose score statistic is z: (a - r b) over its standard error with the discordant
    share estimated under `r` (Tang, Tang & Chan 2003; Nam & Blackwelder 2002). Unlike a bootstrap it keeps a width
    where no item disagrees: 120 of 120 on both sides bounds the ratio at 0.969, not at 1.

    Raises:
        ValueError: different or zero numbers of items, or theirs is never true.
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"expected the same items for both, found {len(ours)} and {len(theirs)}")
    if not any(theirs):
        raise ValueError("expected a reference that is right at least once, found none")
    n, right, reference = len(ours), sum(ours), sum(theirs)
    either = sum(a or b for a, b in zip(ours, theirs, strict=True))
    only_theirs = either - right
    z = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)

    def score(ratio: float) -> float:
        square, linear = n * (1 + ratio), reference * ratio**2 - (right + 2 * only_theirs)
        constant = only_theirs * (1 - ratio) * either / n
        discordant = (math.sqrt(max(0.0, linear**2 - 4 * square * constant)) - linear) / (2 * square)
        variance = n * ((1 + ratio) * discordant + either * (ratio - 1) / n)
        return (right - reference * ratio) / math.sqrt(max(variance, 1e-12))

    estimate = right / reference
    low = _crossing(score, z, 0.0, estimate) if right else 0.0
    high = max(1.0, estimate)
    while score(high) > -z:
        high *= 2
    return Interval(estimate, low, _crossing(score, -z, estimate, high))


def ratio_of_sums_interval(
    over: Sequence[float], under: Sequence[float], *, confidence: float, seed: int, resamples: int = 2000
) -> Interval:
    """Sum of `over` by sum of `under`, one value of each an item, bootstrapped over items: a weighted mean, or a ratio.

    Raises:
        ValueError: different or zero numbers of items, or `under` sums to nothing.
    """
    if len(over) != len(under) or not over:
        raise ValueError(f"expected a value of each for the same items, found {len(over)} and {len(under)}")
    if sum(under) <= 0:
        raise ValueError("expected a positive sum to divide by, found none")
    rng = random.Random(seed)
    pairs = list(zip(over, under, strict=True))
    draws = []
    for _ in range(resamples):
        drawn = rng.choices(pairs, k=len(pairs))
        below = math.fsum(b for _, b in drawn)
        if below > 0:
            draws.append(math.fsum(a for a, _ in drawn) / below)
    return _interval(math.fsum(over) / math.fsum(under), draws, confidence)


def percentile_supported(*, n: int, p: float, confidence: float) -> bool:
    """Whether `n` samples can bound the p-th percentile from above: 1 - (p/100)^n >= confidence (binomial rule)."""
    return 1 - (p / 100) ** n >= confidence


def percentile_needs(*, p: float, confidence: float) -> int:
    """Samples from which order statistics bound the p-th percentile on both sides, each at `confidence`: 59 for p95."""
    far = max(p, 100 - p) / 100
    n = max(1, math.ceil(math.log(1 - confidence) / math.log(far)))
    return n if 1 - far**n >= confidence else n + 1


def percentile_interval(values: Sequence[float], *, p: float, confidence: float) -> Interval:
    """The p-th percentile between two order statistics, each a one-sided bound at `confidence` by the binomial rule.

    x_(u) is above the percentile with probability P(Bin(n, p/100) < u), x_(l) below it with P(Bin(n, p/100) >= l)
    (Conover 1999, section 3.2; distribution-free, for samples that are independent).

    Raises:
        ValueError: the samples are too few; the message has the number needed.
    """
    n, needed = len(values), percentile_needs(p=p, confidence=confidence)
    if n < needed:
        raise ValueError(f"found {n} samples, a p{p:g} at {100 * confidence:g} % confidence needs at least {needed}")
    ordered, share = sorted(values), p / 100
    below = _binomial_cdf(n, share)  # below[k] = P(Bin <= k)
    upper = next(u for u in range(1, n + 1) if below[u - 1] >= confidence)
    lower = next(k for k in range(n, 0, -1) if 1 - below[k - 1] >= confidence)
    return Interval(percentile(values, p), ordered[lower - 1], ordered[upper - 1])


def blocks_needed(confidence: float) -> int:
    """Blocks from which order statistics can bound a median at `confidence`: 1 - 2^(1-n) >= confidence."""
    return math.ceil(1 - math.log2(1 - confidence))


def student_quantile(p: float, degrees: int) -> float:
    """Quantile of Student's t for `p` > 0.5 and whole degrees of freedom (series 26.7.3-4 of Abramowitz & Stegun)."""

    def within(t: float) -> float:
        angle = math.atan(t / math.sqrt(degrees))
        odd = degrees % 2
        term, total = (math.cos(angle), 0.0) if odd else (1.0, 0.0)
        for k in range(1 + odd, degrees, 2):
            total += term
            term *= math.cos(angle) ** 2 * k / (k + 1)
        return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total

    return _crossing(within, 2 * p - 1, 0.0, 1e6)


def _crossing(function: Callable[[float], float], value: float, low: float, high: float) -> float:
    """Where a monotone `function` passes `value` between `low` and `high`, by bisection to float precision."""
    rising = function(high) > function(low)
    for _ in range(200):
        middle = (low + high) / 2
        if (function(middle) < value) == rising:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _replicates(*blocks: Sequence[float]) -> int:
    """How often a block's samples are resampled; a block of one sample has but itself."""
    return 1 if all(len(block) == 1 for block in blocks) else INNER_RESAMPLES


def _median_interval(
    values: Sequence[float],
    pools: Sequence[Sequence[float]],
    *,
    confidence: float,
    rng: random.Random,
    resamples: int,
) -> Interval:
    """Interval of the median of `values`, bootstrapped over blocks, each taken as one of its `pools`' replicates."""
    draws = []
    for _ in range(resamples):
        draws.append(statistics.median([rng.choice(pool) for pool in rng.choices(pools, k=len(pools))]))
    return _interval(statistics.median(values), draws, confidence)


def _values_interval(values: Sequence[float], confidence: float) -> Interval:
    """Interval of the median of few values by themselves; a bootstrap of so few claims more than it keeps.

    Three blocks' bootstrap covers the median 72 % of the time where 95 % is claimed, and errs twice as often as it says
    with 24. From `blocks_needed` on: between order statistics, interpolated as Hettmansperger & Sheather (1986,
    Statistics & Probability Letters 4:75), exact for any distribution at the ranks themselves, and unmoved by an
    outlier. With fewer: Student's t.
    """
    n, ordered, middle = len(values), sorted(values), statistics.median(values)
    if n < 2:
        return Interval(middle, middle, middle)
    if n < blocks_needed(confidence):
        half = student_quantile(0.5 + confidence / 2, n - 1) * statistics.stdev(values) / math.sqrt(n)
        return Interval(middle, middle - half, middle + half)
    below = _binomial_cdf(n, 0.5)
    covered = [1 - 2 * below[k - 1] for k in range(1, n // 2 + 1)]  # by the k-th value from each end
    k = max(rank for rank, share in enumerate(covered, start=1) if share >= confidence or rank == 1)
    after = covered[k] if k < len(covered) else 0.0
    place = (covered[k - 1] - confidence) / (covered[k - 1] - after)
    inward = (n - k) * place / (k + (n - 2 * k) * place)
    low = ordered[k - 1] + inward * (ordered[k] - ordered[k - 1])
    high = ordered[n - k] - inward * (ordered[n - k] - ordered[n - k - 1])
    return Interval(middle, low, high)


def _binomial_cdf(n: int, share: float) -> list[float]:
    """P(Bin(n, share) <= k) for k = 0 … n, 0 < share < 1."""
    logs = (
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        + k * math.log(share) + (n - k) * math.log1p(-share)
        for k in range(n + 1)
    )  # fmt: skip
    return list(itertools.accumulate(math.exp(value) for value in logs))


def _log_ratios(
    ours: Sequence[Sequence[float]],
    theirs: Sequence[Sequence[float]],
    *,
    statistic: Callable[[Sequence[float]], float],
    rng: random.Random,
) -> tuple[list[float], list[list[float]]]:
    """Log-ratio of each pair of blocks, and replicates of it from their samples drawn anew."""
    _require_blocks(ours)
    _require_blocks(theirs)
    if len(ours) != len(theirs):
        raise ValueError(f"expected paired blocks, found {len(ours)} and {len(theirs)}")

    def log_ratio(a: Sequence[float], b: Sequence[float]) -> float:
        above, below = statistic(a), statistic(b)
        if above <= 0 or below <= 0:
            raise ValueError(f"expected positive values for a ratio, found {above} and {below}")
        return math.log(above / below)

    pairs = list(zip(ours, theirs, strict=True))
    values = [log_ratio(a, b) for a, b in pairs]
    pools = [
        [log_ratio(rng.choices(a, k=len(a)), rng.choices(b, k=len(b))) for _ in range(_replicates(a, b))]
        for a, b in pairs
    ]
    return values, pools


def _exponential(interval: Interval) -> Interval:
    return Interval(math.exp(interval.estimate), math.exp(interval.low), math.exp(interval.high))


def _at_least(interval: Interval, *, low: float, high: float) -> Interval:
    return Interval(interval.estimate, min(interval.low, low), max(interval.high, high))


def _require_blocks(blocks: Sequence[Sequence[float]]) -> None:
    if not blocks or any(not block for block in blocks):
        raise ValueError("expected at least one block and no empty block")


def _interval(estimate: float, draws: Sequence[float], confidence: float) -> Interval:
    tail = (1 - confidence) / 2 * 100
    return Interval(estimate, percentile(draws, tail), percentile(draws, 100 - tail))
