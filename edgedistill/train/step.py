"""One training step: micro-batches through the model, their losses, and the gradient of their mean over all processes.

The sum of a step's losses is divided by the count of supervised tokens of the whole step, over all micro-batches and
processes, so that no way of splitting it changes the gradient.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from edgedistill.core.errors import StageError, out_of_memory
from edgedistill.train.data import Batch, Example, Packing, collate_rows, micro_batches, places
from edgedistill.train.divergence import Divergence
from edgedistill.train.fused import AFTER_THE_HEAD, Kept, LossSums, Teacher, head_losses, logit_losses
from edgedistill.train.grid import operands
from edgedistill.train.matching import Matching, matching_loss
from edgedistill.train.online import Live, Seen
from edgedistill.train.shards import is_sharded

PARTS = ("loss", "ce", "kl", "match")


def step_losses(
    model: Any,
    batch: Batch,
    *,
    kd_weight: float,
    how: Divergence | None = None,
    head: Any | None = None,
    live: Live | None = None,
    matching: Matching | None = None,
) -> LossSums:
    """Forward pass and loss sums over the batch's supervised positions; the LM head sees no other position.

    Head and loss are one (`train.fused`), computed where the model calls its head; but for models that do something
    to their logits after it. A `live` teacher is asked instead of the batch's kept distributions.
    """
    head = head or model.get_output_embeddings()
    states = {} if matching is None else matching.wanted()
    seen = None if live is None else live.look(batch, **states)
    wanted: dict[str, Any] = {"teacher": _teacher(batch, seen), "kd_weight": kd_weight, "how": how}
    config = getattr(model, "module", model).config
    fused = all(getattr(config, name, None) is None for name in AFTER_THE_HEAD)
    forward, replaced = head.forward, "forward" in vars(head)
    found: list[LossSums] = []

    def supervised(hidden: Tensor) -> Tensor:
        rows = hidden.flatten(0, -2).index_select(0, batch.index)
        if not fused:
            logits: Tensor = forward(rows)
            return logits
        x, weight = operands(head, rows)
        found.append(head_losses(x, weight, batch.targets, bias=head.bias, **wanted))
        return found[0].total

    head.forward = supervised
    try:
        positions = {} if batch.position_ids is None else {"position_ids": batch.position_ids}
        out = model(input_ids=batch.input_ids, use_cache=False, **positions, **states)
    finally:
        del head.forward
        if replaced:
            head.forward = forward
    if fused:
        # FSDP in bfloat16 rounds what leaves a module: the value is ours, the way of its gradient the model's
        sums = replace(found[0], total=out.logits + (found[0].total - out.logits).detach())
    else:
        sums = logit_losses(out.logits.flatten(0, -2), batch.targets, **wanted)
    if seen is None or matching is None:
        return sums
    apart = matching_loss(out, seen, batch=batch, how=matching, projections=getattr(model, "module", model))
    return replace(sums, total=sums.total + apart, match=apart.detach())


def _teacher(batch: Batch, seen: Seen | None) -> Teacher | None:
    if seen is not None:
        return seen.online
    return Kept(batch.teacher_ids, batch.teacher_logprobs, batch.taught) if bool(batch.taught.any()) else None


@dataclass(frozen=True)
class Step:
    """What every forward pass of a run shares; `most_tokens` bounds a micro-batch."""

    model: Any
    head: Any
    device: torch.device
    kd_weight: float
    how: Divergence | None = None
    most_tokens: int = 4096
    packing: Packing = "auto"
    live: Live | None = None
    matching: Matching | None = None

    def losses(self, rows: Sequence[Sequence[Example]], *, kd_weight: float) -> LossSums:
        batch = collate_rows(rows)
        batch = Batch(**{k: v if v is None else v.to(self.device) for k, v in vars(batch).items()})
        return step_losses(
            self.model, batch, kd_weight=kd_weight, how=self.how, head=self.head, live=self.live, matching=self.matching
        )

    def backward(
        self,
        examples: Sequence[Example],
        *,
        accelerator: Accelerator,
        sample: Callable[[Sequence[Example]], Sequence[Example]] | None = None,
    ) -> dict[str, float]:
        """Gradients of the step's mean loss per supervised token; this process does its share of `examples`.

        With `sample` the student's own answers, which it gives, are learnt instead: from the teacher alone.
        """
        world, rank = accelerator.num_processes, accelerator.process_index
        # A process without a share still takes part in the gradients' reduction, with nothing to add.
        has_share = len(examples) > rank
        mine = examples[rank::world] if has_share else examples[:1]
        count = sum(e.supervised for e in examples)
        if sample is not None:
            mine = sample(mine)
            ours = torch.tensor(sum(e.supervised for e in mine) if has_share else 0, device=self.device)
            count = int(accelerator.reduce(ours, "sum"))
        scale = world / count if has_share else 0.0
        kd_weight = self.kd_weight if sample is None else 1.0
        parts = micro_batches(mine, most_tokens=self.most_tokens, packing=self.packing)
        scales = [scale] * len(parts)
        if is_sharded(self.model):  # every pass needs every process: who has fewer parts repeats one for nothing
            more = int(accelerator.gather(torch.tensor([len(parts)], device=self.device)).max()) - len(parts)
            parts, scales = [*parts, *parts[:1] * more], [*scales, *[0.0] * more]
        sums = torch.zeros(len(PARTS), device=self.device)
        for number, (part, scale) in enumerate(zip(parts, scales, strict=True), start=1):
            with contextlib.nullcontext() if number == len(parts) else accelerator.no_sync(self.model):
                losses = self.losses(part, kd_weight=kd_weight)
                accelerator.backward(losses.total * scale)
            sums += _stacked(losses) * (scale / world)
        return self._named(accelerator.reduce(sums, "sum"))

    @torch.no_grad()
    def mean(self, examples: Sequence[Example], *, batch_size: int) -> dict[str, float]:
        """Mean losses per supervised token over all of `examples`."""
        self.model.eval()
        sums = torch.zeros(len(PARTS), dtype=torch.float64)
        near = sorted(examples, key=lambda e: len(e.ids))
        for begin in range(0, len(near), batch_size):
            batch = near[begin : begin + batch_size]
            for part in micro_batches(batch, most_tokens=self.most_tokens, packing=self.packing):
                sums += _stacked(self.losses(part, kd_weight=self.kd_weight)).double().cpu()
        self.model.train()
        return self._named(sums / sum(e.supervised for e in examples))

    def _named(self, sums: Tensor) -> dict[str, float]:
        named = dict(zip(PARTS, sums.tolist(), strict=True))
        return named if self.matching is not None else {k: v for k, v in named.items() if k != "match"}


def fitting_backward(
    step: Step,
    examples: Sequence[Example],
    *,
    accelerator: Accelerator,
    note: Callable[[str], None],
    sample: Callable[[Sequence[Example]], Sequence[Example]] | None = None,
) -> tuple[Step, dict[str, float]]:
    """`step.backward`, with half the micro-batch as often as memory runs out: the step that fits, and its losses.

    Raises:
        StageError: one sequence alone does not fit, or other processes wait for this one.
    """
    while True:
        try:
            return step, step.backward(examples, accelerator=accelerator, sample=sample)
        except (MemoryError, RuntimeError) as e:
            if not out_of_memory(e):
                raise
        # Behind the handler, whose traceback holds the tensors of the failed pass.
        longest = max(len(e.ids) for e in examples)
        parts = micro_batches(examples, most_tokens=step.most_tokens, packing=step.packing)
        used = min(step.most_tokens, places(parts))
        smaller = max(longest, used // 2)
        if smaller >= used:
            raise StageError(
                f"memory ran out in a micro-batch of one sequence of {longest} tokens; leave the longest records out, "
                "or set train.freeze_embeddings, train.first_layer or [train.lora], and run again"
            )
        if accelerator.num_processes > 1:
            raise StageError(
                f"memory ran out in a micro-batch of {used} tokens; set train.micro_batch_tokens = {smaller} and run "
                "again, and training goes on from its last checkpoint"
            )
        step.model.zero_grad(set_to_none=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        note(f"memory ran out in a micro-batch of {used} tokens; going on with train.micro_batch_tokens = {smaller}")
        step = replace(step, most_tokens=smaller)


def _stacked(losses: LossSums) -> Tensor:
    match = torch.zeros_like(losses.ce) if losses.match is None else losses.match
    return torch.stack((losses.total.detach(), losses.ce, losses.kl, match))
