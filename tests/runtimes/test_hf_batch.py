"""Rows that are refilled and keys that lie in pages change no answer, whatever the model, lengths and memory."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from edgedistill.core.errors import InputError
from edgedistill.runtimes import hf_batch, hf_pages
from edgedistill.runtimes.hf import HfSession

VOCAB = 160
POSITIONS = "max_position_embeddings"
ENDS = frozenset(range(12))
SMALL = {
    "vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12}
PAGED = {
    "llama": {},
    "qwen2": {"num_key_value_heads": 6},
    "qwen3": {"head_dim": 16, "num_key_value_heads": 1},
    "phi3": {"sliding_window": 400},
    "smollm3": {"no_rope_layers": [1, 0]},
    "gpt2": {"n_embd": 48, "n_layer": 2, "n_head": 6, "n_positions": 512},
}
IN_TURNS = {
    "mistral": {"sliding_window": 16},
    "gemma3_text": {
        "sliding_window": 16,
        "head_dim": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "initializer_range": 0.05,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "mamba": {"state_size": 8, "initializer_range": 0.3},
    "mamba2": {"state_size": 8, "num_heads": 6, "head_dim": 16, "n_groups": 1, "chunk_size": 16},
    "bloom": {"n_layer": 2, "n_head": 6, "initializer_range": 0.8},
}
NO_POSITIONS = ("mamba", "mamba2", "bloom")  # whose configurations do not say how many
EXPANDED = {"deepseek_v3": LATENT | {"num_key_value_heads": 6, "first_k_dense_replace": 2}}  # after the cache


def model_of(kind: str, settings: dict[str, object], *, attention: str | None = None) -> PreTrainedModel:
    torch.manual_seed(5)
    sizes = {name: size for name, size in SMALL.items() if kind not in NO_POSITIONS or name != POSITIONS}
    config = AutoConfig.for_model(kind, **(sizes | settings))
    assert hasattr(config, POSITIONS) == (kind not in NO_POSITIONS)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)


def prompts_of(count: int, *, longest: int, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(VOCAB) for _ in range(draw.randint(1, longest))] for _ in range(count)]


def alone(model: PreTrainedModel, prompt: list[int], *, steps: int, ends: frozenset[int] = ENDS) -> list[int]:
    """The greedy answer by passes over the whole sequence, without any cache."""
    answer: list[int] = []
    with torch.inference_mode():
        while len(answer) < steps and not (answer and answer[-1] in ends):
            answer.append(int(model(torch.tensor([prompt + answer]), use_cache=False).logits[0, -1].argmax()))
    return answer


@pytest.mark.parametrize("kind", [*PAGED, *EXPANDED, *IN_TURNS])
def test_answers_of_many_are_those_of_one(kind: str, monkeypatch):
    monkeypatch.setattr(hf_batch, "BATCH_ROWS", 5)
    session = HfSession(model_of(kind, (PAGED | EXPANDED | IN_TURNS)[kind]), context=200)
    prompts = prompts_of(17, longest=70)
    expected = [alone(session.model, prompt, steps=40) for prompt in prompts]
    assert len({len(ids) for ids in expected}) > 4
    attention = session.model.config._attn_implementation
    answers = session.generate(prompts, max_new_tokens=40, eos_ids=ENDS)
    assert session._pages is (None if kind in IN_TURNS else kind in PAGED)
    assert [a.ids for a in answers] == expected
    assert session.model.config._attn_implementation == attention
    assert fed(session, prompts[0], expected[0]) == expected[0]


def fed(session: HfSession, prompt: list[int], answer: list[int]) -> list[int]:
    """What a session has next after the prompt, in two pieces, and each token of its answer, fed one by one."""
    session.reset()
    session.feed(prompt[:5])
    return [int(session.feed(ids).argmax()) for ids in (prompt[5:], *([token] for token in answer[:-1]))]


@pytest.mark.parametrize("kind", ["rwkv", "xlstm", "recurrent_gemma"])
def test_a_cache_of_another_kind_is_refused(kind: str):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL))
    session = HfSession(model, context=50)
    with pytest.raises(InputError, match=f"transformers' Cache, found {type(model).__name__}; choose"):
        session.generate([[5, 6]], max_new_tokens=2, eos_ids=ENDS)


def test_a_row_of_nan_leaves_none_behind(monkeypatch):
    monkeypatch.setattr(hf_batch, "BATCH_ROWS", 2)
    model = model_of("llama", {})
    prompts = [prompt for prompt in prompts_of(8, longest=40) if 7 not in prompt]
    ends = ENDS - {0}  # which NaN is taken for
    expected = [alone(model, prompt, steps=20, ends=ends) for prompt in prompts]
    assert not any(7 in answer[:-1] for answer in expected)
    model.get_input_embeddings().weight.data[7] = torch.nan
    session = HfSession(model, context=200)
    spoilt = [7] * (max(map(len, prompts)) + 3)  # the longest, so that it comes first
    answers = session.generate([spoilt, *prompts], max_new_tokens=20, eos_ids=ends)
    assert session._pages
    assert [a.ids for a in answers[1:]] == expected


def long_model() -> PreTrainedModel:
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": 64} | factors
    return model_of("phi3", {"rope_parameters": rope, "original_max_position_embeddings": 64})


def test_frequencies_of_the_longest_row_are_not_shared():
    assert not hf_batch.keeps_all(long_model(), cells=65)
    assert hf_batch.keeps_all(long_model(), cells=64)
    assert hf_batch.keeps_all(model_of("phi3", {}), cells=10**6)
    dynamic = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
    assert hf_batch.cells_alike(model_of("llama", {"rope_parameters": dynamic}).config) == 511


def test_long_rows_are_read_alone_and_anew_where_their_frequencies_change():
    session = HfSession(long_model(), context=200)
    start = prompts_of(1, longest=60, seed=3)[0][:20]
    prompts = [start + rest for rest in prompts_of(9, longest=100)]
    assert any(len(prompt) <= 44 for prompt in prompts) and any(44 < len(prompt) <= 64 for prompt in prompts)
    expected = [alone(session.model, prompt, steps=20) for prompt in prompts]
    answers = session.generate(prompts, max_new_tokens=20, eos_ids=ENDS)
    assert [a.ids for a in answers] == expected and session._pages is None
    few = [prompt for prompt in prompts if len(prompt) <= 44]
    again = session.generate(few, max_new_tokens=20, eos_ids=ENDS)
    assert [a.ids for a in again] == [ids for ids, prompt in zip(expected, prompts, strict=True) if prompt in few]
    assert session._pages


def test_little_memory_only_makes_prompts_wait(monkeypatch):
    model = model_of("llama", {})
    prompts = prompts_of(12, longest=90)
    expected = [alone(model, prompt, steps=30) for prompt in prompts]
    rows: list[int] = []
    step = hf_batch.Refilled._step
    monkeypatch.setattr(hf_batch.Refilled, "_step", lambda self: rows.append(len(self.rows)) or step(self))
    bytes_of_page = 2 * 2 * 2 * 8 * hf_pages.PAGE * 4  # layers, keys and values, groups, size
    monkeypatch.setattr(hf_batch, "CACHE_SHARE", 0)
    most = []
    for pages in (1, 9, 10**6):
        monkeypatch.setattr(hf_batch, "CACHE_BYTES", pages * bytes_of_page)
        session = HfSession(model, context=200)
        assert [a.ids for a in session.generate(prompts, max_new_tokens=30, eos_ids=ENDS)] == expected
        rows.clear()
        session.generate(prompts, max_new_tokens=30, eos_ids=frozenset())
        most.append(max(rows))
    assert most[0] < most[1] < most[2] == len(prompts)


def test_pages_are_given_back_and_rows_refilled(monkeypatch):
    monkeypatch.setattr(hf_batch, "BATCH_ROWS", 4)
    session = HfSession(model_of("llama", {}), context=200)
    left, fed = [], []
    run, admit = hf_batch.Refilled.run, hf_batch.Refilled._admit

    def watched(self, prompts):
        run(self, prompts)
        left.append((sorted(self.free), self.unclaimed, self.layers[0].pages[0]))

    monkeypatch.setattr(hf_batch.Refilled, "run", watched)
    monkeypatch.setattr(
        hf_batch.Refilled, "_admit", lambda self, *a, **b: fed.append(len(self.rows)) or admit(self, *a, **b)
    )
    session.generate(prompts_of(15, longest=40), max_new_tokens=30, eos_ids=ENDS)
    free, unclaimed, pages = left[-1]
    assert free == list(range(1, len(pages))) and unclaimed == len(free)
    assert any(0 < rows < 4 for rows in fed), "nobody came in beside others"
    assert not pages[0].any(), "the page that is nobody's was written"


def test_a_common_beginning_is_read_once(monkeypatch):
    session = HfSession(model_of("llama", {}), context=200)
    start = prompts_of(1, longest=60, seed=3)[0] + [7] * 40
    prompts = [start + rest for rest in prompts_of(9, longest=30, seed=4)]
    fed: list[int] = []
    last = session._last
    monkeypatch.setattr(session, "_last", lambda input_ids, **a: fed.append(input_ids.numel()) or last(input_ids, **a))
    answers = session.generate(prompts, max_new_tokens=20, eos_ids=ENDS)
    assert [a.ids for a in answers] == [alone(session.model, prompt, steps=20) for prompt in prompts]
    assert sum(fed) < len(start) + 10 * 30 + 10 * 20 + 30


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_bfloat16_from_pages_is_as_near_as_without(kind: str, monkeypatch):
    """Held by what is foretold of the tokens after the first, which alone are of pages."""
    prompts = prompts_of(40, longest=60)
    whole = HfSession(model_of(kind, PAGED[kind]), context=200)
    half = HfSession(model_of(kind, PAGED[kind]).to(torch.bfloat16), context=200)
    asked = {"max_new_tokens": 2, "eos_ids": frozenset(), "top_k_logprobs": VOCAB}

    def error(answers, expected) -> float:
        same = [(a, b) for a, b in zip(answers, expected, strict=True) if a.ids[0] == b.ids[0]]
        assert len(same) > 20
        by_id = [[g.top_logprobs[1][np.argsort(g.top_ids[1])] for g in pair] for pair in same]
        return float(np.mean([np.abs(a - b).mean() for a, b in by_id]))

    expected = whole.generate(prompts, **asked)
    paged = error(half.generate(prompts, **asked), expected)
    assert half._pages
    monkeypatch.setattr(hf_batch, "keeps_all", lambda model, cells: False)
    without = error(half.generate(prompts, **asked), expected)
    assert 0 < paged < 1.25 * without


def test_the_last_prompts_do_not_wait_for_more(monkeypatch):
    monkeypatch.setattr(hf_batch, "BATCH_ROWS", 32)
    session = HfSession(model_of("llama", {}), context=200)
    came: list[int] = []
    admit = hf_batch.Refilled._admit
    monkeypatch.setattr(
        hf_batch.Refilled, "_admit", lambda self, *a, **b: came.append(len(self.rows)) or admit(self, *a, **b)
    )
    prompts = prompts_of(33, longest=20)
    session.generate(prompts, max_new_tokens=60, eos_ids=ENDS)
    assert max(came) > 32 // hf_batch.LEAST_NEW * 2, "the last prompt waited until few rows were left"


def test_a_model_that_fails_in_pages_is_answered_in_turns():
    """ALiBi is built from a mask of two dimensions."""
    settings = {"alibi": True, "new_decoder_architecture": False, "multi_query": False, "parallel_attn": False}
    session = HfSession(model_of("falcon", settings), context=200)
    prompts = [prompt for prompt in prompts_of(30, longest=9) if len(prompt) == 9]
    expected = [alone(session.model, prompt, steps=8) for prompt in prompts]
    assert len(prompts) > 1
    assert [a.ids for a in session.generate(prompts, max_new_tokens=8, eos_ids=ENDS)] == expected
    assert session._pages is False and session.model.config._attn_implementation == "sdpa"


def test_a_common_beginning_in_turns_is_read_once(monkeypatch):
    session = HfSession(model_of("llama", {}, attention="eager"), context=200)
    prompts = [list(range(12, 50)) + rest for rest in prompts_of(6, longest=12)]
    fed: list[int] = []
    last = session._last
    monkeypatch.setattr(session, "_last", lambda input_ids, **a: fed.append(input_ids.numel()) or last(input_ids, **a))
    session.generate(prompts, max_new_tokens=1, eos_ids=ENDS)
    assert fed[0] >= 38 and sum(fed) <= fed[0] + 6 * 12


@pytest.mark.parametrize("kind", [*IN_TURNS, "llama"])
def test_a_common_beginning_in_turns(kind: str, monkeypatch):
    monkeypatch.setattr(hf_batch, "keeps_all", lambda model, cells: False)
    session = HfSession(model_of(kind, IN_TURNS.get(kind, {})), context=200)
    prompts = [list(range(12, 50)) + rest for rest in prompts_of(6, longest=12)]
    expected = [alone(session.model, prompt, steps=12) for prompt in prompts]
    assert [a.ids for a in session.generate(prompts, max_new_tokens=12, eos_ids=ENDS)] == expected


def test_what_pages_cannot_serve_goes_in_turns(monkeypatch):
    """Other attention than `sdpa`, and a model that does to keys what the stand-in for them does not survive."""
    prompts = prompts_of(6, longest=30)
    eager = HfSession(model_of("llama", {}, attention="eager"), context=200)
    expected = [alone(eager.model, prompt, steps=10) for prompt in prompts]
    assert [a.ids for a in eager.generate(prompts, max_new_tokens=10, eos_ids=ENDS)] == expected
    assert eager._pages is None
    update = hf_pages.PagedLayer.update
    monkeypatch.setattr(
        hf_pages.PagedLayer, "update", lambda self, *a, **b: tuple(kept * 1 for kept in update(self, *a, **b))
    )
    odd = HfSession(model_of("llama", {}), context=200)
    assert [a.ids for a in odd.generate(prompts, max_new_tokens=10, eos_ids=ENDS)] == expected
    assert odd._pages is False
