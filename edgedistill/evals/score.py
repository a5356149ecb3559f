"""One model on the held-out items: greedy answers, likelihood of the right ones, and the figures that follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedistill.core.errors import StageError
from edgedistill.core.records import EvalItem, Quality
from edgedistill.core.stats import paired_proportion_ratio, wilson_interval
from edgedistill.evals.answers import is_correct
from edgedistill.evals.likelihood import Logits, divergence, nll
from edgedistill.evals.metrics import item_scores, kind_figures
from edgedistill.runtimes.base import Generation, Session

# Prompts handed over at once: as many as an engine answers together, few enough to show progress.
BATCH = 128


@dataclass(frozen=True)
class Item:
    """A held-out item in the ids of one tokenizer; `scored` ones have their logits looked at."""

    id: str
    prompt_ids: tuple[int, ...]
    answer: str
    answer_ids: tuple[int, ...]
    kind: str
    scored: bool
    other_answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Likelihood:
    """NLL of the right answer in nats; against a reference, where there is one, KL divergence and top-1 agreement."""

    nll_nats: float
    kld_nats: float | None = None
    top1_ratio: float | None = None


def answer_all(
    session: Session,
    items: Sequence[Item],
    *,
    max_new_tokens: int,
    eos_ids: frozenset[int],
    progress: Callable[[int, int], None],
) -> list[Generation]:
    """Greedy answers in the items' order; asked in batches of like length, so that little is spent on padding."""
    order = sorted(range(len(items)), key=lambda i: (len(items[i].prompt_ids), items[i].id))
    answers: dict[int, Generation] = {}
    for begin in range(0, len(order), BATCH):
        chosen = order[begin : begin + BATCH]
        batch = [list(items[i].prompt_ids) for i in chosen]
        generated = session.generate(batch, max_new_tokens=max_new_tokens, eos_ids=eos_ids)
        answers |= zip(chosen, generated, strict=True)
        progress(len(answers), len(items))
    return [answers[i] for i in range(len(items))]


def answer_logits(logits: Logits, item: Item) -> NDArray[np.float32]:
    """Logits where the right answer is predicted, `[answer tokens + 1, vocab]`; the last row predicts its end."""
    return logits([*item.prompt_ids, *item.answer_ids])[len(item.prompt_ids) - 1 :]


def score_answers(
    logits: Logits, items: Sequence[Item], *, reference: Mapping[str, NDArray[np.float32]] | None
) -> dict[str, Likelihood]:
    """Likelihood of each scored item by id; `reference` holds the reference's `answer_logits` by item id.

    Raises:
        StageError: the reference has another vocabulary.
    """
    found = {}
    for item in items:
        if not item.scored:
            continue
        rows = answer_logits(logits, item)
        likelihood = nll(rows, item.answer_ids)
        if reference is None:
            found[item.id] = Likelihood(likelihood)
            continue
        try:
            away = divergence(reference[item.id], rows)
        except ValueError as e:
            raise StageError(f"the model cannot be held against its reference: {e}; export it again") from None
        found[item.id] = Likelihood(likelihood, away.kld_nats, away.top1_ratio)
    return found


def eval_rows(
    items: Sequence[Item],
    answers: Sequence[Generation],
    likelihoods: Mapping[str, Likelihood],
    *,
    decode: Callable[[list[int]], str],
    as_json: bool,
    kind: str | None = None,
    labels: Sequence[str] = (),
) -> list[EvalItem]:
    """One row per item, with a score where the task has a kind; the end id is of the output's ids, not of its text."""
    outputs = [decode(answer.ids[:-1] if answer.finish == "stop" else answer.ids) for answer in answers]
    right = [
        is_correct(
            output,
            item.answer,
            as_json=as_json,
            finish=answer.finish,
            kind=kind,
            labels=labels,
            others=item.other_answers,
        )
        for item, answer, output in zip(items, answers, outputs, strict=True)
    ]
    pairs = [(output, (item.answer, *item.other_answers)) for item, output in zip(items, outputs, strict=True)]
    scores = item_scores(pairs, kind=kind, correct=right) if kind else [None] * len(right)
    rows = []
    for item, answer, output, correct, score in zip(items, answers, outputs, right, scores, strict=True):
        seen = likelihoods.get(item.id)
        rows.append(
            EvalItem(
                id=item.id,
                answer=item.answer,
                other_answers=item.other_answers,
                output=output,
                output_ids=tuple(answer.ids),
                finish=answer.finish,
                correct=correct,
                answer_score_ratio=score,
                kind=item.kind,
                answer_tokens=len(item.answer_ids),
                answer_nll_nats=seen.nll_nats if seen else None,
                kld_nats=seen.kld_nats if seen else None,
                top1_ratio=seen.top1_ratio if seen else None,
            )
        )
    return rows


def quality(
    model: str,
    rows: Sequence[EvalItem],
    *,
    bits_per_byte: float | None,
    reference: str | None,
    teacher: Sequence[EvalItem] | None,
    confidence: float,
    kind: str | None = None,
    labels: Sequence[str] = (),
) -> Quality:
    """The figures of one model's rows; `extra.retention` is its exact match over the teacher's on the same items.

    `extra.kind` has the figures that are usual for the task's kind.
    """
    share = wilson_interval(sum(row.correct for row in rows), len(rows), confidence)
    scored = [row for row in rows if row.answer_nll_nats is not None]
    held = [row for row in scored if row.kld_nats is not None]
    places = sum(row.answer_tokens + 1 for row in held)
    tokens = sum(row.answer_tokens for row in scored)
    extra: dict[str, Any] = {
        "same_text_ratio": sum(row.finish == "stop" and row.output == row.answer for row in rows) / len(rows),
        "stopped_ratio": sum(row.finish == "stop" for row in rows) / len(rows),
        "confidence": confidence,
    }
    if tokens:
        extra["answer_nll_nats_per_token"] = sum(row.answer_nll_nats or 0.0 for row in scored) / tokens
    if teacher is not None and any(row.correct for row in teacher):
        kept = paired_proportion_ratio(
            [row.correct for row in rows], [row.correct for row in teacher], confidence=confidence
        )
        extra["retention"] = {"estimate": kept.estimate, "low": kept.low, "high": kept.high}
    scores = [row.answer_score_ratio for row in rows if row.answer_score_ratio is not None]
    if kind:
        pairs = [(row.output, (row.answer, *row.other_answers)) for row in rows]
        extra["kind"] = kind_figures(pairs, kind=kind, labels=labels)
    return Quality(
        model=model,
        items=len(rows),
        exact_match_ratio=share.estimate,
        exact_match_low=share.low,
        exact_match_high=share.high,
        mean_output_tokens=sum(len(row.output_ids) for row in rows) / len(rows),
        answer_score_ratio=sum(scores) / len(scores) if scores else None,
        bits_per_byte=bits_per_byte,
        reference=reference,
        kld_nats=_mean(held, "kld_nats", places) if held else None,
        top1_ratio=_mean(held, "top1_ratio", places) if held else None,
        scored_tokens=places,
        extra=extra,
    )


def _mean(rows: Sequence[EvalItem], name: str, places: int) -> float:
    """Mean over positions of what each row holds as the mean over its own."""
    return sum(getattr(row, name) * (row.answer_tokens + 1) for row in rows) / places
