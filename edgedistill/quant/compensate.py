"""Rounding with error feedback: what rounding one column costs, the columns after it make good, on a fixed block grid.

The output of a layer is `x @ w`; with H the mean outer product of its inputs, the squared error of a row's output is
e H e for the error e of its weights. GPTQ (Frantar et al. 2022, https://arxiv.org/abs/2210.17323) rounds column after
column and moves the columns still to come against the error made. Here the scales are ggml's, one a block, searched
when their block comes up (its weights have moved by then), and codes are tried again at the end, one at a time, with
all others fixed: no row ends worse than what the feedback gave.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedistill.quant.blocks import BLOCK, Blocks, as_blocks, decode_blocks, grid_named
from edgedistill.quant.search import search_blocks

DAMPING = 0.05  # of the mean of the diagonal of H, added to it; on held-out text between 0.01 and 0.3 within 7 %
SWEEPS = 2  # over all columns, in which each code may change once more
Array = NDArray[np.float32]


def compensate_blocks(
    weights: NDArray[Any], *, grid: str, moment: NDArray[Any], feedback: Array | None = None
) -> Blocks:
    """Encode `weights` `[rows, columns]` with little error in the outputs; rows do not depend on one another.

    `moment` `[columns, columns]` is the mean outer product of the layer's inputs on calibration text, `feedback` what
    `feedback_of` makes of it, if it has been made already.

    Raises:
        ValueError: as `encode_blocks`; or `moment` is not finite or of another size.
    """
    chosen = grid_named(grid)
    columns = weights.shape[1]
    if moment.shape != (columns, columns) or not np.isfinite(moment).all():
        raise ValueError(f"expected finite moments of {columns} by {columns}, found {moment.shape} or others")
    wanted = as_blocks(weights).reshape(len(weights), columns)
    upper = feedback_of(moment) if feedback is None else feedback
    importance = (1 / np.square(np.diagonal(upper))).astype(np.float32)
    moving = wanted.copy()
    parts: list[Blocks] = []
    for start in range(0, columns, BLOCK):
        end = start + BLOCK
        part = search_blocks(moving[:, start:end], grid=grid, importance=importance[start:end])
        codes, errors = _fed_back(moving[:, start:end], part, upper[start:end, start:end])
        parts.append(Blocks(chosen, codes[:, None], part.scales, part.minimums))
        moving[:, end:] -= errors @ upper[start:end, end:]
    blocks = Blocks(
        grid=chosen,
        codes=np.concatenate([part.codes for part in parts], axis=1),
        scales=np.concatenate([part.scales for part in parts], axis=1),
        minimums=None if not chosen.has_minimum else np.concatenate([part.minimums for part in parts], axis=1),
    )
    return _retried(wanted, blocks, moment)


def output_error(weights: NDArray[Any], blocks: Blocks, *, moment: NDArray[Any]) -> float:
    """Squared error of the outputs over their squares, both summed over rows, for inputs of this mean outer product."""
    error = weights - decode_blocks(blocks)
    return float(np.vdot(error @ moment, error) / max(np.vdot(weights @ moment, weights), 1e-300))


def feedback_of(moment: NDArray[Any]) -> Array:
    """Upper Cholesky factor of the inverse of damped H: row j, over its diagonal, moves the columns after j."""
    damped = np.array(moment, dtype=np.float64)
    diagonal = damped.diagonal().copy()
    damped.flat[:: len(damped) + 1] += DAMPING * max(float(diagonal.mean()), 1e-12)
    inverse = np.linalg.inv(damped)
    return np.ascontiguousarray(np.linalg.cholesky((inverse + inverse.T) / 2).T, dtype=np.float32)


def _fed_back(moving: Array, part: Blocks, upper: Array) -> tuple[NDArray[np.int8], Array]:
    """Codes `[rows, 32]` of one block's columns, and each column's error over its diagonal, for the columns after."""
    scale, base = _affine(part)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    moving, codes, errors = moving.copy(), np.empty(moving.shape, dtype=np.int8), np.empty_like(moving)
    for j in range(BLOCK):
        code = np.clip(np.rint((moving[:, j] - base) * inverse), part.grid.low, part.grid.high)
        errors[:, j] = (moving[:, j] - base - scale * code) / upper[j, j]
        moving[:, j + 1 :] -= errors[:, j : j + 1] * upper[j, j + 1 :]
        codes[:, j] = code
    return codes, errors


def _retried(wanted: Array, blocks: Blocks, moment: NDArray[Any]) -> Blocks:
    """Coordinate descent: each code moves to where the error of the outputs is least while all others stay."""
    h = np.ascontiguousarray(moment, dtype=np.float32)
    h = h + np.float32(DAMPING * max(float(h.diagonal().mean()), 1e-12)) * np.eye(len(h), dtype=np.float32)
    codes = blocks.codes.copy()
    pull = (wanted - decode_blocks(blocks)) @ h
    for _ in range(SWEEPS):
        for block in range(codes.shape[1]):
            scale = blocks.scales[:, block].astype(np.float32)
            inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
            columns = slice(block * BLOCK, (block + 1) * BLOCK)
            inner, near = h[columns, columns], pull[:, columns].copy()
            moved = np.zeros_like(near)
            for j in range(BLOCK):
                old = codes[:, block, j].astype(np.float32)
                step = np.rint(near[:, j] / inner[j, j] * inverse)
                new = np.clip(old + step, blocks.grid.low, blocks.grid.high)
                moved[:, j] = (new - old) * scale
                near -= moved[:, j : j + 1] * inner[j]
                codes[:, block, j] = new
            pull -= moved @ h[columns]
    return Blocks(blocks.grid, codes, blocks.scales, blocks.minimums)


def _affine(part: Blocks) -> tuple[Array, Array]:
    scale, base = _affines(part)
    return scale[:, 0], base[:, 0]


def _affines(blocks: Blocks) -> tuple[Array, Array]:
    """Scales and minimums `[rows, blocks]` in float32, zeros for a grid without minimums."""
    scale = blocks.scales.astype(np.float32)
    return scale, np.zeros_like(scale) if blocks.minimums is None else blocks.minimums.astype(np.float32)
