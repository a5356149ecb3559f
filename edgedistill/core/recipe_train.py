"""The recipe's table of training, `[train]`, and those in it."""

from __future__ import annotations

from math import fsum
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from edgedistill.core.model import Noun, Positive, Share, Text

ROUNDING = 1e-9  # weights such as 0.6, 0.3 and 0.1 are 1 together


class Lora(Noun):
    rank: Positive = 16
    alpha: Positive = 32


class Qat(Noun):
    """Training on the grid that ships: the last `share` of the steps see the weights as `grid` stores them.

    `activations` rounds what enters each matrix to int8 too, as CPU kernels do.
    """

    grid: Literal["q4_0", "q8_0"] = "q4_0"
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    activations: bool = True


class Control(Noun):
    """The control arm: the same student, initialisation, text and steps with plain cross-entropy."""


class Arms(Noun):
    """What is trained beside the student to tell what its training is worth.

    The student, its control and the arm on gold are trained with `seeds` seeds, from the recipe's on; the first one's
    student ships. `gold` adds an arm of the right answers of data.gold alone, of as many steps as the student's.
    """

    seeds: Positive = 1
    gold: bool = False


class Match(Noun):
    """What the student learns of an online teacher's inside, by weight: hidden states and attention of paired layers.

    `layers` are pairs [student's, teacher's] from 0. Without any, each layer of a student that was cut learns what the
    next that was kept met in the teacher; another student's layers share the teacher's evenly. `positions`: at every
    token that another follows, or only where that one is learnt.
    """

    hidden: Annotated[float, Field(ge=0)] = 1.0
    attention: Annotated[float, Field(ge=0)] = 0.0
    layers: tuple[tuple[int, int], ...] = ()
    positions: Literal["all", "supervised"] = "all"

    @model_validator(mode="after")
    def _something_is_matched(self) -> Match:
        if not (self.hidden or self.attention):
            raise ValueError("expected hidden or attention above 0, found neither; leave [train.match] out")
        return self


class FurtherTeacher(Noun):
    """A model of the same tokenizer whose distributions count with this weight beside the recipe's teacher's.

    With `kinds` they count for records of prompts of these kinds alone; at a weight of 1 no others do there.
    """

    model: Text
    weight: Annotated[float, Field(gt=0, le=1)]
    kinds: tuple[str, ...] = ()

    def teaches(self, kind: str) -> bool:
        return not self.kinds or kind in self.kinds


class Train(Noun):
    """Phase 2: cross-entropy on the teacher's answers plus a divergence from its distributions.

    `teacher` says where these come from: what was kept of it, or the teacher itself beside the student, which `match`,
    `further_teachers` and `on_policy` need; that share of the steps learns from the student's own answers (GKD).
    `beta` is the teacher's share in the mixture that jsd and skew-kl compare with (skew-reverse-kl: the student's).

    `gold` has the student learn the right answers of data.gold too, by cross-entropy alone. `freeze_embeddings` leaves
    the token embeddings, and a head tied to them, as the student came with them; layers before `first_layer` stay too.
    `packing` puts several sequences into a row, "auto" where that saves a tenth; a micro-batch has at most
    `micro_batch_tokens`, fewer where memory runs out. `trackers` follow the metrics.
    """

    lr: PositiveFloat = 1e-3
    epochs: PositiveFloat = 2.0
    batch_size: Positive = 32
    kd_weight: Share = 0.5
    divergence: Literal["forward-kl", "reverse-kl", "jsd", "skew-kl", "skew-reverse-kl", "tvd"] = "forward-kl"
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    temperature: PositiveFloat = 1.0
    teacher: Literal["cached", "online"] = "cached"
    further_teachers: tuple[FurtherTeacher, ...] = ()
    on_policy: Share = 0.0
    match: Match | None = None
    warmup_ratio: Share = 0.05
    weight_decay: NonNegativeFloat = 0.0
    grad_clip: PositiveFloat = 1.0
    valid_share: Share = 0.05
    evals_per_epoch: Positive = 1
    patience: Positive = 3
    checkpoint_every_s: float = 30.0
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    packing: Literal["auto"] | bool = "auto"
    micro_batch_tokens: Positive = 4096
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ()
    gold: bool = False
    freeze_embeddings: bool = False
    first_layer: Annotated[int, Field(ge=0)] = 0
    lora: Lora | None = None
    qat: Qat | None = None
    control: Control | None = None
    arms: Arms = Arms()

    @model_validator(mode="after")
    def _whole_matrices_go_on_a_grid(self) -> Train:
        if self.lora is not None and self.qat is not None:
            raise ValueError("expected either [train.lora] or [train.qat], because what LoRA adds has no grid yet")
        return self

    @model_validator(mode="after")
    def _what_needs_the_teacher_itself(self) -> Train:
        needed = {
            "on_policy": self.on_policy, "[train.match]": self.match, "further_teachers": self.further_teachers,
        }  # fmt: skip
        if self.teacher == "cached" and (found := [name for name, value in needed.items() if value]):
            raise ValueError(
                f'expected teacher = "online" with {found[0]}: what is kept of a teacher does not say that'
            )
        return self

    @model_validator(mode="after")
    def _the_teacher_has_the_rest(self) -> Train:
        of_all = fsum(further.weight for further in self.further_teachers if not further.kinds)
        if of_all >= 1:
            raise ValueError(
                f"expected further_teachers of together less than 1, the teacher has the rest; found {of_all:g}"
            )
        for kind in sorted({kind for further in self.further_teachers for kind in further.kinds}):
            if (total := sum(self.shares(kind)[1:])) > 1 + ROUNDING:
                raise ValueError(
                    f"expected further_teachers of together at most 1 for records of the kind {kind!r}, found {total:g}"
                )
        return self

    def shares(self, kind: str) -> tuple[float, ...]:
        """What the recipe's teacher and each further one have in the distribution of a record of `kind`; together 1."""
        others = [further.weight * further.teaches(kind) for further in self.further_teachers]
        rest = 1 - fsum(others)
        return (rest if rest > ROUNDING else 0.0, *others)
