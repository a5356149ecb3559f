"""ggml's blocks: rows cut into whole numbers with a half-precision scale, and perhaps a minimum or steps, each.

The codes are ggml's own, so that a matrix means the same weights in a GGUF file, in an ONNX graph and in training.
Layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from edgedistill.quant.grids import BLOCK, STEPS, TINY, Grid, grid_named


@dataclass(frozen=True)
class Blocks:
    """A matrix as `codes` int8 `[rows, blocks, block]` times `scales` float16 `[rows, blocks]`, plus `minimums` alike.

    `steps` int8 `[rows, blocks, parts]` scale the parts of a block further, on a grid that has them.
    """

    grid: Grid
    codes: NDArray[np.int8]
    scales: NDArray[np.float16]
    minimums: NDArray[np.float16] | None = None
    steps: NDArray[np.int8] | None = None


def as_blocks(weights: NDArray[Any], *, block: int = BLOCK) -> NDArray[np.float32]:
    """`weights` `[rows, columns]` as float32 `[rows, columns / block, block]`.

    Raises:
        ValueError: the columns do not fill blocks, or a weight is not finite.
    """
    rows, columns = weights.shape
    if columns % block:
        raise ValueError(f"expected columns in multiples of {block}, found {columns}")
    if not np.isfinite(weights).all():
        raise ValueError("expected finite weights, found NaN or infinity")
    blocks = np.asarray(weights, dtype=np.float32).reshape(rows, columns // block, block)
    return np.where(np.abs(blocks) < TINY, np.float32(0), blocks)


def encode_blocks(weights: NDArray[Any], *, grid: str) -> Blocks:
    """Encode `weights` `[rows, columns]`, each block by its largest weight, without a search.

    On grids whose reference encoder in ggml does so too, the bytes are its own. Q6_K's and IQ4_NL's search: there the
    largest weight of a part, and the largest scale of a block, get the code that is furthest from zero.

    Raises:
        ValueError: there is no such grid, the columns do not fill blocks, or a weight is not finite.
    """
    chosen = grid_named(grid)
    blocks = as_blocks(weights, block=chosen.block)
    if chosen.has_steps:
        return _by_largest_part(blocks, chosen)
    if chosen.values is not None:
        scales = (largest(blocks) / np.float32(chosen.low)).astype(np.float16)
        codes = chosen.nearest(blocks * inverse(scales.astype(np.float32))[..., None])
        return Blocks(chosen, codes.astype(np.int8), scales)
    stored = gguf.quants.quantize(blocks.reshape(len(blocks), -1), chosen.kind)
    return split_blocks(stored.reshape(*blocks.shape[:2], -1), grid=grid)


def split_blocks(stored: NDArray[np.uint8], *, grid: str) -> Blocks:
    """Codes, scales, minimums and steps of ggml blocks `[rows, blocks, bytes]`."""
    chosen = grid_named(grid)
    if chosen.has_steps:
        return _split_super(stored, chosen)
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
    if chosen.values is not None:
        return Blocks(chosen, np.array(chosen.values, dtype=np.int8)[raised], scales)
    return Blocks(chosen, raised.astype(np.int8) + np.int8(chosen.low), scales, minimums)


def join_blocks(blocks: Blocks) -> NDArray[np.uint8]:
    """The bytes `[rows, blocks, bytes]` that ggml keeps of these blocks: what `split_blocks` takes apart."""
    grid = blocks.grid
    if blocks.steps is not None:
        return _join_super(blocks.codes, blocks.steps, blocks.scales)
    parts = [blocks.scales[..., None].view(np.uint8)]
    if blocks.minimums is not None:
        parts.append(blocks.minimums[..., None].view(np.uint8))
    if grid.bits == 8:
        return np.concatenate([*parts, blocks.codes.view(np.uint8)], axis=-1)
    if grid.values is not None:
        raised = np.searchsorted(np.array(grid.values, dtype=np.int8), blocks.codes).astype(np.uint8)
    else:
        raised = (blocks.codes - np.int8(grid.low)).view(np.uint8)
    if grid.bits == 5:
        parts.append(np.packbits(raised >> 4, axis=-1, bitorder="little"))
    half = grid.block // 2
    parts.append(raised[..., :half] & 15 | raised[..., half:] << 4)
    return np.concatenate(parts, axis=-1)


def decode_blocks(blocks: Blocks) -> NDArray[np.float32]:
    """The float32 matrix `[rows, columns]` that the codes stand for."""
    rows = len(blocks.codes)
    scale, base = affines(blocks)
    values = blocks.codes.reshape(*scale.shape, blocks.grid.part).astype(np.float32) * scale[..., None]
    if blocks.minimums is not None:
        values += base[..., None]
    return values.reshape(rows, -1)


def affines(blocks: Blocks) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scales and minimums `[rows, columns / part]` in float32, zeros for a grid without minimums."""
    scale = blocks.scales.astype(np.float32)
    if blocks.steps is not None:
        scale = (scale[..., None] * blocks.steps).reshape(len(scale), -1)
    return scale, np.zeros_like(scale) if blocks.minimums is None else blocks.minimums.astype(np.float32)


