"""The sparse distillation loss against an independent float64 reference, in value and gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgedistill.train.losses import cross_entropy, distillation_loss

N, V, K = 7, 50, 5


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def reference(logits, targets, ids, logprobs, taught, *, weight, temperature):
    """The loss of one position after the other, from probabilities, in float64."""
    total = 0.0
    for z, y, kept, logs, known in zip(logits, targets, ids, logprobs, taught, strict=True):
        q = softmax(z)
        ce = -np.log(q[y])
        if not known:
            total += ce
            continue
        use = kept >= 0
        p, inside = np.exp(logs[use]), kept[use]
        mass = min(p.sum(), 1.0)
        q_tail = 1 - q[inside].sum() if use.any() else 1.0
        kl = (1 - mass) * np.log((1 - mass) / q_tail) if mass < 1 else 0.0
        if use.any():
            kl += mass * np.log(mass / q[inside].sum())
            pt = softmax(logs[use] / temperature)
            qt = softmax(z[inside] / temperature)
            kl += mass * temperature**2 * (pt * np.log(pt / qt)).sum()
        total += (1 - weight) * ce + weight * kl
    return total


@pytest.fixture
def case():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(N, V)) * 3
    teacher = np.log(softmax(rng.normal(size=(N, V)) * 3))
    ids = np.argsort(-teacher, 1)[:, :K].copy()
    logprobs = np.take_along_axis(teacher, ids, 1)
    targets = ids[:, 0].copy()
    targets[2] = 49  # a target outside the kept tokens
    ids[1, [0, 3]] = -1  # tokens the student does not have
    ids[4] = -1  # nothing left but the tail
    taught = np.array([True] * (N - 1) + [False])
    return logits, targets, ids, logprobs, taught


def run(case, dtype=torch.float64, **kwargs):
    logits, targets, ids, logprobs, taught = (torch.from_numpy(np.array(x)) for x in case)
    z = logits.to(dtype).requires_grad_()
    loss = distillation_loss(
        z, targets, teacher_ids=ids, teacher_logprobs=logprobs.to(torch.float32), taught=taught, **kwargs
    )
    loss.total.backward()
    return loss, z.grad


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_value_and_gradient_match_the_float64_reference(case, weight, temperature):
    logits, targets, ids, logprobs, taught = case
    case = (logits, targets, ids, logprobs.astype(np.float32), taught)
    rounded = (logits, targets, ids, logprobs.astype(np.float32).astype(np.float64), taught)
    loss, grad = run(case, kd_weight=weight, temperature=temperature)
    expected = reference(*rounded, weight=weight, temperature=temperature)
    assert loss.total.item() == pytest.approx(expected, rel=1e-9)
    numeric = np.zeros_like(logits)
    for n in range(N):
        for v in range(V):
            for sign in (1, -1):
                moved = logits.copy()
                moved[n, v] += sign * 1e-5
                value = reference(moved, *rounded[1:], weight=weight, temperature=temperature)
                numeric[n, v] += sign * value / 2e-5
    np.testing.assert_allclose(grad.numpy(), numeric, atol=1e-8)
    _, grad32 = run(case, dtype=torch.float32, kd_weight=weight, temperature=temperature)
    assert (grad32 - grad).norm() / grad.norm() < 1e-5


def test_temperature_one_is_kl_over_kept_tokens_and_tail(case):
    logits, targets, ids, logprobs, _ = case
    rows = [0, 2, 3]
    q = softmax(logits[rows])
    p = np.exp(logprobs[rows])
    q_kept = np.take_along_axis(q, ids[rows], 1)
    tails = 1 - p.sum(1), 1 - q_kept.sum(1)
    expected = (p * np.log(p / q_kept)).sum() + (tails[0] * np.log(tails[0] / tails[1])).sum()
    some = (logits[rows], targets[rows], ids[rows], logprobs[rows], np.array([True] * 3))
    loss, _ = run(some, kd_weight=1.0)
    assert loss.kl.item() == pytest.approx(expected, rel=1e-6)


def test_teacher_equal_to_student_has_no_divergence_and_no_gradient(case):
    logits, targets, ids, _, _ = case
    keep = [0, 2, 3, 5]
    own = np.take_along_axis(np.log(softmax(logits[keep])), ids[keep], 1)
    loss, grad = run((logits[keep], targets[keep], ids[keep], own, np.ones(4, bool)), kd_weight=1.0)
    assert abs(loss.kl.item()) < 1e-6
    assert grad.abs().max() < 1e-6


def test_without_teacher_rows_it_is_cross_entropy(case):
    logits, targets, ids, logprobs, _ = case
    loss, grad = run((logits, targets, ids, logprobs, np.zeros(N, bool)), kd_weight=0.7)
    z = torch.from_numpy(logits).requires_grad_()
    torch.nn.functional.cross_entropy(z, torch.from_numpy(targets), reduction="sum").backward()
    torch.testing.assert_close(grad, z.grad)
    assert loss.total.item() == pytest.approx(cross_entropy(z, torch.from_numpy(targets)).total.item(), rel=1e-6)
    assert loss.kl.item() == 0


def test_extreme_logits_stay_finite():
    z = torch.tensor([[1e4, -1e4, 0.0, 5.0]], requires_grad=True)
    loss = distillation_loss(
        z, torch.tensor([1]), teacher_ids=torch.tensor([[0, 1]]), teacher_logprobs=torch.tensor([[-0.1, -3.0]]),
        taught=torch.tensor([True]), kd_weight=0.5,
    )  # fmt: skip
    loss.total.backward()
    assert torch.isfinite(loss.total) and torch.isfinite(z.grad).all()
