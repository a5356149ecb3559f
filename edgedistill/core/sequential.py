"""Looking at growing measurements more than once without erring more often: pure, standard library only.

A verdict that may ask for further blocks looks at the data several times, and each look could err. The error allowed
in all, alpha = 1 - confidence, is therefore spent over the looks by the Pocock-type spending function of Lan & DeMets
(1983, "Discrete sequential boundaries for clinical trials", Biometrika 70:659): alpha(t) = alpha ln(1 + (e - 1) t) at
the share t of the most blocks allowed. A look may err with what is spent between it and the look before; by the union
bound all looks together err with at most alpha, whatever the distribution and however the looks depend on each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MOST_LOOKS = 4


@dataclass(frozen=True)
class Look:
    """One look: at how many blocks, and at which confidence it must be judged."""

    blocks: int
    confidence: float


def plan_looks(*, blocks: int, further: int, confidence: float) -> tuple[Look, ...]:
    """The looks of a verdict: at `blocks`, then at most three more, evenly spaced, the last at `blocks + further`.

    Raises:
        ValueError: there is no block to begin with, or fewer than none further.
    """
    if blocks < 1 or further < 0:
        raise ValueError(f"expected blocks >= 1 and further >= 0, found {blocks} and {further}")
    extra = min(MOST_LOOKS - 1, further)
    counts = [blocks, *(blocks + math.ceil(further * i / extra) for i in range(1, extra + 1))]
    looks, before = [], 0.0
    for count in counts:
        spent = spending(count / counts[-1], alpha=1 - confidence)
        looks.append(Look(count, confidence if len(counts) == 1 else 1 - (spent - before)))
        before = spent
    return tuple(looks)


def spending(share: float, *, alpha: float) -> float:
    """Error spent when `share` of the most blocks is measured (Lan & DeMets 1983, Pocock type)."""
    return alpha * math.log(1 + (math.e - 1) * share)


def looks_at(looks: Sequence[Look], blocks: int) -> tuple[Look, ...]:
    """The looks that `blocks` measured blocks allow; the first always, so that too few are told as such."""
    return tuple(looks[:1]) + tuple(look for look in looks[1:] if look.blocks <= blocks)


def further_needed(*, blocks: int, distance: float, half_width: float, most: int = 1000) -> int | None:
    """Further blocks likely to bring an interval clear of a limit, its width going as 1 / sqrt(blocks).

    `distance` is from estimate to limit, `half_width` from estimate to the interval's end towards it. None where more
    than `most` would be needed.
    """
    if distance <= 0 or half_width > distance * math.sqrt((blocks + most) / blocks):
        return None
    return max(1, math.ceil(blocks * (half_width / distance) ** 2) - blocks)
