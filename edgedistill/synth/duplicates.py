"""Near duplicates by the Jaccard similarity of character shingles: MinHash and banding propose, exact sets decide.

Broder 1997 (MinHash); Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, ch. 3 (banding); Lee et al. 2022
(why: duplicates are learnt by heart and leak into the test set).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import rensa
from numpy.typing import NDArray

from edgedistill.synth.textforms import folded, mixed, shingles

HASHES = 128  # of a signature
SEED = 0
BATCH = 2048  # texts whose shingles stand in memory together
MISS = 0.002  # the chance that banding overlooks a pair of just the threshold
NEIGHBOURS = 16  # within a bucket each row is paired with so many before it, and with the first
DEVIATIONS = 4.0  # an estimate so far below the threshold is not worth an exact comparison


@dataclass(frozen=True)
class Near:
    """Text `row` resembles the earlier text `of`: the Jaccard similarity of their shingles."""

    row: int
    of: int
    similarity: float


def near_duplicates(
    texts: Sequence[str],
    *,
    threshold: float,
    keep: Sequence[bool] = (),
    parts: Sequence[Sequence[str]] = (),
) -> list[Near]:
    """Each text that is as similar as `threshold` to an earlier one which is no duplicate itself, in order.

    Texts are compared without case, punctuation and blanks. `keep` marks texts that are never called duplicates, though
    later ones may be of them. Texts that are made of `parts`, such as a passage and a question about it, are duplicates
    where the least similar of their parts is: many questions share a passage. Every pair told is at least as similar as
    `threshold`; one in 500 of those that just reach it is overlooked.

    Raises:
        ValueError: `threshold` is not in (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"expected a threshold above 0 and at most 1, found {threshold}")
    words = [folded(text) for text in texts]
    signatures = _signatures(words)
    pairs = _candidates(signatures, threshold=threshold)
    near = pairs[_may_reach(signatures, pairs, threshold)]
    return list(_decided(words, near, threshold=threshold, keep=keep, parts=parts))


def bands_for(threshold: float, *, hashes: int = HASHES) -> tuple[int, int]:
    """Bands and rows a band: the most rows (fewest chance candidates) that overlook at most `MISS` at `threshold`."""
    for rows in range(hashes, 0, -1):
        bands = hashes // rows
        if (1 - threshold**rows) ** bands <= MISS:
            return bands, rows
    return hashes, 1


def _signatures(words: Sequence[str]) -> NDArray[np.uint32]:
    """MinHash signatures, `[texts, HASHES]`."""
    found = np.empty((len(words), HASHES), dtype=np.uint32)
    for begin in range(0, len(words), BATCH):
        hashes, offsets = shingles(words[begin : begin + BATCH])
        matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, num_perm=HASHES, seed=SEED)
        found[begin : begin + BATCH] = matrix.to_rows()
    return found


def _candidates(signatures: NDArray[np.uint32], *, threshold: float) -> NDArray[np.int64]:
    """Pairs (earlier, later) that agree in a whole band, `[pairs, 2]`, ordered by the later and then the earlier."""
    count = len(signatures)
    bands, rows = bands_for(threshold)
    found = [np.empty(0, dtype=np.int64)]
    for band in range(bands):
        keys = np.zeros(count, dtype=np.uint64)
        for column in range(band * rows, (band + 1) * rows):
            keys = mixed(keys + signatures[:, column])
        found.append(_in_buckets(keys))
    later, earlier = np.divmod(np.unique(np.concatenate(found)), max(1, count))
    return np.stack([earlier, later], axis=1)


def _in_buckets(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Pairs of rows of one key as `later * rows + earlier`: each row with those just before it, and with the first."""
    count, places = len(keys), np.arange(len(keys))
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    begins = np.concatenate([[True], ordered[1:] != ordered[:-1]])[:count]
    first = np.maximum.accumulate(np.where(begins, places, 0))
    pairs = [order[~begins] * count + order[first[~begins]]]
    for distance in range(1, NEIGHBOURS + 1):
        same = first[distance:] == first[:-distance]
        if not same.any():
            break
        pairs.append(order[distance:][same] * count + order[:-distance][same])
    return np.unique(np.concatenate(pairs))


def _may_reach(signatures: NDArray[np.uint32], pairs: NDArray[np.int64], threshold: float) -> NDArray[np.bool_]:
    """Whether the signatures of each pair agree often enough that its similarity may reach the threshold."""
    least = threshold - DEVIATIONS * (threshold * (1 - threshold) / HASHES) ** 0.5
    pieces = [
        (signatures[some[:, 0]] == signatures[some[:, 1]]).mean(axis=1) >= least
        for some in np.array_split(pairs, max(1, len(pairs) // 100_000))
    ]
    return np.concatenate(pieces)


def _decided(
    words: Sequence[str],
    pairs: NDArray[np.int64],
    *,
    threshold: float,
    keep: Sequence[bool],
    parts: Sequence[Sequence[str]],
) -> Iterator[Near]:
    sets: dict[int, list[NDArray[np.uint64]]] = {}

    def of(row: int) -> list[NDArray[np.uint64]]:
        """The shingles of the whole text and of each of its parts."""
        if row not in sets:
            pieces = [words[row], *map(folded, parts[row] if parts else ())]
            sets[row] = [np.unique(shingles([piece])[0]) for piece in pieces]
        return sets[row]

    dropped: set[int] = set()
    for earlier, later in pairs.tolist():
        if later in dropped or earlier in dropped or (keep and keep[later]):
            continue
        # Texts of unlike parts are held against one another whole.
        both = list(zip(of(earlier), of(later), strict=False))
        alike = len(of(earlier)) == len(of(later))
        similarity = min(_jaccard(one, other) for one, other in (both if alike else both[:1]))
        if similarity >= threshold:
            dropped.add(later)
            yield Near(later, earlier, similarity)


def _jaccard(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> float:
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)
