"""Intervals over seeds and items: closed forms, published cases, simulated coverage."""

from __future__ import annotations

import random
import statistics

import pytest

from edgedistill.core.crossed import crossed_difference, crossed_gap, crossed_mean, crossed_ratio
from edgedistill.core.stats import paired_proportion_ratio, student_quantile, wilson_interval


def right(count: int, of: int) -> list[float]:
    return [1.0] * count + [0.0] * (of - count)


def test_one_seed_is_as_wide_as_wilson_at_least() -> None:
    found, least = crossed_mean([right(81, 263)], confidence=0.95, seed=0), wilson_interval(81, 263, 0.95)
    assert found.estimate == pytest.approx(81 / 263)
    assert least.low - 0.01 < found.low <= least.low < least.high <= found.high < least.high + 0.01
    whole = crossed_mean([right(20, 20)], confidence=0.95, seed=0)
    assert (whole.estimate, whole.high) == (1, 1) and whole.low == pytest.approx(1 - 0.1611, abs=5e-5)


def test_seeds_that_differ_widen_the_interval_to_student_s() -> None:
    scores = [right(count, 1000) for count in (900, 930, 960)]
    found = crossed_mean(scores, confidence=0.95, seed=0)
    half = student_quantile(0.975, 2) * 0.03 / 3**0.5
    assert (found.low, found.high) == (pytest.approx(0.93 - half), 1.0)  # never above every item right
    alike = crossed_mean([right(930, 1000)] * 3, confidence=0.95, seed=0)
    assert alike.high - alike.low < 0.05


def test_a_difference_is_taken_item_by_item() -> None:
    rng = random.Random(0)
    theirs = [float(rng.random() < 0.5) for _ in range(400)]
    ours = [1.0 if place < 12 else value for place, value in enumerate(theirs)]
    found = crossed_difference([ours], [theirs], confidence=0.95, seed=0)
    shuffled = crossed_difference([rng.sample(ours, 400)], [theirs], confidence=0.95, seed=0)
    assert found.estimate == pytest.approx(shuffled.estimate) and 0 < found.estimate < 0.03
    assert found.high - found.low < 0.3 * (shuffled.high - shuffled.low)


def test_few_items_that_speak_for_one_side_prove_nothing() -> None:
    # McNemar's exact test of 4 to 0 is 0.125, of 8 to 0 it is 0.008.
    for discordant, excluded in ((0, False), (4, False), (8, True)):
        theirs = [0.0] * discordant + [1.0] * (100 - discordant)
        found = crossed_difference([[1.0] * 100], [theirs], confidence=0.95, seed=0)
        assert (found.low > 0) == excluded and found.low < found.high


def test_agresti_and_min_s_interval_of_a_pair() -> None:
    # Their formula by hand: n = 50, 9 against 2, so (9 - 2) / 52 ± 1.96 sqrt(12 - 49 / 52) / 52.
    ours = [1.0] * 9 + [0.0] * 2 + [1.0] * 39
    theirs = [0.0] * 9 + [1.0] * 2 + [1.0] * 39
    found = crossed_difference([ours], [theirs], confidence=0.95, seed=3)
    half = 1.959964 * (12 - 49 / 52) ** 0.5 / 52
    assert found.low <= 7 / 52 - half + 1e-6 and found.high >= 7 / 52 + half - 1e-6
    assert found.low > 7 / 52 - half - 0.03 and found.high < 7 / 52 + half + 0.03


def test_a_gap_without_bounds_holds_both_student_s_intervals() -> None:
    theirs = [[3.0] * 60] * 3
    of_seeds = [[3.0 + shift] * 60 for shift in (-1.7, -2.0, -2.3)]  # further away than scores in [0, 1] can be
    found = crossed_gap(of_seeds, theirs, confidence=0.95, seed=0)
    half = student_quantile(0.975, 2) * 0.3 / 3**0.5
    assert (found.estimate, found.low, found.high) == pytest.approx((-2.0, -2 - half, -2 + half))
    of_items = [[3.0 + (0.1 if item % 2 else -0.3) for item in range(60)]] * 3
    found = crossed_gap(of_items, theirs, confidence=0.95, seed=0)
    half = student_quantile(0.975, 59) * (60 / 59) ** 0.5 * 0.2 / 60**0.5
    assert found.estimate == pytest.approx(-0.1) and found.high - found.low < 2.3 * half
    assert found.low <= -0.1 - half + 1e-12 and found.high >= -0.1 + half - 1e-12


