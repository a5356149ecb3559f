"""Which grid each group of tensors gets when bytes are short: the least cost that fits, by Lagrange's multiplier.

With a price on bytes each group chooses alone, and the choices move along the convex hull of its options as the price
falls: taking hull steps in the order of cost saved per byte is optimal but for the last step (Everett 1963). What is
left over then goes to whichever single changes still fit. Where time is short as well, the price is on a mix of both,
and mixes from bytes alone to time alone are tried.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

MIXES = 20  # of bytes and time, besides bytes alone
UNIT = 1 << 40  # a budget of mixed bytes and time, in parts that are whole numbers


@dataclass(frozen=True)
class Option:
    """A grid for a group: the bytes and nanoseconds a token it takes, and its cost in nats of KL divergence or such.

    Only differences of `ns` within a group count; below zero is faster than what the budget was reckoned from.
    """

    grid: str
    bytes: int
    cost: float
    ns: float = 0.0


@dataclass(frozen=True)
class Room:
    """What may still be spent."""

    bytes: int
    ns: float

    def after(self, old: Option, new: Option) -> Room:
        return Room(self.bytes - new.bytes + old.bytes, self.ns - new.ns + old.ns)

    @property
    def is_there(self) -> bool:
        return self.bytes >= 0 and self.ns >= 0


Options = Mapping[str, Sequence[Option]]


def smallest(options: Options) -> int:
    """Bytes of every group on its smallest option."""
    return sum(min(option.bytes for option in group) for group in options.values())


def fastest(options: Options, *, max_bytes: int) -> dict[str, Option]:
    """An option for each group, of little time together, whose bytes together are at most `max_bytes`.

    Raises:
        ValueError: the smallest options do not fit.
    """
    timed = {name: [replace(option, cost=option.ns) for option in group] for name, group in options.items()}
    chosen = allocate(timed, max_bytes=max_bytes)
    return {name: next(o for o in group if o.grid == chosen[name].grid) for name, group in options.items()}


def allocate(options: Options, *, max_bytes: int, max_ns: float = math.inf) -> dict[str, Option]:
    """An option for each group, of little total cost, whose bytes together are at most `max_bytes`, and ns `max_ns`.

    Raises:
        ValueError: the smallest options do not fit, or the fastest within the bytes are too slow.
    """
    if (least := smallest(options)) > max_bytes:
        raise ValueError(f"expected at least {least:,} bytes, found {max_bytes:,}")
    room = Room(max_bytes, max_ns)
    if math.isinf(max_ns):
        return _filled(options, *_climbed(options, options, room))
    quickest = fastest(options, max_bytes=max_bytes)
    if (shortest := sum(option.ns for option in quickest.values())) > max_ns:
        raise ValueError(f"expected at least {shortest:,.0f} ns, found {max_ns:,.0f}")
    starts = [(quickest, _left(room, quickest))]
    for mix in range(MIXES + 1):
        chosen, left = _climbed(options, _mixed(options, room, mix / MIXES), room)
        if left.is_there:
            starts.append((chosen, left))
    return min((_filled(options, *start) for start in starts), key=lambda c: sum(option.cost for option in c.values()))


def _left(room: Room, chosen: Mapping[str, Option]) -> Room:
    spent = chosen.values()
    return Room(room.bytes - sum(o.bytes for o in spent), room.ns - sum(o.ns for o in spent))


def _mixed(options: Options, room: Room, share: float) -> dict[str, list[Option]]:
    """Options whose bytes are a mix of both budgets' shares, `share` of it time."""
    quick = {name: min(option.ns for option in group) for name, group in options.items()}
    time = max(room.ns - sum(quick.values()), 1e-9)

    def size(name: str, option: Option) -> int:
        return round(
            UNIT * ((1 - share) * option.bytes / max(room.bytes, 1) + share * (option.ns - quick[name]) / time)
        )

    return {name: [replace(o, bytes=size(name, o)) for o in group] for name, group in options.items()}


def _climbed(options: Options, priced: Options, room: Room) -> tuple[dict[str, Option], Room]:
    """Hull steps of `priced` as long as they fit into `room`, in `options`' own bytes and time; and what is left."""
    own = {(name, option.grid): option for name, group in options.items() for option in group}
    hulls = {name: _hull(group) for name, group in priced.items()}
    chosen = {name: own[name, hull[0].grid] for name, hull in hulls.items()}
    left = _left(room, chosen)
    steps = sorted(
        (-_slope(a, b), name, at) for name, hull in hulls.items() for at, (a, b) in enumerate(pairwise(hull), start=1)
    )
    for _, name, at in steps:
        # of one group the steps come in order; past one that did not fit a later one may skip it
        step = own[name, hulls[name][at].grid]
        after = left.after(chosen[name], step)
        if after.is_there:
            chosen[name], left = step, after
    return chosen, left


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


def _filled(options: Options, chosen: dict[str, Option], left: Room) -> dict[str, Option]:
    """Spend the rest on single changes, the most saved first; each lowers the cost, so this ends."""
    while True:
        changes = [
            (chosen[name].cost - option.cost, name, option)
            for name, group in options.items()
            for option in group
            if option.cost < chosen[name].cost and left.after(chosen[name], option).is_there
        ]
        if not changes:
            return chosen
        _, name, option = max(changes, key=lambda change: (change[0], change[1]))
        left = left.after(chosen[name], option)
        chosen[name] = option
