"""Grids that GGUF alone has, through llama.cpp: it reads the codes as they are meant, and fallbacks are counted."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from export_builders import save_byte_level, save_llama
from transformers import AutoModelForCausalLM

from edgedistill.export.gguf import export_gguf_codes
from edgedistill.export.quantize import weight_figures
from edgedistill.export.weights import stored_tensors
from edgedistill.quant.blocks import decode_blocks
from edgedistill.quant.codes import CodeSet
from edgedistill.quant.plan import Plan
from edgedistill.runtimes.base import open_session
from edgedistill.runtimes.gguf_file import TENSOR_TYPES, read_gguf

IDS = list(range(1, 60))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 256 but for `down_proj`, whose 288 fill no block of 256."""
    folder = tmp_path_factory.mktemp("wide")
    save_byte_level(folder, vocab=512)
    return save_llama(folder, rows=512, hidden_size=256, intermediate_size=288, num_hidden_layers=2)


def kinds_of(path: Path) -> dict[str, str]:
    return {name: TENSOR_TYPES[t.type_id][0] for name, t in read_gguf(path).tensors.items()}


@pytest.mark.parametrize("grid", ["Q6_K", "IQ4_NL"])
def test_llama_cpp_computes_with_what_the_codes_decode_to(grid: str, model: Path, tmp_path: Path) -> None:
    codes = CodeSet(Plan(grid, grid))
    export_gguf_codes(model=model, out=tmp_path / "m.gguf", codes=codes)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.inference_mode():
        plain = loaded(torch.tensor([IDS])).logits[0].numpy()
        for name, tensor in stored_tensors(model).items():
            if len(tensor.shape) == 2 and name in (weights := dict(loaded.named_parameters())):
                weights[name].copy_(torch.from_numpy(decode_blocks(codes.blocks(name, tensor.read()))))
        meant = loaded(torch.tensor([IDS])).logits[0].numpy()
    with closing(open_session("llamacpp", tmp_path / "m.gguf", threads=1, context=64)) as session:
        found = session.logits(IDS)
    off = np.linalg.norm(found - meant) / np.linalg.norm(meant - plain)
    assert off < {"Q6_K": 0.8, "IQ4_NL": 0.3}[grid]  # what is left are activations on 8 bits


def test_what_fills_no_block_of_256_becomes_8_bits_and_is_counted(model: Path, tmp_path: Path) -> None:
    fallbacks = export_gguf_codes(model=model, out=tmp_path / "m.gguf", codes=CodeSet(Plan("Q6_K", "Q6_K")))
    kinds = kinds_of(tmp_path / "m.gguf")
    assert kinds["blk.1.ffn_down.weight"] == "Q8_0" and kinds["blk.1.ffn_up.weight"] == "Q6_K"
    assert weight_figures(tmp_path / "m.gguf", scheme="Q6_K", fallbacks=fallbacks).fallback_tensors == 2
    assert export_gguf_codes(model=model, out=tmp_path / "n.gguf", codes=CodeSet(Plan("IQ4_NL", "Q8_0"))) == 0
    assert set(kinds_of(tmp_path / "n.gguf").values()) == {"F32", "IQ4_NL", "Q8_0"}
