"""The builder on stand-ins: what can be traced to stored tensors, and a model that cannot, which is built whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from edgedistill.core.errors import InputError
from edgedistill.export.onnx import export_onnx
from edgedistill.export.onnx_builder import (
    FIRST_ROW,
    StandIn,
    UntraceableError,
    check_complete,
    parts_of,
    row_numbers,
)
from edgedistill.export.onnx_graph import build_graph, is_traced
from edgedistill.quant.codes import CodeSet
from edgedistill.quant.plan import Plan


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
