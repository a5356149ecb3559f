"""Statistics against independent references: published examples, closed forms, simulated coverage."""

from __future__ import annotations

import math
import random
import statistics

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedistill.core.stats import (
    block_interval,
    blocks_needed,
    paired_proportion_ratio,
    paired_ratio_interval,
    percentile,
    percentile_interval,
    percentile_needs,
    percentile_supported,
    ratio_of_sums_interval,
    student_quantile,
    unpaired_ratio_interval,
    wilson_interval,
)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), st.floats(0, 100))
def test_percentile_is_numpys(values: list[float], p: float) -> None:
    assert percentile(values, p) == pytest.approx(float(numpy.percentile(values, p)), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("values", "p"), [([], 50), ([1.0], -1), ([1.0], 101)])
def test_percentile_refuses(values: list[float], p: float) -> None:
    with pytest.raises(ValueError, match=r"expected values and p in \[0, 100\]"):
        percentile(values, p)


def test_wilson_interval_of_a_published_case() -> None:
    # Newcombe (1998), Statistics in Medicine 17:857, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for successes, trials, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        interval = wilson_interval(successes, trials, 0.95)
        assert (interval.low, interval.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    with pytest.raises(ValueError, match="found 3 of 2"):
        wilson_interval(3, 2, 0.95)


def test_student_quantile_is_the_printed_table() -> None:
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 30: 2.042}
    assert {df: round(student_quantile(0.975, df), 3) for df in table} == table
    assert student_quantile(0.95, 4) == pytest.approx(2.132, abs=5e-4)


def test_blocks_needed_is_the_sign_rule() -> None:
    for confidence in (0.8, 0.9, 0.95, 0.99):
        n = blocks_needed(confidence)
        assert 1 - 2 ** (1 - n) >= confidence > 1 - 2 ** (2 - n)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    rng = random.Random(0)
    blocks = [[rng.gauss(10, 1) for _ in range(5)] for _ in range(6)]
    one = block_interval(blocks, confidence=0.95, seed=1)
    assert one == block_interval(blocks, confidence=0.95, seed=1)
    assert one != block_interval(blocks, confidence=0.95, seed=2)
    assert one.low <= one.estimate <= one.high
    assert one.estimate == statistics.median([statistics.median(block) for block in blocks])


@pytest.mark.parametrize("blocks", [3, 4, 6, 10])
def test_the_paired_ratio_covers_the_truth_with_few_blocks_too(blocks: int) -> None:
    rng = random.Random(blocks)
    covered = 0
    for trial in range(150):
        drift = [math.exp(rng.gauss(0, 0.05)) for _ in range(blocks)]
        ours = [[0.5 * d * math.exp(rng.gauss(0, 0.005)) for _ in range(3)] for d in drift]
        theirs = [[math.exp(rng.gauss(0, 0.005)) for _ in range(3)] for _ in drift]
        interval = paired_ratio_interval(ours, theirs, confidence=0.95, seed=trial, resamples=200)
        covered += interval.low <= 0.5 <= interval.high
    assert covered / 150 >= 0.87


def test_three_blocks_give_an_interval_that_covers_the_truth() -> None:
    rng = random.Random(7)
    covered = 0
    for trial in range(150):
        blocks = [[rng.gauss(10, 0.01)] * 3 for _ in range(3)]
        interval = block_interval(blocks, confidence=0.95, seed=trial, resamples=200)
        covered += interval.low <= 10 <= interval.high
    assert covered / 150 >= 0.87


def test_few_noisy_blocks_of_a_positive_quantity_keep_positive_bounds() -> None:
    interval = block_interval([[1.0], [2.0], [30.0]], confidence=0.95, seed=0)
    assert 0 < interval.low < 0.1
    assert interval.high > 30
    flat = block_interval([[10.0]] * 3, confidence=0.95, seed=0)
    assert flat.low == flat.estimate == flat.high == 10.0
    assert block_interval([[0.0], [0.0], [3.0]], confidence=0.95, seed=0).low < 0


