"""Fewer layers and narrower feed-forward blocks, chosen by what calibration sequences lose without them.

Layers: greedily the one whose removal raises the loss least (as in SLEB, arXiv:2402.09025). Feed-forward channels: by
the energy a channel adds to the output, `Σ x² · ‖column of down_proj‖²` (as in Wanda, arXiv:2306.11695, by channel).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from edgedistill.core.errors import InputError
from edgedistill.core.runfolder import Reporter
from edgedistill.train.data import Example, collate
from edgedistill.train.step import step_losses

LAYER = re.compile(r"^(?P<before>.*\blayers\.)(?P<index>\d+)(?P<after>\..*)$")
CALIBRATION_BATCH = 32


def keep_layers(model: Any, layers: Sequence[int]) -> Any:
    """A new model of the given layers of `model`, in their order there.

    Raises:
        InputError: a layer is named twice or does not exist, or none is named.
    """
    count = model.config.num_hidden_layers
    kept = sorted(layers)
    if not kept or len(set(kept)) < len(kept) or kept[0] < 0 or kept[-1] >= count:
        raise InputError(f"expected distinct layers from 0 to {count - 1} in student.cut.layers, found {list(layers)}")
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(kept)
    for name in ("layer_types", "mlp_layer_types", "no_rope_layers"):
        if isinstance(values := getattr(config, name, None), list) and len(values) == count:
            setattr(config, name, [values[i] for i in kept])
    place = {old: new for new, old in enumerate(kept)}
    state = {}
    for name, tensor in model.state_dict().items():
        found = LAYER.match(name)
        if found is None:
            state[name] = tensor
        elif int(found["index"]) in place:
            state[f"{found['before']}{place[int(found['index'])]}{found['after']}"] = tensor
    return _rebuilt(model, config, state)


def narrow_ffn(model: Any, examples: Sequence[Example], *, width: int) -> Any:
    """A new model whose every feed-forward block keeps its `width` channels of most output energy on `examples`.

    Raises:
        InputError: `width` is no multiple of 32, is wider than the model, or its blocks have no `mlp.down_proj`.
    """
    full = model.config.intermediate_size
    if width % 32 or width > full:
        raise InputError(f"expected student.cut.ffn to be a multiple of 32 of at most {full}, found {width}")
    if width == full:
        return model
    energies = _channel_energy(model, examples)
    if len(energies) != model.config.num_hidden_layers:
        raise InputError(
            f"narrowing needs one mlp.down_proj in each layer, found {len(energies)} in "
            f"{model.config.num_hidden_layers} layers of {type(model).__name__}; leave student.cut.ffn out"
        )
    config = copy.deepcopy(model.config)
    config.intermediate_size = width
    state = dict(model.state_dict())
    for block, energy in energies.items():
        kept = energy.topk(width).indices.sort().values
        rows = torch.cat((kept, kept + full))  # gate and up in one matrix, one after the other
        for name, tensor in model.state_dict().items():
            if name.startswith(f"{block}.gate_up_proj."):
                state[name] = tensor[rows]
            elif name.startswith((f"{block}.gate_proj.", f"{block}.up_proj.")):
                state[name] = tensor[kept]
            elif name == f"{block}.down_proj.weight":
                state[name] = tensor[:, kept]
    return _rebuilt(model, config, state)


def choose_layers(model: Any, examples: Sequence[Example], *, count: int, report: Reporter) -> list[int]:
    """`count` layers to keep: again and again the one without which the loss on `examples` is least is removed.

    Raises:
        InputError: the model has fewer layers.
    """
    decoder = _decoder(model)
    layers = list(decoder.layers)
    if count > len(layers):
        raise InputError(f"expected student.cut.layers of at most {len(layers)}, found {count}")
    kept = list(range(len(layers)))
    done, rounds = 0, len(layers) - count
    passes = sum(len(layers) - i for i in range(rounds))
    try:
        for _ in range(rounds):
            losses = {}
            for candidate in kept:
                decoder.layers = torch.nn.ModuleList(layers[i] for i in kept if i != candidate)
                losses[candidate] = mean_loss(model, examples)
                done += 1
                report.progress(done, passes, "layer trials")
            kept.remove(min(kept, key=lambda i: (losses[i], i)))
    finally:
        decoder.layers = torch.nn.ModuleList(layers)
    return kept


@torch.no_grad()
def mean_loss(model: Any, examples: Sequence[Example]) -> float:
    """Cross-entropy in nats per supervised token."""
    return sum(float(loss) for loss in _passes(model, examples)) / sum(e.supervised for e in examples)


@torch.no_grad()
def _channel_energy(model: Any, examples: Sequence[Example]) -> dict[str, Tensor]:
    """For each feed-forward block by name, the energy `[channels]` that its channels add to the output."""
    squares: dict[str, Tensor] = {}
    hooks = []
    down = {name.removesuffix(".down_proj"): m for name, m in model.named_modules() if name.endswith("mlp.down_proj")}
    for block, module in down.items():

        def collect(_: Any, args: tuple[Tensor, ...], block: str = block) -> None:
            squares[block] = squares.get(block, 0) + args[0].float().square().flatten(0, -2).sum(0)

        hooks.append(module.register_forward_pre_hook(collect))
    try:
        for _ in _passes(model, examples):
            pass
    finally:
        for hook in hooks:
            hook.remove()
    return {block: squares[block] * module.weight.float().square().sum(0) for block, module in down.items()}


def _passes(model: Any, examples: Sequence[Example]) -> Iterator[Tensor]:
    """The summed cross-entropy of each batch of `examples`."""
    near = sorted(examples, key=lambda e: len(e.ids))
    model.eval()
    for begin in range(0, len(near), CALIBRATION_BATCH):
        batch = collate(near[begin : begin + CALIBRATION_BATCH])
        yield step_losses(model, batch, kd_weight=0.0).total


def _decoder(model: Any) -> Any:
    decoder = model.get_decoder()
    if not isinstance(getattr(decoder, "layers", None), torch.nn.ModuleList):
        raise InputError(
            f"choosing layers needs a decoder with a list of layers, found {type(decoder).__name__}; name the layers "
            "in student.cut.layers"
        )
    return decoder


def _rebuilt(model: Any, config: Any, state: dict[str, Tensor]) -> Any:
    """A fresh model of `config` with `state`, and the generation settings of `model`."""
    fresh = type(model)(config)
    fresh.load_state_dict(state)
    fresh.generation_config = copy.deepcopy(model.generation_config)
    fresh.to(next(model.parameters()).dtype)
    return fresh.eval()
