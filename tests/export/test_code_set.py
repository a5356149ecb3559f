"""One code set, two formats: what the GGUF file and the ONNX graph hold of a matrix is the same codes."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import onnx
import pytest
from export_builders import save_byte_level, save_llama
from onnx import numpy_helper

from edgedistill.core.errors import InputError
from edgedistill.export import weights
from edgedistill.export.gguf import export_gguf_codes, export_gguf_f16
from edgedistill.export.onnx import export_onnx
from edgedistill.export.onnx_quantize import pack_codes
from edgedistill.export.quantize import weight_figures
from edgedistill.export.weights import stored_tensors
from edgedistill.quant.blocks import Blocks, decode_blocks, split_blocks
from edgedistill.quant.codes import CodeSet
from edgedistill.quant.plan import Plan

HF = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
      "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
      "ffn_down": "mlp.down_proj"}  # fmt: skip


@pytest.fixture(scope="module", params=["Q4_0", "Q8_0"])
def pair(request: pytest.FixtureRequest, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory):
    """Both files of one code set: (scheme, gguf file, onnx folder, code set)."""
    root, codes = tmp_path_factory.mktemp("pair"), CodeSet(Plan(request.param, "Q8_0"))
    out = root / "model.gguf"
    export_gguf_codes(model=tiny_llama, out=out, codes=codes)
    made = len(codes)
    export_onnx(model=tiny_llama, out=root / "onnx", threads=1, codes=codes)
    assert len(codes) == made, "the second format encoded a row anew"
    return request.param, out, root / "onnx", codes


def gguf_blocks(path: Path) -> dict[str, Blocks]:
    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.tensor_type.name in ("Q4_0", "Q8_0"):
            size = gguf.GGML_QUANT_SIZES[tensor.tensor_type][1]
            stored = np.asarray(tensor.data).reshape(len(tensor.data), -1, size)
            found[tensor.name] = split_blocks(stored, grid=tensor.tensor_type.name)
    return found


def test_every_row_of_the_graph_has_the_codes_of_the_file(pair, tiny_llama: Path) -> None:
    _, path, folder, code_set = pair
    graph = onnx.load(folder / "model.onnx").graph
    held = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    packed = [
        (array, held[name.replace("_codes", "_scales")]) for name, array in held.items() if name.endswith("_codes")
    ]
    in_graph = sorted(codes.tobytes() + scales.tobytes() for a, s in packed for codes, scales in zip(a, s, strict=True))
    in_file = []
    tensors = stored_tensors(tiny_llama)
    for name, found in gguf_blocks(path).items():
        table = name == "token_embd.weight"
        hf = "model.embed_tokens.weight" if table else _hf_name(name)
        wanted = code_set.blocks(hf, tensors[hf].read())
        if "attn_q" not in name and "attn_k" not in name:  # their rows are reordered for llama.cpp
            assert np.array_equal(found.codes, wanted.codes) and np.array_equal(found.scales, wanted.scales)
        rows = zip(pack_codes(found), found.scales.astype(np.float32), strict=True)
        in_file += [codes.tobytes() + scales.tobytes() for codes, scales in rows]
    assert sorted(in_file) == in_graph


def _hf_name(name: str) -> str:
    _, layer, matrix, _ = name.split(".")
    return f"model.layers.{layer}.{HF[matrix]}.weight"


def test_the_file_says_what_it_holds(pair) -> None:
    scheme, path, _, _ = pair
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType[f"MOSTLY_{scheme}"]
    (table,) = [t for t in reader.tensors if t.name == "token_embd.weight"]
    assert table.tensor_type.name == "Q8_0"


def test_codes_decode_near_the_weights(pair, tiny_llama: Path) -> None:
    scheme, path, _, _ = pair
    stored = stored_tensors(tiny_llama)["model.layers.0.mlp.down_proj.weight"].read()
    decoded = decode_blocks(gguf_blocks(path)["blk.0.ffn_down.weight"])
    assert np.abs(decoded - stored).max() < {"Q4_0": 0.12, "Q8_0": 0.01}[scheme] * np.abs(stored).max()


def test_a_width_that_fills_no_block_stays_f16(tmp_path: Path) -> None:
    save_byte_level(tmp_path, vocab=512)
    save_llama(tmp_path, rows=512, intermediate_size=80)
    fallbacks = export_gguf_codes(model=tmp_path, out=tmp_path / "m.gguf", codes=CodeSet(Plan("Q4_0", "Q8_0")))
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert kinds["blk.0.ffn_down.weight"] == "F16" and kinds["blk.0.ffn_up.weight"] == "Q4_0"
    figures = weight_figures(tmp_path / "m.gguf", scheme="Q4_0", fallbacks=fallbacks)
    assert figures.fallback_tensors == fallbacks == 2
    export_gguf_f16(model=tmp_path, out=tmp_path / "h.gguf")
    assert weight_figures(tmp_path / "h.gguf", scheme="F16").parameters == figures.parameters


def test_a_weight_that_is_not_finite_is_refused_by_name(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    save_byte_level(tmp_path, vocab=512)
    save_llama(tmp_path, rows=512)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = np.nan
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"'model\.layers\.1\.mlp\.up_proj\.weight' cannot be encoded: expected"):
        export_gguf_codes(model=tmp_path, out=tmp_path / "m.gguf", codes=CodeSet(Plan("Q4_0", "Q8_0")))
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize(("dtype", "wrong"), [("float32", np.nan), ("bfloat16", np.inf)])
def test_every_weight_is_looked_at_before_an_export(
    dtype: str, wrong: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file

    monkeypatch.setattr(weights, "READ_AT_ONCE", 1000)  # of 64 columns: 15 rows at once
    save_byte_level(tmp_path, vocab=512)
    save_llama(tmp_path, rows=512, dtype=dtype)
    weights.check_finite(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][40, 3] = wrong
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"found NaN or infinity in 'model\.layers\.1\.mlp\.up_proj\.weight', row 40;"):
        weights.check_finite(tmp_path)
