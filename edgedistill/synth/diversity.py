"""How varied a corpus is: distinct n-grams, how texts begin, and how evenly its classes are filled."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedistill.synth.textforms import folded, ngrams, word_hashes

OPENING = 3  # words


def diversity(texts: Sequence[str], classes: Sequence[str]) -> dict[str, Any]:
    """Figures of a corpus as JSON values.

    `distinct_1` and `distinct_2`: different words and word pairs over all (Li et al. 2016, lower as a corpus grows);
    `openings`: the commonest beginnings with their counts; `class_evenness`: entropy of the classes over that of equal
    ones, 1.0 for equal counts, None for a single class; `words`: quantiles of the lengths.
    """
    said = [folded(text) for text in texts]
    codes, lengths = word_hashes(said)
    openings = Counter(" ".join(text.split(maxsplit=OPENING)[:OPENING]) for text in said)
    return {
        "distinct_1": _distinct(codes),
        "distinct_2": _distinct(ngrams(codes, lengths=lengths, size=2)[0]),
        "openings": openings.most_common(10),
        "opening_evenness": evenness(openings),
        "class_evenness": evenness(Counter(classes)),
        "words": quantiles(lengths),
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


def _distinct(grams: NDArray[np.uint64]) -> float | None:
    return len(np.unique(grams)) / len(grams) if len(grams) else None
