"""The arms of a run in one table: teacher, base student, SFT on gold, SFT on the teacher's text, distillation.

Pure: no clock, no file, no environment. What distillation is worth is told only against its control.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from edgedistill.core.crossed import crossed_difference, crossed_mean, crossed_ratio
from edgedistill.core.files import digest_of
from edgedistill.core.model import Noun
from edgedistill.core.records import EvalItem
from edgedistill.core.stats import Interval

TRAINED = ("student", "control", "gold")
ARMS = {
    "teacher": "teacher",
    "untrained": "base student",
    "gold": "SFT on gold",
    "control": "SFT on the teacher's text",
    "student": "distillation",
}
COLUMNS = ("arm", "seeds", "mean score", "interval", "of the teacher's", "its interval")
NOTHING_CLAIMED = "no control trained, so nothing is claimed of distillation; add [train.control]"
Outcome = Literal["helps", "hurts", "no difference shown", "no control"]
_FURTHER = re.compile(rf"({'|'.join(TRAINED)})-s([1-9]\d*)")


class ArmRow(Noun):
    """An arm: the models of its seeds, their mean score, and that over the teacher's, each with its interval."""

    arm: str
    models: tuple[str, ...]
    score: float
    interval: tuple[float, float]
    of_teacher: float | None = None
    of_teacher_interval: tuple[float, float] | None = None


class ArmsTable(Noun):
    """All arms on the same items; `difference` is distillation minus its control over the `pairs` of seeds both have.

    `score` is what each item's is: `answer_score_ratio` where the task's kind gives one, else whether it is right.
    """

    schema_version: Literal[1] = 1
    score: Literal["answer_score_ratio", "exact_match_ratio"]
    confidence: float
    items: int
    rows: tuple[ArmRow, ...]
    difference: float | None
    difference_interval: tuple[float, float] | None
    pairs: int
    outcome: Outcome
    sentence: str


def arm_name(arm: str, number: int) -> str:
    """The folder and model of an arm's seed, counted from 1: student, student-s2, …"""
    return arm if number == 1 else f"{arm}-s{number}"


def is_further_seed(model: str) -> bool:
    return _FURTHER.fullmatch(model) is not None


def arm_models(names: Iterable[str]) -> list[str]:
    """Those of `names` that are a student or an arm beside it, by arm, then by seed."""
    places = {}
    for name in names:
        found = _FURTHER.fullmatch(name)
        arm, number = (found[1], int(found[2])) if found else (name, 1)
        if arm in ("untrained", *TRAINED):
            places[name] = (list(ARMS).index(arm), number)
    return sorted(places, key=lambda name: places[name])


def compare_arms(items: Mapping[str, Sequence[EvalItem]], *, confidence: float) -> ArmsTable | None:
    """The table of a run's answers to the held-out items, model → rows; None where no student was asked.

    Raises:
        ValueError: two arms were asked different items.
    """
    if not items.get("student"):
        return None
    wanted = {name: items[name] for name in ("teacher", *arm_models(items)) if items.get(name)}
    asked = [row.id for row in wanted["student"]]
    for name, rows in wanted.items():
        if [row.id for row in rows] != asked:
            raise ValueError(f"expected {name} and student on the same items, found others; run eval again")
    graded = all(row.answer_score_ratio is not None for rows in wanted.values() for row in rows)
    scores = {name: [_score(row, graded=graded) for row in rows] for name, rows in wanted.items()}
    by_arm = {arm: {name: scores[name] for name in _seeds(arm, scores)} for arm in ARMS}
    teacher = scores.get("teacher")
    rows = [_row(arm, models, teacher=teacher, confidence=confidence) for arm, models in by_arm.items() if models]
    ours, theirs = _paired(by_arm["student"], by_arm["control"])
    found = crossed_difference(ours, theirs, confidence=confidence, seed=_seed([ours, theirs])) if ours else None
    outcome = _outcome(found)
    return ArmsTable(
        score="answer_score_ratio" if graded else "exact_match_ratio",
        confidence=confidence,
        items=len(asked),
        rows=tuple(rows),
        difference=found.estimate if found else None,
        difference_interval=(found.low, found.high) if found else None,
        pairs=len(ours),
        outcome=outcome,
        sentence=_sentence(outcome, found, seeds=len(ours), items=len(asked), confidence=confidence),
    )


def arm_cells(table: ArmsTable) -> list[tuple[str, ...]]:
    """The cells of `COLUMNS` of each arm, then of distillation minus its control in points."""
    rows = [
        (ARMS[row.arm], "–" if row.arm in ("teacher", "untrained") else str(len(row.models)), _percent(row.score),
         _span(row.interval), _percent(row.of_teacher), _span(row.of_teacher_interval))
        for row in table.rows
    ]  # fmt: skip
    if table.difference is None or table.difference_interval is None:
        return rows
    low, high = table.difference_interval
    said = (f"{100 * table.difference:+.1f} points", f"{100 * low:+.1f} to {100 * high:+.1f}")
    return [*rows, ("distillation minus SFT on its text", str(table.pairs), *said, "–", "–")]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _span(ends: tuple[float, float] | None) -> str:
    return "–" if ends is None else f"{100 * ends[0]:.1f}–{100 * ends[1]:.1f} %"


def _score(row: EvalItem, *, graded: bool) -> float:
    return float(row.correct) if not graded or row.answer_score_ratio is None else row.answer_score_ratio


def _seeds(arm: str, names: Iterable[str]) -> list[str]:
    if arm == "teacher":
        return [name for name in names if name == arm]
    return [name for name in arm_models(names) if name == arm or name.startswith(f"{arm}-s")]


def _row(arm: str, models: Mapping[str, list[float]], *, teacher: Sequence[float] | None, confidence: float) -> ArmRow:
    scores = list(models.values())
    mean = crossed_mean(scores, confidence=confidence, seed=_seed(scores))
    row = ArmRow(arm=arm, models=tuple(models), score=mean.estimate, interval=(mean.low, mean.high))
    if teacher is None or arm == "teacher" or not any(teacher):
        return row
    kept = crossed_ratio(scores, teacher, confidence=confidence, seed=_seed([scores, teacher]))
    return row.model_copy(update={"of_teacher": kept.estimate, "of_teacher_interval": (kept.low, kept.high)})


def _paired(
    student: Mapping[str, list[float]], control: Mapping[str, list[float]]
) -> tuple[list[list[float]], list[list[float]]]:
    """Scores of the seeds that both have, in the same order."""
    pairs = [(scores, control.get(name.replace("student", "control", 1))) for name, scores in student.items()]
    both = [(ours, theirs) for ours, theirs in pairs if theirs is not None]
    return [ours for ours, _ in both], [theirs for _, theirs in both]


def _outcome(difference: Interval | None) -> Outcome:
    if difference is None:
        return "no control"
    if difference.low > 0:
        return "helps"
    return "hurts" if difference.high < 0 else "no difference shown"


def _sentence(outcome: Outcome, found: Interval | None, *, seeds: int, items: int, confidence: float) -> str:
    if found is None:
        return NOTHING_CLAIMED
    said = outcome if outcome == "no difference shown" else f"distillation {outcome}"
    of = f"{seeds} seeds" if seeds > 1 else "1 seed, which says nothing of another"
    return (
        f"{said}: distillation minus SFT on the same text is {100 * found.estimate:+.1f} points, "
        f"{100 * confidence:g} % interval {100 * found.low:+.1f} to {100 * found.high:+.1f}, {items} items, {of}"
    )


def _seed(scores: object) -> int:
    return int(digest_of(scores)[:15], 16)
