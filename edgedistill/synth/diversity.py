"""How varied a corpus is: distinct n-grams, how texts begin, and how evenly its classes are filled."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from edgedistill.synth.textforms import folded

OPENING = 3  # words


def diversity(texts: Sequence[str], classes: Sequence[str]) -> dict[str, Any]:
    """Figures of a corpus as JSON values.

    `distinct_1` and `distinct_2`: different words and word pairs over all (Li et al. 2016, lower as a corpus grows);
    `openings`: the commonest beginnings with their counts; `class_evenness`: entropy of the classes over that of equal
    ones, 1.0 for equal counts, None for a single class; `words`: quantiles of the lengths.
    """
    split = [folded(text).split() for text in texts]
    openings = Counter(" ".join(words[:OPENING]) for words in split)
    return {
        "distinct_1": _distinct([words for words in split]),
        "distinct_2": _distinct([list(pairwise(words)) for words in split]),
        "openings": openings.most_common(10),
        "opening_evenness": evenness(openings),
        "class_evenness": evenness(Counter(classes)),
        "words": quantiles([len(words) for words in split]),
    }


def evenness(counts: Counter[str]) -> float | None:
    """Shannon entropy of the counts over that of as many equal ones (Pielou 1966)."""
    total = counts.total()
    if len(counts) < 2:
        return None
    entropy = -sum(count / total * math.log(count / total) for count in counts.values())
    return entropy / math.log(len(counts))


def quantiles(values: Sequence[int]) -> dict[str, int]:
    """Least, quartiles, 95th percentile and greatest of the values, each one that occurs."""
    if not values:
        return {}
    ordered = sorted(values)
    places = {"min": 0.0, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}
    return {name: ordered[round(place * (len(ordered) - 1))] for name, place in places.items()}


def _distinct(split: Sequence[Sequence[Any]]) -> float | None:
    grams = [gram for row in split for gram in row]
    return len(set(grams)) / len(grams) if grams else None
