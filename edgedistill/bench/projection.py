"""Speed on a device one does not have: a cost of one token fitted on published cells, with a conformal band.

Seconds of one token = overhead + bytes read / bandwidth + weights × cost of their quant's kernel, the whole scaled by
device and by device × quant. The costs are pooled over the devices of one engine, because one kernel does the same work
everywhere; the scales come from the device's own anchors, and a quant's is shrunk towards its device's. Bytes are those
of weights read per token and of the KV cache. Pure functions: no file, no clock.

It extends the roofline (Williams, Waterman & Patterson 2009): phone CPUs are bound by dequantization below 8 bits, so
each quant's kernel has a cost. The band is conformal (Vovk, Gammerman & Shafer 2005; Lei et al. 2018).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from edgedistill.core.config import did_you_mean
from edgedistill.core.errors import InputError

# llama.cpp keeps the output matrix in Q6_K whatever the file is called, unless the file is Q8_0 or float.
HEAD_QUANT = "q6_k"
HEAD_AS_BODY = ("q8_0", "f16", "bf16", "f32")
# A quant with one anchor is believed by half, with three by three quarters; the rest is its device's mean.
SHRINK = 1.0
ROUNDS, BACKFITS, SWEEPS, SETTLED = 8, 6, 60, 1e-5
GIGA = 1e9


@dataclass(frozen=True)
class Cell:
    """One speed: seconds per token of a model on a device. `weights` None: only the bytes are known."""

    device: str
    engine: str
    backend: str
    model: str
    quant: str
    seconds_per_token: float
    read_bytes: float
    kv_bytes: float = 0.0
    weights: float | None = None
    head_weights: float = 0.0


@dataclass(frozen=True)
class Shape:
    """What a token costs, fitted: `costs` of each quant's kernel, of overhead and of bytes; log scales by device."""

    quants: tuple[str, ...]
    costs: np.ndarray
    devices: dict[str, float]
    device_quants: dict[tuple[str, str], float]


@dataclass(frozen=True)
class Projection:
    """A speed with its band at `level`, or the state that there is none because the model does not fit.

    `extrapolated`: the model reads fewer or more bytes than every cell that was fitted on, where no residual was taken.
    """

    state: Literal["fits", "does-not-fit"]
    tokens_per_s: float | None
    low: float | None
    high: float | None
    level: float
    anchors: int
    residuals: int
    needed_bytes: float
    memory_bytes: float | None
    extrapolated: bool = False


def project(
    cells: Sequence[Cell],
    *,
    device: str,
    engine: str,
    quant: str,
    read_bytes: float,
    backend: str = "cpu",
    kv_bytes: float = 0.0,
    weights: float | None = None,
    head_weights: float = 0.0,
    memory_bytes: float | None = None,
    level: float = 0.9,
) -> Projection:
    """Tokens per second of a model on `device` from its anchors and other devices' cells of the same engine.

    `read_bytes` and `kv_bytes` are read per token, `weights` multiplied per token; without `weights` the fit uses bytes
    alone and the band is as much wider as that costs. `memory_bytes` is what the device can give the model; None is not
    known. A model that does not fit has no speed: beyond RAM it falls a hundredfold, which no slope describes.

    Raises:
        InputError: a size or level is not positive, the device has no anchor of the engine or the quant, or there are
            too few leave-one-out residuals for the level.
    """
    if read_bytes <= 0 or kv_bytes < 0 or (weights or 1) <= 0 or not 0 <= head_weights < (weights or 1):
        raise InputError(
            f"expected positive bytes per token and head weights below all weights, found {read_bytes:g} bytes, "
            f"{kv_bytes:g} KV bytes, {head_weights:g} of {weights} weights"
        )
    if not 0 < level < 1:
        raise InputError(f"expected a level between 0 and 1, found {level:g}")
    needed = read_bytes + kv_bytes
    fits = memory_bytes is None or needed <= memory_bytes
    # That a model is too large can be told of a device without anchors; what runs on it cannot.
    if fits or any(cell.device == device for cell in cells):
        own = _anchors(cells, device=device, engine=engine, backend=backend, quant=quant)
    if not fits:
        return Projection("does-not-fit", None, None, None, level, 0, 0, needed, memory_bytes)
    pool = [cell for cell in cells if (cell.engine, cell.backend) == (engine, backend)]
    asked = Cell(device, engine, backend, "", quant, 1.0, read_bytes, kv_bytes, weights, head_weights)
    if weights is None or any(cell.weights is None for cell in own):
        # What is known of one cell only cannot be compared with what is known of another.
        pool = [replace(cell, weights=None, head_weights=0.0) for cell in pool]
        asked = replace(asked, weights=None, head_weights=0.0)
    else:
        pool = [cell for cell in pool if cell.weights is not None]
    residuals = transfer_residuals(pool)
    half = half_width(residuals, level=level, engine=engine)
    seconds = math.exp(log_seconds(fit(pool), [asked])[0])
    count = sum(map(len, residuals.values()))
    return Projection(
        "fits",
        1 / seconds,
        math.exp(-half) / seconds,
        math.exp(half) / seconds,
        level,
        len(own),
        count,
        needed,
        memory_bytes,
        not min(cell.read_bytes for cell in pool) <= read_bytes <= max(cell.read_bytes for cell in pool),
    )