def test_a_ratio_to_one_reference_holds_the_score_interval() -> None:
    theirs = right(95, 100)
    ours = right(90, 100)
    found = crossed_ratio([ours], theirs, confidence=0.95, seed=0)
    score = paired_proportion_ratio([bool(v) for v in ours], [bool(v) for v in theirs], confidence=0.95)
    assert found.estimate == pytest.approx(90 / 95) and found.low <= score.low and found.high >= score.high
    both = crossed_ratio([right(90, 100), right(86, 100)], theirs, confidence=0.95, seed=0)
    assert both.estimate == pytest.approx(88 / 95) and both.low < found.low
    graded = crossed_ratio([[0.5, 0.25, 1.0]], [0.5, 0.5, 1.0], confidence=0.95, seed=0)
    assert graded.estimate == pytest.approx(1.75 / 2) and graded.low < graded.estimate <= graded.high


def test_the_same_scores_and_seed_give_the_same_interval() -> None:
    scores = [right(5, 9), right(6, 9)]
    assert crossed_mean(scores, confidence=0.9, seed=1) == crossed_mean(scores, confidence=0.9, seed=1)


def test_what_cannot_be_compared_is_refused() -> None:
    how = {"confidence": 0.95, "seed": 0}
    for scores in ([], [[]], [[1.0], [1.0, 0.0]]):
        with pytest.raises(ValueError, match="expected scores of the same items for every seed"):
            crossed_mean(scores, **how)
    with pytest.raises(ValueError, match="expected the same seeds for both, found 2 and 1"):
        crossed_difference([[1.0], [1.0]], [[1.0]], **how)
    with pytest.raises(ValueError, match="expected the same seeds for both, found 1 and 2"):
        crossed_gap([[1.0]], [[1.0], [1.0]], **how)
    with pytest.raises(ValueError, match="a reference that scores at all, found 1 and 0"):
        crossed_ratio([[1.0, 0.0]], [0.0, 0.0], **how)


def test_a_gap_covers_the_truth_where_both_seeds_and_items_vary() -> None:
    rng = random.Random(2)
    covered = 0
    for trial in range(100):
        luck, items = [rng.gauss(0, 0.02) for _ in range(3)], [rng.gauss(-0.05, 0.1) for _ in range(40)]
        ours = [[1.5 + one + item + rng.gauss(0, 0.05) for item in items] for one in luck]
        found = crossed_gap(ours, [[1.5] * 40] * 3, confidence=0.9, seed=trial, resamples=200)
        covered += found.low <= -0.05 <= found.high
    assert covered >= 84


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_difference_covers_the_truth(seeds: int) -> None:
    """Items of unlike difficulty, seeds of unlike luck; with one seed the truth is that seed's own."""
    rng = random.Random(seeds)
    covered = 0
    for trial in range(100):
        luck = [rng.gauss(0, 0.02) if seeds > 1 else 0.0 for _ in range(seeds)]
        items = [rng.random() for _ in range(150)]
        ours = [[float(rng.random() < min(1.0, max(0.0, p + 0.05 + one))) for p in items] for one in luck]
        theirs = [[float(rng.random() < p) for p in items] for _ in luck]
        # The items' own expectations, so that clipping at 0 and 1 is no part of the truth.
        truth = statistics.fmean(min(1.0, p + 0.05) - p for p in (rng.random() for _ in range(4000)))
        found = crossed_difference(ours, theirs, confidence=0.9, seed=trial, resamples=200)
        covered += found.low <= truth <= found.high
    assert covered >= 84
