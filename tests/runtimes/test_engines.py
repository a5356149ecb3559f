"""Three engines on one tiny random Llama: the same logits fresh and cached, the same answers alone and in batches."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from edgedistill.core.errors import InputError
from edgedistill.runtimes import hf_batch, llamacpp, onnx
from edgedistill.runtimes.base import Session, decode, open_session, shared_length, top_logprobs
from edgedistill.runtimes.gguf_model import check_gguf

CONTEXT = 96
# llama.cpp keeps keys and values in float16
TOLERANCE = {"hf": 1e-4, "llamacpp": 3e-2, "onnx": 1e-4}
ENGINES = tuple(TOLERANCE)


@pytest.fixture(scope="module")
def tiny_onnx(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny random Llama as a float32 genai folder. Do not write into it."""
    folder = tmp_path_factory.mktemp("onnx") / "tiny"
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", "fp32", "-e", "cpu"]
    places = ["-i", str(tiny_llama), "-o", str(folder), "-c", str(folder.parent / "cache")]
    subprocess.run([*builder, *places], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def sessions(tiny_llama: Path, tiny_gguf: Path, tiny_onnx: Path) -> Iterator[dict[str, Session]]:
    places = {"hf": tiny_llama, "llamacpp": tiny_gguf, "onnx": tiny_onnx}
    opened = {name: open_session(name, path, threads=1, context=CONTEXT) for name, path in places.items()}
    yield opened
    for session in opened.values():
        session.close()


@pytest.fixture(scope="module")
def reference(tiny_llama: Path) -> Callable[[list[int]], np.ndarray]:
    """Float64 logits of a sequence by the plain model, no cache."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float64).eval()

    def logits(ids: list[int]) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.tensor([ids]), use_cache=False).logits[0].numpy()

    return logits


def prompts_of(count: int, *, seed: int = 0, longest: int = 30) -> list[list[int]]:
    """Random prompts of many lengths, the model's own end id (2) among their tokens."""
    draw = random.Random(seed)
    return [[draw.choice([2, draw.randrange(384)]) for _ in range(draw.randint(1, longest))] for _ in range(count)]


def greedy(
    logits: Callable[[list[int]], np.ndarray], prompt: list[int], *, steps: int, ends: frozenset[int]
) -> list[int]:
    answer: list[int] = []
    while len(answer) < steps and not (answer and answer[-1] in ends):
        answer.append(int(logits(prompt + answer)[-1].argmax()))
    return answer


@pytest.mark.parametrize("engine", ENGINES)
def test_logits_fresh_and_through_the_cache(engine: str, sessions, reference):
    session, ids = sessions[engine], prompts_of(1, seed=4, longest=1)[0] * 3 + list(range(2, 42))
    expected = reference(ids)
    fresh = session.logits(ids)
    assert fresh.shape == (len(ids), session.vocab) and fresh.dtype == np.float32
    np.testing.assert_allclose(fresh, expected, atol=TOLERANCE[engine])
    np.testing.assert_allclose(decode(session, ids), expected, atol=TOLERANCE[engine])
    cached = decode(session, ids[25:], past=ids[:25])
    np.testing.assert_allclose(cached, expected[25:], atol=TOLERANCE[engine])
    session.reset()
    np.testing.assert_allclose(session.feed(ids[:7]), expected[6], atol=TOLERANCE[engine])
    np.testing.assert_allclose(session.feed(ids[7:9]), expected[8], atol=TOLERANCE[engine])


@pytest.mark.parametrize("engine", ENGINES)
def test_batched_answers_are_the_single_ones(engine: str, sessions, reference, monkeypatch):
    """Small batches, so that rows leave, are begun anew, and sequences are refilled many times."""
    monkeypatch.setattr(llamacpp, "PARALLEL", 3)
    monkeypatch.setattr(onnx, "BATCH_ROWS", 4)
    monkeypatch.setattr(hf_batch, "BATCH_ROWS", 8)
    session, prompts = sessions[engine], prompts_of(24, seed=1) + prompts_of(8, seed=2, longest=2)
    ends = frozenset({2, *range(40)})
    expected = [greedy(reference, prompt, steps=12, ends=ends) for prompt in prompts]
    answers = session.generate(prompts, max_new_tokens=12, eos_ids=ends, top_k_logprobs=5)
    assert len({len(ids) for ids in expected}) > 4
    assert sum(a.ids == ids for a, ids in zip(answers, expected, strict=True)) >= (32 if engine != "llamacpp" else 29)
    assert {a.finish for a in answers} == {"stop", "length"}
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.finish == ("stop" if answer.ids[-1] in ends else "length")
        rows = reference(prompt + answer.ids)[len(prompt) - 1 : -1]
        log_probs = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        assert answer.top_ids.shape == answer.top_logprobs.shape == (len(answer.ids), 5)
        assert answer.top_ids[:, 0].tolist() == answer.ids
        taken = np.take_along_axis(log_probs, answer.top_ids.astype(int), axis=1)
        np.testing.assert_allclose(answer.top_logprobs, taken, atol=2 * TOLERANCE[engine])
        best = -np.sort(-log_probs, axis=1)[:, :5]
        np.testing.assert_allclose(answer.top_logprobs, best, atol=2 * TOLERANCE[engine])


@pytest.mark.parametrize("engine", ENGINES)
def test_drawn_tokens_stand_beside_the_same_greedy_answers(engine: str, sessions):
    session, prompts = sessions[engine], prompts_of(3, seed=5)
    greedily = session.generate(prompts, max_new_tokens=4, eos_ids=frozenset())
    answers = session.generate(prompts, max_new_tokens=4, eos_ids=frozenset(), top_k_logprobs=6, drawn=True)
    assert [a.ids for a in answers] == [a.ids for a in greedily]
    for answer in answers:
        assert answer.top_ids.shape == (4, 6)
        shares = np.where(answer.top_ids >= 0, np.exp(answer.top_logprobs), 0)
        np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
        np.testing.assert_allclose(shares * 6, np.rint(shares * 6), atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_without_ends_every_answer_has_its_full_length(engine: str, sessions, reference):
    prompts = prompts_of(6, seed=3)
    answers = sessions[engine].generate(prompts, max_new_tokens=40, eos_ids=frozenset())
    assert [len(a.ids) for a in answers] == [40] * 6 and {a.finish for a in answers} == {"length"}
    assert all(a.top_ids is None and a.top_logprobs is None for a in answers)
    assert sessions[engine].generate([], max_new_tokens=4, eos_ids=frozenset()) == []


def test_ends_and_pads_of_genai_config(tiny_onnx: Path, reference, tmp_path: Path):
    """The folder's own end and pad ids stop and mask nothing by themselves: the caller says what ends an answer."""
    prompts = [prompt for prompt in prompts_of(60, seed=5, longest=9) if len(prompt) == 9]
    answers = [greedy(reference, prompt, steps=8, ends=frozenset()) for prompt in prompts]
    assert len(prompts) > 1
    folder = Path(shutil.copytree(tiny_onnx, tmp_path / "x"))
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"] |= {"eos_token_id": answers[0][1], "pad_token_id": prompts[0][-1]}
    (folder / "genai_config.json").write_text(json.dumps(config))
    session = open_session("onnx", folder, threads=1, context=CONTEXT)
    assert [a.ids for a in session.generate(prompts, max_new_tokens=8, eos_ids=frozenset())] == answers
    for ends in (frozenset({answers[0][1]}), frozenset({answers[0][1], answers[1][2]})):
        expected = [greedy(reference, prompt, steps=8, ends=ends) for prompt in prompts]
        assert [a.ids for a in session.generate(prompts, max_new_tokens=8, eos_ids=ends)] == expected


def test_parallel_context_grows(tiny_gguf: Path, sessions):
    session = open_session("llamacpp", tiny_gguf, threads=1, context=CONTEXT)
    few, many = prompts_of(2, seed=6, longest=4), prompts_of(9, seed=7, longest=50)
    ask = {"max_new_tokens": 6, "eos_ids": frozenset()}
    assert session.generate(few, **ask) == sessions["llamacpp"].generate(few, **ask)
    assert [a.ids for a in session.generate(many, **ask)] == [session.generate([p], **ask)[0].ids for p in many]
    session.close()


def test_a_shared_beginning_changes_no_answer(sessions, reference):
    start = [1, 77, 78, 79, 80]
    prompts = [start + prompt for prompt in prompts_of(10, seed=8)] + [start, [*start, 5]]
    answers = sessions["hf"].generate(prompts, max_new_tokens=10, eos_ids=frozenset(range(60)))
    assert [a.ids for a in answers] == [greedy(reference, p, steps=10, ends=frozenset(range(60))) for p in prompts]
    twins = sessions["hf"].generate([start] * 3, max_new_tokens=3, eos_ids=frozenset())
    assert [a.ids for a in twins] == [greedy(reference, start, steps=3, ends=frozenset())] * 3


def test_a_shared_beginning_is_decoded_once_by_llama_cpp(tiny_gguf: Path, monkeypatch):
    """With fewer sequences than prompts, so that ended ones begin again from what is shared."""
    monkeypatch.setattr(llamacpp, "PARALLEL", 3)
    start = [1, *range(70, 90)]
    prompts = [start + prompt for prompt in prompts_of(8, seed=8, longest=9)] + [start]
    ask = {"max_new_tokens": 8, "eos_ids": frozenset(range(60)), "top_k_logprobs": 3}
    fed = []
    run = llamacpp.LlamaContext.run
    monkeypatch.setattr(llamacpp.LlamaContext, "run", lambda self, parts: fed.append(parts) or run(self, parts))
    with closing(open_session("llamacpp", tiny_gguf, threads=1, context=CONTEXT)) as session:
        once = session.generate(prompts, **ask)
        assert sum(len(ids) for parts in fed for _, position, ids, _ in parts if position == 0) == len(start) - 1
        assert [a.ids for a in session.generate(prompts, **ask)] == [a.ids for a in once]  # nothing is left over
        monkeypatch.setattr(llamacpp, "LEAST_SHARED", 10**9)
        each = session.generate(prompts, **ask)
    assert sum(a.ids == b.ids for a, b in zip(once, each, strict=True)) >= len(prompts) - 1
    for a, b in zip(once, each, strict=True):
        np.testing.assert_allclose(a.top_logprobs[0], b.top_logprobs[0], atol=2 * TOLERANCE["llamacpp"])


def test_shared_length():
    assert shared_length([[1, 2, 3]]) == 0
    assert shared_length([[1, 2, 3], [1, 2, 3]]) == 2
    assert shared_length([[1, 2, 3, 4], [1, 2, 9], [1, 2, 3, 5]]) == 2
    assert shared_length([[1], [1, 2]]) == 0
    assert shared_length([[4, 2], [1, 2]]) == 0


def test_bfloat16_is_near(tiny_llama: Path, reference):
    session = open_session("hf", tiny_llama, threads=1, context=CONTEXT, dtype="bfloat16")
    ids = list(range(20))
    difference = np.abs(session.logits(ids) - reference(ids)).max()
    assert 1e-4 < difference < 0.3 and session.settings["dtype"] == "bfloat16"


@pytest.mark.parametrize("engine", ENGINES)
def test_settings_and_vocab(engine: str, sessions):
    assert sessions[engine].vocab == 384
    assert sessions[engine].settings["threads"] == 1
    assert sessions[engine].settings["context"] >= CONTEXT


@pytest.mark.parametrize("engine", ENGINES)
def test_ids_that_cannot_be_fed(engine: str, sessions):
    session, ends = sessions[engine], frozenset({2})
    for call, message in (
        (lambda: session.logits([]), "at least one token id"),
        (lambda: session.logits([1] * (CONTEXT + 1)), "97 tokens do not fit a context of 96"),
        (lambda: session.feed([384]), "token ids below 384"),
        (lambda: session.feed([-1]), "token ids below 384"),
        (lambda: session.generate([[1], []], max_new_tokens=4, eos_ids=ends), "at least one token id"),
        (lambda: session.generate([[1] * 90], max_new_tokens=7, eos_ids=ends), "do not fit a context"),
        (lambda: session.generate([[1]], max_new_tokens=0, eos_ids=ends), "max_new_tokens of at least 1"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    session.reset()
    session.feed([1] * CONTEXT)
    with pytest.raises(InputError, match="do not fit"):
        session.feed([1])
    session.reset()


def refuse(engine: str, path: Path, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        open_session(engine, path, threads=1, context=CONTEXT, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_models_that_do_not_open(tiny_llama: Path, tiny_gguf: Path, tmp_path: Path):
    assert "expected an engine of hf, llamacpp, onnx, found 'vllm'" in refuse("vllm", tiny_llama)
    assert "expected a dtype of float32, bfloat16, found 'int3'" in refuse("hf", tiny_llama, dtype="int3")
    assert "found no config.json" in refuse("hf", tmp_path)
    assert "found nothing there" in refuse("llamacpp", tmp_path / "x.gguf")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_gguf.read_bytes()[:-64])
    assert "is not a whole GGUF file" in refuse("llamacpp", cut)
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    assert "lack 9 tensors its config.json asks for, first 'model.layers.2" in refuse("hf", folder)
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "no-such-model"}))
    assert "transformers cannot load the model" in refuse("hf", folder)
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 128}))
    assert "expected [384, 64], the shape of model.embed_tokens.weight" in refuse("hf", folder)


