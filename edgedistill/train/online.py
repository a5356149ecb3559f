"""A teacher beside its student in memory: asked for every batch, instead of what was kept of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgedistill.core.errors import InputError
from edgedistill.train.data import Batch
from edgedistill.train.folders import load_model
from edgedistill.train.fused import AFTER_THE_HEAD, Mixed, Online


@dataclass(frozen=True)
class Seen:
    """What a teacher has for a batch: its distributions, and its states and attention maps where they were asked for.

    `hidden_states` `[rows, length, width]`, the embeddings first; `attentions` `[rows, heads, length, length]`.
    """

    online: Online | Mixed
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class LiveTeacher:
    """`ids` `[student's tokens]` are the teacher's ids of the student's, `weight`, `bias` its head's rows of these."""

    model: Any
    ids: Tensor
    weight: Tensor
    bias: Tensor | None = None

    @property
    def models(self) -> tuple[Any, ...]:
        return (self.model,)

    @property
    def known(self) -> int:
        """How many of the student's first ids it can judge."""
        return len(self.ids)

    def to(self, device: torch.device) -> LiveTeacher:
        bias = None if self.bias is None else self.bias.to(device)
        return replace(
            self, model=self.model.to(device), ids=self.ids.to(device), weight=self.weight.to(device), bias=bias
        )

    @torch.no_grad()
    def look(self, batch: Batch, *, output_hidden_states: bool = False, output_attentions: bool = False) -> Seen:
        positions = {} if batch.position_ids is None else {"position_ids": batch.position_ids}
        out = self.model.get_decoder()(
            input_ids=self.ids[batch.input_ids.clamp_max(len(self.ids) - 1)],
            use_cache=False,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            **positions,
        )
        hidden = out.last_hidden_state.flatten(0, -2).index_select(0, batch.index)
        return Seen(Online(hidden, self.weight, self.bias), out.hidden_states, out.attentions)


@dataclass(frozen=True)
class LiveMixture:
    """Several teachers whose distributions are averaged by `weights`; inside, the student follows the first."""

    teachers: tuple[LiveTeacher, ...]
    weights: tuple[float, ...]

    @property
    def models(self) -> tuple[Any, ...]:
        return tuple(teacher.model for teacher in self.teachers)

    @property
    def known(self) -> int:
        return min(teacher.known for teacher in self.teachers)

    def to(self, device: torch.device) -> LiveMixture:
        return replace(self, teachers=tuple(teacher.to(device) for teacher in self.teachers))

    def look(self, batch: Batch, **states: bool) -> Seen:
        first, *others = (
            teacher.look(batch, **(states if place == 0 else {})) for place, teacher in enumerate(self.teachers)
        )
        return replace(first, online=Mixed(tuple(seen.online for seen in (first, *others)), self.weights))


Live = LiveTeacher | LiveMixture


def load_live(folder: Path, *, id_map: np.ndarray, bf16: bool = False) -> LiveTeacher:
    """The model in `folder` as a teacher; `id_map` `[teacher's rows]` gives the student's id of each token, -1: none.

    Rows of either vocabulary that are padding, with no token, have no part in a distribution: 151,936 and 152,064 rows
    for one tokenizer are no difference.

    Raises:
        InputError: the model does not load, changes its logits behind its head, or lacks a token of the student.
    """
    model = load_model(folder, bf16=bf16).eval().requires_grad_(False)
    if changed := [name for name in AFTER_THE_HEAD if getattr(model.config, name, None) is not None]:
        raise InputError(
            f"expected an online teacher whose logits are its head's, found {changed[0]} in {folder}; use "
            'train.teacher = "cached"'
        )
    ids = torch.from_numpy(_teachers_ids(id_map, folder=folder))
    head = model.get_output_embeddings()
    alike = torch.equal(ids, torch.arange(len(ids)))
    weight, bias = (
        None if x is None else x.detach()[: len(ids)] if alike else x.detach()[ids] for x in (head.weight, head.bias)
    )
    return LiveTeacher(model, ids, weight, bias)


def _teachers_ids(id_map: np.ndarray, *, folder: Path) -> np.ndarray:
    """The teacher's id of each token of the student, up to the last that they share."""
    known = np.flatnonzero(id_map >= 0)
    found = np.full(int(id_map.max(initial=0)) + 1, -1)
    found[id_map[known]] = known
    if (found < 0).any():
        raise InputError(
            f"expected the student's tokens in the vocabulary of the teacher in {folder}, found none for its token "
            f'{int(np.argmin(found))}; choose a teacher of the same tokenizer, or train.teacher = "cached"'
        )
    return found
