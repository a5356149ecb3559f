"""Head and loss in one against independent float64 references: values and gradients of every divergence."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgedistill.runtimes.base import drawn_logprobs
from edgedistill.train.divergence import KINDS, Divergence, divergence
from edgedistill.train.fused import Kept, Online, head_losses, logit_losses

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


def run(case, dtype=torch.float64, temperature=1.0, **kwargs):
    logits, targets, ids, logprobs, taught = (torch.from_numpy(np.array(x)) for x in case)
    z = logits.to(dtype).requires_grad_()
    teacher = Kept(ids, logprobs.to(torch.float32), taught)
    loss = logit_losses(z, targets, teacher=teacher, how=Divergence(temperature=temperature), **kwargs)
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


def test_draws_give_the_gradient_of_the_whole_distribution_on_average():
    """Against q - p of forward KL; the mean of many draws lies within 4.5 standard errors everywhere."""
    rng, many, draws = np.random.default_rng(5), 20_000, 6
    scores, own = rng.normal(0, 2, (2, 30))
    p, q = softmax(scores[None])[0], softmax(own[None])[0]
    ids, logs = drawn_logprobs((scores + rng.normal(0, 1, (many, 1))).astype(np.float32), draws)
    z = torch.from_numpy(np.tile(own, (many, 1))).requires_grad_()
    teacher = Kept(torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(logs), torch.ones(many).bool())
    loss = logit_losses(z, torch.zeros(many, dtype=torch.long), teacher=teacher, how=Divergence(), kd_weight=1.0)
    loss.total.backward()
    error = np.abs(z.grad.numpy().mean(0) - (q - p)) / np.sqrt(p * (1 - p) / (draws * many))
    assert error.max() < 4.5


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
    wanted = torch.nn.functional.cross_entropy(z, torch.from_numpy(targets), reduction="sum")
    wanted.backward()
    torch.testing.assert_close(grad, z.grad)
    assert loss.total.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert loss.kl.item() == 0


def test_extreme_logits_stay_finite():
    z = torch.tensor([[1e4, -1e4, 0.0, 5.0]], requires_grad=True)
    teacher = Kept(torch.tensor([[0, 1]]), torch.tensor([[-0.1, -3.0]]), torch.tensor([True]))
    for kind in KINDS:
        loss = logit_losses(z, torch.tensor([1]), teacher=teacher, kd_weight=0.5, how=Divergence(kind))
        (gradient,) = torch.autograd.grad(loss.total, z)
        assert torch.isfinite(loss.total) and torch.isfinite(gradient).all(), kind


def apart(p: np.ndarray, q: np.ndarray, kind: str, beta: float) -> float:
    """Each divergence as its paper writes it, from probabilities."""
    kl = lambda a, b: float((a * np.log(a / b)).sum())  # noqa: E731
    return {
        "forward-kl": lambda: kl(p, q),
        "reverse-kl": lambda: kl(q, p),
        "jsd": lambda: beta * kl(p, beta * p + (1 - beta) * q) + (1 - beta) * kl(q, beta * p + (1 - beta) * q),
        "skew-kl": lambda: kl(p, beta * p + (1 - beta) * q),
        "skew-reverse-kl": lambda: kl(q, beta * q + (1 - beta) * p),
        "tvd": lambda: float(np.abs(p - q).sum() / 2),
    }[kind]()


def numeric_gradient(value, x: np.ndarray) -> np.ndarray:
    found = np.zeros_like(x)
    for place in np.ndindex(*x.shape):
        for sign in (1, -1):
            moved = x.copy()
            moved[place] += sign * 1e-6
            found[place] += sign * value(moved) / 2e-6
    return found


@pytest.fixture
def heads():
    """Hidden states, head and bias of a student, hidden states and a longer head of a teacher, targets, weights."""
    rng = np.random.default_rng(5)
    normal = lambda *shape: rng.normal(size=shape)  # noqa: E731
    return (
        normal(5, 3),
        normal(17, 3),
        normal(17),
        normal(5, 4),
        normal(20, 4),
        rng.integers(0, 17, 5),
        rng.uniform(0.5, 2, 5),
    )


def as_torch(*arrays: np.ndarray, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    return [torch.from_numpy(a.copy()).to(dtype).requires_grad_() for a in arrays]


@pytest.mark.parametrize("known", ["kept", "online"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_divergence_matches_the_float64_reference(heads, kind: str, known: str) -> None:
    hidden, weight, bias, teacher_hidden, teacher_weight, targets, weigh = heads
    p = softmax(teacher_hidden @ teacher_weight[:17].T)
    ids = np.argsort(-p, 1)[:, :4].copy()
    kept = np.log(np.take_along_axis(p, ids, 1))
    ids[2, 1] = -1

    def value(h: np.ndarray, w: np.ndarray, b: np.ndarray) -> float:
        total = 0.0
        for row, (z, y, at) in enumerate(zip(h @ w.T + b, targets, weigh, strict=True)):
            q, of_teacher = softmax(z), p[row]
            if known == "kept":
                use = ids[row] >= 0
                inside = ids[row][use]
                of_teacher = np.append(np.exp(kept[row][use]), 1 - np.exp(kept[row][use]).sum())
                q = np.append(q[inside], 1 - q[inside].sum())
            total += at * (0.3 * -np.log(softmax(z)[y]) + 0.7 * apart(of_teacher, q, kind, 0.3))
        return total

    teacher = (
        Kept(torch.from_numpy(ids), torch.from_numpy(kept), torch.ones(5, dtype=torch.bool))
        if known == "kept"
        else Online(torch.from_numpy(teacher_hidden), torch.from_numpy(teacher_weight))
    )
    settings = {"teacher": teacher, "kd_weight": 0.7, "how": Divergence(kind, beta=0.3)}
    h, w, b = as_torch(hidden, weight, bias)
    for rows in (256, 2):
        loss = head_losses(
            h, w, torch.from_numpy(targets), bias=b, token_weights=torch.from_numpy(weigh), rows=rows, **settings
        )
        assert loss.total.item() == pytest.approx(value(hidden, weight, bias), rel=1e-9)
        found = torch.autograd.grad(2 * loss.total, (h, w, b))
        wanted = (
            numeric_gradient(lambda x: value(x, weight, bias), hidden),
            numeric_gradient(lambda x: value(hidden, x, bias), weight),
            numeric_gradient(lambda x: value(hidden, weight, x), bias),
        )
        for ours, reference_gradient in zip(found, wanted, strict=True):
            np.testing.assert_allclose(ours.numpy() / 2, reference_gradient, atol=2e-8)
    single = as_torch(hidden, weight, bias, dtype=torch.float32)
    loss = head_losses(
        single[0],
        single[1],
        torch.from_numpy(targets),
        bias=single[2],
        token_weights=torch.from_numpy(weigh),
        **settings,
    )
    for ours, exact in zip(torch.autograd.grad(2 * loss.total, single), found, strict=True):
        assert (ours - exact).norm() / exact.norm() < 1e-5


@pytest.mark.parametrize("vocab", [14, 17, 20])
def test_vocabularies_padded_differently_match_the_truncated_reference(heads, vocab: int) -> None:
    hidden, weight, _, teacher_hidden, teacher_weight, targets, _ = heads
    h, w = as_torch(hidden, weight)
    teacher = Online(torch.from_numpy(teacher_hidden), torch.from_numpy(teacher_weight[:vocab]))
    loss = head_losses(h, w, torch.from_numpy(targets), teacher=teacher, kd_weight=1.0)
    shared = min(vocab, 17)
    p, q = softmax(teacher_hidden @ teacher_weight[:shared].T), softmax(hidden @ weight[:shared].T)
    assert loss.total.item() == pytest.approx(sum(apart(a, b, "forward-kl", 0) for a, b in zip(p, q, strict=True)))


def test_a_frozen_head_gets_no_gradient_and_evaluation_keeps_none(heads) -> None:
    hidden, weight, _, _, _, targets, _ = heads
    h, w = as_torch(hidden, weight)
    loss = head_losses(h, w.detach(), torch.from_numpy(targets))
    loss.total.backward()
    assert h.grad is not None and w.grad is None
    with torch.no_grad():
        assert not head_losses(h, w, torch.from_numpy(targets)).total.requires_grad


def test_autocast_multiplies_in_bfloat16_and_sums_in_float32(heads) -> None:
    hidden, weight, _, _, _, targets, _ = heads
    h, w = as_torch(hidden, weight, dtype=torch.float32)
    exact = head_losses(h, w, torch.from_numpy(targets))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = head_losses(h.bfloat16(), w, torch.from_numpy(targets))
    assert rounded.total.dtype == torch.float32 and rounded.total != exact.total
    assert rounded.total.item() == pytest.approx(exact.total.item(), rel=2e-2)
    (ours,) = torch.autograd.grad(rounded.total, w)
    (wanted,) = torch.autograd.grad(exact.total, w)
    assert ours.dtype == torch.float32 and (ours - wanted).norm() / wanted.norm() < 3e-2


def test_an_unknown_divergence_is_refused() -> None:
    with pytest.raises(ValueError, match=r"of forward-kl, reverse-kl, .* found 'kl'"):
        divergence(torch.zeros(1, 2), torch.zeros(1, 2), kind="kl")