def test_gguf_that_llama_cpp_refuses(tiny_gguf: Path, tmp_path: Path):
    raw, path = tiny_gguf.read_bytes(), tmp_path / "x.gguf"
    path.write_bytes(raw.replace(b"blk.1.attn_q.weight", b"blk.1.attn_z.weight"))
    assert "expected a tensor of [64, 64] as blk.1.attn_q.weight, found none" in refuse("llamacpp", path)
    assert raw.count(b"\6\0\0\0\0\0\0\0smollm") == 1
    path.write_bytes(raw.replace(b"\0smollm", b"\0smelly"))
    assert check_gguf(path).fields["tokenizer.ggml.pre"] == "smelly"
    assert "llama.cpp cannot load" in (message := refuse("llamacpp", path)) and "'smelly'" in message


ONNX_DAMAGE = {
    "config absent": (lambda f: (f / "genai_config.json").unlink(), "expected a JSON file"),
    "config damaged": (lambda f: (f / "genai_config.json").write_text("{"), "is not valid JSON"),
    "config empty": (lambda f: (f / "genai_config.json").write_text("{}"), "expected the settings of a decoder"),
    "names outside": (lambda f: rename_in_config(f, "../model.onnx"), "expected a path inside"),
    "names nothing": (lambda f: rename_in_config(f, "other.onnx"), "names other.onnx, which is not there"),
    "graph cut": (lambda f: os.truncate(f / "model.onnx", 5000), "is not a readable ONNX model"),
    "data cut": (lambda f: os.truncate(f / "model.onnx.data", 100_000), "ends at byte 100000"),
    "data absent": (lambda f: (f / "model.onnx.data").unlink(), "expected the external data of"),
}


