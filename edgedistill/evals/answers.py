"""Whether an answer is the right one."""

from __future__ import annotations

from collections.abc import Sequence

from edgedistill.core.files import canonical_json
from edgedistill.core.kinds import same_answer, strict_json, without_reasoning


def is_correct(
    output: str,
    answer: str,
    *,
    as_json: bool,
    finish: str,
    kind: str | None = None,
    labels: Sequence[str] = (),
    others: Sequence[str] = (),
) -> bool:
    """Exact match of a greedy answer: it ended by itself and says what `answer` says.

    The task's kind says when two answers are the same. Without one JSON answers are compared as values: spaces and the
    order of names do not count, `1` and `1.0` differ; text answers are compared letter for letter. With a kind any of
    `others` is right too. Reasoning before an answer does not count.
    """
    if finish != "stop":
        return False
    if kind is not None:
        return any(same_answer(output, right, kind=kind, labels=labels) for right in (answer, *others))
    output = output if output == answer else without_reasoning(output)
    if not as_json:
        return output == without_reasoning(answer)
    try:
        return canonical_json(strict_json(output)) == canonical_json(strict_json(answer))
    except ValueError:
        return False
