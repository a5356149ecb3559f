"""Training on the grid that ships: from some step on every matrix acts as the blocks that export will store of it.

Straight-through gradients reach the float weights behind (see `quant.fake`). What cannot move is put on its grid once.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgedistill.quant.fake import fake_quantize, round_activations
from edgedistill.quant.plan import Plan


def first_step(*, total: int, share: float) -> int:
    """The step, counted from 0, at which the last `share` of `total` steps begins."""
    return min(total - 1, round(total * (1 - share)))


def put_on_grid(model: nn.Module, *, plan: Plan, activations: bool) -> None:
    """Have every linear layer and embedding of `model` compute with its weights as `plan` stores them.

    `activations` rounds what enters a linear layer to int8 by blocks, as the CPU kernels of both formats do. Names,
    parameters and tied weights stay as they are; frozen weights are replaced by what their codes decode to.
    """
    for module, grid in _matrices(model, plan):
        weight: Any = module.weight
        if not weight.requires_grad:
            _replace(weight, grid)
        kept = None if not weight.requires_grad else grid
        if isinstance(module, nn.Embedding):
            module.forward = partial(_embedding, module, kept)  # type: ignore[method-assign]
        else:
            module.operands = partial(_operands, module, kept, activations)
            module.forward = partial(_linear, module)  # type: ignore[method-assign]


def leave_on_grid(model: nn.Module, *, plan: Plan) -> None:
    """End `put_on_grid`: every matrix of `model` becomes what its codes decode to, exactly."""
    for module, grid in _matrices(model, plan):
        for name in ("forward", "operands"):
            vars(module).pop(name, None)
        _replace(module.weight, grid)


def _matrices(model: nn.Module, plan: Plan) -> Iterator[tuple[Any, str]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            grid = plan.grid(f"{name}.weight", tuple(module.weight.shape))
            if grid is not None:
                yield module, grid


@torch.no_grad()
def _replace(weight: Tensor, grid: str) -> None:
    weight.copy_(fake_quantize(weight, grid=grid))


def operands(module: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """What a linear layer multiplies, `x` and its weight: as they are, or on the grid."""
    found: tuple[Tensor, Tensor] = module.operands(x) if "operands" in vars(module) else (x, module.weight)
    return found


def _operands(module: Any, grid: str | None, activations: bool, x: Tensor) -> tuple[Tensor, Tensor]:
    weight = module.weight if grid is None else fake_quantize(module.weight, grid=grid)
    return round_activations(x) if activations else x, weight


def _linear(module: Any, x: Tensor) -> Tensor:
    return functional.linear(*module.operands(x), module.bias)


def _embedding(module: nn.Embedding, grid: str | None, ids: Tensor) -> Tensor:
    rows = functional.embedding(ids, module.weight, module.padding_idx)
    return rows if grid is None else fake_quantize(rows, grid=grid)
