"""The importance matrix: llama.cpp's sums against hooks in torch, the file format, and names in both worlds."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from export_builders import save_byte_level, save_llama
from transformers import AutoModelForCausalLM

from edgedistill.core.errors import InputError
from edgedistill.export.gguf import export_gguf_f16
from edgedistill.export.imatrix import (
    Imatrix,
    chunks_of,
    collect_imatrix,
    hugging_face_names,
    importances_of,
    read_imatrix,
    read_moments,
    write_imatrix,
)
from edgedistill.export.quantize import quantize_gguf
from edgedistill.runtimes.gguf_file import read_gguf

LLAMA_QUANTIZE = os.environ.get("EDGEDISTILL_LLAMA_QUANTIZE") or shutil.which("llama-quantize")
CHUNKS = [[(7 * i + 3 * j) % 500 for j in range(48)] for i in range(3)]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_byte_level(folder, vocab=512)
    save_llama(folder, rows=512, intermediate_size=96, tie_word_embeddings=request.param)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    loaded.half().float().save_pretrained(folder)  # weights that F16 holds, so that both sides compute the same
    export_gguf_f16(model=folder, out=folder / "f16.gguf")
    return folder


def test_sums_are_those_of_torch(model: Path, tmp_path: Path) -> None:
    imatrix = collect_imatrix(model / "f16.gguf", CHUNKS, threads=1, dataset="made up", moments=tmp_path / "m")
    names = hugging_face_names(model / "f16.gguf", model=model)
    found = importances_of(imatrix, names)
    moments = read_moments(tmp_path / "m", names=names)
    wanted = _hooked(model)
    assert len(wanted) == 15 and wanted.keys() <= found.keys()
    for name, x in wanted.items():
        mean = np.mean(x**2, axis=0)  # llama.cpp's products round their inputs to F16
        assert np.linalg.norm(found[name] - mean) <= 1e-3 * np.linalg.norm(mean), name
        if "layers" in name:
            second = x.T @ x / len(x)
            assert np.linalg.norm(moments[name] - second) <= 4e-3 * np.linalg.norm(second), name
    assert set(imatrix.counts.values()) == {3 * 48}
    # q, k, v and gate, up read the same input, which is kept once
    files = list((tmp_path / "m").glob("*.npy"))
    assert (len(files), len({place.stat().st_ino for place in files})) == (2 * 7, 2 * 4)


def _hooked(model: Path) -> dict[str, np.ndarray]:
    """Inputs `[tokens, columns]` of every linear layer over the chunks, from transformers."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    inputs: dict[str, list[np.ndarray]] = {}
    for name, module in loaded.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(
                lambda _, arguments, key=f"{name}.weight": inputs.setdefault(key, []).append(arguments[0][0].numpy())
            )
    with torch.no_grad():
        for ids in CHUNKS:
            loaded(input_ids=torch.tensor([ids]))
    return {name: np.concatenate(parts) for name, parts in inputs.items()}


def test_file_is_llama_cpps_format_and_reads_back(model: Path, tmp_path: Path) -> None:
    imatrix = collect_imatrix(model / "f16.gguf", CHUNKS, threads=1, dataset="made up")
    write_imatrix(imatrix, tmp_path / "i.gguf")
    file = read_gguf(tmp_path / "i.gguf")
    assert file.fields == {
        "general.type": "imatrix",
        "imatrix.datasets": ["made up"],
        "imatrix.chunk_count": 3,
        "imatrix.chunk_size": 48,
    }
    assert file.tensors["blk.1.ffn_down.weight.in_sum2"].shape == (96, 1)
    assert file.tensors["blk.1.ffn_down.weight.counts"].shape == (1, 1)
    again = read_imatrix(tmp_path / "i.gguf")
    assert again.counts == imatrix.counts and again.datasets == ("made up",)
    assert all(np.array_equal(again.sums[name], sums) for name, sums in imatrix.sums.items())


@pytest.mark.skipif(
    LLAMA_QUANTIZE is None, reason="no llama-quantize on PATH; build llama.cpp, name it in EDGEDISTILL_LLAMA_QUANTIZE"
)
def test_llama_quantize_reads_the_file_and_weighs_as_we_do(model: Path, tmp_path: Path) -> None:
    imatrix = collect_imatrix(model / "f16.gguf", CHUNKS, threads=1, dataset="made up")
    write_imatrix(imatrix, tmp_path / "i.gguf")
    files = {name: tmp_path / f"{name}.gguf" for name in ("theirs", "ours", "unweighed")}
    command = [LLAMA_QUANTIZE, "--imatrix", tmp_path / "i.gguf", model / "f16.gguf", files["theirs"], "Q4_0", "1"]
    said = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    assert "importance matrix" in said.stdout + said.stderr
    how = {"source": model / "f16.gguf", "scheme": "Q4_0", "threads": 1}
    quantize_gguf(**how, out=files["ours"], importances=imatrix.means())
    quantize_gguf(**how, out=files["unweighed"])
    theirs, ours, unweighed = (
        {tensor.name: tensor.data.tobytes() for tensor in gguf.GGUFReader(path).tensors} for path in files.values()
    )
    assert ours == theirs and ours != unweighed


def test_text_is_cut_into_whole_chunks() -> None:
    assert chunks_of(range(10), size=4) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert chunks_of(range(3), size=4) == [[0, 1, 2]]
    with pytest.raises(InputError, match="calibration text of at least two tokens, found 1"):
        chunks_of([5])


def test_what_is_no_imatrix_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected an imatrix in .*f16\.gguf, found a GGUF of type model"):
        read_imatrix(model / "f16.gguf")
    sums = {"blk.0.ffn_up.weight": np.array([1.0, np.nan], dtype=np.float32)}
    write_imatrix(Imatrix(sums, {"blk.0.ffn_up.weight": 4}, 1, 4), tmp_path / "nan.gguf")
    with pytest.raises(InputError, match=r"expected finite sums of squares of 'blk\.0\.ffn_up\.weight'"):
        read_imatrix(tmp_path / "nan.gguf")
    writer = gguf.GGUFWriter(tmp_path / "half.gguf", "")
    writer.add_type("imatrix")
    writer.add_tensor("a.in_sum2", np.ones((1, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match="expected float32 sums and one count of 'a', found others"):
        read_imatrix(tmp_path / "half.gguf")
