"""Cutting layers, held against the whole model."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from tiny_models import save_tiny_llama
from tiny_training import VOCAB, load, random_examples

from edgedistill.core.errors import InputError
from edgedistill.core.runfolder import SilentReporter
from edgedistill.train.calibration import mean_loss
from edgedistill.train.data import Example
from edgedistill.train.prune import block_influences, choose_layers, keep_layers, removal_order


@pytest.fixture(scope="module")
def deep(tmp_path_factory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("deep") / "llama", layers=5, seed=3)


def hidden(model, ids):
    with torch.no_grad():
        return model(ids, output_hidden_states=True).hidden_states


IDS = torch.tensor([[5, 9, 200, 31, 7, 60]])


def test_kept_layers_do_what_they_did(deep):
    model = load(deep)
    cut = keep_layers(model, [0, 1, 3])
    assert cut.config.num_hidden_layers == len(cut.model.layers) == 3 and model.config.num_hidden_layers == 5
    assert torch.equal(hidden(cut, IDS)[2], hidden(model, IDS)[2])
    assert torch.equal(cut.model.layers[2].mlp.up_proj.weight, model.model.layers[3].mlp.up_proj.weight)
    text = torch.cat([IDS, cut.generate(IDS, max_new_tokens=4, do_sample=False)[:, IDS.shape[1] :]], 1)
    with torch.no_grad():  # the KV cache works with the renumbered layers
        assert torch.equal(cut(text).logits[0, IDS.shape[1] - 1 : -1].argmax(-1), text[0, IDS.shape[1] :])


@pytest.mark.parametrize("layers", [[], [0, 0], [5], [-1, 2]])
def test_layers_that_do_not_exist_are_refused(deep, layers):
    with pytest.raises(InputError, match="expected distinct layers from 0 to 4"):
        keep_layers(load(deep), layers)


@pytest.fixture
def idle(deep):
    """The model with a layer 2 that passes its input on, and examples that it gains nothing from a cut on."""
    model = load(deep)
    with torch.no_grad():
        model.model.embed_tokens.weight[2].normal_(std=0.2)  # a fresh model's row of the padding is zero
        for part in (model.model.layers[2].self_attn.o_proj, model.model.layers[2].mlp.down_proj):
            part.weight.zero_()
    examples = []
    for prompt in random_examples(8):  # answers the model itself would give
        said = model.generate(torch.from_numpy(prompt.ids)[None], max_new_tokens=4, do_sample=False)[0].numpy()
        examples.append(Example(prompt.id, said, len(prompt.ids)))
    return model, examples


@pytest.mark.parametrize("score", ["loss", "influence"])
def test_the_layer_least_missed_goes_first(idle, score):
    model, examples = idle
    kept = choose_layers(model, examples, count=4, report=SilentReporter(), score=score)
    assert kept == [0, 1, 3, 4]
    assert mean_loss(keep_layers(model, kept), examples) == pytest.approx(mean_loss(model, examples), rel=1e-5)
    assert len(model.model.layers) == 5
    with pytest.raises(InputError, match="at most 5, found 6"):
        choose_layers(model, examples, count=6, report=SilentReporter(), score=score)


def test_block_influence_is_one_less_the_cosine_of_what_enters_and_leaves(idle):
    model, examples = idle
    cosines = []
    for example in examples:  # alone, so without padding
        with torch.no_grad():
            states = hidden(model, torch.from_numpy(example.ids)[None])[:5]  # but the last, which has been normed
        ends = [state[0].double() for state in states]
        cosines.append([(a * b).sum(-1) / a.norm(dim=-1) / b.norm(dim=-1) for a, b in itertools.pairwise(ends)])
    wanted = [1 - float(torch.cat(of_layer).mean()) for of_layer in zip(*cosines, strict=True)]
    found = block_influences(model, examples)
    assert found[:4] == pytest.approx(wanted, abs=1e-5)
    assert found[2] == pytest.approx(0, abs=1e-6) and min(found[:2] + found[3:]) > 1e-3


def test_the_order_of_removal_is_nested(idle):
    model, examples = idle
    order = removal_order(model, examples, count=3, report=SilentReporter())
    assert order[0] == 2 and len(set(order)) == 3
    for count in (1, 2):
        assert removal_order(model, examples, count=count, report=SilentReporter()) == order[:count]


def test_a_trial_without_a_layer_has_the_settings_of_those_left():
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    kinds = ["sliding_attention", "full_attention", "full_attention"]
    rope = {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}
    config = Gemma3TextConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, query_pre_attn_scalar=16, sliding_window=4, layer_types=kinds,
        rope_parameters=rope | {"sliding_attention": {"rope_type": "default", "rope_theta": 1e2}},
        initializer_range=0.3,
    )  # fmt: skip
    model, examples = Gemma3ForCausalLM(config).eval(), random_examples(4, low=8)
    (first,) = removal_order(model, examples, count=1, report=SilentReporter())
    losses = [mean_loss(keep_layers(model, [i for i in range(3) if i != out]), examples) for out in range(3)]
    assert first == losses.index(min(losses)) and len({f"{loss:.3f}" for loss in losses}) == 3
    assert model.config.layer_types == kinds and len(model.model.layers) == 3
