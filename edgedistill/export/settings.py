"""What an artifact's metadata and graph say of the model beside its weights, held against config.json."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx

from edgedistill.export.onnx_run import array_of
from edgedistill.export.subject import Subject
from edgedistill.export.tensors import key_heads
from edgedistill.runtimes.gguf_file import read_gguf

CLOSE = 1e-4  # relative: settings are kept as float32, rotation tables as its cosines
# Operators that stand between gate and product in a graph's MLP, by what config.json calls the activation.
OPERATORS = {"silu": {"Sigmoid", "Silu", "Swish", "QuickGelu"}, "gelu": {"Gelu", "FastGelu", "BiasGelu", "Erf", "Tanh"}}
ACTIVATIONS = set().union(*OPERATORS.values()) | {"Relu", "Elu", "LeakyRelu", "Softplus", "HardSigmoid", "HardSwish"}
TURNED = 64  # rows of the rotation tables that are looked at


def setting_failures(subject: Subject, *, config: Mapping[str, Any]) -> list[str]:
    """A clause for each setting that is not config.json's: rotation, heads, epsilon."""
    return [*(_gguf(subject, config) if subject.engine == "llamacpp" else _onnx(subject, config))]


def thetas(config: Mapping[str, Any]) -> set[float]:
    """The rotation bases that config.json names; Gemma 3 has one for its local layers, too."""
    rope = config.get("rope_parameters") or {}
    inner = [value for value in rope.values() if isinstance(value, dict)]
    found = [config.get("rope_theta"), *(place.get("rope_theta") for place in (rope, *inner))]
    return {float(value) for value in found if value is not None}


def _gguf(subject: Subject, config: Mapping[str, Any]) -> Iterator[str]:
    fields = read_gguf(subject.path).fields
    name = fields.get("general.architecture")
    bases, base = thetas(config), float(fields.get(f"{name}.rope.freq_base", 10000.0))
    if bases and not any(math.isclose(base, one, rel_tol=CLOSE) for one in bases):
        yield f"{name}.rope.freq_base is {base:,.10g}, config.json's rope_theta {_listed(bases)}"
    for key, wanted in (
        ("attention.head_count", config.get("num_attention_heads")),
        ("attention.head_count_kv", key_heads(config) if "num_attention_heads" in config else None),
        ("attention.layer_norm_rms_epsilon", config.get("rms_norm_eps")),
        ("block_count", config.get("num_hidden_layers")),
    ):
        found = fields.get(f"{name}.{key}", wanted)
        scalar = isinstance(found, int | float) and isinstance(wanted, int | float)
        if scalar and not math.isclose(found, wanted, rel_tol=CLOSE):
            yield f"{name}.{key} is {found:.6g}, config.json says {wanted:.6g}"


def _onnx(subject: Subject, config: Mapping[str, Any]) -> Iterator[str]:
    file = subject.folder / subject.entry
    graph = onnx.load_model(str(file), load_external_data=False).graph
    tables = {tensor.name: tensor for tensor in graph.initializer if tensor.name in ("cos_cache", "sin_cache")}
    rope = config.get("rope_parameters") or config
    plain = (rope.get("rope_type") or rope.get("type") or "default") == "default" and not config.get("rope_scaling")
    bases = thetas(config)
    if len(tables) == 2 and len(bases) == 1 and plain:
        cos, sin = (array_of(tables[name], folder=file.parent) for name in ("cos_cache", "sin_cache"))
        clause = _rotation(cos.astype(np.float64), sin.astype(np.float64), theta=bases.pop())
        if clause:
            yield clause
    eps = {a.f for node in graph.node if "LayerNorm" in node.op_type for a in node.attribute if a.name == "epsilon"}
    wanted = config.get("rms_norm_eps")
    if other := sorted(e for e in eps if wanted is not None and not math.isclose(e, wanted, rel_tol=CLOSE)):
        yield f"a norm's epsilon is {other[0]:.3g}, config.json says {wanted:.3g}"


def _rotation(cos: np.ndarray, sin: np.ndarray, *, theta: float) -> str | None:
    """A clause where the rows of the tables are not the turns of position 0, 1, 2, … by this base."""
    half = cos.shape[1]
    turns = theta ** (-np.arange(half) / half)
    angles = np.arange(min(TURNED, len(cos)))[:, None] * turns
    rows = slice(0, len(angles))
    if np.allclose(cos[rows], np.cos(angles), atol=CLOSE * 10) and np.allclose(
        sin[rows], np.sin(angles), atol=CLOSE * 10
    ):
        return None
    found = np.arctan2(sin[1], cos[1])  # one position's turns, all below half a circle
    if found[0] > 0 and found[-1] > 0 and half > 1:
        base = float((found[-1] / found[0]) ** (-half / (half - 1)))
        if math.isclose(base, theta, rel_tol=0.01):
            return "cos_cache and sin_cache do not turn by position"
        base = float(f"{base:.4g}")
        return f"cos_cache and sin_cache turn by a base of {base:,.10g}, config.json's rope_theta is {theta:,.10g}"
    return f"cos_cache and sin_cache do not turn by config.json's rope_theta {theta:,.10g}"


def activation_failure(subject: Subject, *, layer: int, config: Mapping[str, Any]) -> str | None:
    """A clause where a layer's MLP in an ONNX graph lacks the operator of config.json's activation."""
    if subject.engine != "onnx":
        return None
    name = str(config.get("hidden_act") or config.get("hidden_activation") or "silu")
    wanted = next((kinds for prefix, kinds in OPERATORS.items() if name.startswith(prefix)), None)
    graph = onnx.load_model(str(subject.folder / subject.entry), load_external_data=False).graph
    place = f"/model/layers.{layer}/mlp/"
    found = {node.op_type for node in graph.node if node.name.startswith(place)} & ACTIVATIONS
    if wanted is None or found & wanted:
        return None
    held = f"has {', '.join(sorted(found))} for an activation" if found else "has no activation"
    return f"the graph {held} in {place.rstrip('/')}, config.json says {name}"


def _listed(values: set[float]) -> str:
    return " or ".join(f"{value:,.10g}" for value in sorted(values))
