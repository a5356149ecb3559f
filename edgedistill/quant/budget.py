"""Which grid each group of tensors gets when bytes are short: the least cost that fits, by Lagrange's multiplier.

With a price on bytes each group chooses alone, and the choices move along the convex hull of its options as the price
falls: taking hull steps in the order of cost saved per byte is optimal but for the last step (Everett 1963). What is
left over then goes to whichever single changes still fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Option:
    """A grid for a group: the bytes it takes and what it costs in quality, such as nats of KL divergence."""

    grid: str
    bytes: int
    cost: float


def smallest(options: Mapping[str, Sequence[Option]]) -> int:
    """Bytes of every group on its smallest option."""
    return sum(min(option.bytes for option in group) for group in options.values())


def allocate(options: Mapping[str, Sequence[Option]], *, max_bytes: int) -> dict[str, Option]:
    """An option for each group, of little total cost, whose bytes together are at most `max_bytes`.

    Raises:
        ValueError: the smallest options do not fit.
    """
    if (least := smallest(options)) > max_bytes:
        raise ValueError(f"expected at least {least:,} bytes, found {max_bytes:,}")
    hulls = {name: _hull(group) for name, group in options.items()}
    chosen = {name: hull[0] for name, hull in hulls.items()}
    room = max_bytes - sum(option.bytes for option in chosen.values())
    steps = sorted(
        (-(a.cost - b.cost) / (b.bytes - a.bytes), name, at)
        for name, hull in hulls.items()
        for at, (a, b) in enumerate(pairwise(hull), start=1)
    )
    for _, name, at in steps:
        # of one group the steps come in order; past one that did not fit a later one may skip it
        more = hulls[name][at].bytes - chosen[name].bytes
        if more <= room:
            chosen[name], room = hulls[name][at], room - more
    return _filled(options, chosen, room)


def _hull(group: Sequence[Option]) -> list[Option]:
    """Options from the smallest up, each saving less for a byte than the one before it."""
    hull: list[Option] = []
    for option in sorted(group, key=lambda o: (o.bytes, o.cost)):
        if hull and option.cost >= hull[-1].cost:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-2], option):
            hull.pop()
        hull.append(option)
    return hull


def _slope(a: Option, b: Option) -> float:
    return (a.cost - b.cost) / (b.bytes - a.bytes)


def _filled(options: Mapping[str, Sequence[Option]], chosen: dict[str, Option], room: int) -> dict[str, Option]:
    """Spend the rest on single changes, the most saved first; each lowers the cost, so this ends."""
    while True:
        changes = [
            (chosen[name].cost - option.cost, name, option)
            for name, group in options.items()
            for option in group
            if option.bytes - chosen[name].bytes <= room and option.cost < chosen[name].cost
        ]
        if not changes:
            return chosen
        _, name, option = max(changes, key=lambda change: (change[0], change[1]))
        room -= option.bytes - chosen[name].bytes
        chosen[name] = option
