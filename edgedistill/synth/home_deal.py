"""Deals the rows of the grammar's tables to the splits.

Sentences and words that are held out are drawn from the same tables as those that are taught, by chance: neither harder
nor easier, and `valid` foretells `heldout`. Another seed holds out other rows, so a seed whose results nobody has seen
is as good as sentences that nobody has read.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from edgedistill.synth import home_phrases as phrases
from edgedistill.synth import home_refusals as refusals
from edgedistill.synth import home_words as words

TIERS = ("heldout", "valid", "gold", "prompts")
SHARES = {"heldout": 0.15, "valid": 0.15, "gold": 0.5}  # of a table's rows; what is left belongs to `prompts`

Rows = dict[str, tuple[Any, ...]]

TABLES: Rows = {
    **{f"to {group}": rows for group, rows in phrases.PHRASES.items()},
    "frame": phrases.FRAMES,
    "place": phrases.PLACES,
    "question": refusals.QUESTIONS,
    "off topic": refusals.OUT_OF_SCOPE,
    "unknown": words.UNKNOWN,
    "room": words.ROOMS,
    "color": words.COLORS,
    "city": words.CITIES,
    "person": words.PEOPLE,
    "thing": words.THINGS,
    "task": words.TASKS,
}
USUAL: Rows = {"room": words.USUAL_ROOMS, "color": words.USUAL_COLORS}  # gold's, whatever the seed


def deal(seed: int, tables: Mapping[str, tuple[Any, ...]] = TABLES) -> dict[str, Rows]:
    """For each tier the rows of every table that are its own; a table of one row is gold's, and what is `USUAL`."""
    dealt: dict[str, Rows] = {tier: {} for tier in TIERS}
    for name, table in tables.items():
        left = random.Random(f"{seed}/{name}").sample(table, len(table))
        for tier, share in SHARES.items():
            count = max(tier == "gold", round(len(table) * share))
            dealt[tier][name], left = tuple(left[:count]), left[count:]
        dealt["prompts"][name] = tuple(left)
        dealt["gold"][name] += USUAL.get(name, ())
    return dealt


def number_tier(number: int) -> str:
    """Which split may say a number: from 20 on one in seven is kept for `heldout`, one in seven for `valid`.

    The small ones are not: without 10 every "1" and "0" ever seen would go on to a third digit.
    """
    return {3: "heldout", 5: "valid"}.get(number % 7, "gold") if number >= 20 else "gold"
