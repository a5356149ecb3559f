"""The training loop: batches in a fixed order, AdamW, validation, checkpoints; one process or many, the same code.

The sum of a step's losses is divided by the count of supervised tokens of the whole step, over all micro-batches and
processes, so that no way of splitting it changes the gradient.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from edgedistill.core.errors import StageError
from edgedistill.core.files import write_json
from edgedistill.core.runfolder import Reporter
from edgedistill.quant.plan import Plan
from edgedistill.runtimes.memory import freed_memory_kept
from edgedistill.train.checkpoint import (
    Position,
    append_metrics,
    interruptible,
    keep_metrics_until,
    load_best,
    load_checkpoint,
    save_best,
    save_checkpoint,
)
from edgedistill.train.data import Batch, Example, collate, epoch_batches, micro_batches
from edgedistill.train.divergence import Divergence
from edgedistill.train.fused import Kept, LossSums, head_losses, logit_losses
from edgedistill.train.grid import first_step, leave_on_grid, operands, put_on_grid

# Up to this length plain matrix products are several times faster on a CPU than the fused attention's backward.
EAGER_ATTENTION_TOKENS = 256
# Settings of models that cap or scale their logits.
AFTER_THE_HEAD = ("final_logit_softcapping", "logits_scaling", "logit_scale")


@dataclass(frozen=True)
class TrainResult:
    """Steps done and planned, the best validation loss in nats a token and its step, input tokens and seconds."""

    steps: int
    planned_steps: int
    best_step: int
    best_loss: float | None
    tokens: int
    seconds: float


def learning_rate(step: int, *, total: int, peak: float, warmup: int) -> float:
    """Linear warm-up over `warmup` steps, then a cosine that would reach 0 at `total`; `step` counts from 0."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def step_losses(
    model: Any, batch: Batch, *, kd_weight: float, how: Divergence | None = None, head: Any | None = None
) -> LossSums:
    """Forward pass and loss sums over the batch's supervised positions; the LM head sees no other position.

    Head and loss are one (`train.fused`), computed where the model calls its head; but for models that do something
    to their logits after it.
    """
    head = head or model.get_output_embeddings()
    teacher = Kept(batch.teacher_ids, batch.teacher_logprobs, batch.taught) if bool(batch.taught.any()) else None
    wanted: dict[str, Any] = {"teacher": teacher, "kd_weight": kd_weight, "how": how}
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
        out = model(input_ids=batch.input_ids, use_cache=False, **positions).logits
    finally:
        del head.forward
        if replaced:
            head.forward = forward
    return replace(found[0], total=out) if fused else logit_losses(out.flatten(0, -2), batch.targets, **wanted)


