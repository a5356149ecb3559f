"""LoRA (arXiv:2106.09685) on every linear layer but the head, trained beside frozen weights and merged into them."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor


def add_lora(model: Any, *, rank: int, alpha: int, seed: int) -> Any:
    """Wrap `model`: its own weights frozen, low-rank float32 factors trainable; equal seeds give equal factors."""
    torch.manual_seed(seed)
    settings = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    wrapped = get_peft_model(model, settings)
    for module in wrapped.modules():
        if isinstance(module, BaseTunerLayer):
            # Autocast gives each product its type; peft's own cast to float32 and back costs a tenth of a step.
            module.cast_input_dtype_enabled = False
    return wrapped


def factors(wrapped: Any) -> dict[str, Tensor]:
    """The trained factors by name."""
    return {name: p.detach() for name, p in wrapped.named_parameters() if p.requires_grad}


def merge_lora(model: Any, trained: dict[str, Tensor], *, rank: int, alpha: int) -> Any:
    """Add the product of `trained` factors to the weights of a model like the one they were trained beside."""
    wrapped = add_lora(model, rank=rank, alpha=alpha, seed=0)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(trained[name])
    return wrapped.merge_and_unload()
