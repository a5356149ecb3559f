"""Bytes that a token reads, counted from the files of each format, against counts made another way."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgedistill.bench.model_shape import shape_of
from edgedistill.bench.shapes import FIXED_SHAPES, fixed_shape, seeded_ids
from edgedistill.core.errors import InputError


def parameters(folder: Path) -> int:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "np") as f:
        return sum(f.get_tensor(name).size for name in f.keys())  # noqa: SIM118


def test_a_tied_model_reads_every_weight(tiny_llama: Path, tiny_gguf: Path, tiny_onnx: Path) -> None:
    config = json.loads((tiny_llama / "config.json").read_text())
    count = parameters(tiny_llama)
    torch, gguf, genai = (
        shape_of(engine, path)
        for engine, path in (("torch", tiny_llama), ("llamacpp", tiny_gguf), ("onnxruntime-genai", tiny_onnx))
    )
    per_position = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]
    assert torch.weight_bytes == 4 * count
    assert (torch.cache_bytes, gguf.cache_bytes, genai.cache_bytes) == (
        4 * per_position, 2 * per_position, 4 * per_position,
    )  # fmt: skip
    assert torch.context == gguf.context == genai.context == config["max_position_embeddings"]
    assert torch.vocab == gguf.vocab == genai.vocab == config["vocab_size"]
    # f16 matrices, f32 vectors; the ONNX file holds constants of its graph beside its weights.
    vectors = (2 * config["num_hidden_layers"] + 1) * config["hidden_size"]
    assert gguf.weight_bytes == 2 * (count - vectors) + 4 * vectors
    assert 4 * count <= genai.weight_bytes < 4.6 * count
    assert torch.bytes_read(10) == 4 * count + 40 * per_position


def test_an_untied_embedding_is_one_row_and_idle_experts_are_none(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    path = tmp_path / "moe.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_expert_count(8)
    writer.add_expert_used_count(2)
    for name, shape in (
        ("token_embd.weight", (100, 32)),
        ("output.weight", (100, 32)),
        ("blk.0.ffn_up_exps.weight", (8, 64, 32)),
        ("blk.0.ffn_gate_inp.weight", (8, 32)),
    ):
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    shape = shape_of("llamacpp", path)
    assert shape.weight_bytes == 4 * (32 + 100 * 32 + 2 * 64 * 32 + 8 * 32)
    assert (shape.context, shape.vocab, shape.cache_bytes) == (128, 100, 2 * 2 * 2 * 8)


def test_files_that_say_nothing_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"does not say its shape: KeyError 'num_attention_heads'; export or fetch"):
        shape_of("torch", tmp_path)


def test_fixed_shapes_are_the_same_tokens_everywhere() -> None:
    assert list(FIXED_SHAPES.values()) == [(64, 64), (512, 128), (2048, 64)]
    like = {"ids": [1, 2, 3], "warmup": 6, "repetitions": 3}
    long = fixed_shape("depth-2048-64", like=like)
    assert (len(long["ids"]), long["decode"], long["warmup"], long["repetitions"]) == (2048, 64, 1, 1)
    assert long["ids"][:4] == [1, 2, 3, 1]
    assert seeded_ids(vocab=100, count=5) == seeded_ids(vocab=100, count=9)[:5]
    assert max(seeded_ids(vocab=7, count=500)) == 6
