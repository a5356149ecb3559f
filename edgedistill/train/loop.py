"""The training loop: batches in a fixed order, AdamW, validation, checkpoints; one process or many, the same code."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast
from torch import Tensor

from edgedistill.core.errors import InputError, StageError
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
from edgedistill.train.data import Example, Packing, epoch_batches
from edgedistill.train.divergence import Divergence
from edgedistill.train.grid import first_step, leave_on_grid, put_on_grid
from edgedistill.train.matching import Matching, add_projections, drop_projections
from edgedistill.train.online import Live
from edgedistill.train.sampling import OnPolicy, is_sampled, sample_answers
from edgedistill.train.shards import is_sharded, reshard
from edgedistill.train.step import Step, fitting_backward

# Up to this length plain matrix products are several times faster on a CPU than the fused attention's backward.
EAGER_ATTENTION_TOKENS = 256


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


def planned(examples: int, *, epochs: float, batch_size: int, evals_per_epoch: int) -> tuple[int, int]:
    """Steps that so many examples are trained for, and after how many of them each evaluation comes."""
    per_epoch = math.ceil(examples / batch_size)
    return max(1, math.ceil(epochs * per_epoch)), max(1, math.ceil(per_epoch / evals_per_epoch))


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
    packing: Packing = "auto",
    micro_batch_tokens: int = 4096,
    plan: Plan | None = None,
    grid_share: float = 1.0,
    round_activations: bool = True,
    live: Live | None = None,
    matching: Matching | None = None,
    on_policy: OnPolicy | None = None,
    trackers: Sequence[Any] = (),
    tracker_folder: Path | None = None,
    steps: int | None = None,
    eval_every: int | None = None,
) -> TrainResult:
    """Train `model`'s trainable parameters in place, from the last checkpoint if there is one, to the best weights.

    Without `valid` there is no early stop and the last weights stay. `micro_batch_tokens` bounds a micro-batch, and is
    halved where memory runs out. With a `plan` the last `grid_share` of the steps are trained on its grids
    (`train.grid`); only evaluations on them count as best, and the weights end on them. A `live` teacher is asked for
    every batch instead of what is kept of it; `matching` and `on_policy` need one. `trackers` are accelerate's, by name
    or made already. `steps` and `eval_every` stand in for what `epochs` and `evals_per_epoch` give.

    Raises:
        InputError: a checkpoint is damaged, or FSDP does not go with what is wanted.
        StageError: nothing to train on, a loss or gradient is not finite, or one sequence does not fit into memory.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the state lies in `checkpoints`.
    """
    if not train:
        raise StageError(f"expected examples to train {arm} on, found none; look at what the stages before kept")
    accelerator = Accelerator(
        mixed_precision="bf16" if bf16 else "no", log_with=list(trackers) or None, project_dir=tracker_folder
    )
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise InputError("expected fsdp_version: 2 in the accelerate configuration, found FSDP 1; write it there")
    main = accelerator.is_main_process
    model.to(accelerator.device)
    attention = _attention((*train, *valid), device=accelerator.device, matching=matching)
    model.set_attn_implementation(attention)
    if live is not None:
        live = live.to(accelerator.device)
        for teacher in live.models:
            teacher.set_attn_implementation(attention)
    if matching is not None and live is not None:
        widths = model.config.hidden_size, live.models[0].config.hidden_size
        add_projections(model, how=matching, widths=widths, seed=seed)
    head, bare = model.get_output_embeddings(), model
    optimizer = _optimizer((p for p in model.parameters() if p.requires_grad), lr=lr, weight_decay=weight_decay)
    model, optimizer = accelerator.prepare(model, optimizer)
    if is_sharded(bare):
        _refuse_in_parts(plan=plan, matching=matching, on_policy=on_policy)
    weights = {name: p for name, p in bare.named_parameters() if p.requires_grad}  # which sharding replaces
    position = load_checkpoint(checkpoints, weights=weights, optimizer=optimizer.optimizer)
    detached = {name: p.detach() for name, p in weights.items()}
    if main:
        keep_metrics_until(metrics, arm=arm, step=position.step)
    if trackers:
        accelerator.init_trackers(arm, config={"lr": lr, "epochs": epochs, "batch_size": batch_size, "seed": seed})

    per_epoch = math.ceil(len(train) / batch_size)
    how_long = planned(len(train), epochs=epochs, batch_size=batch_size, evals_per_epoch=evals_per_epoch)
    total, eval_every = steps or how_long[0], eval_every or how_long[1]
    warmup = round(warmup_ratio * total)
    grid_from = total if plan is None else first_step(total=total, share=grid_share)
    on_grid = False
    lengths = [len(e.ids) for e in train]
    order: tuple[int, list[list[int]]] = (-1, [])
    step = Step(
        model, head, accelerator.device, kd_weight, how, position.most_tokens or micro_batch_tokens, packing,
        live=live, matching=matching,
    )  # fmt: skip
    began, saved = time.monotonic() - position.seconds, time.monotonic()

    def save() -> None:
        save_checkpoint(checkpoints, position=position, weights=detached, optimizer=optimizer.optimizer, main=main)

    def log(row: dict[str, Any]) -> None:
        if main:
            append_metrics(metrics, row)
        if trackers:
            accelerator.log({k: v for k, v in row.items() if k not in ("arm", "step")}, step=row["step"])

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
            sample = None
            if on_policy is not None and is_sampled(position.step, share=on_policy.share, seed=seed):
                draw = (seed, position.step, accelerator.process_index)
                sample = partial(sample_answers, bare, how=on_policy, seed=draw)
            step, sums = fitting_backward(step, examples, accelerator=accelerator, note=report.note, sample=sample)
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
                most_tokens=step.most_tokens if step.most_tokens < micro_batch_tokens else None,
            )
            speed = position.tokens / position.seconds
            eta = position.seconds / position.step * (total - position.step)
            row = {"arm": arm, "step": position.step, **sums, "lr": rate, "grad_norm": norm, "tokens": position.tokens}
            if on_policy is not None:
                row["sampled"] = int(sample is not None)
            log(row | {"tok_s": round(speed, 1), "eta_s": round(eta, 1)})
            if main:
                report.progress(
                    position.step, total, "steps", arm=arm, loss=round(sums["loss"], 4), tok_s=round(speed),
                    eta_s=round(eta),
                )  # fmt: skip
            if valid and (position.step % eval_every == 0 or position.step == total):
                found = step.mean(valid, batch_size=batch_size)
                if accelerator.num_processes > 1:  # equal to the last bit, or they would part at what is best
                    values = torch.tensor([*found.values()], dtype=torch.float64, device=accelerator.device)
                    found = dict(zip(found, broadcast(values).tolist(), strict=True))
                position = _judged(position, found, weights=detached, checkpoints=checkpoints, arm=arm, main=main)
                log({"arm": arm, "step": position.step, **{f"valid_{k}": v for k, v in found.items()}})
            stopped, due = _anywhere((stop.is_set(), time.monotonic() - saved >= checkpoint_every_s), accelerator)
            if stopped or (due and position.step < total):
                save()
                saved = time.monotonic()
            if stopped:
                raise KeyboardInterrupt
    if valid and position.evals_since_best:
        report.note(
            f"{arm}: the held-out loss turned: {position.best_loss:.4f} at step {position.best_step} and no less in "
            f"{position.evals_since_best} evaluations since, to step {position.step} of {total}; kept the weights of "
            f"step {position.best_step} (lower train.lr or train.epochs, or give more records)"
        )
    if valid and position.best_step != position.step:
        accelerator.wait_for_everyone()  # the main process may still be writing the file
        load_best(checkpoints, weights=detached)
    if plan is not None:
        leave_on_grid(bare, plan=plan)
    if trackers:
        accelerator.end_training()
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    reshard(bare)
    drop_projections(bare)
    return TrainResult(
        steps=position.step,
        planned_steps=total,
        best_step=position.best_step or position.step,
        best_loss=position.best_loss,
        tokens=position.tokens,
        seconds=position.seconds,
    )


def _optimizer(weights: Iterable[torch.nn.Parameter], *, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that decays matrices alone."""
    weights = list(weights)
    matrices, vectors = ([p for p in weights if (p.ndim > 1) == wanted] for wanted in (True, False))
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, fused=True)


