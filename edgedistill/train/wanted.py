"""Which arms a recipe trains, in which order, and what each of them learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgedistill.core.arms import arm_name
from edgedistill.core.errors import StageError
from edgedistill.train.data import Example, split_examples


@dataclass(frozen=True)
class Arm:
    """One training: `name` is its folder's, `start` that of the model it begins with.

    `kind` is student, control or gold; only the student has the teacher's distributions.
    """

    name: str
    kind: str
    seed: int
    kd_weight: float
    start: str = "untrained"

    @property
    def wide(self) -> str | None:
        """Of an arm whose widths are cut after a first training, the arm that this was."""
        return None if self.start == "untrained" else self.name + "-wide"


@dataclass(frozen=True)
class Lesson:
    """What an arm learns from; `steps` and `eval_every` where they are another arm's, whose examples are other ones."""

    train: list[Example]
    valid: list[Example]
    steps: int | None = None
    eval_every: int | None = None


def wanted_arms(*, seed: int, seeds: int, kd_weight: float, control: bool, gold: bool, cuts: int) -> list[Arm]:
    """Every training in order: the first seed of each arm, then the next; in two `cuts` each arm is trained twice."""
    kinds = ("student", *("control",) * control, *("gold",) * gold)
    arms = []
    for number in range(1, seeds + 1):
        for kind in kinds:
            name, weight = arm_name(kind, number), kd_weight if kind == "student" else 0.0
            arm = Arm(name, kind, seed + number - 1, weight)
            if cuts == 1:
                arms.append(arm)
                continue
            arms += [
                Arm(f"{name}-wide", kind, arm.seed, weight),
                Arm(name, kind, arm.seed, weight, start=f"{name}-narrow"),
            ]
    return arms


def gold_lesson(
    examples: Sequence[Example],
    *,
    beside: int,
    share: float,
    seed: int,
    epochs: float,
    batch_size: int,
    evals_per_epoch: int,
) -> Lesson:
    """Gold answers, gone through as often as gives the steps of an arm of `beside` examples.

    Raises:
        StageError: there is none.
    """
    from edgedistill.train.loop import planned

    if not examples:
        raise StageError(
            "expected right answers to train the arm on gold with, found none that fit; look at data.gold, or set "
            "train.arms.gold = false"
        )
    train, valid = split_examples(examples, share=share, seed=seed)
    steps, eval_every = planned(beside, epochs=epochs, batch_size=batch_size, evals_per_epoch=evals_per_epoch)
    return Lesson(train, valid, steps, eval_every)