def beside(parts: Sequence[Blocks]) -> Blocks:
    """One matrix of `parts` that hold its columns from left to right."""

    def all_of(name: str) -> Any:
        found = [getattr(part, name) for part in parts]
        return None if found[0] is None else np.concatenate(found, axis=1)

    first = parts[0]
    return Blocks(first.grid, all_of("codes"), all_of("scales"), all_of("minimums"), all_of("steps"))


def largest(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Along the last axis the number of the largest size with its sign; of equals the first."""
    return np.take_along_axis(x, np.abs(x).argmax(axis=-1)[..., None], axis=-1)[..., 0]


def inverse(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 / scale, and 0 of 0."""
    return np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)


def _by_largest_part(blocks: NDArray[np.float32], grid: Grid) -> Blocks:
    parts = blocks.reshape(*blocks.shape[:2], -1, grid.part)
    wanted = largest(parts) / np.float32(grid.low)
    scales = (largest(wanted) / np.float32(STEPS[0])).astype(np.float16)
    unit = scales.astype(np.float32)[..., None]
    steps = np.clip(np.rint(wanted * inverse(unit)), *STEPS)
    codes = grid.nearest(parts * inverse(unit * steps)[..., None])
    return Blocks(grid, codes.astype(np.int8).reshape(blocks.shape), scales, steps=steps.astype(np.int8))


def _split_super(stored: NDArray[np.uint8], grid: Grid) -> Blocks:
    """Q6_K: four bits of all codes, two bits of all, 16 steps, the scale.

    A byte of the first holds element i and i + 64 of a half of the block, of the second i, i + 32, i + 64 and i + 96.
    """
    shape = stored.shape[:2]
    low = stored[..., :128].reshape(*shape, 2, 1, 64) >> np.array([[0], [4]], dtype=np.uint8) & 15
    high = stored[..., 128:192].reshape(*shape, 2, 1, 32) >> np.array([[0], [2], [4], [6]], dtype=np.uint8) & 3
    raised = low.reshape(*shape, 256) | high.reshape(*shape, 256) << 4
    steps = np.ascontiguousarray(stored[..., 192:208]).view(np.int8)
    return Blocks(grid, raised.astype(np.int8) + np.int8(grid.low), _half(stored[..., 208:]), steps=steps)


def _join_super(codes: NDArray[np.int8], steps: NDArray[np.int8], scales: NDArray[np.float16]) -> NDArray[np.uint8]:
    shape = codes.shape[:2]
    raised = (codes + np.int8(32)).view(np.uint8)
    low = (raised & 15).reshape(*shape, 2, 2, 64)
    high = (raised >> 4).reshape(*shape, 2, 4, 32)
    fours = low[..., 0, :] | low[..., 1, :] << 4
    twos = high[..., 0, :] | high[..., 1, :] << 2 | high[..., 2, :] << 4 | high[..., 3, :] << 6
    kept = (
        fours.reshape(*shape, 128),
        twos.reshape(*shape, 64),
        steps.view(np.uint8),
        scales[..., None].view(np.uint8),
    )
    return np.concatenate(kept, axis=-1)


def _half(stored: NDArray[np.uint8]) -> NDArray[np.float16]:
    return np.ascontiguousarray(stored[..., :2]).view(np.float16)[..., 0]
