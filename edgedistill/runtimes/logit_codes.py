"""One answer's kept tokens as bytes: sorted places by Elias and Fano, log-probabilities in 8 bits, the tail in 16.

Of `T` positions that keep `counts` tokens each, `N` in all, the bytes are, one part after the other:

- `counts` uint8 `[T]`
- `tails` uint16 little-endian `[T]`: -2048 · ln of the probability of all tokens not kept; 65,535 is none at all
- `codes` uint8 `[N]`: `q` is the log-probability -16 · (q / 255)², each position scaled to the sum of 1 - tail. Steps
  grow with distance from 1, so that likely tokens have the finest ones. Where tokens were drawn, `q` is how often, and
  the probability is its share of the position's draws, with nothing rounded
- the low bits of the tokens' places, lowest first, `w` for each of a position that keeps `n`:
  `w = max(0, ⌊log2(span // n)⌋ - 1)`
- their high bits: the places of a position are in rising order, and of each the difference of `place >> w` to the one
  before it (the first: to 0) stands as so many zeros and a one (Elias 1974; Fano 1971)

Both bit strings begin at a byte, the first bit of a byte being its lowest. A token's place is its rank among the `span`
tokens of the file by how often they are kept; that small places are common is why `w` is one less than Elias's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MOST_KEPT = 255
DEEPEST, STEPS = 16.0, 255
TAIL_STEPS, NO_TAIL = 2048.0, 65535


@dataclass(frozen=True)
class LogitRow:
    """One answer's distributions.

    `ids` int32 `[answer tokens, k]` in any order, -1 behind them where a position keeps fewer; `logprobs` float32
    alike, natural and at temperature 1, 0 where there is no id; `tail` float32 `[answer tokens]`, the probability of
    all other tokens.
    """

    ids: np.ndarray
    logprobs: np.ndarray
    tail: np.ndarray


def encode_row(row: LogitRow, *, span: int, draws: int = 0) -> bytes:
    """The bytes of a row whose `ids` are places below `span`, rising in each position, drawn if there are `draws`."""
    kept = row.ids >= 0
    counts = kept.sum(1)
    ids = row.ids[kept].astype(np.int64)
    if draws:
        codes = np.rint(np.exp(row.logprobs[kept]) * draws).astype(np.uint8)
    else:
        codes = np.rint(STEPS * np.sqrt(np.clip(-row.logprobs[kept] / DEEPEST, 0, 1))).astype(np.uint8)
    with np.errstate(divide="ignore"):
        tails = np.clip(np.rint(-TAIL_STEPS * np.log(row.tail.astype(np.float64))), 0, NO_TAIL).astype("<u2")
    widths = np.repeat(_low_widths(span)[counts], counts)
    high = ids >> widths
    gaps = np.diff(high, prepend=0)
    first = _starts(counts)
    gaps[first] = high[first]
    ones = np.zeros(int((gaps + 1).sum()), np.uint8)
    ones[np.cumsum(gaps + 1) - 1] = 1
    parts = (counts.astype(np.uint8), tails, codes, np.packbits(_low_bits(ids, widths), bitorder="little"))
    return b"".join(part.tobytes() for part in (*parts, np.packbits(ones, bitorder="little")))


def decode_row(raw: np.ndarray, *, positions: int, span: int, draws: int = 0) -> LogitRow:
    """The row of `positions` whose bytes are `raw` uint8 `[size]`; its `ids` are places, drawn if there are `draws`.

    Raises:
        ValueError: the bytes are none of such a row.
    """
    counts = raw[:positions].astype(np.int64)
    total, at = int(counts.sum()), 3 * positions
    tails = raw[positions:at].view("<u2") if at <= len(raw) else raw[:0]
    codes = raw[at : at + total].astype(np.float64)
    widths = np.repeat(_low_widths(span)[counts], counts)
    low_end = at + total + (int(widths.sum()) + 7) // 8
    ones = np.flatnonzero(np.unpackbits(raw[low_end:], bitorder="little"))
    if len(tails) != positions or len(codes) != total or len(ones) != total:
        raise ValueError(f"expected {positions} positions of {total} tokens, found {len(ones)} in {len(raw)} bytes")
    climbed = np.cumsum(np.diff(ones, prepend=-1) - 1)
    before = np.concatenate(([0], climbed))[_starts(counts)]
    high = climbed - np.repeat(before, counts[counts > 0])
    ids = (high << widths) | _low_values(raw[at + total : low_end], widths)
    tail = np.where(tails == NO_TAIL, 0.0, np.exp(tails / -TAIL_STEPS))
    here = np.arange(max(1, int(counts.max(initial=0)))) < counts[:, None]
    weights = np.zeros(here.shape)
    weights[here] = codes if draws else np.exp(-DEEPEST * (codes / STEPS) ** 2)
    mass = weights.sum(1)
    if draws and not (mass == draws).all():
        raise ValueError(f"expected {draws} draws at each position, found others")
    with np.errstate(divide="ignore", invalid="ignore"):
        logprobs = np.log(weights * (np.maximum(1 - tail, 1e-12) / np.maximum(mass, 1e-300))[:, None])
    placed = np.full(here.shape, -1, np.int32)
    placed[here] = ids
    return LogitRow(placed, np.where(here, logprobs, 0).astype(np.float32), tail.astype(np.float32))


def _low_widths(span: int) -> np.ndarray:
    """Low bits of each place of a position, by how many tokens it keeps, `[MOST_KEPT + 1]`."""
    return np.array([0] + [max(0, (span // n).bit_length() - 2) for n in range(1, MOST_KEPT + 1)])


def _starts(counts: np.ndarray) -> np.ndarray:
    """Where each position that keeps anything begins among all kept tokens."""
    return (np.cumsum(counts) - counts)[counts > 0]


def _low_bits(ids: np.ndarray, widths: np.ndarray) -> np.ndarray:
    bits = np.zeros(int(widths.sum()), np.uint8)
    begin = np.cumsum(widths) - widths
    for place in range(int(widths.max(initial=0))):
        wide = widths > place
        bits[begin[wide] + place] = (ids[wide] >> place) & 1
    return bits


def _low_values(raw: np.ndarray, widths: np.ndarray) -> np.ndarray:
    bits = np.unpackbits(raw, bitorder="little")
    begin = np.cumsum(widths) - widths
    values = np.zeros(len(widths), np.int64)
    for place in range(int(widths.max(initial=0))):
        wide = widths > place
        values[wide] |= bits[begin[wide] + place].astype(np.int64) << place
    return values