def fit(cells: Sequence[Cell]) -> Shape:
    """Costs and scales of the cells of one engine and backend, by least squares of relative errors.

    Alternates non-negative costs at given scales with scales at given costs; a device's scale is the mean of its log
    residuals, a device × quant's the mean of what is left, shrunk by `SHRINK` cells of nothing.

    Raises:
        ValueError: no cell.
    """
    if not cells:
        raise ValueError("expected at least one cell")
    quants = tuple(sorted({cell.quant for cell in cells}))
    design = _design(cells, quants)
    log_time = np.log([cell.seconds_per_token for cell in cells])
    same_device = _same([cell.device for cell in cells])
    same_quant = _same([(cell.device, cell.quant) for cell in cells])
    of_device, of_quant = (
        same_device / same_device.sum(1, keepdims=True),
        same_quant / (same_quant.sum(1, keepdims=True) + SHRINK),
    )
    costs = np.full(design.shape[1], 1e-3)
    by_device = by_quant = np.zeros(len(cells))
    for _ in range(ROUNDS):
        costs = _non_negative(design / np.exp(log_time - by_device - by_quant)[:, None], start=costs)
        left = log_time - np.log(np.maximum(design @ costs, 1e-12))
        for _ in range(BACKFITS):
            by_device = of_device @ (left - by_quant)
            by_quant = of_quant @ (left - by_device)
    return Shape(
        quants,
        costs,
        {cell.device: float(by_device[i]) for i, cell in enumerate(cells)},
        {(cell.device, cell.quant): float(by_quant[i]) for i, cell in enumerate(cells)},
    )


def log_seconds(shape: Shape, cells: Sequence[Cell]) -> np.ndarray:
    """Log of the seconds per token `[cells]` that the fitted shape gives; their own speeds are not looked at.

    Raises:
        KeyError: a device that the shape has no cell of.
    """
    scale = [shape.devices[c.device] + shape.device_quants.get((c.device, c.quant), 0.0) for c in cells]
    return np.log(_design(cells, shape.quants) @ shape.costs) + np.array(scale)


def transfer_residuals(cells: Sequence[Cell]) -> dict[str, list[float]]:
    """Absolute log errors by device, each of a cell left out of its own prediction as in use: one anchor per quant.

    A device in turn keeps the cells of one model only, beside all of the other devices', and its other cells of those
    quants are predicted. So the errors are those of a device that was never fitted on, not of one known inside out.
    """
    found: dict[str, list[float]] = {}
    for others, anchors, held in anchor_sets(cells):
        errors = np.log([c.seconds_per_token for c in held]) - log_seconds(fit([*others, *anchors]), held)
        found.setdefault(held[0].device, []).extend(float(abs(e)) for e in errors)
    return found


