"""Training on the grid: what is computed with is what ships, bit for bit; runs go on and end as they would have."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from test_loop import Stop, settings
from tiny_models import save_tiny_llama
from tiny_training import fresh_accelerator, load, random_examples, teach

from edgedistill.core.config import validate
from edgedistill.core.errors import InputError
from edgedistill.core.recipe_train import Train
from edgedistill.export.gguf import export_gguf_codes
from edgedistill.export.weights import stored_tensors
from edgedistill.quant.blocks import decode_blocks, encode_blocks, join_blocks, split_blocks
from edgedistill.quant.codes import CodeSet
from edgedistill.quant.plan import HEAD, plan_of
from edgedistill.runtimes.base import open_session
from edgedistill.train.data import Example
from edgedistill.train.folders import copy_tokenizer, save_model
from edgedistill.train.grid import first_step, leave_on_grid, put_on_grid
from edgedistill.train.loop import train_model

pytestmark = pytest.mark.usefixtures(fresh_accelerator.__name__)
PLAN = plan_of("q4_0")
IDS = torch.arange(3, 40)[None]


@pytest.fixture
def examples(tmp_path_factory) -> list[Example]:
    teacher = load(save_tiny_llama(tmp_path_factory.mktemp("teacher") / "llama", layers=3, seed=7))
    return teach(teacher, random_examples(24))


def decoded(name: str, weight: torch.Tensor) -> torch.Tensor:
    grid = PLAN.grid(name, tuple(weight.shape))
    if grid is None:
        return weight.detach()
    return torch.from_numpy(decode_blocks(encode_blocks(weight.detach().numpy(), grid=grid)))


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("frozen", [(), ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight")])
def test_a_model_on_the_grid_is_the_model_of_its_codes(tiny_llama: Path, frozen: tuple[str, ...]) -> None:
    on_grid, ended, plain = load(tiny_llama), load(tiny_llama), load(tiny_llama)
    with torch.no_grad():
        for name, p in plain.named_parameters():
            p.copy_(decoded(name, p))
    for name in frozen:
        on_grid.get_parameter(name).requires_grad_(False)
    before = {name: p.clone() for name, p in on_grid.named_parameters()}
    put_on_grid(on_grid, plan=PLAN, activations=False)
    assert torch.equal(logits(on_grid), logits(plain)) and not torch.equal(logits(on_grid), logits(ended))
    for name, p in on_grid.named_parameters():
        assert torch.equal(p, plain.get_parameter(name) if name in frozen else before[name]), name
    for model in (on_grid, ended):
        leave_on_grid(model, plan=PLAN)
        assert torch.equal(logits(model), logits(plain))
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), plain.parameters(), strict=True))


def test_gradients_reach_the_weights_behind(tiny_llama: Path) -> None:
    model = load(tiny_llama)
    put_on_grid(model, plan=PLAN, activations=True)
    model(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None and p.grad.norm() > 0 for p in model.parameters())
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("total", "share", "first"), [(10, 1.0, 0), (10, 0.5, 5), (10, 0.25, 8), (10, 0.01, 9), (1, 0.5, 0)]
)
def test_the_share_of_the_steps_is_the_last(total: int, share: float, first: int) -> None:
    assert first_step(total=total, share=share) == first


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_an_interrupted_run_on_the_grid_ends_bit_for_bit_alike(tiny_llama, tmp_path, examples, share: float) -> None:
    kwargs = {"train": examples, "valid": examples[:4], "plan": PLAN, "grid_share": share}
    whole = load(tiny_llama)
    train_model(whole, **settings(tmp_path / "a", **kwargs))
    for at in (3, 6, 7):
        with pytest.raises(KeyboardInterrupt):
            train_model(load(tiny_llama), **settings(tmp_path / "b", **kwargs, report=Stop(at)))
    parts = load(tiny_llama)
    train_model(parts, **settings(tmp_path / "b", **kwargs))
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), parts.parameters(), strict=True))


def test_only_evaluations_on_the_grid_count_as_best(tiny_llama, tmp_path, examples) -> None:
    """The learning rate ruins the model: its first evaluation is the best, and patience would end before the grid."""
    kwargs = {"train": examples, "valid": examples[:8], "lr": 0.3, "evals_per_epoch": 6, "patience": 1}
    free = train_model(load(tiny_llama), **settings(tmp_path / "a", **kwargs))
    held = train_model(load(tiny_llama), **settings(tmp_path / "b", **kwargs, plan=PLAN, grid_share=0.5))
    assert free.steps < 6 < held.best_step <= held.steps


def test_export_writes_the_blocks_that_training_ended_on(tiny_llama, tmp_path, examples) -> None:
    model = load(tiny_llama)
    train_model(model, train=examples, **settings(tmp_path / "run", plan=PLAN, grid_share=0.5))
    folder = tmp_path / "student"
    folder.mkdir()
    save_model(model, folder)
    copy_tokenizer(tiny_llama, folder, template="{{ messages }}")
    export_gguf_codes(model=folder, out=tmp_path / "m.gguf", codes=CodeSet(PLAN))
    tensors = stored_tensors(folder)
    found = {t.name: t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    for ours, hf in (("token_embd", "embed_tokens"), ("blk.1.ffn_down", "layers.1.mlp.down_proj")):
        stored, weight = found[f"{ours}.weight"], tensors[f"model.{hf}.weight"].read()
        size = gguf.GGML_QUANT_SIZES[stored.tensor_type][1]
        blocks = split_blocks(np.asarray(stored.data).reshape(len(weight), -1, size), grid=stored.tensor_type.name)
        assert np.array_equal(decode_blocks(blocks), weight)
        trained = encode_blocks(weight, grid=stored.tensor_type.name)
        assert np.array_equal(join_blocks(blocks), join_blocks(trained))
    ids = IDS[0].tolist()
    session = open_session("llamacpp", tmp_path / "m.gguf", threads=1, context=64)
    shipped = torch.log_softmax(torch.from_numpy(session.logits(ids)).double(), -1)
    session.close()
    own = torch.log_softmax(logits(load(folder))[0].double(), -1)
    assert (own.exp() * (own - shipped)).sum(-1).mean() < 0.01  # rounded activations alone; plain Q4_0 costs far more
    assert tensors.get(HEAD) is None


def test_lora_and_a_grid_exclude_each_other() -> None:
    with pytest.raises(InputError, match=r"either \[train.lora\] or \[train.qat\]"):
        validate(Train, {"lora": {}, "qat": {}}, source="recipe.toml")