def test_pairing_removes_what_a_round_has_in_common() -> None:
    rng = random.Random(3)
    slow = [1.0, 3.0, 1.0, 4.0, 1.0, 2.0]
    ours = [[0.2 * s * rng.uniform(0.99, 1.01) for _ in range(4)] for s in slow]
    theirs = [[s * rng.uniform(0.99, 1.01) for _ in range(4)] for s in slow]
    interval = paired_ratio_interval(ours, theirs, confidence=0.95, seed=0)
    assert 0.19 < interval.low <= interval.estimate <= interval.high < 0.21


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ([[1.0]], [[1.0], [2.0]], "expected paired blocks, found 1 and 2"),
        ([[]], [[1.0]], "no empty block"),
        ([], [], "at least one block"),
        ([[0.0]], [[1.0]], "expected positive values for a ratio"),
    ],
)
def test_paired_ratio_refuses(ours: list[list[float]], theirs: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_ratio_interval(ours, theirs, confidence=0.95, seed=0)


def items(both: int, ours: int, theirs: int, neither: int) -> tuple[list[bool], list[bool]]:
    return (
        [True] * (both + ours) + [False] * (theirs + neither),
        [True] * both + [False] * ours + [True] * theirs + [False] * neither,
    )


def test_paired_proportions_give_the_published_score_interval() -> None:
    # Fagerland, Lydersen & Laake (2014), airway hyper-responsiveness: ratio 0.25, Tang's score interval 0.065 to 0.907.
    interval = paired_proportion_ratio(*items(1, 1, 7, 12), confidence=0.95)
    assert (interval.estimate, round(interval.low, 3), round(interval.high, 3)) == (0.25, 0.065, 0.907)


@pytest.mark.parametrize("counts", [(93, 1, 4, 2), (50, 6, 2, 2), (20, 0, 3, 0)])
def test_the_limits_are_where_the_score_test_rejects(counts: tuple[int, int, int, int]) -> None:
    """The constrained likelihood maximised on a grid, independently of the closed form."""
    both, ours, theirs, neither = counts
    n = sum(counts)
    interval = paired_proportion_ratio(*items(*counts), confidence=0.95)
    p21, p11 = numpy.meshgrid(numpy.linspace(1e-4, 0.4, 1200), numpy.linspace(0.3, 0.999, 1600))
    for ratio in (interval.low, interval.high):
        p12 = ratio * (p11 + p21) - p11
        p22 = 1 - p11 - p12 - p21
        possible = (p12 > 0) & (p22 > (0 if neither else -1e-3))
        cells = [(both, p11), (ours, p12), (theirs, p21), (neither, p22)]
        likelihood = sum(count * numpy.log(numpy.where(possible, p, 1)) for count, p in cells if count)
        best = numpy.unravel_index(numpy.argmax(numpy.where(possible, likelihood, -numpy.inf)), p11.shape)
        variance = n * (p12 + ratio**2 * p21 + (1 - ratio) ** 2 * p11)[best]
        statistic = (both + ours - ratio * (both + theirs)) / math.sqrt(variance)
        assert abs(statistic) == pytest.approx(1.96, rel=0.03)


def test_agreement_on_every_item_is_not_certainty() -> None:
    interval = paired_proportion_ratio([True] * 120, [True] * 120, confidence=0.95)
    assert interval.low == pytest.approx(120 / (120 + 1.959964**2), abs=1e-6)
    assert interval.estimate == 1.0 < interval.high


def test_no_answer_right_and_more_right_than_the_reference() -> None:
    assert paired_proportion_ratio(*items(0, 0, 10, 0), confidence=0.95).low == 0.0
    better = paired_proportion_ratio(*items(1, 9, 0, 0), confidence=0.95)
    assert (better.estimate, better.low > 1) == (10.0, True)


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [([], [], "same items"), ([True], [True, False], "same items for both, found 1 and 2"), ([True], [False], "once")],
)
def test_paired_proportions_refuse(ours: list[bool], theirs: list[bool], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_proportion_ratio(ours, theirs, confidence=0.95)


def test_a_weighted_mean_over_items_covers_the_truth() -> None:
    rng = random.Random(2)
    covered = 0
    for trial in range(150):
        places = [rng.randint(5, 40) for _ in range(40)]
        sums = [n * rng.expovariate(10) for n in places]  # mean 0.1, as skewed as a divergence
        interval = ratio_of_sums_interval(sums, places, confidence=0.95, seed=trial, resamples=200)
        assert interval.estimate == pytest.approx(sum(sums) / sum(places))
        covered += interval.low <= 0.1 <= interval.high
    assert 0.87 <= covered / 150 < 1


@pytest.mark.parametrize(
    ("over", "under", "message"),
    [([], [], "found 0 and 0"), ([1.0], [1.0, 2.0], "found 1 and 2"), ([1.0], [0.0], "positive sum to divide by")],
)
def test_a_ratio_of_sums_refuses(over: list[float], under: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ratio_of_sums_interval(over, under, confidence=0.95, seed=0)


@pytest.mark.parametrize(("p", "n"), [(90, 29), (95, 59), (99, 299)])
def test_percentile_claims_need_the_binomial_rules_samples(p: float, n: int) -> None:
    assert percentile_supported(n=n, p=p, confidence=0.95)
    assert not percentile_supported(n=n - 1, p=p, confidence=0.95)


@pytest.mark.parametrize(("p", "n"), [(50, 5), (90, 29), (95, 59), (99, 299)])
def test_a_percentile_needs_the_binomial_rules_samples_and_says_how_many(p: float, n: int) -> None:
    assert percentile_needs(p=p, confidence=0.95) == n
    values = [float(i) for i in range(1, n + 1)]
    assert percentile_interval(values, p=p, confidence=0.95).high == n  # without a violation the largest is the bound
    with pytest.raises(ValueError, match=f"found {n - 1} samples, a p{p} at 95 % confidence needs at least {n}"):
        percentile_interval(values[1:], p=p, confidence=0.95)


def test_percentile_bounds_are_those_of_the_binomial_distribution() -> None:
    interval = percentile_interval([float(i) for i in range(1, 101)], p=95, confidence=0.95)
    below = [sum(math.comb(100, i) * 0.95**i * 0.05 ** (100 - i) for i in range(k + 1)) for k in range(101)]
    low, high = int(interval.low), int(interval.high)
    assert below[high - 1] >= 0.95 > below[high - 2]
    assert 1 - below[low - 1] >= 0.95 > 1 - below[low]


def test_percentile_bounds_err_no_more_than_they_say() -> None:
    rng = random.Random(11)
    truth = -math.log(0.05)  # the p95 of an exponential
    wrong = [0, 0]
    for _ in range(2000):
        interval = percentile_interval([rng.expovariate(1) for _ in range(120)], p=95, confidence=0.95)
        wrong[0] += interval.high < truth
        wrong[1] += interval.low > truth
    assert all(count / 2000 <= 0.06 for count in wrong)


@pytest.mark.parametrize(("blocks", "confidence"), [(6, 0.95), (6, 0.98), (10, 0.95), (16, 0.98), (24, 0.95)])
@pytest.mark.parametrize("outliers", [0.0, 0.15])
def test_the_interval_of_few_blocks_errs_no_more_than_it_says(blocks: int, confidence: float, outliers: float) -> None:
    rng = random.Random(blocks)
    wrong, trials = 0, 600
    for trial in range(trials):
        values = [[math.exp(rng.gauss(0, 0.2 if rng.random() < outliers else 0.05))] for _ in range(blocks)]
        interval = paired_ratio_interval(values, [[1.0]] * blocks, confidence=confidence, seed=trial, resamples=60)
        wrong += not interval.low <= 1 <= interval.high
    said = 1 - confidence
    assert wrong / trials <= said + 2.5 * math.sqrt(said * (1 - said) / trials)


def test_two_times_are_compared_and_what_the_host_did_to_both_cancels() -> None:
    rng = random.Random(4)

    def measured(speed: float, host: float) -> tuple[list[list[float]], list[list[float]]]:
        drift = [host * math.exp(rng.gauss(0, 0.05)) for _ in range(8)]
        ours, anchor = ([[v * d * math.exp(rng.gauss(0, 0.01)) for _ in "abc"] for d in drift] for v in (speed, 1.0))
        return ours, anchor

    (now, now_anchor), (then, then_anchor) = measured(0.9, 0.7), measured(1.0, 1.0)
    plain = unpaired_ratio_interval(now, then, confidence=0.95, seed=0)
    anchored = unpaired_ratio_interval(
        now, then, now_anchor=now_anchor, then_anchor=then_anchor, confidence=0.95, seed=0
    )
    assert plain.high < 0.7 < 0.88 < anchored.low < anchored.estimate < anchored.high < 0.92
    again = unpaired_ratio_interval(now, then, confidence=0.95, seed=0)
    assert again == plain


def test_two_times_alike_are_told_apart_no_more_often_than_said() -> None:
    rng = random.Random(8)
    wrong = 0
    for trial in range(300):
        now, then = ([[math.exp(rng.gauss(0, 0.05))] for _ in range(6)] for _ in range(2))
        interval = unpaired_ratio_interval(now, then, confidence=0.95, seed=trial, resamples=200)
        wrong += not interval.low <= 1 <= interval.high
    assert wrong / 300 <= 0.08


@pytest.mark.parametrize(
    ("now", "then", "message"),
    [([[1.0]], [[1.0]] * 3, "at least two blocks at each time, found 1 and 3"),
     ([[1.0], [0.0]], [[1.0]] * 2, "expected positive values for a ratio"),
     ([[1.0], []], [[1.0]] * 2, "no empty block")],
)  # fmt: skip
def test_two_times_refuse(now: list[list[float]], then: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unpaired_ratio_interval(now, then, confidence=0.95, seed=0)
    with pytest.raises(ValueError, match="expected paired blocks, found 2 and 1"):
        unpaired_ratio_interval([[1.0]] * 2, [[1.0]] * 2, now_anchor=[[1.0]], confidence=0.95, seed=0)
