"""Training on the grid: weights as the stored blocks mean them, in torch, with the gradient passed straight through.

What a layer computes with is bit for bit what `decode_blocks(encode_blocks(weight))` gives, so the codes that export
writes are those that training ended on. Straight-through estimator: Bengio et al. 2013, https://arxiv.org/abs/1308.3432.
"""

from __future__ import annotations

from typing import Any

import torch

from edgedistill.quant.grids import STEPS, TINY, Grid, grid_named


def fake_quantize(weight: torch.Tensor, *, grid: str) -> torch.Tensor:
    """`weight` float32 `[..., columns]` rounded to a grid; the gradient is that of the identity.

    Raises:
        ValueError: there is no such grid, or the columns do not fill blocks.
    """
    chosen = grid_named(grid)
    if weight.shape[-1] % chosen.block:
        raise ValueError(f"expected columns in multiples of {chosen.block}, found {weight.shape[-1]}")
    rounded: torch.Tensor = _Rounded.apply(weight, chosen)
    return rounded


def round_activations(x: torch.Tensor) -> torch.Tensor:
    """`x` float32 `[..., columns]` as ggml's CPU kernels see it beside quantized weights: on Q8_0.

    The gradient is that of the identity.
    """
    return fake_quantize(x, grid="Q8_0")


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, grid: Grid) -> torch.Tensor:
        blocks = weight.reshape(-1, grid.block)
        blocks = torch.where(blocks.abs() < TINY, 0, blocks)
        if grid.has_steps:
            rounded = _from_parts(blocks, grid)
        elif grid.values is not None:
            rounded = _from_values(blocks, grid)
        else:
            rounded = _from_minimum(blocks, grid) if grid.has_minimum else _from_largest(blocks, grid)
        return rounded.reshape(weight.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


def _from_largest(blocks: torch.Tensor, grid: Grid) -> torch.Tensor:
    symmetric = -grid.low == grid.high
    # where they are not symmetric, the largest weight gets the code `low`, which has no opposite
    scale = blocks.abs().amax(1, keepdim=True) / grid.high if symmetric else _largest(blocks) / grid.low
    scaled = blocks * _inverse(scale)
    if symmetric:  # half away from zero, as C's roundf
        size = scaled.abs()
        codes = torch.sign(scaled) * (size.floor() + (2 * (size - size.floor())).floor())
    else:
        codes = (scaled + (0.5 - grid.low)).trunc().clamp(0, grid.high - grid.low) + grid.low
    return codes * scale.half().float()


def _from_minimum(blocks: torch.Tensor, grid: Grid) -> torch.Tensor:
    low = blocks.amin(1, keepdim=True)
    scale = (blocks.amax(1, keepdim=True) - low) / grid.high
    codes = ((blocks - low) * _inverse(scale) + 0.5).trunc().clamp(0, grid.high)
    return codes * scale.half().float() + low.half().float()


def _from_values(blocks: torch.Tensor, grid: Grid) -> torch.Tensor:
    scale = (_largest(blocks) / grid.low).half().float()
    values = torch.tensor(grid.values, dtype=torch.float32, device=blocks.device)
    between = torch.from_numpy(grid.between).to(blocks.device)
    return values[torch.bucketize(blocks * _inverse(scale), between)] * scale


def _from_parts(blocks: torch.Tensor, grid: Grid) -> torch.Tensor:
    parts = blocks.reshape(len(blocks), -1, grid.part)
    wanted = _largest(parts) / grid.low
    unit = (_largest(wanted[..., 0])[..., None] / STEPS[0]).half().float()
    scale = (wanted * _inverse(unit)).round().clamp(*STEPS) * unit
    return (parts * _inverse(scale)).round().clamp(grid.low, grid.high) * scale


def _largest(x: torch.Tensor) -> torch.Tensor:
    """Along the last axis, kept, the signed number of the largest size; of equals the first."""
    return x.gather(-1, x.abs().argmax(-1, keepdim=True))


def _inverse(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale == 0, 0, 1 / scale)
