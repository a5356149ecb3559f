"""On-policy distillation: now and then a step learns from the student's own answers (GKD, arXiv:2306.13649)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from edgedistill.train.data import Example


@dataclass(frozen=True)
class OnPolicy:
    """The share of steps that learn from samples, the most tokens of an answer, and the ids that end one.

    Only the first `known` ids are drawn: those that the teacher can judge.
    """

    share: float
    max_new_tokens: int
    ends: tuple[int, ...]
    known: int


def is_sampled(step: int, *, share: float, seed: int) -> bool:
    """Whether `step` learns from samples; seed and step alone decide, so a resumed run decides alike."""
    return bool(np.random.default_rng([seed, step]).random() < share)


@torch.no_grad()
def sample_answers(model: Any, examples: Sequence[Example], *, how: OnPolicy, seed: Sequence[int]) -> list[Example]:
    """The prompts of `examples` with answers that `model` draws at temperature 1, each up to its end; no distributions.

    `seed` alone determines the draws; the random state of the process stays as it was.
    """
    prompts = [e.ids[: e.start] for e in examples]
    longest = max(map(len, prompts))
    device = next(model.parameters()).device
    ids = np.full((len(prompts), longest), how.ends[0])
    mask = np.zeros_like(ids)
    for place, prompt in enumerate(prompts):
        ids[place, longest - len(prompt) :] = prompt
        mask[place, longest - len(prompt) :] = 1
    trained = model.training
    unknown = list(range(how.known, model.get_output_embeddings().weight.shape[0]))
    model.eval()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.default_rng(list(seed)).integers(2**31)))
        found = model.generate(
            input_ids=torch.from_numpy(ids).to(device), attention_mask=torch.from_numpy(mask).to(device),
            do_sample=True, temperature=1.0, top_k=0, top_p=1.0, use_cache=True, eos_token_id=list(how.ends),
            pad_token_id=how.ends[0], suppress_tokens=unknown or None,
            max_new_tokens=max(1, min(how.max_new_tokens, model.config.max_position_embeddings - longest)),
        )  # fmt: skip
    model.train(trained)
    answers = found[:, longest:].cpu().numpy()
    return [
        replace(e, ids=np.concatenate((e.ids[: e.start], _ended(answer, how.ends))), top_ids=None, top_logprobs=None)
        for e, answer in zip(examples, answers, strict=True)
    ]


def _ended(answer: np.ndarray, ends: tuple[int, ...]) -> np.ndarray:
    places = np.flatnonzero(np.isin(answer, ends))
    return answer[: places[0] + 1] if len(places) else answer
