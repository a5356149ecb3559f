"""onnxruntime-genai's model builder run on stand-ins for the weights: its graph, and where each matrix comes from.

A process of its own: `python -m edgedistill.export.onnx_builder MODEL OUT [--whole]`. The builder gets the model's
architecture with matrices that take no memory: every row is one number that no other row has, repeated by a stride of
zero. What it slices, stacks or transposes keeps these numbers, so the matrices that it hands to its graph tell which
rows of which stored tensor they are. Vectors are the model's own, because the builder computes with them.
"""

from __future__ import annotations

import functools
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from edgedistill.core.files import read_json, write_json
from edgedistill.export.onnx_graph import CALL_NOTES, GRAPH, ORIGINS, UNTRACEABLE, WEIGHTS
from edgedistill.export.weights import StoredTensor, stored_tensors
from edgedistill.runtimes.chat import encode, rendered, template_of

# float32 holds every whole number from here to twice as much, and no real weight is so large.
FIRST_ROW = 1 << 23


class UntraceableError(Exception):
    """The builder made something of the stand-ins that is not rows of a stored tensor."""


@dataclass(frozen=True)
class StandIn:
    """A stored matrix whose row i is filled with the number `first + i`."""

    name: str
    first: int
    shape: tuple[int, ...]


def main(arguments: list[str]) -> None:
    """Run the builder as `MODEL OUT [--whole]` says; exits with UNTRACEABLE where only the whole model will do."""
    model, out = Path(arguments[0]), Path(arguments[1])
    if "--whole" in arguments:
        run_builder(model, out)
        return
    try:
        trace(model, out)
    except (ImportError, NotImplementedError):
        raise
    except Exception as e:
        sys.stderr.write(f"{type(e).__name__}: {e}\n")
        sys.exit(UNTRACEABLE)


def run_builder(model: Path, out: Path) -> None:
    """Let the builder write its float32 CPU export of `model` into the folder `out`, and finish its settings files."""
    # A decorator in transformers' modules that would import torch's compiler, which nothing here uses.
    torch.compiler.disable = lambda function=None, **_: function or (lambda f: f)
    from onnxruntime_genai.models.builder import Model, create_model, parse_extra_options

    from edgedistill.export.onnx_families import adapt_builder

    adapt_builder()
    # It asks git for the commit of any checkout around the package.
    Model.get_genai_commit = staticmethod(lambda: None)
    # The builder reads the tokenizer three times.
    AutoTokenizer.from_pretrained = functools.cache(AutoTokenizer.from_pretrained)
    with tempfile.TemporaryDirectory(prefix="edgedistill-") as scratch:
        place = (None, str(model), str(out), "fp32", "cpu", str(Path(scratch) / "cache"))
        create_model(*place, **parse_extra_options(*place, ["hf_token=false"]))
    _finish_configs(out, tokenizer=AutoTokenizer.from_pretrained(str(model), token=None, trust_remote_code=False))


def trace(model: Path, out: Path) -> None:
    """Run the builder on stand-ins: a graph without matrices in `out`, and their origins in `origins.json`.

    Raises:
        UntraceableError: a matrix of the graph is not made of whole rows of stored tensors, or a stored one is not
            in the graph exactly once.
    """
    from onnxruntime_genai.models.builder import Model

    stored = stored_tensors(model)
    stand_ins: dict[str, StandIn] = {}
    origins: dict[str, dict[str, Any]] = {}
    register = Model.make_initializer

    def make_initializer(self: Any, tensor: Any, /, name: str, **options: Any) -> None:
        numbers = row_numbers(tensor, name=name)
        if numbers is not None:
            along, rows = numbers
            origins[name] = {"transposed": along == 1, "parts": parts_of(rows, list(stand_ins.values()), name=name)}
            shape = ir.Shape(tensor.shape)
            tensor = ir.ExternalTensor(WEIGHTS, 0, 0, ir.DataType.FLOAT, shape=shape, name=name)
            options = {}
        register(self, tensor, name, **options)

    def save_model(self: Any, folder: str) -> None:
        self.model.graph.sort()
        self.stamp_build_metadata(self.model)
        ir.save(self.model, Path(folder) / GRAPH)

    Model.make_initializer, Model.save_model = make_initializer, save_model
    # Linear layers that the builder makes only to put slices into them need no random weights.
    torch.nn.Linear.reset_parameters = lambda self: None
    config = AutoConfig.from_pretrained(model, local_files_only=True, trust_remote_code=False)
    AutoModelForCausalLM.from_pretrained = lambda *_, **__: stand_in_model(config, stored, stand_ins)
    run_builder(model, out)
    check_complete(origins, stand_ins)
    write_json(out / ORIGINS, origins)


