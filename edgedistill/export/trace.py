"""One text's way through a model, place by place: the same places read out of transformers, llama.cpp and ONNX.

The stream that every layer adds to is read where attention and where the MLP have added to it, so that what each of
them gave is a difference, whatever the architecture norms or scales before adding.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgedistill.export.onnx_run import entry_of, head_size, open_graph, run_graph
from edgedistill.runtimes.llama_trace import trace_llama

EMBEDDING, FINAL_NORM, LOGITS = "embedding", "final norm", "logits"
# llama.cpp's names; where attention has added is unnamed in a few architectures, whose layers are then judged whole.
_GGUF = re.compile(r"embd|inp_embd|inp_scaled|(?:ffn_inp|sa_out|l_out)-\d+|result_norm|result_output")
_NORM = re.compile(r"/model/layers\.(\d+)/(\w+_layernorm)/(?:Skip)?LayerNorm")
# The norm that stands between attention and MLP; Gemma has four, so the more telling name comes first.
BETWEEN = ("pre_feedforward_layernorm", "post_attention_layernorm")


@dataclass
class Trace:
    """Float32 `[seq, width]` values of one text: what is embedded, the stream after each part, norm and logits."""

    embedding: np.ndarray | None = None
    after_attention: dict[int, np.ndarray] = field(default_factory=dict)
    after_mlp: dict[int, np.ndarray] = field(default_factory=dict)
    final_norm: np.ndarray | None = None
    logits: np.ndarray | None = None

    def places(self, *, whole: frozenset[int] = frozenset()) -> dict[str, np.ndarray]:
        """What each place gave, by its name, in the order of the model; layers in `whole` as one place."""
        found: dict[str, np.ndarray] = {}
        if self.embedding is not None:
            found[EMBEDDING] = self.embedding
        before = self.embedding
        for layer in sorted(self.after_mlp):
            middle, after = self.after_attention.get(layer), self.after_mlp[layer]
            if before is not None and middle is not None and layer not in whole:
                found[attention(layer)] = middle - before
                found[mlp(layer)] = after - middle
            elif before is not None:
                found[f"layer {layer}"] = after - before
            before = after
        for name, value in ((FINAL_NORM, self.final_norm), (LOGITS, self.logits)):
            if value is not None:
                found[name] = value
        return found


def attention(layer: int) -> str:
    return f"layer {layer}'s attention"


def mlp(layer: int) -> str:
    return f"layer {layer}'s MLP"


def trace_hf(model: Any, ids: Sequence[int]) -> Trace:
    """Run a loaded causal LM of transformers on `ids`, its decoder layers hooked."""
    import torch

    trace, backbone = Trace(), model.base_model
    handles = []

    def value(found: Any) -> np.ndarray:
        return (found[0] if isinstance(found, tuple) else found)[0].float().numpy().copy()

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return value(args[0] if args else kwargs["hidden_states"])

    def embedded(module: Any, args: Any, kwargs: Any) -> None:
        trace.embedding = before(module, args, kwargs)

    for number, layer in enumerate(backbone.layers):
        between = next((getattr(layer, name) for name in BETWEEN if hasattr(layer, name)), None)

        def middle(module: Any, args: Any, kwargs: Any, number: int = number) -> None:
            trace.after_attention[number] = before(module, args, kwargs)

        def after(module: Any, args: Any, output: Any, number: int = number) -> None:
            trace.after_mlp[number] = value(output)

        if between is not None:
            handles.append(between.register_forward_pre_hook(middle, with_kwargs=True))
        handles.append(layer.register_forward_hook(after))

    def normed(module: Any, args: Any, output: Any) -> None:
        trace.final_norm = value(output)

    handles.append(backbone.layers[0].register_forward_pre_hook(embedded, with_kwargs=True))
    handles.append(backbone.norm.register_forward_hook(normed))
    try:
        with torch.inference_mode():
            trace.logits = model(torch.tensor([list(ids)]), use_cache=False).logits[0].float().numpy().copy()
    finally:
        for handle in handles:
            handle.remove()
    return trace


def trace_gguf(path: Path, ids: Sequence[int], *, threads: int) -> Trace:
    """Run a GGUF file on `ids` in llama.cpp, its graph watched."""
    found = trace_llama(path, ids, wanted=_GGUF, threads=threads)
    embedding = next((found[name] for name in ("inp_scaled", "inp_embd", "embd") if name in found), None)
    trace = Trace(embedding=embedding, final_norm=found.get("result_norm"), logits=found.get("result_output"))
    for name, value in found.items():
        kind, _, layer = name.rpartition("-")
        if kind == "l_out":
            trace.after_mlp[int(layer)] = value
        elif kind:
            trace.after_attention[int(layer)] = value
    return trace


def trace_onnx(folder: Path, ids: Sequence[int], *, threads: int) -> Trace:
    """Run a genai folder's graph on `ids` in plain onnxruntime, with its inner streams as outputs.

    A norm that adds ("SkipLayerNorm") has the stream and what is added as its inputs; the stream after it is their sum.
    """
    file = entry_of(folder)
    graph = onnx.load_model(str(file), load_external_data=False).graph
    norms = {m.groups(): node for node in graph.node if (m := _NORM.fullmatch(node.name))}
    layers = 1 + max((int(layer) for layer, name in norms if name == "input_layernorm"), default=-1)
    wanted: dict[str, list[str]] = {}
    for (layer, name), node in norms.items():
        summands = list(node.input[:2]) if node.op_type.startswith("Skip") else [node.input[0]]
        if name == "final_norm_layernorm":
            wanted[f"mlp {int(layer) - 1}"], wanted["norm"] = summands, [node.output[0]]
        elif name == "input_layernorm":
            wanted["embedding" if layer == "0" else f"mlp {int(layer) - 1}"] = summands
        elif name == next(n for n in BETWEEN if (layer, n) in norms or n == BETWEEN[-1]):
            wanted[f"attention {layer}"] = summands
    session = open_graph(file, threads=threads, outputs=sorted({name for names in wanted.values() for name in names}))
    names = ["logits", *sorted({name for names in wanted.values() for name in names})]
    values = dict(zip(names, run_graph(session, [ids], outputs=names, head_size=head_size(folder)), strict=True))
    summed = {place: sum(values[name][0].astype(np.float32) for name in names) for place, names in wanted.items()}
    return Trace(
        embedding=summed.get("embedding"),
        after_attention={k: summed[f"attention {k}"] for k in range(layers) if f"attention {k}" in summed},
        after_mlp={k: summed[f"mlp {k}"] for k in range(layers) if f"mlp {k}" in summed},
        final_norm=summed.get("norm"),
        logits=values["logits"][0].astype(np.float32),
    )
