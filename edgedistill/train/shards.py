"""Weights that lie in parts on several processes (FSDP2): whole tensors out of the parts, and back into them.

Files hold whole tensors, so that a run may go on with another number of processes, or with one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether any of the model's parameters lies in parts."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def reshard(model: torch.nn.Module) -> None:
    """Let the parameters of a sharded model be its parts again: some stay whole, and perhaps rounded, after a pass."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@torch.no_grad()
def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor in one piece. Of sharded ones all processes must ask at once, and each gets them."""
    return {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in tensors.items()}


def like(value: Tensor, target: Tensor) -> Tensor:
    """`value`, which every process has whole, spread as `target` is."""
    if not isinstance(target, DTensor):
        return value
    return distribute_tensor(value.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
