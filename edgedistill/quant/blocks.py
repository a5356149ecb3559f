"""The grids that GGUF and ONNX share: rows cut into blocks of 32 whole numbers with one half-precision scale each.

The codes are ggml's own (Q4_0, Q8_0), so a matrix means the same weights in both formats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

BLOCK = 32
GRIDS = {4: gguf.GGMLQuantizationType.Q4_0, 8: gguf.GGMLQuantizationType.Q8_0}


@dataclass(frozen=True)
class Blocks:
    """A matrix as `codes` int8 `[rows, blocks, 32]` times `scales` float16 `[rows, blocks]`."""

    bits: int
    codes: NDArray[np.int8]
    scales: NDArray[np.float16]


def encode_blocks(weights: NDArray[Any], *, bits: int) -> Blocks:
    """Encode `weights` `[rows, columns]`: 4 bits on Q4_0 with codes in [-8, 7], 8 bits on Q8_0 in [-127, 127].

    Raises:
        ValueError: no grid has this many bits, the columns do not fill blocks, or a weight is not finite.
    """
    if bits not in GRIDS:
        raise ValueError(f"expected 4 or 8 bits, found {bits}")
    rows, columns = weights.shape
    if columns % BLOCK:
        raise ValueError(f"expected columns in multiples of {BLOCK}, found {columns}")
    if not np.isfinite(weights).all():
        raise ValueError("expected finite weights, found NaN or infinity")
    stored = gguf.quants.quantize(np.ascontiguousarray(weights, dtype=np.float32), GRIDS[bits])
    return split_blocks(stored.reshape(rows, columns // BLOCK, -1), bits=bits)


def split_blocks(stored: NDArray[np.uint8], *, bits: int) -> Blocks:
    """Codes and scales of ggml blocks `[rows, blocks, bytes]`: the scale first, then the codes."""
    scales = np.ascontiguousarray(stored[..., :2]).view(np.float16)[..., 0]
    codes = stored[..., 2:]
    if bits == 8:
        return Blocks(bits=8, codes=np.ascontiguousarray(codes).view(np.int8), scales=scales)
    # ggml keeps element i and element i + 16 of a block in one byte, both raised by 8.
    halves = np.concatenate([codes & 15, codes >> 4], axis=-1).astype(np.int8) - np.int8(8)
    return Blocks(bits=4, codes=halves, scales=scales)


def decode_blocks(blocks: Blocks) -> NDArray[np.float32]:
    """The float32 matrix `[rows, columns]` that the codes stand for."""
    values = blocks.codes.astype(np.float32) * blocks.scales[..., None].astype(np.float32)
    return values.reshape(len(values), -1)
