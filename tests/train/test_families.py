"""Every architecture that is exported trains, packed and padded alike, whole and with LoRA, and is saved as it is."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_loop import settings
from tiny_training import fresh_accelerator, load, teach

sys.path.append(str(Path(__file__).resolve().parents[1] / "export"))
from family_builders import FAMILIES, save_family

from edgedistill.train.data import Example, collate_rows, pack
from edgedistill.train.folders import save_model
from edgedistill.train.loop import train_model
from edgedistill.train.lora import add_lora, factors, merge_lora
from edgedistill.train.prune import mean_loss
from edgedistill.train.step import step_losses

pytestmark = pytest.mark.usefixtures(fresh_accelerator.__name__)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory) -> Path:
    return save_family(tmp_path_factory.mktemp("family") / request.param, name=request.param)


@pytest.fixture
def examples(folder) -> list[Example]:
    """Random texts, some longer than Gemma's window, taught by a model near to the student."""
    teacher = load(folder)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.3 * parameter.std() * torch.randn_like(parameter))
    sizes = rng.integers(6, 40, 8)
    rows = [Example(f"e{i}", rng.integers(3, 600, n), int(n) // 2) for i, n in enumerate(sizes)]
    return teach(teacher, rows)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_gradient_invariance_to_packing_in_every_family(folder, examples, attention):
    model = load(folder)
    model.set_attn_implementation(attention)
    found = []
    for rows in ([[e] for e in examples], pack(examples, width=90)):
        model.zero_grad()
        step_losses(model, collate_rows(rows), kd_weight=0.5).total.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert len(pack(examples, width=90)) < len(examples)
    assert (found[0] - found[1]).norm() / found[0].norm() < 1e-5


def test_every_family_learns_in_one_step_and_is_saved(folder, examples, tmp_path):
    model = load(folder)
    before = mean_loss(model, examples)
    rates = {"lr": 1e-3, "epochs": 1, "batch_size": 8, "warmup_ratio": 0.0, "kd_weight": 0.3}
    result = train_model(model, train=examples, **settings(tmp_path / "run", **rates))
    assert result.steps == 1 and mean_loss(model, examples) < before
    (tmp_path / "saved").mkdir()
    save_model(model, tmp_path / "saved")
    again, ids = load(tmp_path / "saved"), torch.from_numpy(examples[0].ids)[None]
    again.set_attn_implementation("eager")  # as it was trained
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, model.eval()(input_ids=ids).logits)


def test_every_family_learns_with_lora_and_is_merged(folder, examples, tmp_path):
    base = load(folder)
    before = mean_loss(base, examples)
    wrapped = add_lora(copy.deepcopy(base), rank=4, alpha=8, seed=0)
    rates = {"lr": 1e-2, "epochs": 2, "batch_size": 8, "warmup_ratio": 0.0, "kd_weight": 0.3}
    train_model(wrapped, train=examples, **settings(tmp_path / "run", **rates))
    merged = merge_lora(load(folder), factors(wrapped), rank=4, alpha=8)
    assert type(merged) is type(base) and mean_loss(merged, examples) < before
    assert any(not torch.equal(p, q) for p, q in zip(base.parameters(), merged.parameters(), strict=True))
