"""LoRA (arXiv:2106.09685) on every linear layer but the head, trained beside frozen weights and merged into them."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from edgedistill.core.errors import InputError
from edgedistill.train.prune import LAYER


def add_lora(model: Any, *, rank: int, alpha: int, seed: int, first_layer: int = 0) -> Any:
    """Wrap `model`: its own weights frozen, low-rank float32 factors trainable; equal seeds give equal factors.

    Layers before `first_layer` get none, so that no gradient passes through them.

    Raises:
        InputError: the model has no layer `first_layer`.
    """
    torch.manual_seed(seed)
    settings = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=_linear_from(model, first_layer) if first_layer else "all-linear",
        task_type="CAUSAL_LM",
    )
    wrapped = get_peft_model(model, settings)
    for module in wrapped.modules():
        if isinstance(module, BaseTunerLayer):
            # Autocast gives each product its type; peft's own cast to float32 and back costs a tenth of a step.
            module.cast_input_dtype_enabled = False
    return wrapped


def factors(wrapped: Any) -> dict[str, Tensor]:
    """What is trained, by name: the factors, or of a model without any all weights that are not frozen."""
    return {name: p.detach() for name, p in wrapped.named_parameters() if p.requires_grad}


def merge_lora(model: Any, trained: dict[str, Tensor], *, rank: int, alpha: int, first_layer: int = 0) -> Any:
    """Add the product of `trained` factors to the weights of a model like the one they were trained beside."""
    wrapped = add_lora(model, rank=rank, alpha=alpha, seed=0, first_layer=first_layer)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(trained[name])
    return wrapped.merge_and_unload()


def _linear_from(model: Any, first_layer: int) -> list[str]:
    """Names of the linear modules of all layers from `first_layer` on."""
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    places = {name: int(found["index"]) for name in linear if (found := LAYER.match(name))}
    names = [name for name, place in places.items() if place >= first_layer]
    if not names:
        found = f"{max(places.values()) + 1} of them" if places else "none that are numbered"
        raise InputError(f"expected LoRA to begin at a layer of the model, found {first_layer} and {found}; lower it")
    return names
