"""How far an artifact's logits lie from its source's: KL divergence, top-1 agreement, likelihood, summed over rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgedistill.runtimes.base import log_softmax

SURE_NATS = 1.0  # the student is sure where its best token leads the second by this much log-probability
FEW = 8  # fewer sure positions than this judge nothing


@dataclass(frozen=True)
class Divergence:
    """How far logits lie from the student's at `positions` places."""

    positions: int
    kld_nats: float
    top1_ratio: float
    sure_positions: int
    sure_top1_ratio: float | None


class Tally:
    """Running sums over rows of logits `[n, vocab]`: KL(student ‖ artifact), equal argmax, and the text's likelihood.

    `nll` and `student_nll` are the negative log-likelihoods in nats of the tokens that followed, `scored` their count.
    """

    def __init__(self) -> None:
        self.kld, self.positions, self.equal, self.sure, self.sure_equal = 0.0, 0, 0, 0, 0
        self.nll, self.student_nll, self.scored = 0.0, 0.0, 0

    def add(self, student: np.ndarray, artifact: np.ndarray, *, following: Sequence[int] = ()) -> None:
        """Count rows; `following` are the tokens that came after the first of them, for the likelihood."""
        p, q = log_softmax(student), log_softmax(artifact)
        self.kld += float(np.sum(np.exp(p) * (p - q)))
        second, first = np.partition(p, (-2, -1), axis=1)[:, -2:].T
        equal, sure = np.argmax(p, axis=1) == np.argmax(q, axis=1), first - second >= SURE_NATS
        self.positions += len(p)
        self.equal += int(equal.sum())
        self.sure += int(sure.sum())
        self.sure_equal += int((equal & sure).sum())
        taken = (np.arange(len(following)), list(following))
        self.student_nll -= float(p[taken].sum())
        self.nll -= float(q[taken].sum())
        self.scored += len(following)

    def merge(self, other: Tally) -> None:
        """Count another tally's rows, too."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def divergence(self) -> Divergence:
        return Divergence(
            positions=self.positions,
            kld_nats=self.kld / self.positions,
            top1_ratio=self.equal / self.positions,
            sure_positions=self.sure,
            sure_top1_ratio=self.sure_equal / self.sure if self.sure >= FEW else None,
        )
