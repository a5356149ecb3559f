"""LM head and loss in one: no logits `[positions, vocab]` ever stand in memory whole, and no graph is kept of them.

Positions are taken some at a time: logits, losses, their gradient in closed form, and at once its products with the
head and the hidden states. Of the loss only a few numbers of each row depend on the divergence (the student's
log-probabilities of the kept tokens and of the tail); the rest of a row's gradient is its softmax times one number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgedistill.train.divergence import NOTHING, Divergence, divergence, sparse_divergence

# Settings of models that cap or scale their logits.
AFTER_THE_HEAD = ("final_logit_softcapping", "logits_scaling", "logit_scale")
ROWS = 256  # positions at once: enough for full speed of the products, little beside a whole batch


@dataclass(frozen=True)
class LossSums:
    """Sums over positions, in nats: `total` is what is trained; `ce`, `kl` and `match` are its parts, detached.

    Dividing by the count of supervised tokens of the whole step, over all micro-batches and processes, is the caller's,
    so that no split of a step changes its gradient.
    """

    total: Tensor
    ce: Tensor
    kl: Tensor
    match: Tensor | None = None


@dataclass(frozen=True)
class Kept:
    """A cached teacher: `ids` `[n, k]` (-1: none, or one the student lacks), `logprobs` at T = 1, `taught` `[n]`."""

    ids: Tensor
    logprobs: Tensor
    taught: Tensor

    def rows(self, part: slice) -> Kept:
        return Kept(self.ids[part], self.logprobs[part], self.taught[part])


@dataclass(frozen=True)
class Online:
    """A teacher beside its student: `hidden` `[n, width]`, its head's `weight` `[vocab or more, width]` and `bias`.

    A vocabulary padded further than the student's is cut to it, a shorter one leaves the student's rest out.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None

    def rows(self, part: slice) -> Online:
        return Online(self.hidden[part], self.weight, self.bias)


@dataclass(frozen=True)
class Mixed:
    """Several teachers beside their student: at each position the mean of their distributions by its `shares`.

    `shares` are `[n, teachers]`, each row sums to 1; where a teacher has none, its `hidden` is of no account.
    """

    teachers: tuple[Online, ...]
    shares: Tensor

    def rows(self, part: slice) -> Mixed:
        return Mixed(tuple(teacher.rows(part) for teacher in self.teachers), self.shares[part])


Teacher = Kept | Online | Mixed


def head_losses(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    teacher: Teacher | None = None,
    kd_weight: float = 0.0,
    how: Divergence | None = None,
    token_weights: Tensor | None = None,
    rows: int = ROWS,
) -> LossSums:
    """Sums over positions of `(1 - kd_weight) · cross-entropy + kd_weight · divergence`, each times its token's weight.

    `hidden` `[n, width]`, `weight` `[vocab, width]`, `bias` `[vocab]`, `targets` `[n]`, `token_weights` `[n]`; a
    position that a cached teacher did not teach has cross-entropy alone. Products run in bfloat16 under autocast, the
    loss in float32 (float64 of float64).
    """
    how = how or Divergence()
    given = (hidden, weight, bias)
    wanted = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in given]
    device = hidden.device.type
    low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    with torch.no_grad(), torch.autocast(device, enabled=False):
        h, w = hidden.to(low), weight.to(low)
        weigh = torch.ones_like(targets, dtype=_wide(h)) if token_weights is None else token_weights.to(_wide(h))
        sums = torch.zeros(3, dtype=_wide(h), device=h.device)
        gradients = [torch.zeros_like(x) if want else None for x, want in zip(given, wanted, strict=True)]
        for begin in range(0, len(h), rows):
            part = slice(begin, begin + rows)
            z = functional.linear(h[part], w, None if bias is None else bias.to(low)).to(_wide(h))
            known = None if teacher is None or kd_weight == 0 else teacher.rows(part)
            found = _rows(z, targets[part], weigh[part], known, kd_weight=kd_weight, how=how, gradient=any(wanted))
            sums += found
            if any(wanted):
                _accumulate(gradients, z.to(low), h[part], w, part)
    total: Tensor = _Given.apply(sums[0], *given, *gradients)
    return LossSums(total=total, ce=sums[1], kl=sums[2])


def logit_losses(
    logits: Tensor, targets: Tensor, *, teacher: Teacher | None, kd_weight: float, how: Divergence | None = None
) -> LossSums:
    """As `head_losses`, of logits `[n, vocab]` that something came behind the head, such as a soft cap."""
    with torch.no_grad():
        gradient = logits.to(_wide(logits), copy=True)
        sums = _rows(
            gradient, targets, torch.ones_like(targets, dtype=gradient.dtype), None if kd_weight == 0 else teacher,
            kd_weight=kd_weight, how=how or Divergence(), gradient=True,
        )  # fmt: skip
    total: Tensor = _Given.apply(sums[0], logits, None, None, gradient.to(logits.dtype), None, None)
    return LossSums(total=total, ce=sums[1], kl=sums[2])


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _accumulate(gradients: list[Tensor | None], dz: Tensor, h: Tensor, w: Tensor, part: slice) -> None:
    of_hidden, of_weight, of_bias = gradients
    if of_hidden is not None:
        of_hidden[part] = (dz @ w).to(of_hidden.dtype)
    if of_weight is not None:
        if of_weight.dtype == dz.dtype:
            of_weight.addmm_(dz.T, h)
        else:
            of_weight += dz.T @ h
    if of_bias is not None:
        of_bias += dz.sum(0)


