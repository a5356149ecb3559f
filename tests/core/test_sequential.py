"""Looks at growing measurements: what each may err, together no more than one look alone."""

from __future__ import annotations

import math
import random

import pytest

from edgedistill.core.sequential import Look, further_needed, looks_at, plan_looks, spending
from edgedistill.core.stats import paired_ratio_interval


@pytest.mark.parametrize(
    ("further", "blocks"),
    [(0, [6]), (1, [6, 7]), (2, [6, 7, 8]), (3, [6, 7, 8, 9]), (18, [6, 12, 18, 24]), (10, [6, 10, 13, 16])],
)
def test_looks_are_declared_beforehand_and_spend_the_error_once(further: int, blocks: list[int]) -> None:
    looks = plan_looks(blocks=6, further=further, confidence=0.95)
    assert [look.blocks for look in looks] == blocks
    assert sum(1 - look.confidence for look in looks) == pytest.approx(0.05)
    assert all(look.confidence > 0.95 for look in looks) or looks == (Look(6, 0.95),)


def test_spending_is_lan_and_demets_pocock_type() -> None:
    # Their table at alpha 0.05: nothing at the start, all at the end, 0.031 half way.
    assert [round(spending(share, alpha=0.05), 4) for share in (0, 0.5, 1)] == [0, 0.031, 0.05]


@pytest.mark.parametrize(("blocks", "further"), [(0, 1), (1, -1)])
def test_looks_refuse(blocks: int, further: int) -> None:
    with pytest.raises(ValueError, match="expected blocks >= 1 and further >= 0"):
        plan_looks(blocks=blocks, further=further, confidence=0.95)


def test_only_looks_that_were_measured_are_taken_and_the_first_always() -> None:
    looks = plan_looks(blocks=6, further=18, confidence=0.95)
    assert [len(looks_at(looks, n)) for n in (0, 6, 11, 12, 18, 30)] == [1, 1, 1, 2, 3, 4]


def test_looking_four_times_errs_no_more_often_than_once() -> None:
    rng = random.Random(3)
    looks = plan_looks(blocks=6, further=12, confidence=0.95)
    wrong, trials = 0, 400
    for trial in range(trials):
        blocks = [[math.exp(rng.gauss(0, 0.05))] for _ in range(looks[-1].blocks)]
        intervals = (
            paired_ratio_interval(
                blocks[: look.blocks], [[1.0]] * look.blocks, confidence=look.confidence, seed=trial, resamples=60
            )
            for look in looks
        )
        wrong += any(not i.low <= 1 <= i.high for i in intervals)
    assert wrong / trials <= 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / trials)


@pytest.mark.parametrize(
    ("distance", "half_width", "further"),
    [(1.0, 2.0, 18), (1.0, 1.01, 1), (1.0, 0.5, 1), (0.0, 1.0, None), (0.001, 1.0, None), (-1.0, 1.0, None)],
)
def test_further_blocks_go_by_the_square_of_the_width(distance: float, half_width: float, further: int | None) -> None:
    assert further_needed(blocks=6, distance=distance, half_width=half_width) == further
