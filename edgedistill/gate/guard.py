"""Whether a model's answers are as long and end as often as its reference's: what accuracy alone does not show.

Pure: no clock, no file, no environment.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from edgedistill.core.records import EvalItem
from edgedistill.gate.rundata import RunData, UnmeasuredError
from edgedistill.gate.words import number

SHORTEST, LONGEST = 0.67, 1.5  # mean output tokens over the reference's
STOPPED_DROP = 0.02  # share of answers that end by themselves, below the reference's


def length_problem(data: RunData, *, model: str, reference: RunData, against: str, name: str) -> str | None:
    """How answers of `model` differ in length or ending from those of `against` in `reference`; None if they do not.

    Raises:
        UnmeasuredError: the reference made no token, so nothing can be held against it.
    """
    ours, theirs = data.items.get(model), reference.items.get(against)
    if not ours or not theirs:
        return None  # without answers there is no accuracy either
    mine, other = _mean_tokens(ours), _mean_tokens(theirs)
    if other == 0:
        raise UnmeasuredError(f"{name} answered with no token at all, which no length can be held against")
    if not SHORTEST <= mine / other <= LONGEST:
        return (
            f"answers have {number(mine)} tokens in the mean, {number(mine / other)}× those of {name}, outside of "
            f"{SHORTEST:g}–{LONGEST:g}×"
        )
    stopped, before = _stopped(ours), _stopped(theirs)
    if stopped < before - STOPPED_DROP:
        return (
            f"{number(100 * stopped)} % of answers end by themselves, {number(100 * before)} % of those of {name}; the "
            "rest ran to the limit"
        )
    return None


def _mean_tokens(items: Sequence[EvalItem]) -> float:
    return statistics.fmean(len(item.output_ids) for item in items)


def _stopped(items: Sequence[EvalItem]) -> float:
    return sum(item.finish == "stop" for item in items) / len(items)
