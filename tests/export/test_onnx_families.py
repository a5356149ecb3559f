"""ONNX folders of every family that is exported: transformers' logits, its tokens, and the code set that GGUF has."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_builders import FAMILIES, LONG
from gguf_comparing import deviation, some_ids, torch_logits
from transformers import AutoModelForCausalLM

from edgedistill.core.errors import StageError
from edgedistill.core.files import read_json, write_json
from edgedistill.export.companions import write_companions
from edgedistill.export.gguf import export_gguf_codes
from edgedistill.export.onnx import export_onnx
from edgedistill.export.onnx_graph import ORIGINS, build_graph, is_traced, load_graph
from edgedistill.export.parity_text import check_text
from edgedistill.export.weights import stored_tensors
from edgedistill.quant.blocks import decode_blocks
from edgedistill.quant.codes import CodeSet
from edgedistill.quant.plan import Plan
from edgedistill.runtimes.base import decode, open_session


@pytest.fixture(scope="session")
def onnx_graphs(family_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The builder's graph of each family; two builders at a time, which spend most of it on imports."""
    root = tmp_path_factory.mktemp("graphs")

    def build(name: str) -> Path:
        build_graph(model=family_folders[name], out=root / name, threads=1)
        return root / name

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(FAMILIES, pool.map(build, FAMILIES), strict=True))


