"""Likelihoods against an independent float64 computation, and bits per byte that no tokenizer can flatter."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest

from edgedistill.core.errors import InputError
from edgedistill.evals.likelihood import WINDOW, bits_per_byte, divergence, nll


def rows(n: int, vocab: int = 50, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(n, vocab)) * 5).astype(np.float32)


def probabilities(logits: np.ndarray) -> np.ndarray:
    wide = np.exp(logits.astype(np.float64))
    return wide / wide.sum(axis=1, keepdims=True)


def test_nll_is_the_sum_of_negative_log_probabilities() -> None:
    logits, ids = rows(4), [3, 49, 0]
    wanted = -sum(math.log(probabilities(logits)[i, token]) for i, token in enumerate(ids))
    assert nll(logits, ids) == pytest.approx(wanted, rel=1e-6)


def test_divergence_of_two_models_and_of_one_with_itself() -> None:
    a, b = rows(6), rows(6, seed=1)
    b[0] = a[0]
    p, q = probabilities(a), probabilities(b)
    found = divergence(a, b)
    assert found.kld_nats == pytest.approx((p * np.log(p / q)).sum(axis=1).mean(), rel=1e-9)
    assert found.top1_ratio == (a.argmax(1) == b.argmax(1)).mean() and 0 < found.top1_ratio < 1
    assert divergence(a, a).kld_nats == pytest.approx(0, abs=1e-12) and divergence(a, a).top1_ratio == 1


def test_divergence_needs_one_vocabulary() -> None:
    with pytest.raises(ValueError, match=r"expected logits of shape \(6, 50\), found \(6, 40\)"):
        divergence(rows(6), rows(6, vocab=40))


@pytest.mark.parametrize("length", [2, WINDOW, WINDOW + 1, 3 * WINDOW])
def test_a_uniform_model_pays_the_same_for_every_token_but_the_first(length: int) -> None:
    asked: list[int] = []

    def uniform(ids: Sequence[int]) -> np.ndarray:
        assert 0 < len(ids) < WINDOW
        asked.extend(ids)
        return np.zeros((len(ids), 64), dtype=np.float32)

    text = "ab" * length  # two bytes a token
    found = bits_per_byte(uniform, ids=[1] * length, text=text, first="ab")
    assert found == pytest.approx(6 / 2)
    assert len(asked) == length - 1


def test_every_token_is_scored_once_and_with_what_is_before_it() -> None:
    ids = [int(i) for i in np.random.default_rng(3).permutation(700)]
    follows = dict(itertools.pairwise(ids))

    def knows(asked: Sequence[int]) -> np.ndarray:
        logits = np.zeros((len(asked), 700), dtype=np.float32)
        for row, token in enumerate(asked):
            logits[row, follows[token]] = 100
        return logits

    assert bits_per_byte(knows, ids=ids, text="x" * 701, first="x") < 1e-6


def test_one_token_has_no_bits_per_byte() -> None:
    with pytest.raises(InputError, match="expected text of at least two tokens"):
        bits_per_byte(lambda ids: rows(len(ids)), ids=[1], text="a", first="a")
