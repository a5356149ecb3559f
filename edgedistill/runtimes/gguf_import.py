"""A GGUF as a Hugging Face folder: float32 safetensors, configuration, and a tokenizer proved against llama.cpp.

The Llama family is dequantized straight from the file (transformers takes about five times as long to parse it);
every other architecture goes through transformers' own GGUF loader.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig
from transformers.utils.quantization_config import GgufConfig

from edgedistill.core.errors import InputError
from edgedistill.runtimes.gguf_file import GgufFile
from edgedistill.runtimes.gguf_model import check_gguf
from edgedistill.runtimes.gguf_tokenizer import build_tokenizer


def import_gguf(path: Path, folder: Path) -> None:
    """Write the model in the GGUF at `path` into the existing folder `folder` as a Hugging Face model.

    Raises:
        InputError: the file is damaged, or its architecture, tensors or tokenizer cannot be carried over exactly.
    """
    gguf = check_gguf(path)
    tokenizer = build_tokenizer(gguf)
    if gguf.fields.get("general.architecture") == "llama":
        config = llama_config(gguf)
        config.save_pretrained(folder)
        weights = folder / "model.safetensors"
        save_file(llama_weights(gguf, config), weights, metadata={"format": "pt"})
        weights.chmod(0o644)
    else:
        _import_through_transformers(path, folder)
    generation_config(gguf).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def generation_config(gguf: GgufFile) -> GenerationConfig:
    """Greedy generation that ends at every token the GGUF itself declares as an end (eos, eot, eom)."""
    ids = {k: gguf.fields.get(f"tokenizer.ggml.{k}_token_id") for k in ("bos", "eos", "eot", "eom", "padding")}
    ends = list(dict.fromkeys(i for i in (ids["eos"], ids["eot"], ids["eom"]) if i is not None))
    eos = ends[0] if len(ends) == 1 else ends or None
    return GenerationConfig(bos_token_id=ids["bos"], eos_token_id=eos, pad_token_id=ids["padding"])


def llama_config(gguf: GgufFile) -> LlamaConfig:
    """The Hugging Face configuration of a dense Llama-family GGUF.

    Raises:
        InputError: a size is absent or not one number, or the rotary embedding is scaled in a way GGUF does not name.
    """

    def need(key: str) -> Any:
        value = gguf.fields.get(f"llama.{key}")
        if isinstance(value, list) or value is None:
            raise InputError(
                f"{gguf.path} has llama.{key} = {value!r}, expected one number; "
                "give the model as a Hugging Face folder instead"
            )
        return value

    heads, hidden = need("attention.head_count"), need("embedding_length")
    head_dim = gguf.fields.get("llama.attention.key_length", hidden // heads)
    scaling = gguf.fields.get("llama.rope.scaling.type", "none")
    if scaling not in ("none", "linear") or "rope_freqs.weight" in gguf.tensors:
        raise InputError(
            f"{gguf.path} scales its rotary embedding ({scaling!r}, or by a table of factors), which a GGUF does not "
            "describe in full; give the model as a Hugging Face folder instead"
        )
    if gguf.fields.get("llama.rope.dimension_count", head_dim) != head_dim:
        raise InputError(
            f"{gguf.path} rotates only a part of each head; give the model as a Hugging Face folder instead"
        )
    rope = {"rope_type": "default", "rope_theta": float(gguf.fields.get("llama.rope.freq_base", 10000.0))}
    if scaling == "linear":
        rope |= {"rope_type": "linear", "factor": float(need("rope.scaling.factor"))}
    generation = generation_config(gguf)
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(gguf.fields["tokenizer.ggml.tokens"]),
        hidden_size=hidden,
        intermediate_size=need("feed_forward_length"),
        num_hidden_layers=need("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=gguf.fields.get("llama.attention.head_count_kv", heads),
        head_dim=head_dim,
        max_position_embeddings=need("context_length"),
        # a float32 in the file: its shortest decimal is what was written before conversion
        rms_norm_eps=float(str(np.float32(need("attention.layer_norm_rms_epsilon")))),
        rope_parameters=rope,
        tie_word_embeddings="output.weight" not in gguf.tensors,
        bos_token_id=generation.bos_token_id,
        eos_token_id=generation.eos_token_id,
        pad_token_id=generation.pad_token_id,
        dtype="float32",
    )


def llama_names(config: LlamaConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """GGUF tensor name -> (Hugging Face name, shape) of a dense Llama."""
    hidden, ffn, vocab = config.hidden_size, config.intermediate_size, config.vocab_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    names = {
        "token_embd.weight": ("model.embed_tokens.weight", (vocab, hidden)),
        "output_norm.weight": ("model.norm.weight", (hidden,)),
    }
    if not config.tie_word_embeddings:
        names["output.weight"] = ("lm_head.weight", (vocab, hidden))
    layer = {
        "attn_norm": ("input_layernorm", (hidden,)),
        "attn_q": ("self_attn.q_proj", (queries, hidden)),
        "attn_k": ("self_attn.k_proj", (keys, hidden)),
        "attn_v": ("self_attn.v_proj", (keys, hidden)),
        "attn_output": ("self_attn.o_proj", (hidden, queries)),
        "ffn_norm": ("post_attention_layernorm", (hidden,)),
        "ffn_gate": ("mlp.gate_proj", (ffn, hidden)),
        "ffn_up": ("mlp.up_proj", (ffn, hidden)),
        "ffn_down": ("mlp.down_proj", (hidden, ffn)),
    }
    for i in range(config.num_hidden_layers):
        for theirs, (ours, shape) in layer.items():
            names[f"blk.{i}.{theirs}.weight"] = (f"model.layers.{i}.{ours}.weight", shape)
    return names


def llama_weights(gguf: GgufFile, config: LlamaConfig) -> dict[str, np.ndarray]:
    """Every weight as float32 under its Hugging Face name, q and k back in half-split rotary order.

    Raises:
        InputError: a tensor is absent, left over, of another shape, or of a type gguf cannot dequantize.
    """
    names = llama_names(config)
    if names.keys() != gguf.tensors.keys():
        absent, extra = sorted(names.keys() - gguf.tensors.keys()), sorted(gguf.tensors.keys() - names.keys())
        raise InputError(
            f"{gguf.path} is not a dense Llama: it lacks {absent[:3]} and has {extra[:3]} beside what was expected; "
            "give the model as a Hugging Face folder instead"
        )
    weights = {}
    with gguf.path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for name, (target, shape) in names.items():
            tensor = gguf.tensors[name]
            if tensor.shape[::-1] != shape:
                raise InputError(
                    f"{gguf.path} has {name} of shape {tensor.shape[::-1]}, its metadata say {shape}; "
                    "fetch or write it again"
                )
            raw = np.frombuffer(data, np.uint8, tensor.size, tensor.start).reshape(*shape[:-1], -1)
            try:
                weight = dequantize(raw, GGMLQuantizationType(tensor.type_id)).astype(np.float32)
            except NotImplementedError:
                raise InputError(
                    f"{gguf.path} stores {name} as {GGMLQuantizationType(tensor.type_id).name}, which gguf cannot "
                    "dequantize; choose a file of another quantization"
                ) from None
            if name.endswith(("attn_q.weight", "attn_k.weight")):
                weight = half_split(weight, head_dim=config.head_dim)
            weights[target] = np.ascontiguousarray(weight)
            del raw
    return weights


def half_split(weight: np.ndarray, *, head_dim: int) -> np.ndarray:
    """Rows of `[heads * head_dim, ...]` from llama.cpp's interleaved rotary pairs to Hugging Face's two halves."""
    return weight.reshape(-1, head_dim // 2, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _import_through_transformers(path: Path, folder: Path) -> None:
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype="float32", quantization_config=GgufConfig(dequantize=True)
        )
    except (ValueError, KeyError, NotImplementedError, RuntimeError) as e:
        raise InputError(
            f"transformers cannot read the model in {path} ({e}); give it as a Hugging Face folder instead"
        ) from None
    # the loaded model still believes it is quantized and refuses to be saved
    state = loaded.state_dict()
    config = type(loaded.config).from_dict(
        {k: v for k, v in loaded.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    )
    model = type(loaded)(config)
    model.load_state_dict(state)
    model.save_pretrained(folder)
