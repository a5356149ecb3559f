"""Training texts that share long word n-grams with the evaluation set, after Brown et al. 2020 (GPT-3), appendix C.

N is the 5th percentile of the evaluation texts' lengths in words, at least 8 and at most 13; n-grams of more than ten
training texts are taken for boilerplate. Evaluation texts shorter than N count only where a training text equals them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgedistill.synth.textforms import folded, ngrams

SHORTEST, LONGEST = 8, 13
PERCENTILE = 5
BOILERPLATE = 10  # an n-gram of more texts than this, of training or of evaluation, is no evidence


@dataclass(frozen=True)
class Overlap:
    """Training text `row` has the n-gram `words` of evaluation text `item`; `share` is how much of it was seen so."""

    row: int
    item: int
    words: str
    share: float


def gram_size(lengths: Sequence[int]) -> int:
    """N for evaluation texts of these lengths in words."""
    if not lengths:
        return LONGEST
    return int(np.clip(np.percentile(lengths, PERCENTILE, method="lower"), SHORTEST, LONGEST))


def contaminated(texts: Sequence[str], evaluation: Sequence[str]) -> list[Overlap]:
    """The training `texts` that have an n-gram of an `evaluation` text, or equal a short one, in order of rows.

    Texts are compared without case and punctuation.
    """
    held = [folded(text).split() for text in evaluation]
    size = gram_size([len(words) for words in held])
    vocabulary: dict[str, int] = {}
    known, owner = _known(held, vocabulary, size=size)
    short = {" ".join(words): item for item, words in reversed(list(enumerate(held))) if len(words) < size}
    split = [folded(text).split() for text in texts]
    hashes, offsets = _hashed(split, vocabulary, size=size)
    found = {row: Overlap(row, short[said], said, 1.0) for row, words in enumerate(split)
             if (said := " ".join(words)) in short}  # fmt: skip
    if not len(known) or not len(hashes):
        return list(found.values())
    place = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    row_of = np.repeat(np.arange(len(texts)), np.diff(offsets))
    hits = np.flatnonzero(known[place] == hashes)
    hits = hits[_rare(place[hits], row_of[hits], count=len(texts))]
    rows, first, number = np.unique(row_of[hits], return_index=True, return_counts=True)
    for row, hit, many in zip(rows.tolist(), hits[first].tolist(), number.tolist(), strict=True):
        begin = hit - int(offsets[row])
        words = " ".join(split[row][begin : begin + size])
        found[row] = Overlap(row, int(owner[place[hit]]), words, many / int(offsets[row + 1] - offsets[row]))
    return [found[row] for row in sorted(found)]


def _known(
    held: Sequence[list[str]], vocabulary: dict[str, int], *, size: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The evaluation's n-grams, sorted, without boilerplate; and the first text of each."""
    hashes, offsets = _hashed(held, vocabulary, size=size)
    item_of = np.repeat(np.arange(len(held)), np.diff(offsets))
    known, first, place = np.unique(hashes, return_index=True, return_inverse=True)
    kept = np.ones(len(known), dtype=bool)
    kept[place[~_rare(place, item_of, count=len(held))]] = False
    return known[kept], item_of[first][kept]


def _hashed(
    split: Sequence[list[str]], vocabulary: dict[str, int], *, size: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    codes = [vocabulary.setdefault(word, len(vocabulary) + 1) for words in split for word in words]
    return ngrams(np.array(codes, dtype=np.uint64), lengths=[len(words) for words in split], size=size)


def _rare(grams: NDArray[np.int64], texts: NDArray[np.int64], *, count: int) -> NDArray[np.bool_]:
    """Whether the n-gram at each place stands in at most `BOILERPLATE` different texts."""
    distinct = np.unique(grams.astype(np.int64) * max(1, count) + texts) // max(1, count)
    names, often = np.unique(distinct, return_counts=True)
    return ~np.isin(grams, names[often > BOILERPLATE])
