"""Training texts that share long word n-grams with the evaluation set, after Brown et al. 2020 (GPT-3), appendix C.

N is the 5th percentile of the evaluation texts' lengths in words, at least 8 and at most 13; n-grams of more than ten
training texts are taken for boilerplate. Evaluation texts shorter than N count only where a training text equals them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgedistill.synth.textforms import folded, ngrams, word_hashes

SHORTEST, LONGEST = 8, 13
PERCENTILE = 5
BOILERPLATE = 10  # an n-gram of more texts than this, of training or of evaluation, is no evidence


@dataclass(frozen=True)
class Overlap:
    """Training text `row` has the n-gram `words` of evaluation text `item`, and `share` of that text's n-grams."""

    row: int
    item: int
    words: str
    share: float


def gram_size(lengths: Sequence[int]) -> int:
    """N for evaluation texts of these lengths in words."""
    if not lengths:
        return LONGEST
    return int(np.clip(np.percentile(lengths, PERCENTILE, method="lower"), SHORTEST, LONGEST))


def contaminated(texts: Sequence[str], evaluation: Sequence[str], *, least: float = 0.0) -> list[Overlap]:
    """The training `texts` that have an n-gram of an `evaluation` text, or equal a short one, in order of rows.

    Of several evaluation texts the one that is there most is told; `least` is the share of it that must be. Texts are
    compared without case and punctuation.
    """
    held = [folded(text) for text in evaluation]
    codes, lengths = word_hashes(held)
    size = gram_size(lengths)
    known, owner = _known(*ngrams(codes, lengths=lengths, size=size))
    grams_of = np.bincount(owner, minlength=len(held))
    short = {text: item for item, text in reversed(list(enumerate(held))) if lengths[item] < size}
    said = [folded(text) for text in texts]
    codes, lengths = word_hashes(said)
    hashes, offsets = ngrams(codes, lengths=lengths, size=size)
    found = {row: Overlap(row, short[text], text, 1.0) for row, text in enumerate(said) if text in short}
    if not len(known) or not len(hashes):
        return list(found.values())
    place = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    row_of = np.repeat(np.arange(len(texts)), np.diff(offsets))
    hits = np.flatnonzero(known[place] == hashes)
    hits = hits[_rare(place[hits], row_of[hits], count=len(texts))]
    # One line for each n-gram that a row has of an item, the first place first.
    line = np.unique(row_of[hits] * len(known) + place[hits], return_index=True)[1]
    hits = hits[np.sort(line)]
    pair, first, number = np.unique(
        row_of[hits] * len(held) + owner[place[hits]], return_index=True, return_counts=True
    )
    for row, item, hit, many in zip(*np.divmod(pair, len(held)), hits[first], number, strict=True):
        share = float(many / grams_of[item])
        if share < least or (row in found and share <= found[row].share):
            continue
        begin = int(hit - offsets[row])
        found[int(row)] = Overlap(int(row), int(item), " ".join(said[row].split()[begin : begin + size]), share)
    return [found[row] for row in sorted(found)]


def _known(hashes: NDArray[np.uint64], offsets: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The evaluation's n-grams, sorted, without boilerplate; and the first text of each."""
    texts = len(offsets) - 1
    item_of = np.repeat(np.arange(texts), np.diff(offsets))
    known, first, place = np.unique(hashes, return_index=True, return_inverse=True)
    kept = np.ones(len(known), dtype=bool)
    kept[place[~_rare(place, item_of, count=texts)]] = False
    return known[kept], item_of[first][kept]


def _rare(grams: NDArray[np.int64], texts: NDArray[np.int64], *, count: int) -> NDArray[np.bool_]:
    """Whether the n-gram at each place stands in at most `BOILERPLATE` different texts."""
    distinct = np.unique(grams.astype(np.int64) * max(1, count) + texts) // max(1, count)
    names, often = np.unique(distinct, return_counts=True)
    return ~np.isin(grams, names[often > BOILERPLATE])
