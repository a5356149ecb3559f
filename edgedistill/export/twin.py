"""The model with an artifact's rounding in it: what precision, and nothing else, does to every place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedistill.export.tensors import Part
from edgedistill.export.weigh import rounded
from edgedistill.quant.plan import EMBEDDING, HEAD

if TYPE_CHECKING:
    import torch


def make_twin(model: Any, sound: Sequence[Part], *, parts: Sequence[Part]) -> None:
    """Give a loaded causal LM, in place, the `sound` parts as weights and the kernels' rounding of activations.

    Matrices that none of `parts` stands for are rounded plainly, as most of the artifact's are.
    """
    import torch

    held = {part.source for part in parts}
    if HEAD in held and model.lm_head.weight is model.get_input_embeddings().weight:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone(), requires_grad=False)
    named = dict(model.named_parameters())
    with torch.no_grad():
        for part in sound:
            if part.source in named:
                rows = slice(part.start, part.start + len(part.values))
                named[part.source][rows].copy_(torch.from_numpy(np.array(part.values)))
        kind, bits, block = most(parts)
        for name, value in named.items():
            if value.dim() == 2 and name not in held:
                plain = rounded(value.numpy(), kind=kind, bits=bits, block=block)
                value.copy_(torch.from_numpy(np.ascontiguousarray(plain)))
    for part in parts:
        source = HEAD if part.source == EMBEDDING and HEAD not in held else part.source
        module = dict(model.named_modules()).get(source.removesuffix(".weight"))
        if isinstance(module, torch.nn.Linear) and part.inputs != "float" and part.start == 0:
            module.register_forward_pre_hook(_rounding(part))


def most(parts: Sequence[Part]) -> tuple[str, int, int]:
    """Kind, bits and block of most weights in matrices."""
    counts: Counter[tuple[str, int, int]] = Counter()
    for part in parts:
        counts[part.kind, part.bits, part.block] += part.values.size if part.values.ndim > 1 else 0
    return counts.most_common(1)[0][0] if counts else ("F32", 32, 1)


def _rounding(part: Part) -> Any:
    """A hook that rounds a linear layer's inputs as the part's kernel does: to half, or to 8 bits a block."""

    def hook(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        import torch

        value = inputs[0]
        if part.inputs == "half":
            return (value.half().float(),)
        width = part.block if value.shape[-1] % part.block == 0 else value.shape[-1]
        blocks = value.reshape(-1, width)
        scales = blocks.abs().amax(dim=1, keepdim=True).clamp_min(1e-30) / 127
        return ((torch.round(blocks / scales) * scales).reshape(value.shape),)

    return hook
