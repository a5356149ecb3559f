"""The metadata of a GGUF file: what the model's shape, its rotation and its tokenizer say under GGUF's keys."""

from __future__ import annotations

import re

import gguf

from edgedistill.export.architectures import FULL_ATTENTION_STEP, ModelShape
from edgedistill.export.vocabulary import Vocabulary

ROLE_KEYS = {"unk": "unknown", "sep": "seperator", "pad": "padding"}  # GGUF spells them so


def name_for_llama_cpp(name: str, *, strips_right: bool) -> str:
    """`name`, saying Phi-3 exactly where the tokenizer drops white space after its special tokens, as Phi-3's does.

    llama.cpp drops it for models with "phi-3" or "phi3" in their name, and looks for that nowhere else.
    """
    said = re.search(r"phi-?3", name, re.IGNORECASE)
    if strips_right:
        return name if said else f"{name} (Phi-3)"
    return re.sub(r"(phi)-?3", r"\1 3", name, flags=re.IGNORECASE)


def write_shape(writer: gguf.GGUFWriter, *, shape: ModelShape, name: str, parameters: int) -> None:
    """Write the keys that the model's shape decides; `parameters` counts its weights."""
    known = shape.architecture
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
    writer.add_layer_norm_rms_eps(shape.eps)
    if "key_length" in known.keys or (shape.head_dim_stated and known.free_head_dim):
        writer.add_key_length(shape.head_dim)
        writer.add_value_length(shape.head_dim)
    if "vocab" in known.keys:
        writer.add_vocab_size(shape.vocab)
    if "window" in known.keys:
        writer.add_sliding_window(shape.window or 0)
    usual = tuple((i + 1) % FULL_ATTENTION_STEP != 0 for i in range(shape.layers))
    if known.local_theta is not None and shape.sliding != usual:
        writer.add_sliding_window_pattern(list(shape.sliding or (False,) * shape.layers))
    if shape.softcap:
        writer.add_final_logit_softcapping(shape.softcap)
    _write_rope(writer, shape=shape)


def _write_rope(writer: gguf.GGUFWriter, *, shape: ModelShape) -> None:
    rope = shape.rope
    if "rotary" in shape.architecture.keys:
        writer.add_rope_dimension_count(rope.dimensions)
    writer.add_rope_freq_base(rope.theta)
    if rope.local_theta is not None:
        writer.add_rope_freq_base_swa(rope.local_theta)
    if shape.architecture.name == "phi3":
        writer.add_rope_scaling_orig_ctx_len(rope.original_context)
    if rope.kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope.parameters["factor"])
    if rope.kind == "longrope":
        writer.add_rope_scaling_attn_factors(rope.attention_factor)
    if rope.kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope.parameters["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope.original_context)
        if rope.parameters.get("attention_factor") is not None:
            writer.add_rope_scaling_yarn_attn_factor(rope.attention_factor)
        if rope.parameters.get("beta_fast") is not None:
            writer.add_rope_scaling_yarn_beta_fast(rope.parameters["beta_fast"])
        if rope.parameters.get("beta_slow") is not None:
            writer.add_rope_scaling_yarn_beta_slow(rope.parameters["beta_slow"])


def write_vocabulary(writer: gguf.GGUFWriter, *, vocabulary: Vocabulary) -> None:
    """Write tokens, merges or scores, special ids, flags and the chat template."""
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
