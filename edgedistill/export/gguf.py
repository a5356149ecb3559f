"""Hugging Face folder to GGUF, in half precision or from a code set, for the Llama family, tensor by tensor.

Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Matrices become F16 or blocks of codes,
vectors F32; a tied head is left out; query and key rows are permuted, because llama.cpp rotates neighbouring dimensions
where transformers rotates halves.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from edgedistill.core.errors import InputError
from edgedistill.core.files import atomic_path, read_json
from edgedistill.export.vocabulary import Vocabulary, read_vocabulary
from edgedistill.export.weights import StoredTensor, stored_tensors
from edgedistill.quant.blocks import Grid, grid_named, join_blocks
from edgedistill.quant.codes import CodeSet
from edgedistill.quant.plan import EMBEDDING, HEAD

ARCHITECTURES = ("LlamaForCausalLM",)
ROPE_TYPES = ("default", "linear", "llama3")
ROLE_KEYS = {"unk": "unknown", "sep": "seperator", "pad": "padding"}  # GGUF spells them so
ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class LlamaShape:
    """What config.json says of a Llama: sizes, and `rope`, the rope parameters in transformers 5's form."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    eps: float
    tied: bool
    attention_bias: bool
    mlp_bias: bool
    rope: dict[str, Any]


def export_gguf_f16(*, model: Path, out: Path, name: str | None = None) -> None:
    """Write a Llama-family Hugging Face folder as one F16 GGUF file; `name` becomes `general.name`.

    Raises:
        InputError: the architecture, rope type, activation, tokenizer or a tensor is not what this export knows.
    """
    _export(model=model, out=out, name=name, codes=None)


def export_gguf_codes(*, model: Path, out: Path, codes: CodeSet, name: str | None = None) -> None:
    """Write a Llama-family Hugging Face folder as one GGUF file whose matrices are those of a code set.

    A matrix whose width is no multiple of a block stays F16.

    Raises:
        InputError: as `export_gguf_f16`.
    """
    _export(model=model, out=out, name=name, codes=codes)


def _export(*, model: Path, out: Path, name: str | None, codes: CodeSet | None) -> None:
    shape = read_llama_shape(model)
    vocabulary = read_vocabulary(model=model, rows=shape.vocab)
    tensors = _named_tensors(shape=shape, stored=stored_tensors(model), source=model)
    factors = llama3_factors(shape)
    grids = {target: _grid(tensor, codes) for target, tensor in tensors.items()}
    with atomic_path(out) as temporary:
        writer = gguf.GGUFWriter(temporary, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.LLAMA])
        count = sum(prod(tensor.shape) for tensor in tensors.values())
        _write_shape(writer, shape=shape, name=name or model.name, parameters=count)
        writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{codes.plan.layers if codes is not None else 'F16'}"])
        _write_vocabulary(writer, vocabulary=vocabulary)
        if factors is not None:
            writer.add_tensor_info(ROPE_FACTORS, factors.shape, factors.dtype, factors.nbytes)
        for target, tensor in tensors.items():
            _announce(writer, target, tensor, grid=grids[target])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors)
        for target, tensor in tensors.items():
            grid = grids[target]
            if codes is None or grid is None:
                data = _converted(target, tensor, shape=shape)
            else:
                data = _encoded(target, tensor, shape=shape, codes=codes)
            writer.write_tensor_data(data)
        writer.close()


def read_llama_shape(model: Path) -> LlamaShape:
    """Read and check config.json.

    Raises:
        InputError: not a Llama, or an activation or rope type that is not exported.
    """
    path = model / "config.json"
    config = read_json(path)
    found = (config.get("architectures") or ["none"])[0]
    if found not in ARCHITECTURES:
        raise InputError(f"{path}: expected architecture {', '.join(ARCHITECTURES)} for GGUF export, found {found}")
    if config.get("hidden_act", "silu") != "silu":
        raise InputError(f"{path}: expected hidden_act 'silu', which llama.cpp uses, found {config['hidden_act']!r}")
    rope = config.get("rope_parameters") or {
        "rope_theta": config.get("rope_theta", 10000.0),
        **(config.get("rope_scaling") or {}),
    }
    rope_type = rope.get("rope_type") or rope.get("type") or "default"
    if rope_type not in ROPE_TYPES:
        raise InputError(f"{path}: expected rope_type {', '.join(ROPE_TYPES)}, found {rope_type!r}")
    try:
        heads = config["num_attention_heads"]
        return LlamaShape(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            ffn=config["intermediate_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            vocab=config["vocab_size"],
            context=config["max_position_embeddings"],
            eps=config["rms_norm_eps"],
            tied=bool(config.get("tie_word_embeddings", False)),
            attention_bias=bool(config.get("attention_bias", False)),
            mlp_bias=bool(config.get("mlp_bias", False)),
            rope={**rope, "rope_type": rope_type},
        )
    except KeyError as e:
        raise InputError(
            f"{path}: expected the entry {e.args[0]!r}, found none; save the model's config again"
        ) from None


def expected_shapes(shape: LlamaShape) -> dict[str, tuple[int, ...]]:
    """Hugging Face name and shape of every tensor such a Llama has."""
    q, kv, h, f = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.hidden, shape.ffn
    matrices = {
        "self_attn.q_proj": (q, h),
        "self_attn.k_proj": (kv, h),
        "self_attn.v_proj": (kv, h),
        "self_attn.o_proj": (h, q),
        "mlp.gate_proj": (f, h),
        "mlp.up_proj": (f, h),
        "mlp.down_proj": (h, f),
    }
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (shape.vocab, h), "model.norm.weight": (h,)}
    if not shape.tied:
        shapes[HEAD] = (shape.vocab, h)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}.{norm}.weight"] = (h,)
        for matrix, size in matrices.items():
            shapes[f"{prefix}.{matrix}.weight"] = size
            if shape.attention_bias if matrix.startswith("self_attn") else shape.mlp_bias:
                shapes[f"{prefix}.{matrix}.bias"] = size[:1]
    return shapes


