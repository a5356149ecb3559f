"""Narrower layers: fewer attention heads, feed-forward channels and hidden channels, those least used on calibration.

Each is scored by its energy on calibration sequences, after Minitron (arXiv:2407.14679):
- a feed-forward channel by what it adds to the output, `Σ x² · ‖column of down_proj‖²` (as in Wanda, arXiv:2306.11695);
- a query head by the same sum over its columns of `o_proj`; a KV group by the heads it would keep;
- a hidden channel by its share of what the norms read, summed over all norms: on SmolLM2-135M cuts by that lost less
  than by what the norms put out. It is chosen once for the model, as every matrix reads or writes the one stream.

A norm divides by the root mean square of all that it reads, which a cut changes. Each norm's weight is scaled by the
mean of that of what stays over that of the whole, so that cutting channels that are always zero changes nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from edgedistill.core.errors import InputError
from edgedistill.train.calibration import Watcher, observe
from edgedistill.train.data import Example
from edgedistill.train.prune import LAYER, rebuilt

LEAST, PREFERRED = 32, 256  # multiples: what a quantized block holds, and what K-quants and most kernels want
NORMS = (
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm", "norm",
)  # fmt: skip
# What the rows and columns of each tensor are, by the name of its module; a bias and a norm have rows alone.
AXES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("embed_tokens", "lm_head"), ("vocab", "hidden")),
    "q_proj": ("query", "hidden"),
    **dict.fromkeys(("k_proj", "v_proj"), ("key", "hidden")),
    "qkv_proj": ("query_key_value", "hidden"),
    "o_proj": ("hidden", "query"),
    **dict.fromkeys(("gate_proj", "up_proj"), ("ffn", "hidden")),
    "gate_up_proj": ("gate_up", "hidden"),
    "down_proj": ("hidden", "ffn"),
    **dict.fromkeys(("q_norm", "k_norm"), ("head",)),
    **dict.fromkeys(NORMS, ("hidden",)),
}
# llama.cpp gives their attention output no other width than the residual stream's.
SQUARE_ATTENTION = ("qwen2", "phi3")


@dataclass(frozen=True)
class Widths:
    """Sizes of a layer: `heads` query heads in `kv_heads` groups, each of `head_dim`, which no cut changes."""

    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class Activity:
    """Mean squares on calibration, by module: what enters `down_proj` `[ffn]` and `o_proj` `[heads * head_dim]`.

    `stream` is what enters each norm, `[hidden]`, in shares of a token's mean square: their mean is 1.
    """

    inputs: dict[str, Tensor]
    stream: dict[str, Tensor]


def widths_of(config: Any) -> Widths:
    """The widths that a model's configuration states."""
    heads = config.num_attention_heads
    return Widths(
        hidden=config.hidden_size,
        ffn=config.intermediate_size,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
    )


def cut_widths(
    before: Widths,
    *,
    ffn: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    hidden: int | None = None,
) -> Widths:
    """`before` with these sizes; without `heads`, KV heads that go take their query heads along.

    Raises:
        InputError: a size does not fit `before`, or is no multiple of what kernels need.
    """
    for name, size, full in (("ffn", ffn, before.ffn), ("hidden", hidden, before.hidden)):
        if size is not None and (size % LEAST or size > full):
            raise InputError(f"expected student.cut.{name} to be a multiple of {LEAST} of at most {full}, found {size}")
    groups = kv_heads or before.kv_heads
    heads = heads or groups * before.group
    if groups > before.kv_heads or heads % groups or heads // groups > before.group:
        fitting = ", ".join(str(groups * each) for each in range(1, before.group + 1))
        raise InputError(
            f"expected student.cut.kv_heads of at most {before.kv_heads} and 1 to {before.group} query heads for each, "
            f"found kv_heads = {groups} and heads = {heads}"
            + (f"; choose heads of {fitting}" if groups <= before.kv_heads else "")
        )
    if heads * before.head_dim % LEAST:
        raise InputError(
            f"expected student.cut.heads times the head width {before.head_dim} to be a multiple of {LEAST}, found "
            f"{heads * before.head_dim}; choose another number of heads"
        )
    return replace(before, ffn=ffn or before.ffn, heads=heads, kv_heads=groups, hidden=hidden or before.hidden)


