"""The builder on stand-ins: matrices of many architectures are traced to stored tensors, others built whole."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tiny_models import save_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from edgedistill.core.errors import InputError
from edgedistill.core.files import read_json
from edgedistill.export.onnx import export_onnx
from edgedistill.export.onnx_builder import (
    FIRST_ROW,
    StandIn,
    UntraceableError,
    check_complete,
    parts_of,
    row_numbers,
)
from edgedistill.export.onnx_graph import ORIGINS, build_graph, is_traced
from edgedistill.quant.codes import CodeSet
from edgedistill.quant.plan import Plan

SIZES = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"tie_word_embeddings": False},
    "phi3": {"original_max_position_embeddings": 128, "tie_word_embeddings": False},
    "gemma3_text": {"tie_word_embeddings": True, "sliding_window": 64, "query_pre_attn_scalar": 16},
    "smollm3": {"tie_word_embeddings": True, "no_rope_layers": [1, 0]},
}
IDS = [1, 30, 45, 200, 7, 99, 310, 64, 2, 17]


def save_random(folder: Path, family: str, **settings: Any) -> torch.nn.Module:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES | settings), dtype=torch.float32)
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return model


def onnx_logits(file: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    given = {
        "input_ids": np.array([IDS]),
        "attention_mask": np.ones((1, len(IDS)), dtype=np.int64),
        "position_ids": np.arange(len(IDS))[None],
    }
    feeds = {slot.name: given[slot.name] for slot in session.get_inputs() if slot.name in given}
    for slot in session.get_inputs():
        if slot.name.startswith("past_key_values"):
            feeds[slot.name] = np.zeros((1, 2, 0, 16), dtype=np.float32)
    return session.run(["logits"], feeds)[0][0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_traced_graph_gives_torchs_logits(family: str, tmp_path: Path) -> None:
    model = save_random(tmp_path / "model", family, **FAMILIES[family])
    build_graph(model=tmp_path / "model", out=tmp_path / "graph", threads=1)
    assert is_traced(tmp_path / "graph") and not (tmp_path / "graph" / "model.onnx.data").exists()
    facts = export_onnx(model=tmp_path / "model", out=tmp_path / "fp32", threads=1, graph=tmp_path / "graph")
    assert facts.parameters == sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        wanted = model(torch.tensor([IDS])).logits[0].numpy()
    assert np.abs(onnx_logits(tmp_path / "fp32" / "model.onnx") - wanted).max() < 1e-3
    codes = CodeSet(Plan("Q8_0", "Q8_0"))
    export_onnx(model=tmp_path / "model", out=tmp_path / "int8", threads=1, graph=tmp_path / "graph", codes=codes)
    assert np.abs(onnx_logits(tmp_path / "int8" / "model.onnx") - wanted).mean() < 0.05 * np.abs(wanted).mean()


@pytest.fixture(scope="module")
def untraceable(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama under the names of a model without head, which transformers loads all the same."""
    model = tmp_path_factory.mktemp("base") / "model"
    shutil.copytree(tiny_llama, model)
    tensors = load_file(model / "model.safetensors")
    save_file({n.removeprefix("model."): t for n, t in tensors.items()}, model / "model.safetensors", {"format": "pt"})
    return model


