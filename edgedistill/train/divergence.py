"""How far a student's distribution lies from its teacher's: over kept tokens and a tail, or a whole vocabulary.

Forward and reverse KL; generalised Jensen-Shannon (Agarwal et al. 2024, arXiv:2306.13649); skewed KL either way (Ko et
al. 2024, arXiv:2402.03898); total variation (Wen et al. 2023, arXiv:2307.15190).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

KINDS = ("forward-kl", "reverse-kl", "jsd", "skew-kl", "skew-reverse-kl", "tvd")
NOTHING = -1e4  # the log-probability of what is left out: finite, so that nothing times it is nothing
LEAST_TAIL = 1e-10  # a stored tail of no mass is rounding; in reverse KL it would forbid every other token


@dataclass(frozen=True)
class Divergence:
    """Which divergence.

    `beta` is the teacher's share in the mixture of jsd and skew-kl, the student's in that of skew-reverse-kl. A
    `temperature` T other than 1 softens both sides and counts T² times (Hinton et al. 2015, arXiv:1503.02531).
    """

    kind: str = "forward-kl"
    beta: float = 0.5
    temperature: float = 1.0


def divergence(log_p: Tensor, log_q: Tensor, *, kind: str, beta: float = 0.5) -> Tensor:
    """Of student `log_q` from teacher `log_p`, natural log-probabilities `[rows, buckets]`, in nats: `[rows]`.

    Raises:
        ValueError: there is no such divergence.
    """
    p, q = log_p.exp(), log_q.exp()
    if kind == "forward-kl":
        return (p * (log_p - log_q)).sum(-1)
    if kind == "reverse-kl":
        return (q * (log_q - log_p)).sum(-1)
    if kind == "tvd":
        return (p - q).abs().sum(-1) / 2
    if kind == "skew-reverse-kl":
        return (q * (log_q - _mixture(log_q, log_p, beta))).sum(-1)
    mixed = _mixture(log_p, log_q, beta)
    to_teacher = (p * (log_p - mixed)).sum(-1)
    if kind == "skew-kl":
        return to_teacher
    if kind == "jsd":
        return beta * to_teacher + (1 - beta) * (q * (log_q - mixed)).sum(-1)
    raise ValueError(
        f"expected a divergence of forward-kl, reverse-kl, jsd, skew-kl, skew-reverse-kl, tvd, found {kind!r}"
    )


def _mixture(log_a: Tensor, log_b: Tensor, share: float) -> Tensor:
    return torch.logaddexp(log_a + math.log(share), log_b + math.log1p(-share))


def sparse_divergence(log_q: Tensor, *, kept: Tensor, valid: Tensor, how: Divergence) -> Tensor:
    """Of a teacher known at `k` tokens: over these and one bucket for all others, `[rows]`.

    `log_q` `[rows, k + 1]` is the student's, the tail last; `kept` `[rows, k]` the teacher's log-probabilities where
    `valid`. At T ≠ 1 the two buckets (kept, tail) are compared at T = 1 and what is kept at T, by its mass and T²: the
    tail's distribution is unknown, so its mass at T is too. Of KL, at T = 1, this is the same sum.
    """
    inside = kept.masked_fill(~valid, NOTHING)
    student = log_q[:, :-1].masked_fill(~valid, NOTHING)
    mass = inside.exp().sum(1, keepdim=True).clamp(max=1)  # rounding of stored log-probabilities may pass 1
    tail = (1 - mass).clamp_min(LEAST_TAIL).log()
    if how.temperature == 1:
        teacher = torch.cat((inside, tail), 1)
        return divergence(teacher, torch.cat((student, log_q[:, -1:]), 1), kind=how.kind, beta=how.beta)
    known = torch.where(mass > 0, mass.clamp_min(LEAST_TAIL).log(), NOTHING)
    both = torch.cat((torch.logsumexp(student, 1, keepdim=True), log_q[:, -1:]), 1)
    between = divergence(torch.cat((known, tail), 1), both, kind=how.kind, beta=how.beta)
    teacher_t, student_t = (torch.log_softmax((x / how.temperature), 1) for x in (inside, student))
    teacher_t, student_t = (x.masked_fill(~valid, NOTHING) for x in (teacher_t, student_t))
    within = divergence(teacher_t, student_t, kind=how.kind, beta=how.beta)
    return between + mass[:, 0] * within * how.temperature**2
