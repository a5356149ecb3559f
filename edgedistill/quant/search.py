"""Encoders that look for the scale with the least weighted error, where ggml's reference takes the largest weight's.

For given codes the best scale (and minimum) is a weighted least-squares fit; which codes to try, a sweep of scales
around the reference's says. What is compared are the errors of the stored block, after its scale is rounded to half
precision, and the reference's own block is among those compared: no block gets worse.

Where parts of a block have whole steps of one scale, each part's own best scale is found first, then the block's scale
whose steps come nearest to all of them, each miss weighed by what it adds to the error, then the steps once more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedistill.quant.blocks import Blocks, as_blocks, decode_blocks, encode_blocks, inverse, largest
from edgedistill.quant.grids import STEPS, Grid, grid_named

# How much wider or narrower than the reference's the steps tried are: up to a quarter of the range clipped away.
STRETCHES = tuple(float(f) for f in np.linspace(0.75, 1.15, 17))
ROUNDS = 2  # of codes from scale and scale from codes, after the sweep
UNITS = 48  # scales of a block tried for its parts' steps: the largest part's step from the most down to half of it
CHUNK = 1 << 20  # weights at once: the sweep's temporaries stay in the cache
Array = NDArray[np.float32]


def search_blocks(weights: NDArray[Any], *, grid: str, importance: NDArray[Any] | None = None) -> Blocks:
    """Encode `weights` `[rows, columns]` with the least error `sum(importance * (weight - decoded)^2)` found.

    `importance` is what each column's inputs weigh, `[columns]`, as an imatrix has it (mean squared activations);
    without it every column weighs the same.

    Raises:
        ValueError: as `encode_blocks`; or `importance` is not one finite number ≥ 0 for each column.
    """
    chosen = grid_named(grid)
    blocks = as_blocks(weights, block=chosen.block)
    rows, count, width = blocks.shape
    weigh = _importance(importance, columns=count * width).reshape(1, count, width)
    flat, weigh = blocks.reshape(-1, width), np.broadcast_to(weigh, blocks.shape).reshape(-1, width)
    reference = encode_blocks(flat, grid=grid)
    step = max(1, CHUNK // width)
    for start in range(0, len(flat), step):
        part = slice(start, start + step)
        x, w = flat[part], weigh[part]
        found = _searched_parts(x, w, chosen) if chosen.has_steps else _searched(x, w, chosen)
        better = _error(x, w, decode_blocks(found)) < _error(x, w, decode_blocks(_rows(reference, part)))
        for held, new in zip(_arrays(reference), _arrays(found), strict=True):
            held[part][better] = new[better]
    shaped = {name: None if (a := getattr(reference, name)) is None else a.reshape(rows, count, *a.shape[2:])
              for name in ("codes", "scales", "minimums", "steps")}  # fmt: skip
    return Blocks(chosen, **shaped)


def search_steps(x: Array, unit: Array, *, grid: Grid, importance: Array) -> NDArray[np.int8]:
    """The step `[rows]` of parts `x` `[rows, part]` of blocks whose scales are `unit` `[rows]`, with the least error.

    `importance` is `[part]`.
    """
    w = np.broadcast_to(importance, x.shape)
    scale, _ = _best_scale(x, w, grid)
    return _nearby(x, w, np.clip(np.rint(scale * inverse(unit)), *STEPS), unit, grid)[0].astype(np.int8)


def weighted_error(weights: NDArray[Any], blocks: Blocks, *, importance: NDArray[Any] | None = None) -> float:
    """`sum(importance * (weight - decoded)^2) / sum(importance * weight^2)` of `weights` `[rows, columns]` encoded."""
    weigh = _importance(importance, columns=weights.shape[1]).astype(np.float64)
    size = np.square(weights.astype(np.float64)) @ weigh
    return float((np.square(weights - decode_blocks(blocks), dtype=np.float64) @ weigh).sum() / max(size.sum(), 1e-300))


def _importance(importance: NDArray[Any] | None, *, columns: int) -> Array:
    given = np.ones(columns) if importance is None else np.asarray(importance)
    if given.shape != (columns,) or not np.isfinite(given).all() or (given < 0).any():
        raise ValueError(f"expected {columns} finite importances of at least 0, found {given.shape} or others")
    return given.astype(np.float32)


def _arrays(blocks: Blocks) -> list[NDArray[Any]]:
    every = (blocks.codes, blocks.scales, blocks.minimums, blocks.steps)
    return [array for array in every if array is not None]


def _rows(blocks: Blocks, rows: slice) -> Blocks:
    every = (blocks.codes, blocks.scales, blocks.minimums, blocks.steps)
    return Blocks(blocks.grid, *(None if array is None else array[rows] for array in every))  # type: ignore[arg-type]


def _searched(x: Array, w: Array, grid: Grid) -> Blocks:
    """Blocks `x` `[n, block]`, one in a row, whose weights weigh `w`."""
    scale, minimum = _best_scale(x, w, grid)
    with np.errstate(over="ignore"):  # a scale that overflows makes an infinite error, which is never better
        half, low = scale.astype(np.float16), minimum.astype(np.float16)
    codes = _codes(x, half.astype(np.float32), low.astype(np.float32), grid).astype(np.int8)
    return Blocks(grid, codes[:, None], half[:, None], low[:, None] if grid.has_minimum else None)


def _searched_parts(x: Array, w: Array, grid: Grid) -> Blocks:
    """As `_searched`, on a grid whose blocks' parts have steps."""
    count, width = len(x), grid.part
    parts, weigh = x.reshape(-1, width), w.reshape(-1, width)
    scale, none = _best_scale(parts, weigh, grid)
    # with codes as they are, a scale off by e adds curve * e^2
    curve = np.einsum("ij,ij->i", weigh, np.square(_codes(parts, scale, none, grid))).reshape(count, -1)
    wanted = scale.reshape(count, -1)
    best, halves = np.full(count, np.inf, dtype=np.float32), np.zeros(count, dtype=np.float16)
    for most in np.linspace(STEPS[0], STEPS[0] / 2, UNITS, dtype=np.float32):
        half = (largest(wanted) / most).astype(np.float16)
        unit = half.astype(np.float32)[:, None]
        miss = np.square(np.clip(np.rint(wanted * inverse(unit)), *STEPS) * unit - wanted)
        error = np.einsum("ij,ij->i", curve, miss)
        better = error < best
        best[better], halves[better] = error[better], half[better]
    unit = np.repeat(halves.astype(np.float32), grid.block // width)
    steps, codes = _nearby(parts, weigh, np.clip(np.rint(scale * inverse(unit)), *STEPS), unit, grid)
    return Blocks(
        grid,
        codes.astype(np.int8).reshape(count, 1, -1),
        halves[:, None],
        steps=steps.astype(np.int8).reshape(count, 1, -1),
    )


def _nearby(x: Array, w: Array, steps: Array, unit: Array, grid: Grid) -> tuple[Array, Array]:
    """Of `steps` `[n]` and those next to them the ones that err least on parts `x` `[n, part]`, and their codes."""
    best, held = np.full(len(x), np.inf, dtype=np.float32), steps.copy()
    codes = np.zeros_like(x)
    for change in (0, -1, 1):
        tried = np.clip(steps + change, *STEPS)
        scale = tried * unit
        q = _codes(x, scale, np.zeros_like(scale), grid)
        error = _error(x, w, scale[:, None] * q)
        better = error < best
        best[better], held[better], codes[better] = error[better], tried[better], q[better]
    return held, codes


def _best_scale(x: Array, w: Array, grid: Grid) -> tuple[Array, Array]:
    """Scales `[n]` and minimums `[n]` (zeros on a grid that has none) of `x` `[n, any]`, before they are rounded."""
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
    return scale, minimum


def _starts(x: Array, grid: Grid) -> list[tuple[Array, Array]]:
    """Scales and minimums to try: the reference's stretched, on a grid without a minimum in both directions."""
    if grid.has_minimum:
        low, high = x.min(axis=1), x.max(axis=1)
        span = (high - low) / grid.high
        # the range keeps its lower end, its middle or its upper end
        return [(span * f, low + span * (1 - f) * grid.high * kept) for kept in (0, 0.5, 1) for f in STRETCHES]
    most = largest(x)
    none = np.zeros_like(most)
    signs = (1, -1) if -grid.low != grid.high else (1,)
    return [(sign * f * most / grid.low, none) for sign in signs for f in STRETCHES]


def _codes(x: Array, scale: Array, minimum: Array, grid: Grid) -> Array:
    q = x - minimum[:, None] if grid.has_minimum else x
    return grid.nearest(q * inverse(scale)[:, None])


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


def _error(x: Array, w: Array, decoded: Array) -> Array:
    difference = x - decoded
    return np.einsum("ij,ij,ij->i", w, difference, difference)
