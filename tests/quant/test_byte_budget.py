"""Bytes dealt to groups: always within the budget, and as good as trying every combination but for little."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from edgedistill.quant.budget import Option, allocate, fastest, smallest


def _groups(seed: int, *, count: int = 6) -> dict[str, list[Option]]:
    source = random.Random(seed)
    groups = {}
    for number in range(count):
        size, weight = source.randint(1, 40), source.uniform(0.1, 10)
        steps = {"Q4_0": (18, 16.0), "Q4_1": (20, 10.0), "Q5_0": (22, 4.0), "Q8_0": (34, 0.06)}
        groups[f"g{number}"] = [
            Option(grid, size * b, weight * cost * source.uniform(0.8, 1.2)) for grid, (b, cost) in steps.items()
        ]
    return groups


def _best(groups: dict[str, list[Option]], limit: int) -> float:
    costs = [
        sum(option.cost for option in choice)
        for choice in itertools.product(*groups.values())
        if sum(option.bytes for option in choice) <= limit
    ]
    return min(costs)


@pytest.mark.parametrize("seed", range(12))
def test_nearly_the_best_of_all_combinations_and_within_bytes(seed: int) -> None:
    groups = _groups(seed)
    least, most = smallest(groups), sum(max(o.bytes for o in group) for group in groups.values())
    ratios = []
    for share in (0, 0.1, 0.3, 0.5, 0.8, 1):
        limit = least + round(share * (most - least))
        chosen = allocate(groups, max_bytes=limit)
        assert chosen.keys() == groups.keys() and all(chosen[n] in groups[n] for n in groups)
        assert sum(option.bytes for option in chosen.values()) <= limit
        ratios.append(sum(option.cost for option in chosen.values()) / _best(groups, limit))
    assert ratios[0] == ratios[-1] == 1 and max(ratios) < 1.6 and sum(ratios) / len(ratios) < 1.15


def _timed(seed: int) -> dict[str, list[Option]]:
    """As `_groups`, with times of their own: what is small is not always fast."""
    source = random.Random(seed + 1000)
    times = {"Q4_0": -0.4, "Q4_1": -0.1, "Q5_0": 0.5, "Q8_0": 0.0}
    return {
        name: [replace(o, ns=o.bytes * times[o.grid] * source.uniform(0.8, 1.2)) for o in group]
        for name, group in _groups(seed).items()
    }


@pytest.mark.parametrize("seed", range(12))
def test_nearly_the_best_within_bytes_and_time(seed: int) -> None:
    groups = _timed(seed)
    choices = list(itertools.product(*groups.values()))
    least, most = smallest(groups), sum(max(o.bytes for o in group) for group in groups.values())
    ratios = []
    for share in (0.2, 0.5, 1):
        limit = least + round(share * (most - least))
        quick = sum(o.ns for o in fastest(groups, max_bytes=limit).values())
        slow = sum(o.ns for o in allocate(groups, max_bytes=limit).values())
        for part in (0, 0.3, 0.7, 1):
            max_ns = quick + part * (slow - quick) + 1e-6
            chosen = allocate(groups, max_bytes=limit, max_ns=max_ns).values()
            assert sum(o.bytes for o in chosen) <= limit and sum(o.ns for o in chosen) <= max_ns
            fitting = [c for c in choices if sum(o.bytes for o in c) <= limit and sum(o.ns for o in c) <= max_ns]
            best = min(sum(o.cost for o in c) for c in fitting)
            ratios.append(sum(o.cost for o in chosen) / best)
    assert max(ratios) < 2 and sum(ratios) / len(ratios) < 1.2


def test_without_bytes_to_save_the_fastest_is_found_and_less_time_is_refused() -> None:
    groups = _timed(1)
    most = sum(max(o.bytes for o in group) for group in groups.values())
    least_ns = sum(min(o.ns for o in group) for group in groups.values())
    assert sum(o.ns for o in fastest(groups, max_bytes=most).values()) == pytest.approx(least_ns)
    with pytest.raises(ValueError, match=r"expected at least -?[\d,]+ ns, found"):
        allocate(groups, max_bytes=most, max_ns=least_ns - 1)


def test_more_bytes_never_cost_more() -> None:
    groups = _groups(3, count=30)
    least = smallest(groups)
    costs = [sum(o.cost for o in allocate(groups, max_bytes=least + more).values()) for more in range(0, 9000, 300)]
    assert costs == sorted(costs, reverse=True)


def test_an_option_that_is_larger_and_worse_is_never_taken() -> None:
    groups = {"a": [Option("small", 10, 1.0), Option("bad", 20, 2.0), Option("good", 30, 0.5)]}
    assert allocate(groups, max_bytes=25)["a"].grid == "small"
    assert allocate(groups, max_bytes=30)["a"].grid == "good"


def test_too_few_bytes_are_refused_with_the_number_that_fits() -> None:
    with pytest.raises(ValueError, match="expected at least 10 bytes, found 9"):
        allocate({"a": [Option("small", 10, 1.0)]}, max_bytes=9)