def train_model(
    model: Any,
    *,
    train: Sequence[Example],
    valid: Sequence[Example],
    arm: str,
    checkpoints: Path,
    metrics: Path,
    seed: int,
    lr: float,
    epochs: float,
    batch_size: int,
    report: Reporter,
    kd_weight: float = 0.0,
    how: Divergence | None = None,
    warmup_ratio: float = 0.05,
    weight_decay: float = 0.0,
    grad_clip: float = 1.0,
    evals_per_epoch: int = 1,
    patience: int = 3,
    checkpoint_every_s: float = 30.0,
    bf16: bool = True,
    most_tokens: int = 4096,
    plan: Plan | None = None,
    grid_share: float = 1.0,
    round_activations: bool = True,
) -> TrainResult:
    """Train `model`'s trainable parameters in place, from the last checkpoint if there is one, to the best weights.

    Without `valid` there is no early stop and the last weights stay. `most_tokens` bounds a micro-batch. With a `plan`
    the last `grid_share` of the steps are trained on its grids (`train.grid`); only evaluations on them count as best,
    and the weights end on them.

    Raises:
        InputError: a checkpoint is damaged.
        StageError: nothing to train on, or a loss or gradient is not finite.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the state lies in `checkpoints`.
    """
    if not train:
        raise StageError(f"expected examples to train {arm} on, found none; look at what the stages before kept")
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no")
    model.to(accelerator.device)
    longest = max(len(e.ids) for e in (*train, *valid))
    on_cpu = accelerator.device.type == "cpu"
    model.set_attn_implementation("eager" if on_cpu and longest <= EAGER_ATTENTION_TOKENS else "sdpa")
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices, vectors = ([p for p in weights.values() if (p.ndim > 1) == wanted] for wanted in (True, False))
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, fused=True)
    position = load_checkpoint(checkpoints, weights=weights, optimizer=optimizer)
    detached = {name: p.detach() for name, p in weights.items()}
    head, bare = model.get_output_embeddings(), model
    model, optimizer = accelerator.prepare(model, optimizer)
    keep_metrics_until(metrics, arm=arm, step=position.step)

    per_epoch = math.ceil(len(train) / batch_size)
    total = max(1, math.ceil(epochs * per_epoch))
    warmup = round(warmup_ratio * total)
    eval_every = max(1, math.ceil(per_epoch / evals_per_epoch))
    grid_from = total if plan is None else first_step(total=total, share=grid_share)
    on_grid = False
    lengths = [len(e.ids) for e in train]
    order: tuple[int, list[list[int]]] = (-1, [])
    forward = _Forward(model, head, accelerator.device, kd_weight, how, most_tokens)
    began, saved = time.monotonic() - position.seconds, time.monotonic()

    def save() -> None:
        if accelerator.is_main_process:
            save_checkpoint(checkpoints, position=position, weights=detached, optimizer=optimizer.optimizer)

    model.train()
    with interruptible() as stop, freed_memory_kept():
        while position.step < total and (
            not valid or position.evals_since_best < patience or (plan is not None and not on_grid)
        ):
            if plan is not None and position.step >= grid_from and not on_grid:
                put_on_grid(bare, plan=plan, activations=round_activations)
                on_grid = True
                if position.step == grid_from:  # no evaluation of other weights is one of those that ship
                    position = replace(position, best_step=0, best_loss=None, evals_since_best=0)
            epoch, place = divmod(position.step, per_epoch)
            if order[0] != epoch:
                order = (epoch, epoch_batches(lengths, batch_size=batch_size, seed=seed, epoch=epoch))
            examples = [train[i] for i in order[1][place]]
            rate = learning_rate(position.step, total=total, peak=lr, warmup=warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
            sums = forward.backward(examples, accelerator=accelerator)
            norm = float(accelerator.clip_grad_norm_(model.parameters(), grad_clip))
            if not all(math.isfinite(x) for x in (*sums.values(), norm)):
                _refuse(examples, sums=sums, norm=norm, arm=arm, step=position.step, path=checkpoints / "failed.json")
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            position = replace(
                position,
                step=position.step + 1,
                tokens=position.tokens + sum(len(e.ids) for e in examples),
                seconds=time.monotonic() - began,
            )
            speed = position.tokens / position.seconds
            eta = position.seconds / position.step * (total - position.step)
            row = {"arm": arm, "step": position.step, **sums, "lr": rate, "grad_norm": norm, "tokens": position.tokens}
            if accelerator.is_main_process:
                append_metrics(metrics, row | {"tok_s": round(speed, 1), "eta_s": round(eta, 1)})
                report.progress(
                    position.step, total, "steps", arm=arm, loss=round(sums["loss"], 4), tok_s=round(speed),
                    eta_s=round(eta),
                )  # fmt: skip
            if valid and (position.step % eval_every == 0 or position.step == total):
                position = _validate(
                    forward, valid, position=position, weights=detached, checkpoints=checkpoints, arm=arm,
                    metrics=metrics, batch_size=batch_size, main=accelerator.is_main_process,
                )  # fmt: skip
            if stop.is_set():
                save()
                raise KeyboardInterrupt
            if time.monotonic() - saved >= checkpoint_every_s and position.step < total:
                save()
                saved = time.monotonic()
    if valid and position.best_step != position.step:
        accelerator.wait_for_everyone()  # the main process may still be writing the file
        load_best(checkpoints, weights=detached)
    if plan is not None:
        leave_on_grid(bare, plan=plan)
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    return TrainResult(
        steps=position.step,
        planned_steps=total,
        best_step=position.best_step or position.step,
        best_loss=position.best_loss,
        tokens=position.tokens,
        seconds=position.seconds,
    )


@dataclass(frozen=True)
class _Forward:
    """What every forward pass of a run shares."""

    model: Any
    head: Any
    device: torch.device
    kd_weight: float
    how: Divergence | None
    most_tokens: int

    def losses(self, examples: Sequence[Example]) -> LossSums:
        batch = collate(examples)
        batch = Batch(**{k: v if v is None else v.to(self.device) for k, v in vars(batch).items()})
        return step_losses(self.model, batch, kd_weight=self.kd_weight, how=self.how, head=self.head)

    def backward(self, examples: Sequence[Example], *, accelerator: Accelerator) -> dict[str, float]:
        """Gradients of the step's mean loss per supervised token; this process does its share of `examples`."""
        count = sum(e.supervised for e in examples)
        world, rank = accelerator.num_processes, accelerator.process_index
        # A process without a share still takes part in the gradients' reduction, with nothing to add.
        mine, scale = (examples[rank::world], world / count) if len(examples) > rank else (examples[:1], 0.0)
        parts = micro_batches(mine, most_tokens=self.most_tokens)
        sums = torch.zeros(3, device=self.device)
        for number, part in enumerate(parts, start=1):
            with contextlib.nullcontext() if number == len(parts) else accelerator.no_sync(self.model):
                losses = self.losses(part)
                accelerator.backward(losses.total * scale)
            sums += torch.stack((losses.total.detach(), losses.ce, losses.kl)) * (scale / world)
        return dict(zip(("loss", "ce", "kl"), accelerator.reduce(sums, "sum").tolist(), strict=True))

    @torch.no_grad()
    def mean(self, examples: Sequence[Example], *, batch_size: int) -> dict[str, float]:
        """Mean losses per supervised token over all of `examples`."""
        self.model.eval()
        sums = torch.zeros(3, dtype=torch.float64)
        near = sorted(examples, key=lambda e: len(e.ids))
        for begin in range(0, len(near), batch_size):
            for part in micro_batches(near[begin : begin + batch_size], most_tokens=self.most_tokens):
                losses = self.losses(part)
                sums += torch.stack((losses.total, losses.ce, losses.kl)).double().cpu()
        self.model.train()
        sums /= sum(e.supervised for e in examples)
        return dict(zip(("loss", "ce", "kl"), sums.tolist(), strict=True))


def _validate(
    forward: _Forward,
    valid: Sequence[Example],
    *,
    position: Position,
    weights: dict[str, Tensor],
    checkpoints: Path,
    arm: str,
    metrics: Path,
    batch_size: int,
    main: bool,
) -> Position:
    found = forward.mean(valid, batch_size=batch_size)
    if not math.isfinite(found["loss"]):
        raise StageError(f"expected a finite validation loss of {arm}, found {found['loss']}; lower train.lr")
    if main:
        append_metrics(metrics, {"arm": arm, "step": position.step, **{f"valid_{k}": v for k, v in found.items()}})
    if position.best_loss is None or found["loss"] < position.best_loss:
        if main:
            save_best(checkpoints, weights)
        return replace(position, best_step=position.step, best_loss=found["loss"], evals_since_best=0)
    return replace(position, evals_since_best=position.evals_since_best + 1)


def _refuse(
    examples: Sequence[Example], *, sums: dict[str, float], norm: float, arm: str, step: int, path: Path
) -> None:
    rows = [{"id": e.id, "ids": e.ids.tolist(), "start": e.start} for e in examples]
    write_json(path, {"arm": arm, "step": step + 1, "examples": rows})
    raise StageError(
        f"expected a finite loss and gradient, found loss {sums['loss']} and gradient norm {norm} at step {step + 1} "
        f"of {arm}; lower its learning rate and run again (the batch is in {path})"
    )
