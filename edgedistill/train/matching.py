"""What a student learns of its teacher's inside: hidden states of paired layers, and where they attend.

Hidden states through a learned projection (Romero et al. 2015, arXiv:1412.6550), as a relative error, so that layers of
large activations do not outweigh the others; attention as the divergence of the maps' means over heads, which leaves
their numbers free (after Wang et al. 2020, arXiv:2002.10957).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgedistill.core.errors import InputError
from edgedistill.train.data import Batch
from edgedistill.train.online import Seen

LEAST = 1e-9  # below every attention weight that matters


@dataclass(frozen=True)
class Matching:
    """Weights of the two terms beside the other losses, and the pairs (student's layer, teacher's layer), from 0.

    At `positions` "all" a sequence counts as much as it has supervised tokens, and its tokens count alike.
    """

    hidden: float
    attention: float
    layers: tuple[tuple[int, int], ...]
    positions: Literal["all", "supervised"] = "all"

    def wanted(self) -> dict[str, bool]:
        return {"output_hidden_states": self.hidden > 0, "output_attentions": self.attention > 0}


def pair_layers(
    pairs: Sequence[Sequence[int]] | None, *, student: int, teacher: int, kept: Sequence[int] = ()
) -> tuple[tuple[int, int], ...]:
    """`pairs` as they are; without any, each layer of the student with the last of those that it stands for.

    If the student's are the `kept` ones of the teacher's, in order, these end before the next that was kept, so that it
    meets what it met in the teacher; else they are the layer's even share of the teacher's.

    Raises:
        InputError: a pair names a layer that is not there.
        ValueError: `kept` are not as many as the student's layers.
    """
    if kept and len(kept) != student:
        raise ValueError(f"expected as many layers kept as the student has, {student}, found {len(kept)}")
    if not pairs:
        follows = [*kept[1:], teacher] if kept else [(i + 1) * teacher // student for i in range(student)]
        return tuple((i, follow - 1) for i, follow in enumerate(follows))
    for ours, theirs in pairs:
        if not (0 <= ours < student and 0 <= theirs < teacher):
            raise InputError(
                f"expected train.match.layers of a student's layer below {student} and a teacher's below {teacher}, "
                f"found [{ours}, {theirs}]"
            )
    return tuple((ours, theirs) for ours, theirs in pairs)


def add_projections(model: Any, *, how: Matching, widths: tuple[int, int], seed: int) -> None:
    """Give `model` a trainable matrix for each pair, from its width to its teacher's: `model.matching`.

    Equal widths begin with the identity, others with orthogonal rows. They are the model's parameters, so that every
    process and checkpoint has them; `drop_projections` ends them.
    """
    if not how.hidden:
        return
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = widths
    first = torch.eye(ours) if ours == theirs else nn.init.orthogonal_(torch.empty(theirs, ours), generator=generator)
    model.matching = nn.ParameterList([nn.Parameter(first.clone()) for _ in how.layers])


def drop_projections(model: Any) -> None:
    if "matching" in model._modules:
        del model.matching


def matching_loss(out: Any, seen: Seen, *, batch: Batch, how: Matching, projections: Any) -> Tensor:
    """Both terms, means over pairs, summed over the batch's positions, each with its weight."""
    index, weights = batch.everywhere, batch.weights
    if how.positions == "supervised":
        index, weights = batch.index, torch.ones_like(batch.index, dtype=torch.float32)
    total = torch.zeros((), device=index.device)
    for place, (ours, theirs) in enumerate(how.layers):
        if how.hidden and seen.hidden_states is not None:
            x, y = (
                states[layer + 1].flatten(0, 1).index_select(0, index).float()
                for states, layer in ((out.hidden_states, ours), (seen.hidden_states, theirs))
            )
            total = total + how.hidden * (relative_error(x @ projections.matching[place].T, y) @ weights)
        if how.attention and seen.attentions is not None:
            p, q = (
                maps[layer].float().mean(1).flatten(0, 1).index_select(0, index)
                for maps, layer in ((seen.attentions, theirs), (out.attentions, ours))
            )
            total = total + how.attention * (attention_divergence(p, q) @ weights)
    return total / len(how.layers)


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """`‖found - wanted‖² / ‖wanted‖²` of each row, `[rows, width]` to `[rows]`."""
    return (found - wanted).square().sum(-1) / wanted.square().sum(-1).clamp_min(LEAST)


def attention_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL of the student's attention `q` from the teacher's `p`, `[rows, places]` to `[rows]`, in nats."""
    return (torch.xlogy(p, p) - p * q.clamp_min(LEAST).log()).sum(-1)
