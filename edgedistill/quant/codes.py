"""The code set of a release: every row of every matrix encoded once, and every format written from the same codes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedistill.quant.blocks import Blocks, encode_blocks, join_blocks, split_blocks
from edgedistill.quant.compensate import compensate_blocks, feedback_of
from edgedistill.quant.grids import BLOCK, grid_named
from edgedistill.quant.plan import Plan
from edgedistill.quant.search import search_blocks


class CodeSet:
    """A plan and the codes made from it: whoever asks for the same row again gets the very same codes.

    Formats name, order and stack their matrices in ways of their own (onnxruntime-genai's graphs hold query, key and
    value as one); rows are what they share. Kept packed, as ggml stores them.

    `moments` are, by tensor, mean outer products of its inputs (`[columns, columns]`): such a matrix is encoded by
    `compensate_blocks`. `importances` are their diagonals alone (`[columns]`, an imatrix's mean squares), which
    `search_blocks` takes. Every other is encoded as ggml's reference does: without importances the least squared error
    clips the largest weights, and on a student of the quickstart that made the KLD of 4 bits three times as large.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        importances: Mapping[str, NDArray[Any]] | None = None,
        moments: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        self.plan = plan
        self._importances, self._moments = importances or {}, moments or {}
        self._stored: dict[tuple[str, bytes], bytes] = {}
        self._feedback: tuple[str, NDArray[np.float32]] = ("", np.empty(0, dtype=np.float32))  # of the last name

    def replanned(self, plan: Plan) -> CodeSet:
        """The same codes under another plan: a row that both keep on one grid is encoded once."""
        other = CodeSet(plan, importances=self._importances, moments=self._moments)
        other._stored = self._stored
        return other

    def __len__(self) -> int:
        return len(self._stored)

    @property
    def by_name(self) -> bool:
        """Whether a matrix's name, more than whether it is a table, decides how it is encoded."""
        return bool(self.plan.exceptions or self._importances or self._moments)

    def blocks(self, name: str, weights: NDArray[Any]) -> Blocks:
        """The codes of float32 `weights` `[rows, columns]`, all or some rows of the tensor `name`, on its grid.

        Raises:
            ValueError: there is no such grid, the columns do not fill blocks, or a weight is not finite.
        """
        grid = self.plan.grid(name, weights.shape)
        if grid is None:
            raise ValueError(f"expected columns in multiples of {BLOCK}, found {weights.shape}")
        rows = np.ascontiguousarray(weights, dtype=np.float32)
        keys = [(grid, hashlib.sha256(row.data).digest()) for row in rows]
        new = [i for i, key in enumerate(keys) if key not in self._stored]
        if new:
            encoded = join_blocks(self._encoded(name, rows[new], grid=grid))
            self._stored |= {keys[i]: row.tobytes() for i, row in zip(new, encoded, strict=True)}
        held = grid_named(grid)
        stored = np.frombuffer(b"".join(self._stored[key] for key in keys), dtype=np.uint8)
        return split_blocks(stored.reshape(len(rows), rows.shape[1] // held.block, held.bytes), grid=grid)

    def _encoded(self, name: str, rows: NDArray[Any], *, grid: str) -> Blocks:
        if name in self._moments:
            moment = np.asarray(self._moments[name])
            if self._feedback[0] != name:  # writers come for the rows of a matrix in parts
                self._feedback = (name, feedback_of(moment))
            return compensate_blocks(rows, grid=grid, moment=moment, feedback=self._feedback[1])
        if name in self._importances:
            return search_blocks(rows, grid=grid, importance=self._importances[name])
        return encode_blocks(rows, grid=grid)
