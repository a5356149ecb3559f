"""An artifact's weights against its model's, tensor by tensor: does what differs lie within what its type rounds?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgedistill.export.tensors import Part
from edgedistill.export.weights import StoredTensor
from edgedistill.quant.plan import EMBEDDING, HEAD

SLACK = 1.5  # times the error of plain rounding: error-compensating encoders spend a little more on some tensors
EXACT = 1e-5  # relative error that float arithmetic explains
ROTATED = "rows in half-rotation order"
SHIFTS = (1, -1, 2, -2)


@dataclass(frozen=True)
class Weighed:
    """A part's root-mean-square error relative to its source, what its type explains, and in words why, if beyond."""

    name: str
    source: str
    kind: str
    error: float
    explained: float
    why: str | None

    @property
    def sound(self) -> bool:
        return self.why is None


def weigh(part: Part, *, stored: Mapping[str, StoredTensor]) -> Weighed:
    """Hold one part against the tensor it stands for."""
    source = part.source if part.source in stored else EMBEDDING if part.source == HEAD else part.source
    whole = stored[source].read().astype(np.float32)
    wanted = whole[part.start : part.start + len(part.values)]
    if part.values.shape != wanted.shape:
        why = f"has shape {list(part.values.shape)}, {source} {list(whole.shape)}"
        return Weighed(part.name, source, part.kind, float("inf"), 0.0, why)
    error = relative(part.values, wanted)
    explained = rounding_error(wanted, part)
    bound = SLACK * explained + EXACT
    why = None if error <= bound else _why(part, wanted, bound=bound, source=source)
    return Weighed(part.name, source, part.kind, error, explained, why)


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    """Norm of the difference over the norm of what is wanted; infinite where that is zero and this is not."""
    scale = float(np.linalg.norm(wanted))
    off = float(np.linalg.norm(found - wanted))
    return off / scale if scale else 0.0 if off == 0 else float("inf")


def rounding_error(wanted: np.ndarray, part: Part) -> float:
    """Relative error of plain rounding to the part's type."""
    return relative(rounded(wanted, kind=part.kind, bits=part.bits, block=part.block), wanted)


def rounded(wanted: np.ndarray, *, kind: str, bits: int, block: int) -> np.ndarray:
    """Plain rounding: to half precision, or to codes of so many bits with a scale for each block.

    A block's scale is such that its largest weight is the code furthest from zero, as Q4_0 and `MatMulNBits` have it.
    """
    if kind in ("F32", "F64"):
        return wanted
    if kind in ("F16", "BF16"):
        significand = 11 if kind == "F16" else 8  # bits
        step = np.exp2(np.floor(np.log2(np.maximum(np.abs(wanted), 2.0**-14))) - significand + 1)
        return np.round(wanted / step) * step
    width = min(block, 32) if wanted.shape[-1] % min(block, 32) == 0 else wanted.shape[-1]
    blocks = wanted.reshape(-1, width)
    furthest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1, keepdims=True), axis=1)
    limit = 2 ** (bits - 1)
    scales = np.where(furthest == 0, 1, furthest / -limit)
    return (np.clip(np.round(blocks / scales), -limit, limit - 1) * scales).reshape(wanted.shape)


def _why(part: Part, wanted: np.ndarray, *, bound: float, source: str) -> str:
    """What would make the part right, if it is anything simple."""
    if not np.isfinite(part.values).all():
        return f"holds values that are not finite where {source} is"
    if not part.values.any():
        return f"is all zeros, {source} is not"
    if part.half_order is not None and relative(part.half_order, wanted) <= bound:
        return f"differs from {source} as {ROTATED}, where llama.cpp rotates neighbouring rows"
    for shift in SHIFTS:
        if relative(np.roll(part.values, -shift, axis=0), wanted) <= bound:
            return f"holds the rows of {source} {abs(shift)} {'lower' if shift > 0 else 'higher'} than they should lie"
    factor = float((part.values * wanted).sum() / max((wanted * wanted).sum(), 1e-30))
    if abs(factor) > EXACT and relative(part.values / factor, wanted) <= bound:
        return f"is {factor:.3g} times {source}"
    return f"differs from {source}" if part.name != source else "differs from the model's tensor of this name"
