"""The sizes of a student within a limit: a grid of shapes, each cut and asked what it has lost.

How deep and how wide is left to calibration, because the literature does not agree: width loses less than depth in
Minitron (arXiv:2407.14679) at billions of parameters, depth is worth more in MobileLLM (arXiv:2402.14905) below one.
The rule: eighths of the layers with hidden widths from the whole down to half of it; query heads (or groups, where
each has one) in the proportion of the hidden width, which they divide; the widest feed-forward block that the limit
then leaves. The one of least loss before any training is chosen; training may change the order of those close together.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import gguf
import torch

from edgedistill.core.errors import InputError
from edgedistill.core.runfolder import Reporter
from edgedistill.quant.grids import grid_named
from edgedistill.quant.plan import Plan
from edgedistill.train.calibration import mean_loss
from edgedistill.train.data import Example
from edgedistill.train.prune import BY_LAYER, keep_layers
from edgedistill.train.speed import Times
from edgedistill.train.width import (
    LEAST,
    PREFERRED,
    SQUARE_ATTENTION,
    Widths,
    cut_widths,
    measure_activity,
    narrow_model,
    widths_of,
)

STEPS = (PREFERRED, 128, 64, LEAST)
FEWEST_EIGHTHS = 2


@dataclass(frozen=True)
class Limit:
    """At most `most` parameters, bytes of weights on `plan`, or by `times` ns a token, of a model of `vocab` tokens."""

    most: float
    vocab: int
    plan: Plan | None = None
    times: Times | None = None

    @property
    def unit(self) -> str:
        if self.times is not None:
            return "ns a token"
        return "parameters" if self.plan is None else f"bytes of {self.plan.layers} weights"

    def refusal(self, least: int) -> InputError:
        """What to say where even the least student, whose size is `least`, is too much."""
        if self.times is not None:
            return InputError(
                f"expected a student.cut.target_tokens_per_s of at most {math.floor(1e10 / least) / 10:,}, which the "
                f"least student of this teacher is foretold to reach here with {self.vocab:,} tokens, found "
                f"{1e9 / self.most:,.10g}; lower it, or student.cut.vocab"
            )
        return InputError(
            f"expected room for the least student of this teacher, {least:,} {self.unit} with {self.vocab:,} tokens, "
            f"found a target of {self.most:,.0f}; raise it, or lower student.cut.vocab"
        )


@dataclass(frozen=True)
class Shape:
    """A candidate: the layers kept, the widths of each, its size as the limit counts, its loss in nats a token."""

    layers: tuple[int, ...]
    widths: Widths
    size: int
    loss: float

    @property
    def row(self) -> dict[str, Any]:
        return {"layers": len(self.layers), **asdict(self.widths), "size": self.size, "loss": self.loss}


def depths(count: int) -> list[int]:
    """Numbers of layers to try, most first."""
    return sorted({max(1, round(eighths * count / 8)) for eighths in range(FEWEST_EIGHTHS, 9)}, reverse=True)


def try_shapes(
    model: Any,
    examples: Sequence[Example],
    *,
    layer_sets: Sequence[Sequence[int]],
    limit: Limit,
    fixed: Mapping[str, int],
    report: Reporter,
) -> list[Shape]:
    """Every candidate of `model` within `limit`, of these sets of layers and `fixed` widths, least loss first.

    Raises:
        InputError: there is none.
    """
    whole = widths_of(model.config)
    sized = {tuple(kept): dict(_candidates(model, whole, len(kept), limit=limit, fixed=fixed)) for kept in layer_sets}
    total, found = sum(map(len, sized.values())), list[Shape]()
    if not total:
        least = min(
            model_size(model, replace(widths, ffn=LEAST), layers=len(kept), limit=limit)
            for kept in layer_sets
            for widths in _frames(model, whole, fixed=fixed)
        )
        raise limit.refusal(least)
    for kept, sizes in sized.items():
        if not sizes:
            continue
        shallow = keep_layers(model, kept)
        activity = measure_activity(shallow, examples)
        for widths, size in sizes.items():
            loss = mean_loss(narrow_model(shallow, activity, widths=widths), examples)
            found.append(Shape(kept, widths, size, loss))
            report.progress(len(found), total, "shapes")
    return sorted(found, key=lambda shape: (shape.loss, shape.size))


def model_size(model: Any, widths: Widths, *, layers: int, limit: Limit) -> int:
    """Size, as `limit` counts, of a model like `model` of so many layers of `widths`; tied embeddings count once.

    Bytes are those of the weights in a GGUF file; its tokenizer and metadata come on top. Times are foretold.
    """
    one, two = (_weigh(model, widths, layers=n, limit=limit) for n in (1, 2))
    return round(one + (layers - 1) * (two - one))


def _candidates(
    model: Any, whole: Widths, layers: int, *, limit: Limit, fixed: Mapping[str, int]
) -> Iterator[tuple[Widths, int]]:
    for frame in _frames(model, whole, fixed=fixed):
        first, second = (
            model_size(model, replace(frame, ffn=ffn), layers=layers, limit=limit) for ffn in (LEAST, 2 * LEAST)
        )
        room = LEAST * (1 + math.floor((limit.most - first) / max(1, second - first)))
        if (ffn := fixed.get("ffn") or _rounded(min(room, whole.ffn))) <= room and ffn >= LEAST:
            yield replace(frame, ffn=ffn), first + (ffn // LEAST - 1) * (second - first)


def _frames(model: Any, whole: Widths, *, fixed: Mapping[str, int]) -> Iterator[Widths]:
    """Widths but for the feed-forward block's, widest first, that transformers and llama.cpp know."""
    square = model.config.model_type in SQUARE_ATTENTION
    each = whole.kv_heads if whole.group > 1 else 1  # heads that come and go together
    unit = each * whole.head_dim if square else each
    for hidden in [fixed["hidden"]] if "hidden" in fixed else _hidden_widths(whole.hidden, unit=unit):
        for count in range(math.ceil(whole.heads // each * hidden / whole.hidden), 0, -1):
            groups = fixed.get("kv_heads", whole.kv_heads if whole.group > 1 else count)
            heads = fixed.get("heads", groups * count if whole.group > 1 else groups)
            if hidden % heads == 0 and heads * whole.head_dim % LEAST == 0:
                if not square or heads * whole.head_dim == hidden:
                    yield cut_widths(whole, heads=heads, kv_heads=groups, hidden=hidden)
                break


def _hidden_widths(whole: int, *, unit: int) -> list[int]:
    """`whole`, and three or more multiples of `unit` and the largest step that leaves so many from half of it up."""
    widths: list[int] = []
    for step in (math.lcm(step, unit) for step in STEPS):
        widths = [width for width in range(whole // step * step, whole // 2 - 1, -step) if 0 < width < whole]
        if len(widths) >= 3:
            break
    return [whole, *widths]


def _rounded(ffn: int) -> int:
    """`ffn` down to a multiple of the largest step that costs at most an eighth of it."""
    step = next((step for step in STEPS if ffn >= 8 * step), LEAST)
    return ffn // step * step


def shaped_config(model: Any, widths: Widths, *, layers: int) -> Any:
    """The configuration of a model like `model` of so many layers of `widths`."""
    config = copy.deepcopy(model.config)
    config.hidden_size, config.intermediate_size = widths.hidden, widths.ffn
    config.num_attention_heads, config.num_key_value_heads = widths.heads, widths.kv_heads
    config.head_dim, config.num_hidden_layers = widths.head_dim, layers
    for name in BY_LAYER:
        if isinstance(values := getattr(config, name, None), list):
            setattr(config, name, (values * layers)[:layers])
    return config


def tensor_shapes(model: Any, widths: Widths, *, layers: int, vocab: int) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of a model like `model` of so many layers of `widths` and `vocab` tokens."""
    config = shaped_config(model, widths, layers=layers)
    config.vocab_size, config.pad_token_id = vocab, None
    with torch.device("meta"):
        skeleton = type(model)(config)
    return {name: tuple(tensor.shape) for name, tensor in skeleton.named_parameters()}


def probed(model: Any, *, fixed: Mapping[str, int]) -> list[tuple[int, Widths]]:
    """Layers and widths to time: all of `model`, and with fewer layers, a slim feed-forward block, a narrow stream."""
    whole, layers = widths_of(model.config), model.config.num_hidden_layers
    slim, few = max(LEAST, whole.ffn // 4 // LEAST * LEAST), depths(layers)[-1]
    narrow = [whole, *_frames(model, whole, fixed=fixed)][-1]
    return [*dict.fromkeys([(layers, whole), (layers, replace(whole, ffn=slim)), (few, whole), (few, narrow)])]


def _weigh(model: Any, widths: Widths, *, layers: int, limit: Limit) -> float:
    shapes = tensor_shapes(model, widths, layers=layers, vocab=limit.vocab)
    if limit.times is not None:
        return limit.times.ns(shapes, layers=layers)
    return sum(_bytes(name, shape, limit.plan) for name, shape in shapes.items())


def _bytes(name: str, shape: tuple[int, ...], plan: Plan | None) -> float:
    """Bytes of a tensor in a GGUF file, or without a `plan` the number of its elements."""
    count = math.prod(shape)
    if plan is None:
        return count
    grid = plan.grid(name, shape)
    if grid is None:  # vectors are float32 there, and rows that fill no blocks half precision
        return count * (4 if len(shape) == 1 else 2)
    weights, size = gguf.GGML_QUANT_SIZES[grid_named(grid).kind]
    return count / weights * size