def test_a_model_that_cannot_be_traced_is_built_whole_and_the_same(
    untraceable: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    graph = tmp_path / "graph"
    build_graph(model=untraceable, out=graph, threads=1)
    assert not is_traced(graph)
    plans = {"fp32": None, "int4": Plan("Q4_0", "Q8_0")}
    for name, plan in plans.items():
        codes = CodeSet(plan) if plan else None
        export_onnx(model=untraceable, out=tmp_path / f"whole-{name}", threads=1, graph=graph, codes=codes)
    build_graph(model=tiny_llama, out=tmp_path / "traced", threads=1)
    for name, plan in plans.items():
        codes = CodeSet(plan) if plan else None
        export_onnx(model=tiny_llama, out=tmp_path / name, threads=1, graph=tmp_path / "traced", codes=codes)
        for file in sorted((tmp_path / name).iterdir()):
            assert file.read_bytes() == (tmp_path / f"whole-{name}" / file.name).read_bytes(), file.name
    codes = CodeSet(Plan("Q4_0", "Q8_0", {"layers.0.mlp.down_proj.weight": "Q8_0"}))
    with pytest.raises(InputError, match=r"traced to the tensors .* use one grid for all layers"):
        export_onnx(model=untraceable, out=tmp_path / "no", threads=1, graph=graph, codes=codes)


def test_stacked_and_sliced_rows_keep_their_places(tmp_path: Path) -> None:
    save_random(tmp_path / "model", "phi3", **FAMILIES["phi3"])
    build_graph(model=tmp_path / "model", out=tmp_path / "graph", threads=1)
    origins = read_json(tmp_path / "graph" / ORIGINS)
    gate_up = "model.layers.1.mlp.gate_up_proj.weight"
    assert origins["model.layers.1.mlp.up_proj.MatMul.weight"] == {"transposed": True, "parts": [[gate_up, 96, 192]]}
    qkv = origins["model.layers.0.attn.qkv_proj.MatMul.weight"]["parts"]
    assert qkv == [["model.layers.0.self_attn.qkv_proj.weight", 0, 128]]
    assert origins["model.embed_tokens.weight"]["transposed"] is False
    graph = onnx.load_model(str(tmp_path / "graph" / "model.onnx"), load_external_data=False).graph
    assert {i.name for i in graph.initializer if i.external_data} == set(origins)


def stand_in(first: int, rows: int = 6, columns: int = 4) -> torch.Tensor:
    return torch.arange(first, first + rows).float()[:, None].expand(rows, columns)


def test_what_is_not_whole_rows_is_told() -> None:
    one = stand_in(FIRST_ROW)
    assert row_numbers(torch.randn(5, 3), name="x") is None
    assert row_numbers(torch.arange(4), name="x") is None
    axis, numbers = row_numbers(torch.cat([one, one]).T, name="x")
    assert axis == 1 and numbers.tolist() == [FIRST_ROW + i for i in (*range(6), *range(6))]
    assert row_numbers(one, name="x")[0] == 0
    for spoiled in (
        one.reshape(-1),
        one.reshape(2, 3, 4),
        torch.cat([torch.randn(1, 4), one]),
        one + one.T.reshape(6, 4),
    ):
        with pytest.raises(UntraceableError, match=r"'x' of shape .* is not made of whole rows"):
            row_numbers(spoiled, name="x")


def test_rows_of_no_tensor_and_tensors_not_used_once_are_told() -> None:
    held = [StandIn("a", FIRST_ROW, (6, 4)), StandIn("b", FIRST_ROW + 6, (3, 4))]
    numbers = FIRST_ROW + np.array([2, 3, 4, 5, 6, 7, 8, 0, 1])
    assert parts_of(numbers, held, name="x") == [("a", 2, 6), ("b", 0, 3), ("a", 0, 2)]
    for strange in (FIRST_ROW + np.array([7, 8, 9]), 2 * numbers, numbers - FIRST_ROW):
        with pytest.raises(UntraceableError, match="'x' has rows of no stored tensor"):
            parts_of(strange, held, name="x")
    stand_ins = {s.name: s for s in held}
    whole = [("a", 2, 6), ("a", 0, 2), ("b", 0, 3)]
    check_complete({"x": {"parts": whole}}, stand_ins)
    for parts in (whole[1:], [*whole, ("b", 0, 3)], [("a", 0, 6)]):
        with pytest.raises(UntraceableError, match=r"expected every row of '.' once in the graph, found"):
            check_complete({"x": {"parts": parts}}, stand_ins)
