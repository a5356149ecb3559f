"""Which answers are kept, and the reason of each reject."""

from __future__ import annotations

import json

import pytest

from edgedistill.core.errors import InputError
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
