"""What every engine can do, token ids in and logits or token ids out, and the one way to open one."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from edgedistill.core.errors import InputError

ROWS_AT_ONCE = 8  # rows of logits worked on together: as many as stay in a core's cache
BLOCK = 128


@dataclass(frozen=True)
class Generation:
    """One greedy answer: its ids (the end id included), why it ended, and what the model thought at each position.

    `top_ids` and `top_logprobs` are `[len(ids), k]`, best first, at temperature 1 over the whole vocabulary; row `i` is
    the distribution that `ids[i]` was taken from. Where it was drawn from, they are what `drawn_logprobs` gives. Both
    are None where no log-probs were asked for.
    """

    ids: list[int]
    finish: Literal["stop", "length"]
    top_ids: np.ndarray | None = None
    top_logprobs: np.ndarray | None = None


class Session(Protocol):
    """A loaded model with one running sequence (`reset`, `feed`) beside stateless `logits` and `generate`.

    `vocab` is the width of a logits row; `settings` is what the engine really runs with, for a measurement's record.
    """

    vocab: int
    settings: Mapping[str, Any]

    def reset(self) -> None:
        """Forget the running sequence, any cached prefix included."""

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        """Append ids to the running sequence through the KV cache; the last position's logits, `[vocab]` float32."""

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Logits of a fresh sequence in one pass, `[seq, vocab]` float32; the running sequence is forgotten."""

    def generate(
        self,
        batch: list[list[int]],
        *,
        max_new_tokens: int,
        eos_ids: frozenset[int],
        top_k_logprobs: int = 0,
        drawn: bool = False,
    ) -> list[Generation]:
        """Answer every prompt greedily, many at a time, in the prompts' order; the running sequence is forgotten.

        `drawn` draws `top_k_logprobs` tokens at each position instead of taking the likeliest.
        """

    def close(self) -> None:
        """Free the model; the session is of no use afterwards."""


ENGINES = {
    "hf": "edgedistill.runtimes.hf:open_hf",
    "llamacpp": "edgedistill.runtimes.llamacpp:open_llamacpp",
    "onnx": "edgedistill.runtimes.onnx:open_onnx",
}


def open_session(engine: str, path: Path, *, threads: int, context: int, **options: Any) -> Session:
    """Load the model at `path` (folder or file, as the engine wants) for sequences of at most `context` tokens.

    `options` are the engine's own: `dtype` ("float32", "bfloat16") for `hf`, `repack` for `llamacpp`.

    Raises:
        InputError: the engine is unknown, or the model is damaged or not one of this engine.
    """
    if engine not in ENGINES:
        raise InputError(f"expected an engine of {', '.join(ENGINES)}, found {engine!r}; choose one of these")
    module, _, function = ENGINES[engine].partition(":")
    return getattr(import_module(module), function)(path, threads=threads, context=context, **options)


def decode(session: Session, ids: Sequence[int], *, past: Sequence[int] = ()) -> np.ndarray:
    """Logits of `ids` after `past`, fed one token at a time through the KV cache, `[len(ids), vocab]` float32.

    `session.logits([*past, *ids])[len(past):]` is the same without the cache.
    """
    session.reset()
    if past:
        session.feed(past)
    return np.stack([session.feed([token]) for token in ids])


def shared_length(prompts: list[list[int]]) -> int:
    """How many first ids all prompts share, short of any prompt's last one; 0 for a single prompt."""
    first, last = min(prompts), max(prompts)  # in lexicographic order: what these two share, all do
    limit = min(map(len, prompts)) - 1 if len(prompts) > 1 else 0
    return next((i for i in range(limit) if first[i] != last[i]), limit)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities of `[n, vocab]` logits in float64."""
    shifted = logits.astype(np.float64) - np.max(logits, axis=1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=1, keepdims=True))


def check_room(ids: Sequence[int], *, used: int, context: int, vocab: int) -> None:
    """Hold ids about to be fed against the context and the vocabulary.

    Raises:
        InputError: there are none, they do not fit, or one is no id of the vocabulary.
    """
    if not len(ids):
        raise InputError("expected at least one token id to feed, found none")
    if used + len(ids) > context:
        raise InputError(
            f"{used + len(ids)} tokens do not fit a context of {context}; open the model with a larger context"
        )
    if not all(0 <= token < vocab for token in ids):
        raise InputError(f"expected token ids below {vocab}, found {max(ids)} or a negative one; check the tokenizer")


def check_batch(batch: list[list[int]], *, max_new_tokens: int, context: int, vocab: int) -> None:
    """Hold prompts against the context they and their answers share; raises InputError as `check_room` does."""
    if max_new_tokens < 1:
        raise InputError(f"expected max_new_tokens of at least 1, found {max_new_tokens}")
    for prompt in batch:
        check_room(prompt, used=max_new_tokens, context=context, vocab=vocab)


def top_logprobs(logits: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` best ids and their log-probs of each row of `[n, vocab]`, best first, ties by id; `[n, k]` each."""
    k = min(k, logits.shape[1])
    ids = np.empty((len(logits), k), np.int32)
    values = np.empty((len(logits), k), np.float32)
    for begin in range(0, len(logits), ROWS_AT_ONCE):
        rows = logits[begin : begin + ROWS_AT_ONCE]
        for row, low in zip(range(begin, begin + len(rows)), _below_best(rows, k), strict=True):
            near = np.flatnonzero(logits[row] >= low)
            ids[row] = near[np.argsort(-logits[row][near], kind="stable")[:k]]
        peak = rows.max(axis=1, keepdims=True)
        total = np.log(np.exp(rows - peak).sum(axis=1, keepdims=True)) + peak
        values[begin : begin + len(rows)] = np.take_along_axis(rows, ids[begin : begin + len(rows)], axis=1) - total
    return ids, values


