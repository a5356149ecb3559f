"""Balance of a corpus by class, length or source: rows drawn so that the shares are as chosen, stable as data grows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from edgedistill.core.errors import InputError
from edgedistill.core.files import digest_of


def balanced(
    classes: Sequence[str | None], keys: Sequence[str], *, target: Mapping[str, float] | None = None
) -> list[bool]:
    """Which rows stay so that each class has its share: of all rows that can be kept, the most.

    `target` gives each class its weight, None an equal one to every class there is; rows of no class (None) stay, rows
    of a class that `target` does not name go. Within a class the rows whose `keys` hash lowest stay, so that a longer
    corpus keeps what a shorter one kept wherever there is room.

    Raises:
        InputError: a class of `target` has no rows.
    """
    counts = Counter(name for name in classes if name is not None)
    weights = dict(target) if target is not None else dict.fromkeys(counts, 1.0)
    if missing := sorted(name for name, weight in weights.items() if weight > 0 and not counts[name]):
        raise InputError(
            f"data.balance.target: expected rows of {', '.join(missing)}, found none; there are "
            f"{', '.join(f'{count} of {name}' for name, count in sorted(counts.items())) or 'none of any class'}"
        )
    scale = min((counts[name] / weight for name, weight in weights.items() if weight > 0), default=0.0)
    room = {name: math.floor(scale * weight + 1e-9) for name, weight in weights.items()}
    kept = [name is None for name in classes]
    for row in sorted(range(len(classes)), key=lambda row: (digest_of(keys[row]), row)):
        name = classes[row]
        if name is not None and room.get(name, 0) > 0:
            room[name] -= 1
            kept[row] = True
    return kept


def length_class(text: str) -> str:
    """The class of a text by its words, each twice as wide as the one before: `1-7 words`, `8-15 words`, …"""
    words = max(1, len(text.split()))
    low = 1 << max(3, words.bit_length() - 1)
    return "1-7 words" if words < 8 else f"{low}-{2 * low - 1} words"
