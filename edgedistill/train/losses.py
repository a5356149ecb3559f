"""Cross-entropy plus forward KL to a teacher of whom only the likeliest tokens are known, at supervised positions only.

With teacher probabilities `p` kept on a set S of tokens and student probabilities `q`, the divergence over S and one
bucket for all other tokens splits into
`KL = KL((p(S), 1 - p(S)) ‖ (q(S), 1 - q(S))) + p(S) · KL(p(·|S) ‖ q(·|S))`.
A temperature T other than 1 applies to the second term alone, times T² (Hinton et al. 2015, arXiv:1503.02531): the
tail's distribution is unknown, so its mass at T is too. At T = 1 this is the plain KL with a tail bucket.

Every function returns sums over positions; dividing by the count of supervised tokens of the whole step, over all
micro-batches and processes, is the caller's, so that no split of a step changes its gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LossSums:
    """Sums over positions, in nats: `total` is what is trained; `ce` and `kl` are its parts, detached."""

    total: Tensor
    ce: Tensor
    kl: Tensor


class _RowStatistics(torch.autograd.Function):
    """All that the losses need of a `[positions, vocab]` matrix, in one pass over it and one for its gradient."""

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor, ids: Tensor, valid: Tensor):  # type: ignore[override]
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        # Invalid places repeat a valid one of their row (or 0 where there is none), so that every index is in range.
        any_valid = valid.any(1, keepdim=True)
        stand_in = ids.gather(1, valid.int().argmax(1, keepdim=True))
        ids = torch.where(valid, ids, torch.where(any_valid, stand_in, 0))
        highest = logits.amax(1, keepdim=True).to(dtype)
        target_logit = logits.gather(1, targets[:, None]).to(dtype)
        top_logits = logits.gather(1, ids).to(dtype)
        exp = torch.sub(logits, highest).to(dtype).exp_()
        first = exp[:, :1].clone()
        top_exp = exp.gather(1, ids) * valid
        exp.scatter_(1, ids, torch.where(any_valid, 0.0, first).expand_as(ids).contiguous())
        rest = exp.sum(1, keepdim=True)
        total = rest + top_exp.sum(1, keepdim=True)
        ctx.save_for_backward(exp, top_exp, rest, total, targets, ids, valid)
        ctx.dtype = logits.dtype
        lse = (total.log() + highest)[:, 0]
        # A tail of exactly no mass has no finite logarithm: the least normal number stands for it.
        tiny = torch.finfo(dtype).tiny
        lse_rest = (rest.clamp_min(tiny).log() + highest)[:, 0]
        return lse, lse_rest, top_logits, target_logit[:, 0]

    @staticmethod
    def backward(ctx, g_lse: Tensor, g_rest: Tensor, g_top: Tensor, g_target: Tensor):  # type: ignore[override]
        exp, top_exp, rest, total, targets, ids, valid = ctx.saved_tensors
        tiny = torch.finfo(exp.dtype).tiny
        scale = g_lse[:, None] / total + g_rest[:, None] / rest.clamp_min(tiny)
        grad = exp * scale
        grad.scatter_add_(1, ids, g_top * valid + top_exp * (g_lse[:, None] / total))
        grad.scatter_add_(1, targets[:, None], g_target[:, None])
        return grad.to(ctx.dtype), None, None, None


def distillation_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    teacher_ids: Tensor,
    teacher_logprobs: Tensor,
    taught: Tensor,
    kd_weight: float,
    temperature: float = 1.0,
) -> LossSums:
    """Sum over positions of `(1 - kd_weight) · CE + kd_weight · KL`; of CE alone where nothing of the teacher is known.

    `logits` `[positions, vocab]`, `targets` `[positions]`; `teacher_ids` `[positions, k]` (-1: no token, or one the
    student does not have, whose mass then belongs to the tail) and `teacher_logprobs` `[positions, k]` natural
    log-probabilities over the teacher's full vocabulary at temperature 1; `taught` bool `[positions]`.
    """
    valid = (teacher_ids >= 0) & taught[:, None]
    lse, lse_rest, top_logits, target_logit = _RowStatistics.apply(logits, targets, teacher_ids, valid)
    ce = lse - target_logit
    kl = sparse_kl(lse, lse_rest, top_logits, teacher_logprobs=teacher_logprobs, valid=valid, temperature=temperature)
    weight = kd_weight * taught.to(ce.dtype)
    total = ((1 - weight) * ce + weight * kl).sum()
    return LossSums(total=total, ce=ce.detach().sum(), kl=(kl.detach() * taught).sum())


def cross_entropy(logits: Tensor, targets: Tensor) -> LossSums:
    """Sum over positions of the cross-entropy; `logits` `[positions, vocab]`, `targets` `[positions]`."""
    total = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
    return LossSums(total=total, ce=total.detach(), kl=torch.zeros_like(total.detach()))


def sparse_kl(
    lse: Tensor,
    lse_rest: Tensor,
    top_logits: Tensor,
    *,
    teacher_logprobs: Tensor,
    valid: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """Forward KL `[positions]` over the kept tokens and the tail, from the student's log-sum-exps (all, tail)."""
    dtype = lse.dtype
    inside = teacher_logprobs.to(dtype).masked_fill(~valid, -torch.inf)
    mass = inside.exp().sum(1).clamp(max=1.0)  # rounding of stored log-probs may pass 1
    tail = 1 - mass
    lowest = torch.finfo(dtype).min
    student_inside = torch.logsumexp(top_logits.masked_fill(~valid, lowest), 1)
    between = _xlogx(mass) + _xlogx(tail)
    between = between - torch.where(mass > 0, mass * (student_inside - lse), 0) - tail * (lse_rest - lse)
    t = temperature
    teacher = torch.log_softmax((inside / t).masked_fill(~valid, lowest), 1)
    student = torch.log_softmax((top_logits / t).masked_fill(~valid, lowest), 1)
    within = torch.where(valid, teacher.exp() * (teacher - student), 0).sum(1)
    return between + mass * within * t * t


def _xlogx(x: Tensor) -> Tensor:
    return torch.special.xlogy(x, x)