def drawn_logprobs(logits: np.ndarray, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids drawn `draws` times from each row of `[n, vocab]`, and the logs of their shares of the draws, `[n, draws]`.

    The expected share is the probability, so a loss that is linear in the probabilities has no bias from them
    (Anshumann et al. 2025, https://arxiv.org/abs/2503.16870). Most drawn first; behind them ids are -1 and logs 0. A
    row alone decides what is drawn from it: equal rows give equal draws.
    """
    ids = np.full((len(logits), draws), -1, np.int32)
    values = np.zeros((len(logits), draws), np.float32)
    for row, scores in enumerate(np.asarray(logits, np.float32)):
        rising = np.cumsum(np.exp(scores - scores.max(), dtype=np.float64))
        points = np.random.default_rng(zlib.crc32(scores.tobytes())).random(draws) * rising[-1]
        places = np.minimum(np.searchsorted(rising, points, side="right"), len(scores) - 1)
        found, counts = np.unique(places, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        ids[row, : len(found)] = found[order]
        values[row, : len(found)] = np.log(counts[order] / draws)
    return ids, values


def _below_best(rows: np.ndarray, k: int) -> np.ndarray:
    """For each row a value that its `k` best reach and few others do: the k-th highest of the maxima of its blocks.

    Far cheaper than sorting out the k-th value itself, and no tie with it is lost.
    """
    count, vocab = rows.shape
    blocks = vocab // BLOCK
    if blocks < k:
        return np.partition(rows, -k, axis=1)[:, -k]
    highest = rows[:, : blocks * BLOCK].reshape(count, blocks, BLOCK).max(axis=2)
    return np.partition(highest, -k, axis=1)[:, -k]


def finished(ids: list[int], tops: list[tuple[np.ndarray, np.ndarray]], *, eos_ids: frozenset[int]) -> Generation:
    """The answer made of `ids` and, where asked for, the (ids, log-probs) of the best tokens at each of them."""
    return Generation(
        ids=ids,
        finish="stop" if ids[-1] in eos_ids else "length",
        top_ids=np.stack([best for best, _ in tops]) if tops else None,
        top_logprobs=np.stack([values for _, values in tops]) if tops else None,
    )
