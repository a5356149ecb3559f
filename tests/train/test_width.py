"""Cutting feed-forward channels, heads and hidden channels of a tiny Llama, held against the whole model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import save_tiny_llama
from tiny_training import VOCAB, load, random_examples

from edgedistill.core.errors import InputError
from edgedistill.train.data import Example
from edgedistill.train.width import Widths, cut_widths, measure_activity, narrow_model, shape_notes, widths_of

IDS = torch.tensor([[5, 9, 200, 31, 7, 60]])
TINY = Widths(hidden=64, ffn=128, heads=4, kv_heads=2, head_dim=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("width") / "llama", layers=3, seed=3)


def narrowed(model, examples=None, **sizes):
    activity = measure_activity(model, examples or random_examples(6))
    return narrow_model(model, activity, widths=cut_widths(widths_of(model.config), **sizes))


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def test_channels_that_add_nothing_go_first(folder):
    model = load(folder)
    silent = torch.arange(0, 128, 4)  # 32 of 128
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight[silent] = 0
    narrow = narrowed(model, ffn=96)
    assert narrow.config.intermediate_size == 96 and model.config.intermediate_size == 128
    assert narrow.model.layers[0].mlp.down_proj.weight.shape == (64, 96)
    torch.testing.assert_close(logits(narrow), logits(model), atol=1e-5, rtol=1e-5)


def test_channels_are_weighed_by_what_they_put_out(folder):
    model = load(folder)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight[:32] *= 100  # loud, but down_proj hears nothing of it
            layer.mlp.down_proj.weight[:, :32] = 0
    kept = narrowed(model, ffn=96).model.layers[1].mlp.up_proj.weight
    assert torch.equal(kept, model.model.layers[1].mlp.up_proj.weight[32:])


def test_heads_are_weighed_by_what_they_put_out(folder):
    model = load(folder)
    with torch.no_grad():
        for index, layer in enumerate(model.model.layers):
            for head, gain in enumerate(((1, 5, 25, 5), (25, 1, 1, 5), (1, 1, 25, 25))[index]):
                columns = layer.self_attn.o_proj.weight[:, head * 16 : head * 16 + 16]
                columns *= gain / columns.norm()
            layer.self_attn.v_proj.weight.normal_(std=0.2)
    one_each = narrowed(model, heads=2).model.layers
    for small, layer, heads in zip(one_each, model.model.layers, ((1, 2), (0, 3), (None, None)), strict=True):
        if heads[0] is not None:  # in the last layer two are alike
            wanted = torch.cat([layer.self_attn.q_proj.weight[h * 16 : h * 16 + 16] for h in heads])
            assert torch.equal(small.self_attn.q_proj.weight, wanted)
        assert torch.equal(small.self_attn.k_proj.weight, layer.self_attn.k_proj.weight)
    one_group = narrowed(model, kv_heads=1)
    assert (one_group.config.num_attention_heads, one_group.config.num_key_value_heads) == (2, 1)
    for small, layer, group in zip(one_group.model.layers, model.model.layers, (1, 0, 1), strict=True):
        assert torch.equal(small.self_attn.v_proj.weight, layer.self_attn.v_proj.weight[group * 16 : group * 16 + 16])
        assert torch.equal(small.self_attn.q_proj.weight, layer.self_attn.q_proj.weight[group * 32 : group * 32 + 32])


def test_hidden_channels_that_stay_make_up_for_those_that_go(folder):
    """A norm's factor is what the root mean square of what stays is to that of all, on the calibration."""
    model, examples = load(folder), random_examples(6)
    model.requires_grad_(False)
    before = measure_activity(model, examples)
    small = narrowed(model, examples, hidden=32)
    rows = {tuple(row.tolist()): i for i, row in enumerate(model.model.embed_tokens.weight.T)}
    kept = [rows[tuple(row.tolist())] for row in small.model.embed_tokens.weight.T]
    assert len(kept) == 32 == len(set(kept)) and kept == sorted(kept)
    assert torch.equal(small.lm_head.weight, small.model.embed_tokens.weight)
    wanted = torch.cat([model.model.embed_tokens(torch.from_numpy(e.ids)) for e in examples]).double().square()
    factor = (wanted[:, kept].mean(-1) / wanted.mean(-1)).nanmean().sqrt()  # the row of the padding is zero
    first = small.model.layers[0].input_layernorm.weight / model.model.layers[0].input_layernorm.weight[kept]
    torch.testing.assert_close(first, torch.full((32,), factor.item()), atol=0, rtol=1e-5)
    assert set(sum(before.stream.values()).topk(32).indices.tolist()) == set(kept) and len(before.stream) == 7


