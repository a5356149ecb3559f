"""Whether a teacher's answer is kept: finished, not empty, of the right form, and right where that is known."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jsonschema
import referencing

from edgedistill.core.errors import InputError, shortened
from edgedistill.core.files import canonical_json
from edgedistill.core.kinds import KINDS, calls_of, extract, strict_json
from edgedistill.synth.answer_text import foreign_language, is_refusal, length_fault

Verdict = tuple[str, str] | None  # (reason, detail) of a reject


def schema_check(schema: dict[str, Any], *, name: str = "task.answer_schema") -> Callable[[Any], str | None]:
    """A function that says what is wrong with a JSON value under `schema` (JSON Schema 2020-12), None if nothing.

    Raises:
        InputError: the schema is no valid schema, or refers to another document (nothing is ever fetched).
    """
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as e:
        place = "/".join(map(str, e.absolute_path)) or "its root"
        raise InputError(f"{name} is no valid JSON Schema at {place}: {e.message}") from None
    for reference in _references(schema):
        if not reference.startswith("#"):
            raise InputError(f"{name} refers to {reference!r}; expected references inside it (#/…) only")
    validator = jsonschema.Draft202012Validator(schema, registry=referencing.Registry())

    def check(value: Any) -> str | None:
        try:
            error = jsonschema.exceptions.best_match(validator.iter_errors(value))
        except referencing.exceptions.Unresolvable as e:
            raise InputError(f"{name} refers to {'#' + e.ref.lstrip('#')!r}, which it does not hold") from None
        if error is None:
            return None
        return f"{'.'.join(map(str, error.absolute_path)) or 'the answer'}: {error.message}"

    return check


def check_answer(
    answer: str,
    *,
    finish: str,
    as_json: bool,
    schema: Callable[[Any], str | None] | None,
    expected: str | None,
    prompt: str = "",
    copied: Mapping[str, Sequence[str]] | None = None,
    kind: str | None = None,
    labels: Sequence[str] = (),
    tools: Sequence[Mapping[str, Any]] = (),
    pattern: str | None = None,
    words: tuple[int, int] | None = None,
    language: str | None = None,
    refusals: bool = True,
    others: Sequence[str] = (),
    native: bool = False,
) -> Verdict:
    """None if the answer is kept, else the reason and detail of its reject.

    Reasons: `truncated` (the token limit came first), `empty`, `pattern`, `length` and `language`; for text `refusal`
    (unless `refusals`, or the right answer is one too); for JSON `not-json`, `schema` (also of the function called) and
    `not-said` (a text or number in a field of `copied` is neither among the field's allowed texts nor in the words of
    `prompt`); `no-answer` (none of the task's kind can be read from it) and, where the right one is known, `wrong`
    (`others` are right as well). A `native` call may stand in a chat template's tags.
    """
    if finish == "length":
        return "truncated", "no end-of-generation token within the limit"
    if not answer.strip():
        return "empty", ""
    if pattern is not None and not re.fullmatch(pattern, answer, flags=re.DOTALL):
        return "pattern", f"expected all of it to match {pattern!r}"
    if words and (fault := length_fault(answer, least=words[0], most=words[1])):
        return "length", fault
    if as_json:
        return _json_fault(
            answer,
            schema=schema,
            expected=expected,
            prompt=prompt,
            copied=copied or {},
            kind=kind,
            tools=tools,
            native=native,
        )
    if not refusals and is_refusal(answer) and not is_refusal(expected or ""):
        return "refusal", ""
    if language and (found := foreign_language(answer, language)):
        return "language", f"expected {language}, found {found}"
    right = () if expected is None else (expected, *others)
    return _kind_fault(answer, right, kind=kind, labels=labels) if kind else None


def _kind_fault(answer: str, right: Sequence[str], *, kind: str, labels: Sequence[str]) -> Verdict:
    found = extract(answer, kind=kind, labels=labels)
    if found is None:
        said = f"one of {', '.join(labels)}" if labels else f"an answer of a {kind} task"
        return "no-answer", f"expected {said}"
    if right and not KINDS[kind].graded and found not in [extract(text, kind=kind, labels=labels) for text in right]:
        return "wrong", f"expected {shortened(' or '.join(right))}"
    return None


def _json_fault(
    answer: str,
    *,
    schema: Callable[[Any], str | None] | None,
    expected: str | None,
    prompt: str,
    copied: Mapping[str, Sequence[str]],
    kind: str | None,
    tools: Sequence[Mapping[str, Any]],
    native: bool,
) -> Verdict:
    called = native and bool(calls_of(answer))
    try:
        value = None if called else strict_json(answer)
    except ValueError as e:
        return "not-json", str(e)
    if schema and not called and (fault := schema(value)):
        return "schema", fault
    if kind == "function-call":
        calls = calls_of(answer)
        if not calls:
            return "no-answer", 'expected an object of "name" and "arguments" alone'
        for call in calls if tools else ():
            if fault := _call_fault(call, tools):
                return "schema", fault
        value = calls[0] if len(calls) == 1 else calls
        expected = expected and _plain_calls(expected)
    if fault := _not_said(value, prompt=prompt, copied=copied):
        return "not-said", fault
    if expected is not None and canonical_json(value) != canonical_json(strict_json(expected)):
        return "wrong", f"expected {expected}"
    return None


def _plain_calls(text: str) -> str:
    calls = calls_of(text) or strict_json(text)
    return canonical_json(calls[0] if isinstance(calls, list) and len(calls) == 1 else calls)


def _call_fault(call: Mapping[str, Any], tools: Sequence[Mapping[str, Any]]) -> str | None:
    """What is wrong with a call of one of `tools`: its name, or its arguments under the function's schema."""
    parameters = {tool["name"]: tool.get("parameters") for tool in tools}
    if call["name"] not in parameters:
        return f"expected a call of {', '.join(sorted(parameters))}, found {call['name']!r}"
    if parameters[call["name"]] is None:
        return None
    return _parameters_check(canonical_json(parameters[call["name"]]))(call["arguments"])


@functools.lru_cache(maxsize=1024)
def _parameters_check(schema: str) -> Callable[[Any], str | None]:
    return schema_check(strict_json(schema), name="a function's parameters")


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