def stand_in_model(config: Any, stored: dict[str, StoredTensor], stand_ins: dict[str, StandIn]) -> torch.nn.Module:
    """The architecture of `config`: matrices replaced by stand-ins, which are noted, everything else read.

    Raises:
        UntraceableError: the stored tensors are not those of the architecture.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    model.tie_weights()
    made: dict[int, torch.nn.Parameter] = {}
    first = FIRST_ROW
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        if id(parameter) not in made:
            if name not in stored or stored[name].shape != tuple(parameter.shape):
                raise UntraceableError(f"expected {name!r} of shape {tuple(parameter.shape)} among the stored tensors")
            if parameter.ndim == 2:
                stand_ins[name] = StandIn(name, first, tuple(parameter.shape))
                first += parameter.shape[0]
                value = torch.arange(first - parameter.shape[0], first).float()[:, None].expand(parameter.shape)
            else:
                value = torch.from_numpy(stored[name].read()).float()
            made[id(parameter)] = torch.nn.Parameter(value, requires_grad=False)
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, made[id(parameter)])
    if first > 2 * FIRST_ROW:
        raise UntraceableError(f"expected at most {FIRST_ROW} rows, found {first - FIRST_ROW}")
    return model


def row_numbers(tensor: Any, *, name: str) -> tuple[int, np.ndarray] | None:
    """Which axis of a matrix of stand-ins counts its rows, and their numbers `[rows]`; None for a tensor of weights.

    Raises:
        UntraceableError: there are numbers of stand-ins in it, but not one for each row.
    """
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        return None
    tensor = tensor.detach()
    if tensor.ndim == 2 and tensor[0, 0] >= FIRST_ROW:
        # A matrix for MatMul is stored transposed, so that rows are its columns.
        for axis in (1, 0):
            numbers = tensor.select(1 - axis, 0)
            if tensor.stride(1 - axis) == 0 or bool((tensor == numbers.unsqueeze(1 - axis)).all()):
                return axis, numbers.numpy().astype(np.int64)
    if tensor.numel() and tensor.abs().max() >= FIRST_ROW:
        raise UntraceableError(f"{name!r} of shape {tuple(tensor.shape)} is not made of whole rows")
    return None


def parts_of(numbers: np.ndarray, stand_ins: list[StandIn], *, name: str) -> list[tuple[str, int, int]]:
    """The stretches `(tensor, begin, end)` of stored rows that `numbers` `[rows]` count.

    Raises:
        UntraceableError: a number is no stand-in's.
    """
    firsts = np.array([s.first for s in stand_ins])
    owners = np.searchsorted(firsts, numbers, side="right") - 1
    breaks = np.flatnonzero((np.diff(numbers) != 1) | (np.diff(owners) != 0)) + 1
    parts = []
    for begin, end in zip([0, *breaks], [*breaks, len(numbers)], strict=True):
        owner = stand_ins[owners[begin]]
        start, stop = int(numbers[begin]) - owner.first, int(numbers[end - 1]) - owner.first + 1
        if owners[begin] < 0 or stop > owner.shape[0]:
            raise UntraceableError(f"{name!r} has rows of no stored tensor")
        parts.append((owner.name, start, stop))
    return parts


def check_complete(origins: dict[str, dict[str, Any]], stand_ins: dict[str, StandIn]) -> None:
    """Every row of every stand-in is in the graph once.

    Raises:
        UntraceableError: one is not.
    """
    for stand_in in stand_ins.values():
        found = sorted((b, e) for o in origins.values() for name, b, e in o["parts"] if name == stand_in.name)
        ends = [0, *(end for _, end in found)]
        if [begin for begin, _ in found] != ends[:-1] or ends[-1] != stand_in.shape[0]:
            raise UntraceableError(f"expected every row of {stand_in.name!r} once in the graph, found {found}")


def _finish_configs(folder: Path, *, tokenizer: Any) -> None:
    """Make the settings files say what every loader needs, and nothing about this machine."""
    place = folder / "tokenizer_config.json"
    settings: dict[str, Any] = {k: v for k, v in read_json(place).items() if k not in CALL_NOTES}
    template = folder / "chat_template.jinja"
    if template.is_file():
        settings["chat_template"] = template.read_text(encoding="utf-8")
    write_json(place, settings)
    place = folder / "genai_config.json"
    config: dict[str, Any] = read_json(place)
    config["search"]["do_sample"] = False
    config["model"]["pad_token_id"] = _padding_id(tokenizer, config["model"]["pad_token_id"])
    write_json(place, config)


def _padding_id(tokenizer: Any, found: int) -> int:
    """`found`, or where chats hold that id the first special one that they do not.

    onnxruntime-genai masks every pad id in a prompt, and many chat models pad with the id that ends each turn.
    """
    if tokenizer.chat_template is None:
        return found
    chat = [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]
    text = rendered(tokenizer, chat, template=template_of(tokenizer))
    used = set(encode(tokenizer, text))
    free = [i for i in (found, *sorted(tokenizer.added_tokens_decoder)) if i not in used]
    return free[0] if free else found


if __name__ == "__main__":
    main(sys.argv[1:])