def _attention(examples: Sequence[Example], *, device: torch.device, matching: Matching | None) -> str:
    """Plain products where they are faster, and where the maps themselves are compared."""
    short = device.type == "cpu" and max(len(e.ids) for e in examples) <= EAGER_ATTENTION_TOKENS
    return "eager" if short or (matching is not None and matching.attention > 0) else "sdpa"


def _anywhere(true: Sequence[bool], accelerator: Accelerator) -> list[bool]:
    """Whether each is true in any process: all have to save, and to leave, after the same step."""
    if accelerator.num_processes == 1:
        return list(true)
    counts = accelerator.reduce(torch.tensor(true, dtype=torch.float32, device=accelerator.device), "sum")
    return [count > 0 for count in counts.tolist()]


def _refuse_in_parts(**settings: Any) -> None:
    if found := [name for name, value in settings.items() if value is not None]:
        words = {"plan": "[train.qat]", "matching": "[train.match]", "on_policy": "train.on_policy"}
        raise InputError(
            f"expected training without {words[found[0]]} where FSDP spreads the student over processes, found it; "
            "launch with a number of processes instead of that configuration, or leave it out"
        )


def _judged(
    position: Position,
    found: dict[str, float],
    *,
    weights: dict[str, Tensor],
    checkpoints: Path,
    arm: str,
    main: bool,
) -> Position:
    """The position after an evaluation; the weights of the best one are kept on disk."""
    if not math.isfinite(found["loss"]):
        raise StageError(f"expected a finite validation loss of {arm}, found {found['loss']}; lower train.lr")
    if position.best_loss is None or found["loss"] < position.best_loss:
        save_best(checkpoints, weights, main=main)
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
