"""The teacher made good at the task: LoRA on gold answers, merged, and held against a validation split."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from edgedistill.core import kinds
from edgedistill.core.errors import InputError, StageError
from edgedistill.core.files import canonical_json
from edgedistill.core.records import Prompt
from edgedistill.core.runfolder import Reporter
from edgedistill.runtimes.chat import encode, end_ids, load_tokenizer, render, turn_end
from edgedistill.train.data import fitting, gold_records, record_examples
from edgedistill.train.folders import copy_tokenizer, link_model, load_model, publish, save_model
from edgedistill.train.loop import train_model
from edgedistill.train.lora import add_lora, factors, merge_lora

Answerer = Callable[[list[list[int]]], Sequence[Sequence[int]]]
SHOWN = 3  # wrong answers named in an error


def adapt_teacher(
    *,
    source: Path,
    folder: Path,
    gold: Sequence[Prompt],
    template: str,
    rank: int,
    alpha: int,
    first_layer: int,
    lr: float,
    epochs: float,
    batch_size: int,
    warmup_ratio: float,
    seed: int,
    bf16: bool,
    report: Reporter,
    checkpoint_every_s: float = 30.0,
) -> None:
    """Write the model in `source`, adapted to `gold`, into `folder`; goes on where an earlier call was stopped.

    Raises:
        InputError: the model cannot be loaded or has no layer `first_layer`, a gold prompt has no answer, or none fits
            the model's context.
        StageError: the loss is not finite.
    """
    tokenizer = load_tokenizer(source)
    end = turn_end(tokenizer, template=template, ends=end_ids(source))
    model = load_model(source, bf16=bf16)
    records = gold_records(gold, tokenizer=tokenizer, template=template, end_id=end)
    examples, too_long = fitting(record_examples(records), longest=model.config.max_position_embeddings)
    if not examples:
        raise InputError(
            f"expected gold answers to adapt the teacher to, found {len(too_long)} and none within its context; "
            "give data.gold, or drop [teacher.adapt]"
        )
    if too_long:
        report.note(f"gold: left out {len(too_long)} of {len(gold)}, longer than the teacher's context")
    wrapped = add_lora(model, rank=rank, alpha=alpha, seed=seed, first_layer=first_layer)
    checkpoints = folder / "checkpoints"
    train_model(
        wrapped,
        train=examples,
        valid=[],
        arm="teacher",
        checkpoints=checkpoints,
        metrics=folder / "metrics.jsonl",
        seed=seed,
        lr=lr,
        epochs=epochs,
        batch_size=batch_size,
        warmup_ratio=warmup_ratio,
        bf16=bf16,
        report=report,
        checkpoint_every_s=checkpoint_every_s,
    )
    trained = factors(wrapped)
    del model, wrapped
    # Merged into the float32 weights, not into the rounded ones that it was trained beside.
    merged = merge_lora(load_model(source), trained, rank=rank, alpha=alpha, first_layer=first_layer)
    temporary = _temporary(folder)
    save_model(merged, temporary)
    copy_tokenizer(source, temporary, template=template)
    publish(temporary, folder)
    shutil.rmtree(checkpoints, ignore_errors=True)


def take_teacher(*, source: Path, folder: Path, template: str) -> None:
    """Put the model in `source` into `folder` as it is, with `template`."""
    temporary = _temporary(folder)
    link_model(source, temporary)
    copy_tokenizer(source, temporary, template=template)
    publish(temporary, folder)


def wrong_answers(
    *,
    folder: Path,
    prompts: Sequence[Prompt],
    template: str,
    as_json: bool,
    answer: Answerer,
    kind: str | None = None,
    labels: Sequence[str] = (),
) -> list[tuple[Prompt, str]]:
    """The prompts that the model in `folder` answers unlike `prompt.answer`, with what it says."""
    tokenizer = load_tokenizer(folder)
    ends = set(end_ids(folder))
    asked = [encode(tokenizer, render(tokenizer, p.messages, template=template)) for p in prompts]
    wrong = []
    for prompt, ids in zip(prompts, answer(asked), strict=True):
        said = tokenizer.decode([i for i in ids if i not in ends], clean_up_tokenization_spaces=False)
        if not same_answer(said, prompt.answer or "", as_json=as_json, kind=kind, labels=labels):
            wrong.append((prompt, said))
    return wrong


def require_exact_match(wrong: Sequence[tuple[Prompt, str]], *, total: int, minimum: float) -> float:
    """The exact match that `wrong` answers of `total` leave.

    Raises:
        InputError: `total` is 0.
        StageError: it is below `minimum`.
    """
    if not total:
        raise InputError(
            "expected data.valid to hold the adapted teacher against, found none; give some, or drop [teacher.adapt]"
        )
    ratio = 1 - len(wrong) / total
    if ratio < minimum:
        examples = "; ".join(f"{p.messages[-1].content!r} → {said!r}, not {p.answer!r}" for p, said in wrong[:SHOWN])
        raise StageError(
            f"expected the adapted teacher to answer {minimum:.1%} of data.valid exactly, found {ratio:.1%} "
            f"({total - len(wrong)} of {total}; {examples}); raise teacher.adapt.epochs or data.gold, change "
            "teacher.adapt.lr, or take a stronger teacher"
        )
    return ratio


def same_answer(
    found: str, expected: str, *, as_json: bool, kind: str | None = None, labels: Sequence[str] = ()
) -> bool:
    """Whether two answers say the same, as the task's kind sees it.

    Without a kind: equal JSON values, or equal text but for blanks at its ends.
    """
    if kind is not None:
        return kinds.same_answer(found, expected, kind=kind, labels=labels)
    if not as_json:
        return found.strip() == expected.strip()
    try:
        return canonical_json(json.loads(found)) == canonical_json(json.loads(expected))
    except ValueError:
        return False


def _temporary(folder: Path) -> Path:
    """A folder beside the final files, of a name that the next run of the stage clears away."""
    return Path(tempfile.mkdtemp(dir=folder, prefix=".teacher.", suffix=".tmp"))
