"""What a GGUF says of its model and vocabulary, held against what llama.cpp dies of when it does not hold.

llama.cpp answers much of this with an assertion that ends the process, or reads beyond an array. Keys:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

from edgedistill.core.errors import InputError, shortened
from edgedistill.runtimes.gguf_file import (
    ARRAY,
    BOOL,
    FLOAT32,
    INT32,
    STRING,
    TENSOR_TYPES,
    UINT32,
    GgufFile,
    read_gguf,
)  # fmt: skip

MOST_LAYERS, MOST_EXPERTS, MOST_CONTEXT = 512, 1024, 2**31 - 1
WHOLE = (
    "context_length", "embedding_length", "block_count", "vocab_size", "attention.key_length", "attention.value_length",
    "rope.dimension_count", "expert_count", "expert_group_count", "expert_group_used_count", "nextn_predict_layers",
)  # fmt: skip
PER_LAYER = ("feed_forward_length", "attention.head_count", "attention.head_count_kv", "expert_used_count")
REALS = (
    "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "rope.freq_base", "rope.scaling.factor",
    "rope.freq_base_swa",
)  # fmt: skip
TEXTS = (
    "general.architecture",
    "general.name",
    "tokenizer.ggml.model",
    "tokenizer.ggml.pre",
    "tokenizer.chat_template",
)
FLAGS = ("add_bos_token", "add_eos_token", "add_space_prefix")
ROLES = ("bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "mask")
ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
# Dense families of one layer shape, whose attention has heads of one size; most turn them whole.
DENSE = frozenset({"llama", "qwen2", "qwen3", "smollm3", "phi3", "gemma3"})
TURNED_IN_PART = frozenset({"phi3", "gemma3"})
TOKEN_TYPES = range(7)
BYTE = 6
# No kernel multiplies weights of these types; the first two are formats of activations.
NO_WEIGHTS = frozenset({"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"})
TOKENS = "tokenizer.ggml.tokens"
PAIRED = frozenset({"gpt2", "gemma4", "hybriddna", "whitespace"})  # tokenizers that merge pairs
UNPAIRED = frozenset({"kimi-k2"})  # pre-tokenizer of the one that has no pairs
BYTE_FALLBACK = frozenset({"llama"})


def check_gguf(path: Path) -> GgufFile:
    """Raise InputError unless `path` is a structurally whole GGUF file of one model that llama.cpp can be given."""
    gguf = read_gguf(path)
    if not gguf.tensors:
        raise InputError(f"{path} is a GGUF file without tensors; expected a model's weights")
    if gguf.fields.get("split.count", 0) not in (0, 1):
        raise InputError(
            f"{path} is one of {shortened(gguf.fields['split.count'], most=20)!r} parts of a model; "
            "merge them first with llama-gguf-split --merge"
        )
    check_vocabulary(gguf)
    check_model(gguf)
    return gguf


def check_model(gguf: GgufFile) -> None:
    """Hold sizes, numbers and tensor types against one another.

    Raises:
        InputError: one is absent, of another type than llama.cpp reads, or beyond what it takes.
    """
    for key in TEXTS:
        _typed(gguf, key, (STRING,), what="a text")
    kind = gguf.fields.get("general.architecture")
    if not kind:
        raise _wrong(gguf, "general.architecture", "the name of one", kind)
    for key in ("general.file_type", *(f"{kind}.{name}" for name in WHOLE)):
        _typed(gguf, key, (UINT32,), what="one uint32")
    for name in PER_LAYER:
        _typed(gguf, f"{kind}.{name}", (UINT32,), (ARRAY, UINT32), (ARRAY, INT32), what="a uint32, or one for a layer")
    for name in REALS:
        _typed(gguf, f"{kind}.{name}", (FLOAT32,), what="one float32")
        value = gguf.fields.get(f"{kind}.{name}", 1.0)
        if not (math.isfinite(value) and value >= 0) or (value == 0 and name.startswith("rope.freq")):
            raise _wrong(gguf, f"{kind}.{name}", "a finite positive number", value)
    if kind in DENSE and f"{kind}.attention.layer_norm_rms_epsilon" not in gguf.fields:
        raise _wrong(gguf, f"{kind}.attention.layer_norm_rms_epsilon", "one float32", None)
    _check_sizes(gguf, kind)
    _check_heads(gguf, kind)
    _check_experts(gguf, kind)
    _check_tensor_types(gguf)
    if kind in DENSE and not gguf.fields.get(f"{kind}.expert_count"):
        _check_dense(gguf, kind)


def check_vocabulary(gguf: GgufFile) -> None:
    """Hold the vocabulary's arrays against one another and every special id against their length.

    Raises:
        InputError: llama.cpp would abort on it, read beyond an array, or take it for another.
    """
    tokens = gguf.fields.get(TOKENS)
    if gguf.kinds.get(TOKENS) != (ARRAY, STRING) or not tokens:
        raise _wrong(gguf, TOKENS, "the texts of a vocabulary", tokens)
    if any("\0" in token for token in tokens):
        raise _wrong(gguf, TOKENS, "texts without NUL", next(t for t in tokens if "\0" in t))
    # an empty text gets a name of its own in llama.cpp
    named = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]
    if len(set(named)) != len(named):
        twice = next(token for i, token in enumerate(named) if token in set(named[:i]))
        raise _wrong(gguf, TOKENS, "every token once", f"{twice} twice")
    _check_parallel(gguf, "token_type", (ARRAY, INT32), count=len(tokens))
    _check_parallel(gguf, "scores", (ARRAY, FLOAT32), (ARRAY, INT32), count=len(tokens))
    if any(not math.isfinite(score) for score in gguf.fields.get("tokenizer.ggml.scores", ())):
        raise _wrong(gguf, "tokenizer.ggml.scores", "finite numbers", "others")
    types = gguf.fields.get("tokenizer.ggml.token_type", ())
    if wrong := [kind for kind in types if kind not in TOKEN_TYPES]:
        raise _wrong(gguf, "tokenizer.ggml.token_type", "types from 0 to 6", wrong[0])
    for role in ROLES:
        key = f"tokenizer.ggml.{role}_token_id"
        _typed(gguf, key, (UINT32,), what="one uint32")
        if gguf.fields.get(key, 0) >= len(tokens):
            raise _wrong(gguf, key, f"a token id below {len(tokens)}", gguf.fields[key])
    for name in FLAGS:
        _typed(gguf, f"tokenizer.ggml.{name}", (BOOL,), what="true or false")
    _check_tokenizer(gguf, tokens=tokens, types=types)


def _check_sizes(gguf: GgufFile, kind: str) -> None:
    for name, most in (("block_count", MOST_LAYERS), ("context_length", MOST_CONTEXT), ("embedding_length", None)):
        value = gguf.fields.get(f"{kind}.{name}")
        if value is None or value < 1 or (most is not None and value > most):
            raise _wrong(gguf, f"{kind}.{name}", f"1 to {most}" if most else "at least 1", value)
    if gguf.fields.get(f"{kind}.vocab_size", 1) < 1:
        raise _wrong(gguf, f"{kind}.vocab_size", "at least 1", 0)
    if gguf.fields.get(f"{kind}.nextn_predict_layers", 0) > gguf.fields[f"{kind}.block_count"]:
        raise _wrong(gguf, f"{kind}.nextn_predict_layers", "no more than layers", "more")
    scaling = gguf.fields.get(f"{kind}.rope.scaling.type", "none")
    if scaling not in ROPE_SCALINGS:
        raise _wrong(gguf, f"{kind}.rope.scaling.type", f"one of {', '.join(ROPE_SCALINGS)}", scaling)
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is not None and embedding.shape[0] != gguf.fields[f"{kind}.embedding_length"]:
        width = gguf.fields[f"{kind}.embedding_length"]
        raise _wrong(gguf, "token_embd.weight", f"rows of {kind}.embedding_length {width}", embedding.shape[0])


def _check_heads(gguf: GgufFile, kind: str) -> None:
    layers, width = gguf.fields[f"{kind}.block_count"], gguf.fields[f"{kind}.embedding_length"]
    heads = _layers(gguf, f"{kind}.attention.head_count", layers)
    shared = _layers(gguf, f"{kind}.attention.head_count_kv", layers) or heads
    for count, of_keys in zip(heads, shared, strict=bool(heads)):
        if count and (of_keys > count or (of_keys and count % of_keys)):
            raise _wrong(gguf, f"{kind}.attention.head_count_kv", f"a divisor of {count} heads", of_keys)
        if count > width:
            raise _wrong(gguf, f"{kind}.attention.head_count", f"at most {width}, the width of the model", count)
    turned = gguf.fields.get(f"{kind}.rope.dimension_count")
    if turned is not None and turned % 2:
        raise _wrong(gguf, f"{kind}.rope.dimension_count", "an even number", turned)
    if kind in DENSE:
        if not heads or 0 in heads or 0 in shared:
            raise _wrong(gguf, f"{kind}.attention.head_count", "at least 1", heads and 0)
        sizes = {name: gguf.fields.get(f"{kind}.attention.{name}", width // heads[0])
                 for name in ("key_length", "value_length")}  # fmt: skip
        if turned is not None and (kind not in TURNED_IN_PART or turned > sizes["key_length"]):
            sizes["rope.dimension_count"] = turned
        if len(set(sizes.values())) > 1 or sizes["key_length"] < 2 or sizes["key_length"] % 2:
            raise _wrong(gguf, f"{kind}.attention.key_length", "one even size of heads", sizes)


def _check_experts(gguf: GgufFile, kind: str) -> None:
    layers = gguf.fields[f"{kind}.block_count"]
    experts = gguf.fields.get(f"{kind}.expert_count", 0)
    used = max(_layers(gguf, f"{kind}.expert_used_count", layers), default=0)
    groups = gguf.fields.get(f"{kind}.expert_group_count", 0)
    picked = gguf.fields.get(f"{kind}.expert_group_used_count", 0)
    if experts > MOST_EXPERTS or used > experts or bool(experts) != bool(used):
        raise _wrong(gguf, f"{kind}.expert_count", f"at most {MOST_EXPERTS}, and some of them used", (experts, used))
    if (groups and groups >= experts) or (groups > 1 and (experts % groups or not 0 < picked < groups)):
        raise _wrong(gguf, f"{kind}.expert_group_count", f"a divisor of {experts} experts", (groups, picked))


def _check_dense(gguf: GgufFile, kind: str) -> None:
    """Every layer has the tensors of its family, in the shapes (fastest dimension first) that the sizes give them."""
    value = {key.removeprefix(f"{kind}."): v for key, v in gguf.fields.items()}
    layers, width, vocab = value["block_count"], value["embedding_length"], len(value.get(TOKENS, ()))
    heads = _layers(gguf, f"{kind}.attention.head_count", layers)
    shared = _layers(gguf, f"{kind}.attention.head_count_kv", layers) or heads
    inner = _layers(gguf, f"{kind}.feed_forward_length", layers)
    size = value.get("attention.key_length", width // heads[0])
    needed = {"token_embd.weight": (width, vocab), "output_norm.weight": (width,)}
    optional = {"output.weight": (width, vocab), "rope_freqs.weight": (size // 2,)}
    for i in range(layers):
        q, kv, ffn = heads[i] * size, shared[i] * size, inner[i] if inner else 0
        matrices = {"attn_output": (q, width), "ffn_gate": (width, ffn), "ffn_up": (width, ffn),
                    "ffn_down": (ffn, width)}  # fmt: skip
        split = {"attn_q": (width, q), "attn_k": (width, kv), "attn_v": (width, kv)}
        fused = {"attn_qkv": (width, q + 2 * kv)}
        matrices |= fused if f"blk.{i}.attn_qkv.weight" in gguf.tensors else split
        if kind == "phi3":  # gate and up are one
            del matrices["ffn_gate"]
            matrices["ffn_up"] = (width, 2 * ffn)
        vectors = {"attn_norm": (width,), "ffn_norm": (width,)}
        needed |= {f"blk.{i}.{name}.weight": shape for name, shape in (vectors | matrices).items()}
        optional |= {f"blk.{i}.{name}.bias": shape[1:] for name, shape in matrices.items()}
        optional |= {f"blk.{i}.attn_{name}_norm.weight": (size,) for name in "qk"}
        optional |= {f"blk.{i}.post_{name}_norm.weight": (width,) for name in ("attention", "ffw")}
    for name, shape in (needed | optional).items():
        tensor = gguf.tensors.get(name)
        # trailing dimensions of 1 are none
        found = None if tensor is None else (*tensor.shape, 1)[: len(shape)]
        if (name in needed or tensor) and (found != shape or prod(tensor.shape) != prod(shape)):
            raise _wrong(gguf, name, f"a tensor of {list(shape)}", tensor and list(tensor.shape))
    if beyond := [name for name in gguf.tensors if name.startswith("blk.") and _layer_of(name) >= layers]:
        raise _wrong(gguf, f"{kind}.block_count", f"the layer of {beyond[0]}", f"{layers} layers")


def _layer_of(name: str) -> int:
    number = name.split(".")[1]
    return int(number) if number.isascii() and number.isdigit() else MOST_LAYERS


def _check_tensor_types(gguf: GgufFile) -> None:
    for name, tensor in gguf.tensors.items():
        form = TENSOR_TYPES[tensor.type_id][0]
        if form in NO_WEIGHTS and name.endswith((".weight", ".bias")) and "tid2eid" not in name:
            raise _wrong(gguf, name, "a type of weights", form)
        if form != "F32" and ("norm" in name or name.startswith("rope_") or name.endswith(".bias")):
            raise _wrong(gguf, name, "F32, which norms, biases and rotation factors have", form)


def _check_parallel(gguf: GgufFile, name: str, *kinds: tuple[int, ...], count: int) -> None:
    key = f"tokenizer.ggml.{name}"
    _typed(gguf, key, *kinds, what="an array of numbers")
    if key in gguf.fields and len(gguf.fields[key]) != count:
        raise _wrong(gguf, key, f"one for each of {count} tokens", f"{len(gguf.fields[key])} of them")


def _check_tokenizer(gguf: GgufFile, *, tokens: list[str], types: Iterable[int]) -> None:
    model = gguf.fields.get("tokenizer.ggml.model")
    if not model or model in ("none", "no_vocab"):
        raise _wrong(gguf, "tokenizer.ggml.model", "the name of a tokenizer", model)
    merges = gguf.fields.get("tokenizer.ggml.merges")
    if model in PAIRED and gguf.fields.get("tokenizer.ggml.pre") not in UNPAIRED:
        if gguf.kinds.get("tokenizer.ggml.merges") != (ARRAY, STRING):
            raise _wrong(gguf, "tokenizer.ggml.merges", "the pairs that the tokenizer merges", merges)
        if wrong := [merge for merge in merges or () if merge.find(" ", 1) < 1 or "\0" in merge or merge[-1] == " "]:
            raise _wrong(gguf, "tokenizer.ggml.merges", "two pieces with a space between them", wrong[0])
    unlike = [t for t, kind in zip(tokens, types, strict=False) if kind == BYTE and not _is_byte(t)]
    if unlike:
        raise _wrong(gguf, TOKENS, "byte tokens of the form <0x00>", unlike[0])
    if model in BYTE_FALLBACK:
        known = set(tokens)
        absent = [b for b in range(256) if f"<0x{b:02X}>" not in known and (b > 127 or chr(b) not in known)]
        if absent:
            raise _wrong(gguf, TOKENS, "a token for every byte", f"none for {absent[0]}")


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _layers(gguf: GgufFile, key: str, layers: int) -> list[int]:
    """The values of a key that stands once or for each layer; none if it is absent."""
    value = gguf.fields.get(key)
    if value is None:
        return []
    values = value if isinstance(value, list) else [value] * layers
    if len(values) != layers or min(values) < 0:
        raise _wrong(gguf, key, f"one count for each of {layers} layers", value)
    return values


def _typed(gguf: GgufFile, key: str, *kinds: tuple[int, ...], what: str) -> None:
    if key in gguf.kinds and gguf.kinds[key] not in kinds:
        raise _wrong(gguf, key, what, gguf.fields[key])


def _wrong(gguf: GgufFile, key: str, expected: str, found: Any) -> InputError:
    said = "none" if found is None else shortened(repr(found), most=60)
    return InputError(f"{gguf.path}: expected {expected} as {key}, found {said}; fetch or convert the model again")
