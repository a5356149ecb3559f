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
    def look(self, batch: Batch, **states: bool) -> Seen:
        """What it has for a batch; `states` are `output_hidden_states` and `output_attentions`."""
        out = self._decoded(batch.input_ids, batch.position_ids, **states)
        hidden = out.last_hidden_state.flatten(0, -2).index_select(0, batch.index)
        return Seen(Online(hidden, self.weight, self.bias), out.hidden_states, out.attentions)

    @torch.no_grad()
    def look_at(self, batch: Batch, wanted: Tensor) -> Online:
        """What it has at the positions `wanted` (bool `[n]`), asked for their rows alone; zeros elsewhere."""
        hidden = self.weight.new_zeros(len(wanted), self.weight.shape[1])
        index, length = batch.index[wanted], batch.input_ids.shape[1]
        rows, of = (index // length).unique(return_inverse=True)
        if len(rows):
            positions = None if batch.position_ids is None else batch.position_ids[rows]
            found = self._decoded(batch.input_ids[rows], positions).last_hidden_state[of, index % length]
            hidden = hidden.to(found.dtype)
            hidden[wanted] = found
        return Online(hidden, self.weight, self.bias)

    def _decoded(self, input_ids: Tensor, position_ids: Tensor | None, **states: bool) -> Any:
        positions = {} if position_ids is None else {"position_ids": position_ids}
        ids = self.ids[input_ids.clamp_max(len(self.ids) - 1)]
        return self.model.get_decoder()(input_ids=ids, use_cache=False, **positions, **states)


@dataclass(frozen=True)
class LiveMixture:
    """Several teachers whose distributions are averaged by each example's `shares`; each is asked where it has one.

    Inside, the student follows the first.
    """

    teachers: tuple[LiveTeacher, ...]

    @property
    def models(self) -> tuple[Any, ...]:
        return tuple(teacher.model for teacher in self.teachers)

    @property
    def known(self) -> int:
        return min(teacher.known for teacher in self.teachers)

    def to(self, device: torch.device) -> LiveMixture:
        return replace(self, teachers=tuple(teacher.to(device) for teacher in self.teachers))

    def look(self, batch: Batch, **states: bool) -> Seen:
        """As a single teacher's.

        Raises:
            ValueError: the examples have no shares.
        """
        if batch.shares is None:
            raise ValueError("expected examples with the shares of several teachers, found some without")
        whole = self.teachers[0].look(batch, **states) if any(states.values()) else None
        rest = self.teachers if whole is None else self.teachers[1:]
        wanted = batch.shares.T[-len(rest) :] > 0
        found = [teacher.look_at(batch, there) for teacher, there in zip(rest, wanted, strict=True)]
        if whole is None:
            return Seen(Mixed(tuple(found), batch.shares))
        return replace(whole, online=Mixed((whole.online, *found), batch.shares))


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
