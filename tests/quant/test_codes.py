"""A plan names each tensor's grid; the code set encodes every row once, with importances where a tensor has them."""

from __future__ import annotations

import numpy as np
import pytest

from edgedistill.quant.blocks import encode_blocks, join_blocks
from edgedistill.quant.codes import CodeSet
from edgedistill.quant.plan import HEAD, Plan
from edgedistill.quant.search import search_blocks, weighted_error

UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"


def matrix(rows: int = 6, columns: int = 96) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "shape", "grid"),
    [
        (UP, (4, 64), "Q4_0"),
        (DOWN, (4, 64), "Q5_1"),
        (HEAD, (4, 64), "Q8_0"),
        ("model.norm.weight", (64,), None),
        (UP, (4, 80), None),
    ],
)
def test_a_plan_names_the_grid(name: str, shape: tuple[int, ...], grid: str | None) -> None:
    assert Plan("Q4_0", "Q8_0", {DOWN: "Q5_1"}).grid(name, shape) == grid


def test_a_width_that_fills_no_block_of_256_falls_back_and_counts() -> None:
    plan = Plan("Q6_K", "Q8_0", {DOWN: "Q5_1"})
    shapes = {UP: (4, 288), DOWN: (4, 288), HEAD: (4, 80), "b.weight": (4, 512), "norm.weight": (288,)}
    found = [plan.grid(name, shape) for name, shape in shapes.items()]
    assert found == ["Q8_0", "Q5_1", None, "Q6_K", None] and plan.fallbacks(shapes) == 2
    assert CodeSet(plan).blocks("b.weight", matrix(columns=512)).codes.shape == (6, 2, 256)
    assert CodeSet(plan).blocks(UP, matrix(columns=288)).grid.name == "Q8_0"
    with pytest.raises(ValueError, match="expected a grid of"):
        Plan("Q3_K", "Q8_0").grid(UP, (4, 64))


def test_a_row_asked_for_twice_is_encoded_once() -> None:
    codes, weights = CodeSet(Plan("Q4_0", "Q8_0")), matrix()
    first = codes.blocks(UP, weights)
    again = codes.blocks("another name of a stack", weights[::-1])
    assert len(codes) == len(weights)
    assert np.array_equal(join_blocks(first), join_blocks(again)[::-1])
    assert np.array_equal(join_blocks(first), join_blocks(encode_blocks(weights, grid="Q4_0")))


def test_importances_weigh_the_columns_of_their_tensor_alone() -> None:
    weights, importance = matrix(), np.geomspace(1e-3, 1e3, 96)
    codes = CodeSet(Plan("Q4_0", "Q8_0"), importances={UP: importance})
    searched, plain = codes.blocks(UP, weights), CodeSet(codes.plan).blocks(UP, weights)
    wanted = search_blocks(weights, grid="Q4_0", importance=importance)
    assert np.array_equal(join_blocks(searched), join_blocks(wanted))
    error = {
        name: weighted_error(weights, b, importance=importance) for name, b in (("ours", searched), ("ref", plain))
    }
    assert error["ours"] < error["ref"]


def test_what_fills_no_block_is_refused() -> None:
    with pytest.raises(ValueError, match=r"multiples of 32, found \(6, 80\)"):
        CodeSet(Plan("Q4_0", "Q8_0")).blocks(UP, matrix(columns=80))