class _Given(torch.autograd.Function):
    """A value whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, hidden: Any, weight: Any, bias: Any, *gradients: Tensor | None) -> Tensor:
        ctx.gradients = gradients
        return total.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [None if g is None else g.mul_(upstream[0].to(g.dtype)) for g in ctx.gradients]
        ctx.gradients = ()
        return (None, *scaled, None, None, None)


def _rows(
    z: Tensor, targets: Tensor, weigh: Tensor, teacher: Teacher | None, *, kd_weight: float, how: Divergence,
    gradient: bool,
) -> Tensor:  # fmt: skip
    """Sums (total, cross-entropy, divergence) of logits `z` `[rows, vocab]`, which their gradient then replaces."""
    if isinstance(teacher, Online | Mixed):
        return _online(z, targets, weigh, teacher, kd_weight=kd_weight, how=how)
    target = z.gather(1, targets[:, None])
    highest = z.amax(1, keepdim=True)
    if teacher is None:
        exp = z.sub_(highest).exp_()
        whole = exp.sum(1, keepdim=True)
        ce = (whole.log() + highest - target)[:, 0]
        if gradient:
            exp.mul_(weigh[:, None] / whole)
            exp.scatter_add_(1, targets[:, None], -weigh[:, None])
        sums = (ce * weigh).sum()
        return torch.stack((sums, sums, torch.zeros_like(sums)))
    valid = (teacher.ids >= 0) & teacher.taught[:, None]
    # Invalid places repeat a valid one of their row (or 0 where there is none), so that every index is in range.
    any_valid = valid.any(1, keepdim=True)
    stand_in = teacher.ids.gather(1, valid.int().argmax(1, keepdim=True))
    ids = torch.where(valid, teacher.ids, torch.where(any_valid, stand_in, 0))
    top = z.gather(1, ids)
    exp = z.sub_(highest).exp_()
    first = exp[:, :1].clone()
    inside = exp.gather(1, ids) * valid
    exp.scatter_(1, ids, torch.where(any_valid, 0.0, first).expand_as(ids).contiguous())
    # A tail of exactly no mass has no finite logarithm: the least normal number stands for it.
    rest = exp.sum(1, keepdim=True).clamp_min(torch.finfo(z.dtype).tiny)
    whole = rest + inside.sum(1, keepdim=True)
    lse = whole.log() + highest
    ce = (lse - target)[:, 0]
    log_q = torch.cat((torch.where(valid, top - lse, NOTHING), rest.log() + highest - lse), 1)
    with torch.enable_grad():
        log_q.requires_grad_(gradient)
        apart = sparse_divergence(log_q, kept=teacher.logprobs.to(z.dtype), valid=valid, how=how)
        use = weigh * kd_weight * teacher.taught
        taught_sum = (apart * use).sum()
        pull = torch.autograd.grad(taught_sum, log_q)[0] if gradient else None
    plain = weigh - use
    if pull is not None:
        pull[:, :-1].mul_(valid)
        drift = (plain - pull.sum(1))[:, None] / whole
        tail = pull[:, -1:] / rest
        values = torch.where(valid, inside * drift + pull[:, :-1], 0)
        exp.mul_(drift + tail)
        exp.scatter_add_(1, ids, values)
        exp.scatter_add_(1, targets[:, None], -plain[:, None])
    total = (ce * plain).sum() + taught_sum.detach()
    return torch.stack((total, (ce * weigh).sum(), (apart.detach() * weigh * teacher.taught).sum()))


def _online(
    z: Tensor, targets: Tensor, weigh: Tensor, teacher: Online | Mixed, *, kd_weight: float, how: Divergence
) -> Tensor:
    """As `_rows`, of teachers whose whole distribution is known."""
    asked = teacher.teachers if isinstance(teacher, Mixed) else (teacher,)
    # Also of those without a share in these rows: which tokens count must not change with the micro-batch.
    vocab = min(z.shape[1], *(len(each.weight) for each in asked))
    shares = teacher.shares.to(z.dtype).T if isinstance(teacher, Mixed) else (None,)
    known = [
        _log_probs(each, vocab=vocab, temperature=how.temperature, share=share).to(z.dtype)
        for each, share in zip(asked, shares, strict=True)
        if share is None or bool(share.any())
    ]
    log_p = known[0] if len(known) == 1 else torch.logsumexp(torch.stack(known), 0)
    with torch.enable_grad():
        logits = z.detach().clone().requires_grad_()
        ce = functional.cross_entropy(logits, targets, reduction="none")
        log_q = torch.log_softmax(logits[:, :vocab] / how.temperature, 1)
        apart = divergence(log_p, log_q, kind=how.kind, beta=how.beta) * how.temperature**2
        total = (((1 - kd_weight) * ce + kd_weight * apart) * weigh).sum()
        z.copy_(torch.autograd.grad(total, logits)[0])
    return torch.stack((total.detach(), (ce.detach() * weigh).sum(), (apart.detach() * weigh).sum()))


def _log_probs(teacher: Online, *, vocab: int, temperature: float, share: Tensor | None) -> Tensor:
    """Of its first `vocab` tokens, in float32 or more, each row times the teacher's `share` `[rows]` in it."""
    weight, bias = (None if x is None else x[:vocab].to(teacher.hidden.dtype) for x in (teacher.weight, teacher.bias))
    logits = functional.linear(teacher.hidden, weight, bias)
    log_p = torch.log_softmax(logits.to(_wide(logits)) / temperature, 1)
    return log_p if share is None else log_p.add_(share.log()[:, None])
