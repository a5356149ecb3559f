"""Fewer layers: those that calibration sequences miss least.

Two ways to tell: greedily the layer whose removal raises the loss least (as in SLEB, arXiv:2402.09025), or at once
those that turn the residual stream least (block influence of ShortGPT, arXiv:2403.03853), in one pass.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from edgedistill.core.errors import InputError
from edgedistill.core.runfolder import Reporter
from edgedistill.train.calibration import Watcher, mean_loss, observe
from edgedistill.train.data import Example

LAYER = re.compile(r"^(?P<before>.*\blayers\.)(?P<index>\d+)(?P<after>\..*)$")
BY_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")  # settings with one entry a layer


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
    for name, values in _settings_by_layer(config, count).items():
        setattr(config, name, [values[i] for i in kept])
    place = {old: new for new, old in enumerate(kept)}
    state = {}
    for name, tensor in model.state_dict().items():
        found = LAYER.match(name)
        if found is None:
            state[name] = tensor
        elif int(found["index"]) in place:
            state[f"{found['before']}{place[int(found['index'])]}{found['after']}"] = tensor
    return rebuilt(model, config, state)


def choose_layers(
    model: Any,
    examples: Sequence[Example],
    *,
    count: int,
    report: Reporter,
    score: Literal["loss", "influence"] = "loss",
) -> list[int]:
    """`count` layers to keep, those that `removal_order` would remove last.

    Raises:
        InputError: the model has fewer layers.
    """
    layers = len(_decoder(model).layers)
    if count > layers:
        raise InputError(f"expected student.cut.layers of at most {layers}, found {count}")
    removed = removal_order(model, examples, count=layers - count, report=report, score=score)
    return sorted(set(range(layers)) - set(removed))


def removal_order(
    model: Any,
    examples: Sequence[Example],
    *,
    count: int,
    report: Reporter,
    score: Literal["loss", "influence"] = "loss",
) -> list[int]:
    """`count` layers in the order to remove them, the one least missed first.

    By `loss`, again and again the one without which the loss on `examples` is least; by `influence`, those of least
    block influence in the whole model.
    """
    if score == "influence":
        influences = block_influences(model, examples)
        return sorted(range(len(influences)), key=lambda i: (influences[i], i))[:count]
    kept, removed = list(range(len(_decoder(model).layers))), list[int]()
    passes = sum(len(kept) - i for i in range(count))
    done = 0
    for _ in range(count):
        losses = {}
        for candidate in kept:
            with _only(model, [i for i in kept if i != candidate]):
                losses[candidate] = mean_loss(model, examples)
            done += 1
            report.progress(done, passes, "layer trials")
        removed.append(min(kept, key=lambda i: (losses[i], i)))
        kept.remove(removed[-1])
    return removed


def block_influences(model: Any, examples: Sequence[Example]) -> list[float]:
    """For each layer, 1 - the mean cosine of what enters it and what leaves it, over the tokens of `examples`.

    Equation 1 of ShortGPT, arXiv:2403.03853.
    """
    decoder = _decoder(model)
    names = {id(module): name for name, module in model.named_modules()}
    cosines = [0.0] * len(decoder.layers)
    tokens = sum(len(e.ids) for e in examples)

    def watcher(layer: int) -> Watcher:
        def add(before: Tensor, after: Tensor) -> None:
            cosines[layer] += float(torch.cosine_similarity(before, after, dim=-1).sum())

        return add

    observe(model, examples, {names[id(layer)]: watcher(i) for i, layer in enumerate(decoder.layers)})
    return [1 - total / tokens for total in cosines]


def rebuilt(model: Any, config: Any, state: dict[str, Tensor]) -> Any:
    """A fresh model of `config` with `state`, and the generation settings of `model`.

    Raises:
        InputError: transformers has no such model.
    """
    from huggingface_hub.errors import StrictDataclassError

    try:
        config.validate()
    except (StrictDataclassError, ValueError) as e:
        cause = str(e).strip().splitlines()[-1].strip().removeprefix("ValueError: ")
        raise InputError(
            f"expected sizes in student.cut that a {config.model_type} model can have, found hidden = "
            f"{config.hidden_size} and heads = {config.num_attention_heads} ({cause}); cut both in the same "
            "proportion"
        ) from None
    fresh = type(model)(config)
    fresh.load_state_dict(state)
    fresh.generation_config = copy.deepcopy(model.generation_config)
    fresh.to(next(model.parameters()).dtype)
    return fresh.eval()


@contextlib.contextmanager
def _only(model: Any, layers: Sequence[int]) -> Iterator[None]:
    """`model` with these layers alone and their settings, for a while."""
    decoder, config = _decoder(model), model.config
    every, settings = decoder.layers, _settings_by_layer(config, len(decoder.layers))
    try:
        decoder.layers = torch.nn.ModuleList(every[i] for i in layers)
        for name, values in settings.items():
            setattr(config, name, [values[i] for i in layers])
        yield
    finally:
        decoder.layers = every
        for name, values in settings.items():
            setattr(config, name, values)


def _settings_by_layer(config: Any, count: int) -> dict[str, list[Any]]:
    found = {name: getattr(config, name, None) for name in BY_LAYER}
    return {name: values for name, values in found.items() if isinstance(values, list) and len(values) == count}


def _decoder(model: Any) -> Any:
    decoder = model.get_decoder()
    if not isinstance(getattr(decoder, "layers", None), torch.nn.ModuleList):
        raise InputError(
            f"choosing layers needs a decoder with a list of layers, found {type(decoder).__name__}; name the layers "
            "in student.cut.layers"
        )
    return decoder
