"""The quantization benchmark's parts that need no large model: moving weights off their grid, and telling so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scripts_outside import script

from edgedistill.quant.blocks import decode_blocks, encode_blocks

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def offgrid():
    return script("benchmarks/offgrid_model.py")


def _model(offgrid, *, on_grid: bool) -> torch.nn.Module:
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(64, 64, bias=False) for _ in range(4)))
    if on_grid:
        with torch.no_grad():
            for parameter in model.parameters():
                rounded = decode_blocks(encode_blocks(parameter.numpy(), grid="Q4_1"))
                parameter.copy_(torch.from_numpy(rounded))
    return model


def test_the_ratio_tells_weights_on_the_grid_from_weights_off_it(offgrid) -> None:
    assert offgrid.off_grid_ratio(_model(offgrid, on_grid=True)) < 0.01
    assert 0.8 < offgrid.off_grid_ratio(_model(offgrid, on_grid=False)) < 1.1
    moved = _model(offgrid, on_grid=True)
    before = [p.detach().clone() for p in moved.parameters()]
    offgrid.move_within_cells(moved, seed=0)
    assert 0.8 < offgrid.off_grid_ratio(moved) < 1.1
    for old, new in zip(before, moved.parameters(), strict=True):
        blocks = old.numpy().reshape(64, -1, 32)
        step = (blocks.max(2) - blocks.min(2)) / 15
        change = np.abs(new.detach().numpy().reshape(64, -1, 32) - blocks)
        assert (change <= 0.501 * step[..., None]).all() and change.max() > 0.3 * step.max()
