"""The code set of a release: every row of every matrix encoded once, and every format written from the same codes."""

from __future__ import annotations

import hashlib
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from edgedistill.quant.blocks import BLOCK, Blocks, encode_blocks, grid_named, join_blocks, split_blocks


class CodeSet:
    """Codes by the weights they stand for: whoever asks for the same row again gets the very same codes.

    Formats name, order and stack their matrices in ways of their own (onnxruntime-genai's graphs hold query, key and
    value as one); rows are what they share. Kept packed, as ggml stores them. Encoded as ggml's reference does: without
    importances the least squared error (`search_blocks`) clips the largest weights, and on a student of the quickstart
    that made the KLD of 4 bits three times as large.
    """

    def __init__(self) -> None:
        self._stored: dict[tuple[str, bytes], bytes] = {}

    def __len__(self) -> int:
        return len(self._stored)

    def blocks(self, weights: NDArray[Any], *, grid: str) -> Blocks:
        """The codes of float32 `weights` `[rows, columns]` on `grid`.

        Raises:
            ValueError: there is no such grid, the columns do not fill blocks, or a weight is not finite.
        """
        rows = np.ascontiguousarray(weights, dtype=np.float32)
        keys = [(grid, hashlib.sha256(row.data).digest()) for row in rows]
        new = [i for i, key in enumerate(keys) if key not in self._stored]
        if new:
            encoded = join_blocks(encode_blocks(rows[new], grid=grid))
            self._stored |= {keys[i]: row.tobytes() for i, row in zip(new, encoded, strict=True)}
        size = gguf.GGML_QUANT_SIZES[grid_named(grid).kind][1]
        stored = np.frombuffer(b"".join(self._stored[key] for key in keys), dtype=np.uint8)
        return split_blocks(stored.reshape(len(rows), rows.shape[1] // BLOCK, size), grid=grid)
