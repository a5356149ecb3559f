"""Whether an answer is the right one."""

from __future__ import annotations

import json
from typing import Any

from edgedistill.core.files import canonical_json


def is_correct(output: str, answer: str, *, as_json: bool, finish: str) -> bool:
    """Exact match of a greedy answer: it ended by itself and says what `answer` says.

    JSON answers are compared as values: spaces and the order of names do not count, `1` and `1.0` differ. Text answers
    are compared letter for letter.
    """
    if finish != "stop":
        return False
    if not as_json:
        return output == answer
    try:
        return canonical_json(_strict_json(output)) == canonical_json(_strict_json(answer))
    except (ValueError, RecursionError):
        return False


def _strict_json(text: str) -> Any:
    """JSON without NaN, Infinity, or a name that stands twice; raises ValueError."""

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(row := dict(items)) != len(items):
            raise ValueError("a name stands twice")
        return row

    return json.loads(text, parse_constant=refuse, object_pairs_hook=pairs)
