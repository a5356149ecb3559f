"""Text as the corpus checks compare it: folded words, and hashes of their character and word n-grams."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgedistill.core.records import Prompt

CHARACTERS = 5  # of a shingle: long enough that English texts share few by chance, short enough for short prompts
_BLANKED = {code: " " for code in range(128) if not chr(code).isalnum()}
_SEPARATORS = re.compile(r"[\W_]+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def asked_text(prompt: Prompt) -> str:
    """What a prompt asks, turn by turn, without the system message that whole corpora share."""
    return "\n".join(message.content for message in prompt.messages if message.role != "system")


def folded(text: str) -> str:
    """Words in one case with single spaces between (NFKC, casefold); text without a word stays as it is."""
    if text.isascii():  # the same, ten times as fast
        words = " ".join(text.lower().translate(_BLANKED).split())
    else:
        words = _SEPARATORS.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()
    return words or text.strip()


def word_hashes(texts: Iterable[str]) -> tuple[NDArray[np.uint64], list[int]]:
    """64-bit hashes of the words of folded texts, all texts' in a row, and how many are whose.

    They are Python's own, equal for equal words within this process.
    """
    pieces, lengths = [np.empty(0, dtype=np.int64)], []
    for text in texts:
        words = text.split()
        pieces.append(np.fromiter(map(hash, words), dtype=np.int64, count=len(words)))
        lengths.append(len(words))
    return np.concatenate(pieces).view(np.uint64), lengths


def shingles(texts: Sequence[str], *, size: int = CHARACTERS) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """64-bit hashes of every `size` characters of each text: all texts' in a row, `[total]`, and where each begins.

    The second array is `[texts + 1]`. A text shorter than `size` is one shingle, padded with blanks. Hashes are
    polynomial in the code points, mixed as splitmix64 ends (Steele et al. 2014).
    """
    padded = [text.ljust(size) for text in texts]
    codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    return ngrams(codes.astype(np.uint64), lengths=[len(text) for text in padded], size=size)


def ngrams(
    codes: NDArray[np.uint64], *, lengths: Sequence[int], size: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """64-bit hashes of every `size` codes that follow one another in a text, `[total]`, and where each text's begin.

    `codes` are those of all texts in a row, `lengths` how many are whose; the second array is `[texts + 1]`. A text of
    fewer than `size` codes has none.
    """
    held = np.array(lengths, dtype=np.int64)
    counts = np.maximum(held - size + 1, 0)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    if not offsets[-1]:
        return np.empty(0, dtype=np.uint64), offsets
    hashes = np.zeros(len(codes) - size + 1, dtype=np.uint64)
    for place in range(size):
        hashes = hashes * _FACTOR + codes[place : place + len(hashes)]
    # Windows that begin in one text and end in another are left out.
    begins = np.concatenate([[0], np.cumsum(held)[:-1]]) - offsets[:-1]
    return mixed(hashes[np.arange(offsets[-1]) + np.repeat(begins, counts)]), offsets


def mixed(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Each value with its bits spread over all 64; equal values stay equal, others differ."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * _MIX[0]
    hashes = (hashes ^ (hashes >> np.uint64(27))) * _MIX[1]
    return hashes ^ (hashes >> np.uint64(31))
