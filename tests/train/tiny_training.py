"""Tiny examples and models for the training tests; teacher and student always differ."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from edgedistill.train.data import Example

VOCAB = 384


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """Let the test decide on its precision anew, on one thread; accelerate keeps the first precision of a process."""
    from accelerate.state import AcceleratorState

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(threads)


def load(folder: Path, dtype: torch.dtype = torch.float32):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def teach(teacher, examples: list[Example], *, k: int = 6) -> list[Example]:
    """The examples with the top-k log-probs of `teacher` at every answer token."""
    taught = []
    for e in examples:
        with torch.no_grad():
            logits = teacher(input_ids=torch.from_numpy(e.ids)[None]).logits[0, e.start - 1 : -1]
        top = torch.log_softmax(logits.double(), -1).topk(k, -1)
        taught.append(Example(e.id, e.ids, e.start, top.indices.numpy(), top.values.float().numpy()))
    return taught


def random_examples(count: int, *, seed: int = 0, low: int = 4, high: int = 14) -> list[Example]:
    """Sequences with a rule in them: the answer repeats the prompt's first tokens."""
    rng = np.random.default_rng(seed)
    examples = []
    for i in range(count):
        prompt = rng.integers(3, VOCAB, rng.integers(low, high))
        answer = np.append(prompt[: rng.integers(2, 4)], 2)
        examples.append(Example(f"r{i}", np.concatenate([prompt, answer]), len(prompt)))
    return examples