def measure_activity(model: Any, examples: Sequence[Example]) -> Activity:
    """What the narrowable modules of `model` see on `examples`, in one pass."""
    activity = Activity({}, {})
    tokens = sum(len(e.ids) for e in examples)

    def square(name: str) -> Watcher:
        def add(x: Tensor, _: Tensor) -> None:
            activity.inputs[name] = activity.inputs.get(name, 0) + x.square().sum(0) / tokens

        return add

    def share(name: str) -> Watcher:
        def add(x: Tensor, _: Tensor) -> None:
            energy = x.square()
            energy = energy[energy.any(-1)]  # the row of a padding token may be zero
            shares = energy / energy.mean(-1, keepdim=True)
            activity.stream[name] = activity.stream.get(name, 0) + shares.sum(0)

        return add

    watchers = {}
    for name, _ in model.named_modules():
        kind = name.rpartition(".")[2]
        if kind in ("down_proj", "o_proj"):
            watchers[name] = square(name)
        elif kind in NORMS:
            watchers[name] = share(name)
    observe(model, examples, watchers)
    return Activity(activity.inputs, {name: shares / shares.mean() for name, shares in activity.stream.items()})


def narrow_model(model: Any, activity: Activity, *, widths: Widths) -> Any:
    """A new model of `widths` (of `cut_widths`) with the heads and channels of most energy in `activity`.

    Raises:
        InputError: `model` has tensors of other axes than `AXES` tells.
    """
    before = widths_of(model.config)
    if widths == before:
        return model
    _check_axes(model, before)
    everywhere = {"hidden": _largest(sum(activity.stream.values(), torch.zeros(before.hidden)), widths.hidden)}
    kept = {
        name.removesuffix("mlp.down_proj"): everywhere
        | _kept_heads(model, activity, name.removesuffix("mlp.down_proj") + "self_attn.o_proj", before, widths)
        | _kept_channels(model, activity, name, widths.ffn)
        for name in activity.inputs
        if name.endswith("mlp.down_proj")
    }
    state = {name: _sliced(name, tensor, kept, everywhere) for name, tensor in model.state_dict().items()}
    config = copy.deepcopy(model.config)
    config.hidden_size, config.intermediate_size = widths.hidden, widths.ffn
    config.num_attention_heads, config.num_key_value_heads = widths.heads, widths.kv_heads
    if (widths.hidden, widths.heads) != (before.hidden, before.heads):
        config.head_dim = widths.head_dim  # no longer what hidden / heads gives
    if widths.hidden != before.hidden:
        config.rms_norm_eps *= before.hidden / widths.hidden  # it is added to the mean, whose channels are fewer
        _rescale(model, state, activity, everywhere["hidden"])
    return rebuilt(model, config, state)


def shape_notes(config: Any, *, chosen: Mapping[str, int]) -> list[str]:
    """What speaks against the `chosen` widths of a cut model, in sentences."""
    widths = widths_of(config)
    odd = [f"{name} = {size}" for name, size in chosen.items() if size % PREFERRED]
    notes = []
    if odd:
        notes.append(
            f"{' and '.join(odd)}: no multiple of {PREFERRED}, so K-quants fall back to wider blocks and some kernels "
            "to slower ones"
        )
    if config.model_type in SQUARE_ATTENTION and widths.heads * widths.head_dim != widths.hidden:
        notes.append(
            f"{widths.heads} heads of {widths.head_dim} are not hidden = {widths.hidden}: llama.cpp loads no such "
            f"{config.model_type}; export it to ONNX, or cut heads and hidden together"
        )
    return notes


