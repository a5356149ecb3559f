"""config.json held against its weights before a library builds a model of the sizes it names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgedistill.core.errors import InputError, shortened
from edgedistill.core.files import read_json_object

MOST = 2**31 - 1
SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size",
    "max_position_embeddings", "head_dim", "sliding_window", "num_experts", "num_local_experts",
)  # fmt: skip
NUMBERS = ("rms_norm_eps", "layer_norm_eps", "rope_theta", "initializer_range", "attention_dropout")
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# What transformers takes as the name of code on the Hub where it has a slash.
CODE = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight")


def check_config(path: Path, *, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The settings in `path`, after sizes were held against one another and the tensors of the weights.

    Raises:
        InputError: a size is no positive whole number, more layers are asked for than tensors are there, the embedding
            has another shape, or code from elsewhere is named.
    """
    config = read_json_object(path)
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise _wrong(path, "model_type", "the name of an architecture", kind)
    names = config.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _wrong(path, "architectures", "a list of names", names)
    for part in (config, *(v for k, v in config.items() if k.endswith("_config") and isinstance(v, dict))):
        _check_part(part, path)
    _check_shape(config.get("text_config") or config, shapes, path)
    return config


def _check_part(config: Mapping[str, Any], path: Path) -> None:
    for key in SIZES:
        value = config.get(key)
        if value is not None and (type(value) is not int or not 0 <= value <= MOST):
            raise _wrong(path, key, f"a whole number up to {MOST}", value)
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size"):
        if config.get(key) == 0:
            raise _wrong(path, key, "at least 1", 0)
    for key in NUMBERS:
        value = config.get(key)
        if value is not None and not _is_finite(value):
            raise _wrong(path, key, "a finite number", value)
    for key in IDS:
        value = config.get(key)
        for token in _values(value):
            if token is not None and (type(token) is not int or not -1 <= token <= MOST):
                raise _wrong(path, key, "ids of tokens", value)
    for key in CODE:
        if isinstance(config.get(key), str) and not config[key].replace("_", "").isalnum():
            raise _wrong(path, key, "an implementation that transformers has itself", config[key])
    for key in ("rope_parameters", "rope_scaling"):
        _check_rope(config.get(key), key, path)


def _check_rope(value: Any, key: str, path: Path) -> None:
    """Finite numbers, lists of them and texts; Gemma 3 has such a table for each kind of layer."""
    if value is None:
        return
    if not isinstance(value, dict):
        raise _wrong(path, key, "a table of settings", value)
    for name, inner in value.items():
        if name in ("rope_type", "type") and not isinstance(inner, str):
            raise _wrong(path, f"{key}.{name}", "the name of a rotation", inner)
        if isinstance(inner, dict):
            _check_rope(inner, f"{key}.{name}", path)
        elif not all(_is_finite(v) or v is None for v in _values(inner) if not isinstance(v, str | bool)):
            raise _wrong(path, f"{key}.{name}", "a finite number or a text", inner)
        elif name in ("rope_theta", "factor") and not (_is_finite(inner) and inner > 0):
            raise _wrong(path, f"{key}.{name}", "a positive number", inner)


def _check_shape(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    hidden, heads, layers = (config.get(k) for k in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    keys = config.get("num_key_value_heads") or heads
    if layers and layers > len(shapes):
        raise _wrong(path, "num_hidden_layers", f"at most {len(shapes)}, the tensors that are there", layers)
    if heads and keys and heads % keys:
        raise _wrong(path, "num_key_value_heads", f"a divisor of {heads} heads", keys)
    if heads and hidden and not config.get("head_dim") and hidden % heads:
        raise _wrong(path, "num_attention_heads", f"a divisor of the width {hidden}", heads)
    vocab = config.get("vocab_size")
    tables = [(name, shape) for name, shape in shapes.items() if name.endswith(EMBEDDINGS)]
    if hidden and vocab and len(tables) == 1 and tables[0][1] != (vocab, hidden):
        name, shape = tables[0]
        raise _wrong(path, "vocab_size and hidden_size", f"{list(shape)}, the shape of {name}", [vocab, hidden])


def _values(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _wrong(path: Path, key: str, expected: str, found: object) -> InputError:
    return InputError(f"{path}: expected {expected} as {key}, found {shortened(repr(found), most=60)}; restore it")
