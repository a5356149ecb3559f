"""What a model thinks of given text: bits per byte, likelihood, and how far its distributions lie from another's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgedistill.core.errors import InputError
from edgedistill.runtimes.base import log_softmax

Logits = Callable[[Sequence[int]], NDArray[np.float32]]
# Context of the plain-text windows: every engine and every small student has it.
WINDOW = 256


@dataclass(frozen=True)
class Divergence:
    """KL(reference ‖ model) in nats, mean over the positions, and the share of positions with the same best token."""

    kld_nats: float
    top1_ratio: float


def nll(logits: NDArray[np.float32], ids: Sequence[int]) -> float:
    """Negative log-likelihood in nats, summed, of `ids` under `[n, vocab]` logits, the first rows of which are used."""
    rows = logits[: len(ids)]
    peak = rows.max(axis=1)
    total = np.log(np.exp(rows - peak[:, None]).sum(axis=1, dtype=np.float64)) + peak
    return float((total - rows[np.arange(len(ids)), list(ids)]).sum())


def divergence(reference: NDArray[np.float32], model: NDArray[np.float32]) -> Divergence:
    """How far the distributions of logits `[n, vocab]` lie from a reference's at the same positions.

    Raises:
        ValueError: they are not over the same positions and vocabulary.
    """
    if reference.shape != model.shape:
        raise ValueError(f"expected logits of shape {reference.shape}, found {model.shape}")
    p, q = log_softmax(reference), log_softmax(model)
    kld = float((np.exp(p) * (p - q)).sum(axis=1).mean())
    return Divergence(kld_nats=max(0.0, kld), top1_ratio=float((p.argmax(axis=1) == q.argmax(axis=1)).mean()))


def bits_per_byte(logits: Logits, *, ids: Sequence[int], text: str, first: str) -> float:
    """Negative log2-likelihood of `text` per UTF-8 byte, comparable between vocabularies.

    `ids` are the text's tokens, scored in windows of `WINDOW` tokens that share one token, so that every token but the
    first, whose text is `first`, is scored once; the bytes of the first do not count.

    Raises:
        InputError: the text has fewer than two tokens.
    """
    if len(ids) < 2:
        raise InputError(f"expected text of at least two tokens for bits per byte, found {len(ids)}")
    nats = 0.0
    for begin in range(0, len(ids) - 1, WINDOW - 1):
        window = list(ids[begin : begin + WINDOW])
        nats += nll(logits(window[:-1]), window[1:])
    return nats / math.log(2) / (len(text.encode()) - len(first.encode()))