def _check_axes(model: Any, before: Widths) -> None:
    query, key = before.heads * before.head_dim, before.kv_heads * before.head_dim
    sizes = {
        "hidden": before.hidden, "ffn": before.ffn, "gate_up": 2 * before.ffn, "query": query, "key": key,
        "query_key_value": query + 2 * key, "head": before.head_dim, "vocab": model.config.vocab_size,
    }  # fmt: skip
    for name, tensor in model.state_dict().items():
        axes = AXES.get(name.split(".")[-2])
        if axes is None or tuple(tensor.shape) != tuple(sizes[axis] for axis in axes[: tensor.dim()]):
            raise InputError(
                f"narrowing knows the matrices of Llama, SmolLM3, Qwen2, Qwen3, Phi-3 and Gemma 3, found {name} "
                f"{list(tensor.shape)} in {type(model).__name__}; leave student.cut.ffn, heads, kv_heads and hidden out"
            )


def _kept_channels(model: Any, activity: Activity, down: str, width: int) -> dict[str, Tensor]:
    energy = _put_out(model, activity, down)
    kept = _largest(energy, width)
    return {"ffn": kept, "gate_up": torch.cat((kept, kept + len(energy)))}  # gate's rows before up's


def _kept_heads(model: Any, activity: Activity, out: str, before: Widths, after: Widths) -> dict[str, Tensor]:
    """Rows of queries, keys and their fusion that stay: groups by the energy of the heads they keep, those in each."""
    width = before.head_dim
    energy = _put_out(model, activity, out).view(before.kv_heads, before.group, width).sum(-1)
    groups = _largest(energy.topk(after.group).values.sum(-1), after.kv_heads)
    heads = torch.cat([group * before.group + _largest(energy[group], after.group) for group in groups])
    rows = torch.arange(width)
    query, key = ((kept[:, None] * width + rows).flatten() for kept in (heads, groups))
    first_key, first_value = before.heads * width, (before.heads + before.kv_heads) * width
    return {"query": query, "key": key, "query_key_value": torch.cat((query, first_key + key, first_value + key))}


def _put_out(model: Any, activity: Activity, name: str) -> Tensor:
    """The energy that each input channel of the matrix `name` adds to its output, as if they were independent."""
    return activity.inputs[name] * model.get_submodule(name).weight.float().square().sum(0)


def _largest(score: Tensor, count: int) -> Tensor:
    return score.topk(count).indices.sort().values


def _sliced(
    name: str, tensor: Tensor, kept: Mapping[str, Mapping[str, Tensor]], everywhere: Mapping[str, Tensor]
) -> Tensor:
    found = LAYER.match(name)
    here = kept[f"{found['before']}{found['index']}."] if found else everywhere
    for dim, axis in enumerate(AXES[name.split(".")[-2]][: tensor.dim()]):
        if axis in here:
            tensor = tensor.index_select(dim, here[axis])
    return tensor


def _rescale(model: Any, state: dict[str, Tensor], activity: Activity, kept: Tensor) -> None:
    """Make up in `state` for what a narrower residual stream does to norms, and to an embedding scaled by its width."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {id(module): name for name, module in model.named_modules()}
    widened = 1.0
    if hasattr(embedding, "scalar_embed_scale"):  # Gemma multiplies embeddings by √hidden
        widened = math.sqrt(model.config.hidden_size / len(kept))
    tied = head.weight is embedding.weight
    for module in (embedding, head) if tied else (embedding,):
        state[f"{names[id(module)]}.weight"] = state[f"{names[id(module)]}.weight"] * widened
    for name, energy in activity.stream.items():
        offset = _offset(model.get_submodule(name))
        factor = energy[kept].mean().sqrt()
        if tied and LAYER.match(name) is None:  # the last one, which the head reads
            factor = factor / widened
        weight = state[f"{name}.weight"]
        state[f"{name}.weight"] = ((weight.float() + offset) * factor - offset).to(weight.dtype)


def _offset(norm: Any) -> float:
    """What the norm adds to its weight before it multiplies: 1 in Gemma."""
    with torch.no_grad():
        ones = torch.ones_like(norm.weight)
        return round(float((norm(ones) - norm.weight).float().mean()))