@pytest.fixture(scope="session")
def onnx_folders(
    family_folders: dict[str, Path], onnx_graphs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The float32 export of each family."""
    root = tmp_path_factory.mktemp("onnx")
    for name, model in family_folders.items():
        export_onnx(model=model, out=root / name, threads=1, graph=onnx_graphs[name])
        write_companions(model=model, folder=root / name, entry="model.onnx")
    return {name: root / name for name in family_folders}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_matrix_is_traced_to_its_tensor(
    name: str, family_folders: dict[str, Path], onnx_graphs: dict[str, Path]
) -> None:
    assert is_traced(onnx_graphs[name])
    graph, found = load_graph(onnx_graphs[name], model=family_folders[name])
    assert {i.name for i in graph.graph.initializer if i.external_data} == set(found)
    used = sorted((p.source.name, p.begin, p.end) for matrix in found.values() for p in matrix.parts)
    wanted = {tensor for tensor, stored in stored_tensors(family_folders[name]).items() if len(stored.shape) == 2}
    assert {tensor for tensor, _, _ in used} == wanted


def test_stacked_and_sliced_rows_keep_their_places(onnx_graphs: dict[str, Path]) -> None:
    origins = read_json(onnx_graphs["phi3-4k"] / ORIGINS)
    gate_up = "model.layers.1.mlp.gate_up_proj.weight"
    assert origins["model.layers.1.mlp.up_proj.MatMul.weight"] == {"transposed": True, "parts": [[gate_up, 192, 384]]}
    ((stacked, begin, _),) = origins["model.layers.0.attn.qkv_proj.MatMul.weight"]["parts"]
    assert (stacked, begin) == ("model.layers.0.self_attn.qkv_proj.weight", 0)
    assert origins["model.embed_tokens.weight"]["transposed"] is False


def deviations(engine: str, path: Path, wanted: np.ndarray, ids: list[int]) -> tuple[float, float]:
    """Deviation in one pass, and token by token through the KV cache from the middle on."""
    half = len(ids) // 2
    with closing(open_session(engine, path, threads=1, context=len(ids) + 8)) as session:
        fresh, cached = session.logits(ids), decode(session, ids[half:], past=ids[:half])
    return deviation(fresh, wanted), deviation(cached, wanted[half:])


@pytest.mark.parametrize("name", FAMILIES)
def test_onnx_gives_the_logits_of_transformers(
    name: str, family_folders: dict[str, Path], onnx_folders: dict[str, Path]
) -> None:
    ids = some_ids(100)  # longer than the windows of Phi-3 and Gemma 3
    wanted = torch_logits(family_folders[name], ids)
    assert max(deviations("onnx", onnx_folders[name], wanted, ids)) < 1e-9


@pytest.mark.parametrize("name", ["phi3-128k", "phi4-mini"])
def test_onnx_takes_the_long_factors_where_transformers_does(
    name: str, family_folders: dict[str, Path], onnx_folders: dict[str, Path]
) -> None:
    """At the first position beyond the original context; transformers then has keys of both rotations in its cache."""
    ids = some_ids(LONG + 40)
    half = LONG - 20
    with closing(open_session("hf", family_folders[name], threads=1, context=len(ids), dtype="float32")) as session:
        wanted, stepped = session.logits(ids), decode(session, ids[half:], past=ids[:half])
    assert deviation(stepped, wanted[half:]) > 0.1
    with closing(open_session("onnx", onnx_folders[name], threads=1, context=2 * LONG)) as session:
        assert deviation(session.logits(ids), wanted) < 1e-9
        assert deviation(decode(session, ids[half:], past=ids[:half]), stepped) < 1e-9


@pytest.mark.parametrize(
    ("name", "rope"),
    [
        ("llama3", {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}),
        ("smollm3", {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}),
    ],
)
def test_scaled_rotations_are_in_the_graph(
    name: str, rope: dict[str, Any], family_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(family_folders[name], tmp_path / "m")
    write_json(folder / "config.json", {**read_json(folder / "config.json"), "rope_parameters": rope})
    export_onnx(model=folder, out=tmp_path / "onnx", threads=1)
    ids = some_ids(100)
    wanted = torch_logits(folder, ids)
    assert deviation(torch_logits(family_folders[name], ids), wanted) > 0.01
    assert max(deviations("onnx", tmp_path / "onnx", wanted, ids)) < 1e-9


@pytest.mark.parametrize("name", FAMILIES)
def test_both_formats_hold_the_codes(
    name: str, family_folders: dict[str, Path], onnx_graphs: dict[str, Path], tmp_path: Path
) -> None:
    codes = CodeSet(Plan(layers="Q4_0", table="Q8_0"))
    export_gguf_codes(model=family_folders[name], out=tmp_path / "m.gguf", codes=codes)
    facts = export_onnx(
        model=family_folders[name], out=tmp_path / "onnx", threads=1, graph=onnx_graphs[name], codes=codes
    )
    assert facts.fallback_tensors == 0
    model = AutoModelForCausalLM.from_pretrained(family_folders[name], dtype=torch.float32).eval()
    state = model.state_dict()
    for tensor, stored in stored_tensors(family_folders[name]).items():
        if codes.plan.grid(tensor, stored.shape) is not None:
            state[tensor].copy_(torch.from_numpy(decode_blocks(codes.blocks(tensor, stored.read()))))
    ids = some_ids(48)
    with torch.no_grad():
        wanted = model(torch.tensor([ids])).logits[0].numpy()
    assert deviation(torch_logits(family_folders[name], ids), wanted) > 0.02  # what four bits cost these models
    # what is left is the rounding of activations to int8 by the kernels
    assert max(deviations("onnx", tmp_path / "onnx", wanted, ids)) < 2e-3
    assert max(deviations("llamacpp", tmp_path / "m.gguf", wanted, ids)) < 2e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_text_is_read_alike_beside_both_formats(
    name: str,
    family_folders: dict[str, Path],
    family_ggufs: dict[str, Path],
    onnx_folders: dict[str, Path],
    tmp_path: Path,
) -> None:
    shutil.copy(family_ggufs[name], tmp_path / "model.gguf")
    write_companions(model=family_folders[name], folder=tmp_path, entry="model.gguf")
    for folder, entry in ((tmp_path, "model.gguf"), (onnx_folders[name], "model.onnx")):
        figures, failures = check_text(folder=folder, entry=entry, reference=family_folders[name], probes=600)
        assert failures == [] and figures["strings"] > 400


def test_partly_rotated_heads_that_the_kernel_cannot_take_are_refused(
    family_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(family_folders["phi4-mini"], tmp_path / "m")
    config = read_json(folder / "config.json")
    rope = {**config["rope_parameters"], "partial_rotary_factor": 0.625}
    rope |= {name: rope[name][:20] for name in ("long_factor", "short_factor")}
    write_json(folder / "config.json", {**config, "rope_parameters": rope})
    with pytest.raises(StageError, match=r"expected rotated dimensions of a head by 16, .* found 40"):
        export_onnx(model=folder, out=tmp_path / "onnx", threads=1)
