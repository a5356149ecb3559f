"""Rounding with error feedback: less error in the outputs than rounding alone, on every grid, row by row."""

from __future__ import annotations

import numpy as np
import pytest

from edgedistill.quant.blocks import decode_blocks, encode_blocks, join_blocks
from edgedistill.quant.codes import CodeSet
from edgedistill.quant.compensate import compensate_blocks, output_error
from edgedistill.quant.grids import GRIDS
from edgedistill.quant.plan import Plan
from edgedistill.quant.search import search_blocks


def _layer(*, rows: int = 24, columns: int = 96, tokens: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Weights `[rows, columns]` and correlated inputs `[tokens, columns]`, a few columns much larger than the rest."""
    source = np.random.default_rng(seed)
    weights = source.normal(size=(rows, columns)).astype(np.float32)
    inputs = source.normal(size=(tokens, 40)) @ source.normal(size=(40, columns)) + source.normal(
        size=(tokens, columns)
    )
    inputs[:, ::17] *= 8
    return weights, inputs.astype(np.float32)


@pytest.mark.parametrize("grid", GRIDS)
def test_outputs_come_closer_than_by_rounding(grid: str) -> None:
    columns = max(96, GRIDS[grid].block)
    weights, inputs = _layer(columns=columns, tokens=4 * columns)
    moment = inputs.T @ inputs / len(inputs)
    blocks = compensate_blocks(weights, grid=grid, moment=moment)
    assert blocks.grid.low <= blocks.codes.min() and blocks.codes.max() <= blocks.grid.high
    searched = search_blocks(weights, grid=grid, importance=moment.diagonal())
    plain = encode_blocks(weights, grid=grid)

    def squared(found) -> float:
        return float(np.square(inputs @ (weights - decode_blocks(found)).T).mean())

    assert squared(blocks) < 0.6 * squared(searched) < 0.6 * squared(plain)
    wanted = squared(blocks) / float(np.square(inputs @ weights.T).mean())
    assert output_error(weights, blocks, moment=moment) == pytest.approx(wanted, rel=1e-3)


def test_without_correlation_it_is_the_search() -> None:
    weights, _ = _layer()
    diagonal = np.random.default_rng(1).uniform(0.5, 2, 96).astype(np.float32)
    found = compensate_blocks(weights, grid="Q4_0", moment=np.diag(diagonal))
    searched = search_blocks(weights, grid="Q4_0", importance=diagonal)
    moment = np.diag(diagonal)
    error = output_error(weights, found, moment=moment)
    assert error == pytest.approx(output_error(weights, searched, moment=moment), rel=0.02)


def test_a_row_does_not_depend_on_the_others() -> None:
    weights, inputs = _layer()
    moment = inputs.T @ inputs / len(inputs)
    whole = compensate_blocks(weights, grid="Q4_1", moment=moment)
    part = compensate_blocks(weights[5:9], grid="Q4_1", moment=moment)
    assert np.array_equal(join_blocks(part), join_blocks(whole)[5:9])


def test_columns_that_are_never_fed_keep_their_weights() -> None:
    weights, inputs = _layer()
    inputs[:, :40] = 0
    blocks = compensate_blocks(weights, grid="Q8_0", moment=inputs.T @ inputs / len(inputs))
    assert np.abs(weights - decode_blocks(blocks))[:, :32].max() < np.abs(weights).max() / 100


def test_a_code_set_takes_moments_by_name() -> None:
    weights, inputs = _layer()
    moment = inputs.T @ inputs / len(inputs)
    codes = CodeSet(Plan("Q4_0", "Q8_0"), moments={"a.weight": moment})
    found = codes.blocks("a.weight", weights)
    assert np.array_equal(join_blocks(found), join_blocks(compensate_blocks(weights, grid="Q4_0", moment=moment)))
    other = codes.blocks("b.weight", weights + 1)
    assert np.array_equal(join_blocks(other), join_blocks(encode_blocks(weights + 1, grid="Q4_0")))


def test_moments_that_do_not_fit_are_refused() -> None:
    weights, _ = _layer()
    with pytest.raises(ValueError, match=r"expected finite moments of 96 by 96, found \(64, 64\)"):
        compensate_blocks(weights, grid="Q4_0", moment=np.eye(64))
    with pytest.raises(ValueError, match="expected finite moments"):
        compensate_blocks(weights, grid="Q4_0", moment=np.full((96, 96), np.nan))
