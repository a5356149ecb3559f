"""How the answer of each kind of task is read and compared, and what a recipe's task refuses."""

from __future__ import annotations

from fractions import Fraction

import pytest

from edgedistill.core.config import validate
from edgedistill.core.corpus import Data
from edgedistill.core.errors import InputError
from edgedistill.core.kinds import KINDS, answer_words, call_of, extract, request_text, same_answer, system_text
from edgedistill.core.task import Task

LABELS = ("book_flight", "cancel", "not sure")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("cancel", "cancel"),
        (" Cancel. ", "cancel"),
        ("Book flight", "book_flight"),
        ("The answer is: not_sure", "not sure"),
        ("This is a cancel request", "cancel"),
        ("cancel or book flight", None),
        ("cancelled", None),
        ("", None),
    ],
)
def test_a_label_is_read_where_it_is_the_only_one_said(text: str, found: str | None) -> None:
    assert extract(text, kind="classification", labels=LABELS) == found


def test_labels_of_nli_are_known_and_without_labels_the_text_is_one() -> None:
    assert extract("It is a Contradiction", kind="nli") == "contradiction"
    assert extract("Any Thing!", kind="classification") == "any thing"
    assert same_answer("Neutral", "neutral", kind="nli") and not same_answer("", "", kind="nli")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("16 - 3 - 4 = 9 eggs, 9 * 2 = $18.\nAnswer: $18", Fraction(18)),
        ("so #### 1,234.50", Fraction(2469, 2)),
        (r"thus \boxed{-3/4}", Fraction(-3, 4)),
        ("The answer is: 7 apples and 2 pears", Fraction(7)),
        ("first 3, then 40%", Fraction(40)),
        ("−5", Fraction(-5)),
        (".5", Fraction(1, 2)),
        ("none", None),
        ("Answer: 1/0", None),
        ("Answer: unknown, 5 tries", Fraction(5)),
    ],
)
def test_the_number_of_a_solution_is_read(text: str, found: Fraction | None) -> None:
    assert extract(text, kind="math") == found


def test_equal_numbers_spans_and_calls_are_equal_however_written() -> None:
    assert same_answer("Answer: 1,000.0", "1000", kind="math")
    assert same_answer("The Eiffel Tower.", "eiffel tower", kind="question-answering")
    assert not same_answer("Eiffel", "eiffel tower", kind="question-answering")
    call = '{"name":"f","arguments":{"a":1,"b":[2]}}'
    assert same_answer(call, '{"arguments": {"b": [2], "a": 1}, "name": "f"}', kind="function-call")
    assert not same_answer(call, call.replace("1", "1.5"), kind="function-call")
    assert same_answer("A  summary\n", "A summary", kind="summarization")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"name":"f"}', '{"name":1,"arguments":{}}', '{"name":"f","arguments":[]}']
)
def test_what_is_no_call(text: str) -> None:
    assert call_of(text) is None and extract(text, kind="function-call") is None


def test_words_of_requests() -> None:
    assert request_text("nli", {"premise": "P", "hypothesis": "H"}) == "Premise: P\nHypothesis: H"
    assert request_text("question-answering", {"question": "Q"}) == "Q"
    assert system_text("classification", labels=("a", "b")).count("(a, b)") == 1
    assert answer_words("The cat’s “hat”!") == ["cat", "s", "hat"]
    assert all("{" not in system_text(kind) for kind in KINDS)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"kind": "function-call"}, 'kind = "function-call" expects answer = "json", found \'text\''),
        ({"kind": "math", "answer": "json"}, 'kind = "math" expects answer = "text"'),
        ({"kind": "chat"}, "kind: found 'chat'; did you mean"),
        ({"labels": ["a"]}, 'labels expect kind = "classification" or "nli"'),
        ({"tools": [{"name": "f"}]}, 'tools expect kind = "function-call"'),
        ({"tools": [{"title": "f"}], "kind": "function-call", "answer": "json"}, "tools: expected a name of each"),
        ({"answer_pattern": "("}, "answer_pattern = '(' is no regular expression"),
        ({"answer_words": [5, 2]}, "answer_words: expected least <= most, found [5, 2]"),
        ({"language": "english"}, "language"),
    ],
)
def test_a_task_that_contradicts_itself_is_refused(task: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        validate(Task, task, source="recipe")
    assert message in str(caught.value)


def test_a_recipe_s_own_system_message_stands_before_the_kind_s() -> None:
    assert "entailment, neutral, contradiction" in (Task(kind="nli").all_system() or "")
    assert Task(kind="nli", system="own").all_system() == "own"
    assert Task().all_system() is None and Task(kind="conversation").all_system() is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"generator": "home-commands", "group": "x"}, "form, columns and group are those of files"),
        ({"gold": "g.jsonl", "split": {"valid": 0.5, "heldout": 0.5}}, "expected valid + heldout below 1"),
        ({"prompts": "p.jsonl", "split": {"valid": 0.5}}, "[data.split] expects data.gold to name files"),
        ({"gold": "g", "valid": "v", "split": {"valid": 0.1}}, "expected either data.valid or data.split.valid"),
        ({"prompts": "p", "balance": {"by": "kind", "target": {"a": 0}}}, "or a table of shares above 0"),
        ({"prompts": ["a", 3]}, "prompts"),
        ({"prompts": 3}, "prompts = 3: expected a JSONL path, because no generator is named"),
    ],
)
def test_data_that_contradicts_itself_is_refused(data: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        validate(Data, data, source="recipe")
    assert message in str(caught.value)
