"""Students within a number of parameters or bytes: what is counted, what is tried, what is chosen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import save_tiny_llama
from tiny_training import load, random_examples

from edgedistill.core.errors import InputError
from edgedistill.core.runfolder import SilentReporter
from edgedistill.quant.plan import plan_of
from edgedistill.train.calibration import mean_loss
from edgedistill.train.fit import Limit, depths, model_size, try_shapes
from edgedistill.train.prune import keep_layers
from edgedistill.train.width import measure_activity, narrow_model, widths_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("fit") / "llama", layers=4, hidden=128, seed=3)


def parameters(model) -> int:
    return sum(p.numel() for p in model.parameters())


def test_a_size_is_that_of_the_model_so_cut(folder):
    model = load(folder)
    widths = replace(widths_of(model.config), hidden=96, ffn=160, heads=2)
    shallow = keep_layers(model, [0, 2, 3])
    cut = narrow_model(shallow, measure_activity(shallow, random_examples(2)), widths=widths)
    assert model_size(model, widths, layers=3, limit=Limit(0, vocab=384)) == parameters(cut)
    table = 384 * 96
    norms = 7 * 96
    on_grid = parameters(cut) - table - norms
    wanted = {"q4_0": on_grid * 18 / 32 + table * 34 / 32 + 4 * norms, "q8_0": (on_grid + table) * 34 / 32 + 4 * norms}
    for grid, size in wanted.items():
        assert model_size(model, widths, layers=3, limit=Limit(0, 384, plan_of(grid))) == size
    fewer = model_size(model, widths, layers=3, limit=Limit(0, vocab=320))
    assert parameters(cut) - fewer == 64 * 96


def test_depths_are_eighths_down_to_a_quarter():
    assert depths(30) == [30, 26, 22, 19, 15, 11, 8]
    assert depths(2) == [2, 1] and depths(1) == [1]


@pytest.mark.parametrize("plan", [None, plan_of("q4_0")])
def test_the_least_loss_within_the_limit_comes_first(folder, plan):
    model, examples = load(folder), random_examples(6)
    sets = [[0, 1, 2, 3], [0, 1, 3], [0, 3]]
    whole = model_size(model, widths_of(model.config), layers=4, limit=Limit(0, 384, plan))
    shapes = try_shapes(
        model, examples, layer_sets=sets, limit=Limit(0.6 * whole, 384, plan), fixed={}, report=SilentReporter()
    )
    assert 0.5 * whole < max(shape.size for shape in shapes) <= 0.6 * whole
    assert [s.loss for s in shapes] == sorted(s.loss for s in shapes)
    assert {len(s.layers) for s in shapes} == {2, 3, 4}
    assert {s.widths.hidden for s in shapes} == {128, 96, 64} and {s.widths.heads for s in shapes} == {2, 4}
    best = shapes[0]
    shallow = keep_layers(model, best.layers)
    cut = narrow_model(shallow, measure_activity(shallow, examples), widths=best.widths)
    assert mean_loss(cut, examples) == pytest.approx(best.loss)
    assert best.size == model_size(model, best.widths, layers=len(best.layers), limit=Limit(0, 384, plan))
    assert best.row["layers"] == len(best.layers) and best.row["ffn"] == best.widths.ffn


def test_a_limit_beyond_the_teacher_keeps_all_of_it(folder):
    model = load(folder)
    (shape,) = try_shapes(
        model, random_examples(3), layer_sets=[[0, 1, 2, 3]], limit=Limit(1e9, 384), fixed={"hidden": 128},
        report=SilentReporter(),
    )  # fmt: skip
    assert shape.widths == widths_of(model.config) and shape.size == parameters(model)
    assert shape.loss == pytest.approx(mean_loss(model, random_examples(3)))


def test_given_widths_are_not_searched(folder):
    model = load(folder)
    fixed = {"heads": 2, "kv_heads": 1, "ffn": 96}
    shapes = try_shapes(
        model, random_examples(3), layer_sets=[[0, 2]], limit=Limit(1e9, 384), fixed=fixed, report=SilentReporter()
    )
    assert len(shapes) == 3
    assert {(s.widths.heads, s.widths.kv_heads, s.widths.ffn) for s in shapes} == {(2, 1, 96)}


def test_a_target_that_nothing_fits_is_refused_with_the_least_that_does(folder):
    model, report = load(folder), SilentReporter()
    sets = [[0, 1], [0]]
    with pytest.raises(
        InputError, match=r"least student of this teacher, ([\d,]+) parameters with 384 tokens"
    ) as caught:
        try_shapes(model, random_examples(2), layer_sets=sets, limit=Limit(1000, 384), fixed={}, report=report)
    least = int(str(caught.value).split("teacher, ")[1].split(" ")[0].replace(",", ""))
    (shape,) = try_shapes(model, random_examples(2), layer_sets=sets, limit=Limit(least, 384), fixed={}, report=report)
    assert (shape.size, shape.layers, shape.widths.ffn) == (least, (0,), 32)


def test_heads_of_a_family_that_wants_them_as_wide_as_the_stream_are():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=384, hidden_size=256, intermediate_size=256, num_hidden_layers=1, num_attention_heads=8,
        num_key_value_heads=2, pad_token_id=None,
    )  # fmt: skip
    shapes = try_shapes(
        Qwen2ForCausalLM(config), random_examples(2), layer_sets=[[0]], limit=Limit(1e9, 384), fixed={},
        report=SilentReporter(),
    )  # fmt: skip
    assert {(s.widths.hidden, s.widths.heads, s.widths.kv_heads) for s in shapes} == {
        (256, 8, 2),
        (192, 6, 2),
        (128, 4, 2),
    }
