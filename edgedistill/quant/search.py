"""Encoders that look for the scale with the least weighted error, where ggml's reference takes the largest weight's.

For given codes the best scale (and minimum) is a weighted least-squares fit; which codes to try, a sweep of scales
around the reference's says. What is compared are the errors of the stored block, after its scale is rounded to half
precision, and the reference's own block is among those compared: no block gets worse.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedistill.quant.blocks import Blocks, Grid, as_blocks, decode_blocks, encode_blocks, grid_named

# How much wider or narrower than the reference's the steps tried are: up to a quarter of the range clipped away.
STRETCHES = tuple(float(f) for f in np.linspace(0.75, 1.15, 17))
ROUNDS = 2  # of codes from scale and scale from codes, after the sweep
CHUNK = 1 << 15  # blocks at once: the sweep's temporaries stay in the cache
Array = NDArray[np.float32]


def search_blocks(weights: NDArray[Any], *, grid: str, importance: NDArray[Any] | None = None) -> Blocks:
    """Encode `weights` `[rows, columns]` with the least error `sum(importance * (weight - decoded)^2)` found.

    `importance` is what each column's inputs weigh, `[columns]`, as an imatrix has it (mean squared activations);
    without it every column weighs the same.

    Raises:
        ValueError: as `encode_blocks`; or `importance` is not one finite number ≥ 0 for each column.
    """
    chosen = grid_named(grid)
    blocks = as_blocks(weights)
    rows, count, width = blocks.shape
    weigh = _importance(importance, columns=count * width)
    reference = encode_blocks(weights, grid=grid)
    codes = reference.codes.reshape(-1, width).copy()
    scales, minimums = reference.scales.reshape(-1).copy(), None
    if reference.minimums is not None:
        minimums = reference.minimums.reshape(-1).copy()
    flat, weigh = blocks.reshape(-1, width), np.broadcast_to(weigh, (rows, count, width)).reshape(-1, width)
    held = decode_blocks(reference).reshape(-1, width)
    for start in range(0, len(flat), CHUNK):
        part = slice(start, start + CHUNK)
        x, w = flat[part], weigh[part]
        found, scale, minimum = _searched(x, w, chosen)
        better = _error(x, w, _stored(found, scale, minimum)) < _error(x, w, held[part])
        codes[part][better] = found[better]
        scales[part][better] = scale[better]
        if minimums is not None:
            minimums[part][better] = minimum[better]
    return Blocks(
        grid=chosen,
        codes=codes.reshape(rows, count, width),
        scales=scales.reshape(rows, count),
        minimums=None if minimums is None else minimums.reshape(rows, count),
    )


def weighted_error(weights: NDArray[Any], blocks: Blocks, *, importance: NDArray[Any] | None = None) -> float:
    """`sum(importance * (weight - decoded)^2) / sum(importance * weight^2)` of `weights` `[rows, columns]` encoded."""
    weigh = _importance(importance, columns=weights.shape[1]).reshape(-1).astype(np.float64)
    size = np.square(weights.astype(np.float64)) @ weigh
    return float((np.square(weights - decode_blocks(blocks), dtype=np.float64) @ weigh).sum() / max(size.sum(), 1e-300))


def _importance(importance: NDArray[Any] | None, *, columns: int) -> Array:
    """`[1, columns / 32, 32]`."""
    given = np.ones(columns) if importance is None else np.asarray(importance)
    if given.shape != (columns,) or not np.isfinite(given).all() or (given < 0).any():
        raise ValueError(f"expected {columns} finite importances of at least 0, found {given.shape} or others")
    return given.astype(np.float32).reshape(1, -1, 32)


def _searched(x: Array, w: Array, grid: Grid) -> tuple[NDArray[np.int8], NDArray[np.float16], NDArray[np.float16]]:
    """Codes `[n, 32]`, scales `[n]` and minimums `[n]` (zeros on a grid that has none) of blocks `x` `[n, 32]`."""
    best = np.full(len(x), np.inf, dtype=np.float32)
    scale, minimum = np.zeros_like(best), np.zeros_like(best)
    for first_scale, first_minimum in _starts(x, grid):
        q = _codes(x, first_scale, first_minimum, grid)
        fitted, base = _fit(x, w, q, grid)
        error = _error(x, w, base[:, None] + fitted[:, None] * q)
        better = error < best
        best[better], scale[better], minimum[better] = error[better], fitted[better], base[better]
    for _ in range(ROUNDS):
        scale, minimum = _fit(x, w, _codes(x, scale, minimum, grid), grid)
    with np.errstate(over="ignore"):  # a scale that overflows makes an infinite error, which is never better
        half, low = scale.astype(np.float16), minimum.astype(np.float16)
    return _codes(x, half.astype(np.float32), low.astype(np.float32), grid).astype(np.int8), half, low


def _starts(x: Array, grid: Grid) -> list[tuple[Array, Array]]:
    """Scales and minimums to try: the reference's stretched, on a grid without a minimum in both directions."""
    if grid.has_minimum:
        low, high = x.min(axis=1), x.max(axis=1)
        span = (high - low) / grid.high
        # the range keeps its lower end, its middle or its upper end
        return [(span * f, low + span * (1 - f) * grid.high * kept) for kept in (0, 0.5, 1) for f in STRETCHES]
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)[:, 0]
    none = np.zeros_like(largest)
    signs = (1, -1) if -grid.low != grid.high else (1,)
    return [(sign * f * largest / grid.low, none) for sign in signs for f in STRETCHES]


def _codes(x: Array, scale: Array, minimum: Array, grid: Grid) -> Array:
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    q = x - minimum[:, None] if grid.has_minimum else x
    return np.clip(np.rint(q * inverse[:, None]), grid.low, grid.high)


def _fit(x: Array, w: Array, q: Array, grid: Grid) -> tuple[Array, Array]:
    """The scale and minimum with which codes `q` come closest to `x`."""
    xq, qq = np.einsum("ij,ij,ij->i", w, x, q), np.einsum("ij,ij,ij->i", w, q, q)
    if not grid.has_minimum:
        return np.divide(xq, qq, out=np.zeros_like(xq), where=qq > 0), np.zeros_like(xq)
    sw, sx, sq = w.sum(axis=1), np.einsum("ij,ij->i", w, x), np.einsum("ij,ij->i", w, q)
    determinant = sw * qq - sq * sq
    sound = determinant > 1e-6 * sw * qq
    scale = np.divide(sw * xq - sx * sq, determinant, out=np.zeros_like(xq), where=sound)
    return scale, np.divide(sx - scale * sq, sw, out=np.zeros_like(xq), where=sw > 0)


def _stored(codes: NDArray[np.int8], scale: NDArray[np.float16], minimum: NDArray[np.float16]) -> Array:
    return codes * scale.astype(np.float32)[:, None] + minimum.astype(np.float32)[:, None]


def _error(x: Array, w: Array, decoded: Array) -> Array:
    difference = x - decoded
    return np.einsum("ij,ij,ij->i", w, difference, difference)