def rename_in_config(folder: Path, name: str) -> None:
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["decoder"]["filename"] = name
    (folder / "genai_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("name", ONNX_DAMAGE)
def test_damaged_genai_folders(name: str, tiny_onnx: Path, tmp_path: Path, capfd):
    damage, message = ONNX_DAMAGE[name]
    folder = Path(shutil.copytree(tiny_onnx, tmp_path / "model"))
    damage(folder)
    assert message in refuse("onnx", folder)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("vocab", "k"), [(500, 40), (6001, 8), (5, 8)], ids=["few blocks", "blocks", "all"])
@pytest.mark.parametrize("spread", [0.0, 0.001, 1.0, 30.0])
def test_top_logprobs_against_a_full_sort(spread: float, vocab: int, k: int):
    logits = (np.random.default_rng(0).standard_normal((19, vocab)) * spread).astype(np.float32)
    logits[:, -1] = logits.max(axis=1)  # a tie with the best, outside every whole block
    ids, values = top_logprobs(logits, k)
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True))
    order = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    assert (ids == order).all()
    np.testing.assert_allclose(values, np.take_along_axis(exact, order, axis=1), atol=2e-4)


def test_light_modules_stay_light():
    code = (
        "import sys; import edgedistill.runtimes.base, edgedistill.runtimes.sources;"
        "heavy = {'torch','transformers','gguf','llama_cpp','onnxruntime','onnxruntime_genai','huggingface_hub'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_llamacpp_worker_needs_no_torch(tiny_gguf: Path):
    code = (
        "import sys; from pathlib import Path; from edgedistill.runtimes.base import open_session;"
        f"s = open_session('llamacpp', Path({str(tiny_gguf)!r}), threads=1, context=32); s.feed([1, 2]);"
        "print(sorted({'torch','transformers','gguf'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