def test_padding_counts_for_nothing(folder):
    model = load(folder)
    short, long = random_examples(1, low=4, high=5), random_examples(1, seed=1, low=40, high=41)
    together, alone = measure_activity(model, short + long), [measure_activity(model, e) for e in (short, long)]
    tokens = [len(e.ids) for e in short + long]
    for name, found in together.inputs.items():
        wanted = sum(a.inputs[name] * n for a, n in zip(alone, tokens, strict=True)) / sum(tokens)
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ({"ffn": 100}, "student.cut.ffn to be a multiple of 32 of at most 128, found 100"),
        ({"ffn": 160}, "student.cut.ffn to be a multiple of 32 of at most 128, found 160"),
        ({"hidden": 40}, "student.cut.hidden to be a multiple of 32 of at most 64, found 40"),
        ({"kv_heads": 4}, "student.cut.kv_heads of at most 2 and 1 to 2 query heads for each, found kv_heads = 4"),
        ({"heads": 3}, "found kv_heads = 2 and heads = 3; choose heads of 2, 4"),
        ({"heads": 4, "kv_heads": 1}, "found kv_heads = 1 and heads = 4; choose heads of 1, 2"),
        ({"heads": 1, "kv_heads": 1}, "times the head width 16 to be a multiple of 32, found 16; choose another"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, sentence):
    with pytest.raises(InputError, match=sentence):
        cut_widths(TINY, **sizes)


def test_sizes_that_transformers_has_no_model_of_are_refused():
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB, hidden_size=96, intermediate_size=64, num_hidden_layers=1, num_attention_heads=3,
            num_key_value_heads=3, pad_token_id=1,
        )
    )  # fmt: skip
    with pytest.raises(
        InputError, match=r"llama model can have, found hidden = 64 and heads = 3 \(The hidden.* cut both"
    ):
        narrowed(model, hidden=64)
    assert narrowed(model, hidden=64, kv_heads=2).config.head_dim == 32


def test_widths_that_kernels_like_less_are_told(folder):
    config = load(folder).config
    (note,) = shape_notes(config, chosen={"ffn": 96, "hidden": 512})
    assert note.startswith("ffn = 96: no multiple of 256")
    assert shape_notes(config, chosen={"ffn": 512}) == []


def test_a_model_of_other_matrices_is_refused():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    config.intermediate_size = 128
    model = GPT2LMHeadModel(config)
    with pytest.raises(InputError, match=r"narrowing knows .* found transformer.wte.weight .* leave student.cut.ffn"):
        narrow_model(model, measure_activity(model, random_examples(2)), widths=cut_widths(widths_of(config), ffn=96))


def test_a_norm_of_all_heads_together_is_refused():
    from transformers import Olmo2Config, Olmo2ForCausalLM

    config = Olmo2Config(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = Olmo2ForCausalLM(config)
    activity = measure_activity(model, [Example("a", IDS[0].numpy(), 2)])
    with pytest.raises(InputError, match=r"found model.layers.0.self_attn.q_norm.weight \[64\] in Olmo2"):
        narrow_model(model, activity, widths=cut_widths(widths_of(config), heads=2))
