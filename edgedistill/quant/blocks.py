"""ggml's grids of 32: rows cut into blocks of whole numbers with a half-precision scale, and perhaps a minimum, each.

The codes are ggml's own, so that a matrix means the same weights in a GGUF file, in an ONNX graph and in training.
Layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from edgedistill.quant.plan import BLOCK

TINY = 1e-30  # weights below are zero on any grid: no half-precision scale is so small, and their inverse overflows


@dataclass(frozen=True)
class Grid:
    """A type of ggml's. A weight is scale * code, or minimum + scale * code; codes are in `[low, high]`.

    Bytes hold a code less `low`, but for Q8_0, whose codes are signed bytes.
    """

    kind: gguf.GGMLQuantizationType
    bits: int
    low: int
    high: int
    has_minimum: bool = False

    @property
    def name(self) -> str:
        return self.kind.name


GRIDS = {
    grid.name: grid
    for grid in (
        Grid(gguf.GGMLQuantizationType.Q4_0, 4, -8, 7),
        Grid(gguf.GGMLQuantizationType.Q4_1, 4, 0, 15, has_minimum=True),
        Grid(gguf.GGMLQuantizationType.Q5_0, 5, -16, 15),
        Grid(gguf.GGMLQuantizationType.Q5_1, 5, 0, 31, has_minimum=True),
        Grid(gguf.GGMLQuantizationType.Q8_0, 8, -127, 127),
    )
}


@dataclass(frozen=True)
class Blocks:
    """A matrix as `codes` int8 `[rows, blocks, 32]` times `scales` float16 `[rows, blocks]`, plus `minimums` alike."""

    grid: Grid
    codes: NDArray[np.int8]
    scales: NDArray[np.float16]
    minimums: NDArray[np.float16] | None = None


def grid_named(name: str) -> Grid:
    """The grid that ggml calls so.

    Raises:
        ValueError: there is none.
    """
    if name not in GRIDS:
        raise ValueError(f"expected a grid of {', '.join(GRIDS)}, found {name!r}")
    return GRIDS[name]


def as_blocks(weights: NDArray[Any]) -> NDArray[np.float32]:
    """`weights` `[rows, columns]` as float32 `[rows, columns / 32, 32]`.

    Raises:
        ValueError: the columns do not fill blocks, or a weight is not finite.
    """
    rows, columns = weights.shape
    if columns % BLOCK:
        raise ValueError(f"expected columns in multiples of {BLOCK}, found {columns}")
    if not np.isfinite(weights).all():
        raise ValueError("expected finite weights, found NaN or infinity")
    blocks = np.asarray(weights, dtype=np.float32).reshape(rows, columns // BLOCK, BLOCK)
    return np.where(np.abs(blocks) < TINY, np.float32(0), blocks)


def encode_blocks(weights: NDArray[Any], *, grid: str) -> Blocks:
    """Encode `weights` `[rows, columns]` as ggml's reference does, byte for byte: each block by its largest weight.

    Raises:
        ValueError: there is no such grid, the columns do not fill blocks, or a weight is not finite.
    """
    chosen = grid_named(grid)
    blocks = as_blocks(weights)
    stored = gguf.quants.quantize(blocks.reshape(len(blocks), -1), chosen.kind)
    return split_blocks(stored.reshape(*blocks.shape[:2], -1), grid=grid)


def split_blocks(stored: NDArray[np.uint8], *, grid: str) -> Blocks:
    """Codes, scales and minimums of ggml blocks `[rows, blocks, bytes]`."""
    chosen = grid_named(grid)
    scales, rest = _half(stored), stored[..., 2:]
    minimums = None
    if chosen.has_minimum:
        minimums, rest = _half(rest), rest[..., 2:]
    if chosen.bits == 8:
        return Blocks(chosen, np.ascontiguousarray(rest).view(np.int8), scales)
    fifth = 0
    if chosen.bits == 5:
        fifth, rest = np.unpackbits(rest[..., :4], axis=-1, bitorder="little") << 4, rest[..., 4:]
    # ggml keeps element i and element i + 16 of a block in one byte.
    raised = np.concatenate([rest & 15, rest >> 4], axis=-1) | fifth
    return Blocks(chosen, raised.astype(np.int8) + np.int8(chosen.low), scales, minimums)


def join_blocks(blocks: Blocks) -> NDArray[np.uint8]:
    """The bytes `[rows, blocks, bytes]` that ggml keeps of these blocks: what `split_blocks` takes apart."""
    grid = blocks.grid
    parts = [blocks.scales[..., None].view(np.uint8)]
    if blocks.minimums is not None:
        parts.append(blocks.minimums[..., None].view(np.uint8))
    if grid.bits == 8:
        return np.concatenate([*parts, blocks.codes.view(np.uint8)], axis=-1)
    raised = (blocks.codes - np.int8(grid.low)).view(np.uint8)
    if grid.bits == 5:
        parts.append(np.packbits(raised >> 4, axis=-1, bitorder="little"))
    half = BLOCK // 2
    parts.append(raised[..., :half] & 15 | raised[..., half:] << 4)
    return np.concatenate(parts, axis=-1)


def decode_blocks(blocks: Blocks) -> NDArray[np.float32]:
    """The float32 matrix `[rows, columns]` that the codes stand for."""
    values = blocks.codes.astype(np.float32) * blocks.scales[..., None].astype(np.float32)
    if blocks.minimums is not None:
        values += blocks.minimums[..., None].astype(np.float32)
    return values.reshape(len(values), -1)


def _half(stored: NDArray[np.uint8]) -> NDArray[np.float16]:
    return np.ascontiguousarray(stored[..., :2]).view(np.float16)[..., 0]