def anchor_sets(cells: Sequence[Cell]) -> Iterator[tuple[list[Cell], list[Cell], list[Cell]]]:
    """Other devices' cells, one model's on a device, and that device's others of its quants, never none."""
    for device in sorted({cell.device for cell in cells}):
        others = [cell for cell in cells if cell.device != device]
        own = [cell for cell in cells if cell.device == device]
        for model in sorted({cell.model for cell in own}):
            anchors = [cell for cell in own if cell.model == model]
            quants = {cell.quant for cell in anchors}
            if held := [cell for cell in own if cell.model != model and cell.quant in quants]:
                yield others, anchors, held


def half_width(residuals: dict[str, list[float]], *, level: float, engine: str) -> float:
    """Half of the band in log seconds: the conformal quantile of the worst device.

    Of n residuals it is the ⌈(n + 1) level⌉-th smallest. Kernels' relative costs differ by core, so errors hang
    together within a device and the devices are few; a band that holds on the worst of them is the one that can be
    promised. Where no device has enough residuals by itself, all of them are taken together.

    Raises:
        InputError: there are fewer residuals than the level needs.
    """
    needed = math.ceil(level / (1 - level) - 1e-9)
    every = [error for errors in residuals.values() for error in errors]
    if len(every) < needed:
        raise InputError(
            f"expected at least {needed} leave-one-out residuals for a {100 * level:g} % band of {engine}, found "
            f"{len(every)}; add anchors of several models and devices, or measure on the device"
        )
    groups = [errors for errors in residuals.values() if len(errors) >= needed] or [every]
    return max(sorted(errors)[math.ceil((len(errors) + 1) * level - 1e-9) - 1] for errors in groups)


def _anchors(cells: Sequence[Cell], *, device: str, engine: str, backend: str, quant: str) -> list[Cell]:
    """The device's own cells of engine, backend and quant.

    Raises:
        InputError: there is none; the sentence names what there is.
    """
    found = [cell for cell in cells if cell.device == device]
    if not found:
        raise InputError(f"expected anchors of {device}, found none; add [[anchors]] to its target, or measure on it")
    for name, wanted in (("engine", engine), ("backend", backend), ("quant", quant)):
        known = {getattr(cell, name) for cell in found}
        if wanted not in known:
            of = f"{device}" if name == "engine" else f"{engine} on {device}"
            raise InputError(f"expected the {name} of an anchor of {of}, found {wanted!r}{did_you_mean(wanted, known)}")
        found = [cell for cell in found if getattr(cell, name) == wanted]
    return found


def _design(cells: Sequence[Cell], quants: Sequence[str]) -> np.ndarray:
    """`[cells, quants + 2]`: 1e9 weights (bytes, where weights are unknown) by kernel, one, and 1e9 bytes read."""
    column = {quant: i for i, quant in enumerate(quants)}
    design = np.zeros((len(cells), len(quants) + 2))
    for row, cell in zip(design, cells, strict=True):
        work = cell.read_bytes if cell.weights is None else cell.weights - cell.head_weights
        row[column[cell.quant]] += work / GIGA
        own = cell.quant in HEAD_AS_BODY or HEAD_QUANT not in column or not cell.engine.startswith("llama.cpp")
        row[column[cell.quant if own else HEAD_QUANT]] += cell.head_weights / GIGA
        row[-2:] = 1.0, (cell.read_bytes + cell.kv_bytes) / GIGA
    return design


def _same(labels: Sequence[Any]) -> np.ndarray:
    """`[n, n]` of 1.0 where two labels are equal."""
    numbers: dict[Any, int] = {}
    codes = np.array([numbers.setdefault(label, len(numbers)) for label in labels])
    return (codes[:, None] == codes[None, :]).astype(float)


def _non_negative(design: np.ndarray, *, start: np.ndarray) -> np.ndarray:
    """Non-negative costs that bring `design @ costs` closest to ones, by coordinate descent from `start`."""
    size = np.linalg.norm(design, axis=0)
    size[size == 0] = 1.0
    scaled = design / size
    gram, aim = scaled.T @ scaled, scaled.sum(0)
    costs = start * size
    for _ in range(SWEEPS):
        before = costs.copy()
        for j in np.flatnonzero(np.diag(gram)):
            costs[j] = max(0.0, costs[j] + (aim[j] - gram[j] @ costs) / gram[j, j])
        if np.abs(costs - before).max() <= SETTLED * np.abs(costs).max():
            break
    return costs / size
