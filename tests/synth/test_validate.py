"""Which answers are kept, and the reason of each reject."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgedistill.core.errors import InputError
from edgedistill.core.kinds import NLI_LABELS
from edgedistill.synth.home import ANSWER_SCHEMA, REFUSAL
from edgedistill.synth.validate import check_answer, schema_check

GOOD = '{"device":"light","room":"attic","action":"on","value":null}'


@pytest.mark.parametrize(
    ("answer", "finish", "expected", "reason"),
    [
        (GOOD, "stop", None, None),
        (GOOD, "stop", GOOD.replace(",", ", "), None),
        (GOOD, "length", None, "truncated"),
        ("  \n", "stop", None, "empty"),
        (GOOD[:-1], "stop", None, "not-json"),
        (GOOD + GOOD, "stop", None, "not-json"),
        (GOOD.replace("null", "NaN"), "stop", None, "not-json"),
        (GOOD.replace('"value"', '"room":"x","value"'), "stop", None, "not-json"),
        ("[" * 100_000, "stop", None, "not-json"),
        (GOOD.replace("light", "toaster"), "stop", None, "schema"),
        ("null", "stop", None, "schema"),
        (GOOD.replace('"value":null', '"value":1.5'), "stop", None, "schema"),
        (GOOD.replace(',"value":null', ""), "stop", None, "schema"),
        (GOOD.replace('"value":null', '"value":null,"x":1'), "stop", None, "schema"),
        (GOOD, "stop", REFUSAL, "wrong"),
        (GOOD.replace("null", "1"), "stop", GOOD.replace("null", "true"), "wrong"),
    ],
)
def test_answers_are_judged(answer: str, finish: str, expected: str | None, reason: str | None) -> None:
    verdict = check_answer(answer, finish=finish, as_json=True, schema=schema_check(ANSWER_SCHEMA), expected=expected)
    assert (verdict and verdict[0]) == reason


def test_a_schema_fault_names_its_place_and_text_needs_no_json() -> None:
    check = schema_check(ANSWER_SCHEMA)
    verdict = check_answer(GOOD.replace('"on"', '"jump"'), finish="stop", as_json=True, schema=check, expected=None)
    assert verdict is not None and verdict[1].startswith("action: 'jump' is not one of")
    assert check_answer("hello", finish="stop", as_json=False, schema=None, expected="other") is None


@pytest.mark.parametrize(
    ("room", "value", "detail"),
    [
        ("attic", 12, None),
        ("Attic", 12, None),
        ("any", 12, None),
        ("att", 12, "room: the prompt does not say 'att'"),
        ("attic", 2, "value: the prompt does not say '2'"),
        ("cellar", 12, "room: the prompt does not say 'cellar'"),
        ("attic", None, None),
        ("attic", True, None),
    ],
)
def test_what_is_copied_must_be_said(room: str, value: object, detail: str | None) -> None:
    answer = json.dumps({"device": "fan", "room": room, "action": "set", "value": value})
    verdict = check_answer(
        answer,
        finish="stop",
        as_json=True,
        schema=None,
        expected=None,
        prompt="set the attic fan to 12",
        copied={"room": ("any",), "value": ()},
    )
    assert verdict == (("not-said", detail) if detail else None)


def test_copied_fields_of_what_is_no_object_are_none() -> None:
    settings = {"finish": "stop", "as_json": True, "schema": None, "expected": None}
    assert check_answer("[1]", **settings, copied={"room": ()}) is None


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "objekt"}, "task.answer_schema is no valid JSON Schema at type"),
        ({"properties": {"a": {"$ref": "https://example.org/a.json"}}}, "expected references inside it"),
    ],
)
def test_a_wrong_schema_is_refused(schema: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        schema_check(schema)


def test_a_reference_to_nothing_is_said_when_it_is_met() -> None:
    with pytest.raises(InputError, match="refers to '#/defs/b', which it does not hold"):
        schema_check({"$ref": "#/defs/b"})(1)


def text_verdict(answer: str, **rules: Any) -> tuple[str, str] | None:
    named = {"finish": "stop", "as_json": False, "schema": None, "expected": None, "refusals": False}
    return check_answer(answer, **named | rules)


@pytest.mark.parametrize(
    ("answer", "rules", "reason"),
    [
        ("I'm sorry, but I can't help with that.", {}, "refusal"),
        ("As an AI language model, I have no opinion.", {}, "refusal"),
        ("Unfortunately, I cannot provide that.", {}, "refusal"),
        ("I cannot provide that.", {"refusals": True}, None),
        ("I'm sorry, I can't do that.", {"expected": "I am sorry, no."}, None),
        ("She said: I can't swim, so stay close.", {}, None),
        ("Die Hauptstadt von Frankreich ist Paris, eine große Stadt.", {"language": "en"}, "language"),
        ("The capital of France is Paris, which is a large city.", {"language": "en"}, None),
        ("42", {"language": "en"}, None),
        ("one two three", {"words": (1, 2)}, "length"),
        ("one two", {"words": (1, 2)}, None),
        ("abc", {"pattern": "[a-c]"}, "pattern"),
        ("a\nc", {"pattern": "a.c"}, None),
        ("perhaps", {"kind": "nli", "labels": NLI_LABELS}, "no-answer"),
        ("neutral", {"kind": "nli", "labels": NLI_LABELS, "expected": "entailment"}, "wrong"),
        ("Neutral.", {"kind": "nli", "labels": NLI_LABELS, "expected": "neutral"}, None),
        ("It is 7.\nAnswer: 7", {"kind": "math", "expected": "4 + 3\nAnswer: 7.0"}, None),
        ("It is 8.\nAnswer: 8", {"kind": "math", "expected": "7"}, "wrong"),
        ("b", {"kind": "question-answering", "expected": "a", "others": ("B.",)}, None),
        ("c", {"kind": "question-answering", "expected": "a", "others": ("b",)}, "wrong"),
        ("Another summary", {"kind": "summarization", "expected": "A summary"}, None),
    ],
)
def test_text_answers_are_judged_by_rule_and_kind(answer: str, rules: dict[str, Any], reason: str | None) -> None:
    verdict = text_verdict(answer, **rules)
    assert (verdict and verdict[0]) == reason


TOOL = {
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ('{"name":"weather","arguments":{"city":"Rome"}}', None),
        ('{"name":"weather","arguments":{}}', ("schema", "the answer: 'city' is a required property")),
        ('{"name":"weather","arguments":{"city":3}}', ("schema", "city: 3 is not of type 'string'")),
        ('{"name":"news","arguments":{}}', ("schema", "expected a call of beep, weather, found 'news'")),
        ('{"name":"beep","arguments":{"any":1}}', None),
        ('{"call":"weather"}', ("no-answer", 'expected an object of "name" and "arguments" alone')),
    ],
)
def test_calls_are_held_against_their_function_s_schema(answer: str, verdict: tuple[str, str] | None) -> None:
    tools = (TOOL, {"name": "beep"})
    assert text_verdict(answer, as_json=True, kind="function-call", tools=tools) == verdict


def test_a_function_with_a_wrong_schema_is_refused() -> None:
    tools = ({"name": "f", "parameters": {"type": "nothing"}},)
    with pytest.raises(InputError, match="a function's parameters is no valid JSON Schema at type"):
        text_verdict('{"name":"f","arguments":{}}', as_json=True, kind="function-call", tools=tools)


def test_a_language_that_nobody_can_tell_is_refused() -> None:
    with pytest.raises(InputError, match=r"task.language: expected a language that can be told .*, found 'xx'"):
        text_verdict("The capital of France is Paris.", language="xx")