def llama3_factors(shape: LlamaShape) -> np.ndarray | None:
    """Divisors of the rotation frequencies, `[head_dim / 2]` float32, for rope_type "llama3"; else None.

    Frequencies whose wavelength exceeds the original context are slowed by `factor`, short ones left alone, and those
    between interpolated (Llama 3.1's context extension, as transformers' `_compute_llama3_parameters` defines it).
    """
    if shape.rope["rope_type"] != "llama3":
        return None
    factor, context = shape.rope["factor"], shape.rope["original_max_position_embeddings"]
    low, high = shape.rope["low_freq_factor"], shape.rope["high_freq_factor"]
    exponents = np.arange(0, shape.head_dim, 2, dtype=np.float32) / np.float32(shape.head_dim)
    wavelengths = 2 * np.pi * np.float32(shape.rope["rope_theta"]) ** exponents
    smooth = np.clip((context / wavelengths - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def _named_tensors(*, shape: LlamaShape, stored: dict[str, StoredTensor], source: Path) -> dict[str, StoredTensor]:
    """Stored tensors under their GGUF names, checked against config.json."""
    expected = expected_shapes(shape)
    surplus = sorted(n for n in stored if n not in expected and n != HEAD and not n.endswith("rotary_emb.inv_freq"))
    missing = sorted(expected.keys() - stored.keys())
    if surplus or missing:
        what = f"{missing[0]!r} is missing" if missing else f"{surplus[0]!r} is not one of a Llama's"
        raise InputError(
            f"expected in {source} the {len(expected)} tensors that its config.json describes, found that {what}"
        )
    for name, size in expected.items():
        if stored[name].shape != size:
            raise InputError(f"expected {name!r} in {source} of shape {size}, found {stored[name].shape}")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, shape.layers)
    return {names.get_name(name, try_suffixes=(".weight", ".bias")): stored[name] for name in expected}


def _written_dtype(tensor: StoredTensor) -> np.dtype:
    return np.dtype(np.float16 if len(tensor.shape) > 1 else np.float32)


def _announce(writer: gguf.GGUFWriter, name: str, tensor: StoredTensor, *, grid: Grid | None) -> None:
    if grid is None:
        dtype = _written_dtype(tensor)
        writer.add_tensor_info(name, tensor.shape, dtype, prod(tensor.shape) * dtype.itemsize)
        return
    width = gguf.quant_shape_to_byte_shape(tensor.shape, grid.kind)
    writer.add_tensor_info(name, width, np.dtype(np.uint8), prod(width), raw_dtype=grid.kind)


def _converted(name: str, tensor: StoredTensor, *, shape: LlamaShape) -> np.ndarray:
    with np.errstate(over="ignore"):  # refused below with the tensor's name
        data = tensor.read().astype(_written_dtype(tensor), copy=False)
    if not np.isfinite(data).all():
        raise InputError(f"expected finite values that float16 can hold in {tensor.path}, found others in {name!r}")
    return np.ascontiguousarray(_rotated(name, data, shape=shape))


def _grid(tensor: StoredTensor, codes: CodeSet | None) -> Grid | None:
    name = None if codes is None else codes.plan.grid(tensor.name, tensor.shape)
    return None if name is None else grid_named(name)


def _encoded(name: str, tensor: StoredTensor, *, shape: LlamaShape, codes: CodeSet) -> np.ndarray:
    """The matrix's blocks as bytes `[rows, bytes]`; each row has its own, so that rows can change places."""
    try:
        blocks = codes.blocks(tensor.name, tensor.read())
    except ValueError as e:
        raise InputError(f"{tensor.path}: {tensor.name!r} cannot be encoded: {e}") from None
    stored = join_blocks(blocks)
    return np.ascontiguousarray(_rotated(name, stored.reshape(len(stored), -1), shape=shape))


def _rotated(name: str, data: np.ndarray, *, shape: LlamaShape) -> np.ndarray:
    if ".attn_q." in name:
        return to_neighbour_rotation(data, heads=shape.heads)
    return to_neighbour_rotation(data, heads=shape.kv_heads) if ".attn_k." in name else data


def to_neighbour_rotation(data: np.ndarray, *, heads: int) -> np.ndarray:
    """Reorder the rows of a query or key weight or bias, `[heads * head_dim, ...]`.

    Rows i and i + head_dim/2, rotated together by transformers, become rows 2i and 2i + 1.
    """
    half = data.shape[0] // heads // 2
    split = data.reshape(heads, 2, half, *data.shape[1:])
    return np.moveaxis(split, 1, 2).reshape(data.shape)


def _write_shape(writer: gguf.GGUFWriter, *, shape: LlamaShape, name: str, parameters: int) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_size_label(gguf.size_label(parameters, 0, 0, 0))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope["rope_theta"])
    writer.add_layer_norm_rms_eps(shape.eps)
    writer.add_vocab_size(shape.vocab)
    if shape.rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(shape.rope["factor"])


def _write_vocabulary(writer: gguf.GGUFWriter, *, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.kind.model)
    writer.add_tokenizer_pre(vocabulary.kind.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges is not None:
        writer.add_token_merges(vocabulary.merges)
    for role, identity in vocabulary.ids.items():
        writer.add_uint32(f"tokenizer.ggml.{ROLE_KEYS.get(role, role)}_token_id", identity)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    writer.add_add_space_prefix(vocabulary.kind.add_space_prefix)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)
