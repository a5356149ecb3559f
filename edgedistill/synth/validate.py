"""Whether a teacher's answer is kept: finished, not empty, of the right form, and right where the answer is known."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jsonschema
import referencing

from edgedistill.core.errors import InputError
from edgedistill.core.files import canonical_json

Verdict = tuple[str, str] | None  # (reason, detail) of a reject


def schema_check(schema: dict[str, Any]) -> Callable[[Any], str | None]:
    """A function that says what is wrong with a JSON value under `schema` (JSON Schema 2020-12), None if nothing.

    Raises:
        InputError: the schema is no valid schema, or refers to another document (nothing is ever fetched).
    """
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as e:
        place = "/".join(map(str, e.absolute_path)) or "its root"
        raise InputError(f"task.answer_schema is no valid JSON Schema at {place}: {e.message}") from None
    for reference in _references(schema):
        if not reference.startswith("#"):
            raise InputError(f"task.answer_schema refers to {reference!r}; expected references inside it (#/…) only")
    validator = jsonschema.Draft202012Validator(schema, registry=referencing.Registry())

    def check(value: Any) -> str | None:
        try:
            error = jsonschema.exceptions.best_match(validator.iter_errors(value))
        except referencing.exceptions.Unresolvable as e:
            raise InputError(
                f"task.answer_schema refers to {'#' + e.ref.lstrip('#')!r}, which it does not hold"
            ) from None
        if error is None:
            return None
        return f"{'.'.join(map(str, error.absolute_path)) or 'the answer'}: {error.message}"

    return check


def parse_json(text: str) -> Any:
    """Strict JSON: no NaN or Infinity, no name twice.

    Raises:
        ValueError: `text` is not that.
    """

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(items)
        if len(row) != len(items):
            raise ValueError("a name stands twice")
        return row

    try:
        return json.loads(text, parse_constant=refuse, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def check_answer(
    answer: str,
    *,
    finish: str,
    as_json: bool,
    schema: Callable[[Any], str | None] | None,
    expected: str | None,
    prompt: str = "",
    copied: Mapping[str, Sequence[str]] | None = None,
) -> Verdict:
    """None if the answer is kept, else the reason and detail of its reject.

    Reasons: `truncated` (the token limit came first), `empty`, `not-json`, `schema`, and for JSON answers `not-said` (a
    text or number in a field of `copied` is neither among the field's allowed texts nor in the words of `prompt`) and,
    where the right value is known, `wrong`.
    """
    if finish == "length":
        return "truncated", "no end-of-generation token within the limit"
    if not answer.strip():
        return "empty", ""
    if not as_json:
        return None
    try:
        value = parse_json(answer)
    except ValueError as e:
        return "not-json", str(e)
    if schema and (fault := schema(value)):
        return "schema", fault
    if fault := _not_said(value, prompt=prompt, copied=copied or {}):
        return "not-said", fault
    if expected is not None and canonical_json(value) != canonical_json(parse_json(expected)):
        return "wrong", f"expected {expected}"
    return None


def _not_said(value: Any, *, prompt: str, copied: Mapping[str, Sequence[str]]) -> str | None:
    for name, allowed in copied.items():
        found = value.get(name) if isinstance(value, dict) else None
        if not isinstance(found, str | int | float) or isinstance(found, bool) or found in allowed:
            continue
        text = str(found)
        if not re.search(rf"(?<!\w){re.escape(text)}(?!\w)", prompt, flags=re.IGNORECASE):
            return f"{name}: the prompt does not say {text!r}"
    return None


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        for name, inner in schema.items():
            if name in ("$ref", "$dynamicRef") and isinstance(inner, str):
                yield inner
            else:
                yield from _references(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from _references(inner)
