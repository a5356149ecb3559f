"""What counts as the right answer."""

from __future__ import annotations

import pytest

from edgedistill.evals.answers import is_correct

RIGHT = '{"device":"light","room":"kitchen","value":null}'


@pytest.mark.parametrize(
    ("output", "correct"),
    [
        (RIGHT, True),
        (' { "room": "kitchen", "value": null, "device": "light" }\n', True),
        (RIGHT.replace("kitchen", "Kitchen"), False),
        (RIGHT + "}", False),
        (RIGHT[:-1], False),
        (RIGHT.replace("null", "NaN"), False),
        (RIGHT.replace("{", '{"room":"kitchen",'), False),
        ("[" * 100_000, False),
        ("", False),
    ],
)
def test_json_is_compared_as_a_value(output: str, correct: bool) -> None:
    assert is_correct(output, RIGHT, as_json=True, finish="stop") is correct


def test_numbers_of_another_kind_differ() -> None:
    assert not is_correct('{"a":1.0}', '{"a":1}', as_json=True, finish="stop")
    assert not is_correct('{"a":true}', '{"a":1}', as_json=True, finish="stop")


def test_an_answer_that_never_ends_is_wrong() -> None:
    assert not is_correct(RIGHT, RIGHT, as_json=True, finish="length")
    assert not is_correct("yes", "yes", as_json=False, finish="length")


def test_text_is_compared_letter_for_letter() -> None:
    assert is_correct("yes", "yes", as_json=False, finish="stop")
    assert not is_correct("yes ", "yes", as_json=False, finish="stop")
