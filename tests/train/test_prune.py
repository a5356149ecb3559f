"""Cutting layers and feed-forward channels, held against the whole model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import save_tiny_llama
from tiny_training import load, random_examples

from edgedistill.core.errors import InputError
from edgedistill.core.runfolder import SilentReporter
from edgedistill.train.data import Example
from edgedistill.train.prune import choose_layers, keep_layers, mean_loss, narrow_ffn


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


def test_channels_that_add_nothing_go_first(deep):
    model = load(deep)
    silent = torch.arange(0, 128, 4)  # 32 of 128
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight[silent] = 0
    narrow = narrow_ffn(model, random_examples(6), width=96)
    assert narrow.config.intermediate_size == 96
    assert narrow.model.layers[0].mlp.down_proj.weight.shape == (64, 96)
    torch.testing.assert_close(hidden(narrow, IDS)[-1], hidden(model, IDS)[-1], atol=1e-5, rtol=1e-5)


def test_channels_are_weighed_by_what_they_put_out(deep):
    model = load(deep)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight[:32] *= 100  # loud, but down_proj hears nothing of it
            layer.mlp.down_proj.weight[:, :32] = 0
    kept = narrow_ffn(model, random_examples(6), width=96).model.layers[1].mlp.up_proj.weight
    assert torch.equal(kept, model.model.layers[1].mlp.up_proj.weight[32:])


def test_fused_gate_and_up_are_cut_alike():
    from transformers import Phi3Config, Phi3ForCausalLM

    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=384, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=2, bos_token_id=1, eos_token_id=2, initializer_range=0.2,
    )  # fmt: skip
    model = Phi3ForCausalLM(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate_up_proj.weight[128 + 96 :] = 0  # the up half of the last 32 channels
    narrow = narrow_ffn(model, random_examples(4), width=96)
    torch.testing.assert_close(hidden(narrow, IDS)[-1], hidden(model, IDS)[-1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [100, 160])
def test_widths_that_do_not_fit_are_refused(deep, width):
    with pytest.raises(InputError, match=rf"multiple of 32 of at most 128, found {width}"):
        narrow_ffn(load(deep), random_examples(2), width=width)


def test_a_model_without_down_proj_is_refused():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=384, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    config.intermediate_size = 128
    with pytest.raises(InputError, match=r"one mlp.down_proj in each layer, found 0 .* leave student.cut.ffn out"):
        narrow_ffn(GPT2LMHeadModel(config), random_examples(2), width=96)


def test_the_layer_least_missed_goes_first(deep):
    model = load(deep)
    with torch.no_grad():
        for part in (model.model.layers[2].self_attn.o_proj, model.model.layers[2].mlp.down_proj):
            part.weight.zero_()  # layer 2 passes its input on
    examples = []
    for prompt in random_examples(8):  # answers the model itself would give: it has nothing to gain from a cut
        said = model.generate(torch.from_numpy(prompt.ids)[None], max_new_tokens=4, do_sample=False)[0].numpy()
        examples.append(Example(prompt.id, said, len(prompt.ids)))
    kept = choose_layers(model, examples, count=4, report=SilentReporter())
    assert kept == [0, 1, 3, 4]
    assert mean_loss(keep_layers(model, kept), examples) == pytest.approx(mean_loss(model, examples), rel=1e-5)
    assert len(model.model.layers) == 5
    with pytest.raises(InputError, match="at most 5, found 6"):
        choose_layers(model, examples, count=6, report=SilentReporter())
