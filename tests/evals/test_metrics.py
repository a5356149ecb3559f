"""Scores of answers by kind, against numbers worked out by hand."""

from __future__ import annotations

import sys

import pytest

from edgedistill.core.errors import MissingError
from edgedistill.evals import metrics
from edgedistill.evals.answers import is_correct
from edgedistill.evals.score import Item, eval_rows, quality
from edgedistill.runtimes.base import Generation

CALL = '{"name":"f","arguments":{"a":1,"b":"x"}}'


def test_token_f1_is_that_of_shared_words() -> None:
    assert metrics.token_f1("the Eiffel Tower in Paris", ["Paris", "Eiffel tower"]) == pytest.approx(2 * 2 / (4 + 2))
    assert metrics.token_f1("", ["x"]) == 0 and metrics.token_f1("A", ["the"]) == 1
    assert metrics.item_scores([("a cat", ["dog", "cat"])], kind="question-answering", correct=[False]) == [1.0]


def test_macro_f1_weighs_classes_alike_and_counts_what_names_none() -> None:
    pairs = [("x", ["x"]), ("x", ["x"]), ("x", ["y"]), ("perhaps", ["y"]), ("y", ["y"])]
    found = metrics.kind_figures(pairs, kind="classification", labels=("x", "y"))
    # x: 2 right of 3 said and 2 wanted; y: 1 right of 1 said and 3 wanted.
    assert found == {"macro_f1": pytest.approx((2 * 2 / (3 + 2) + 2 * 1 / (1 + 3)) / 2)}


def test_calls_are_scored_by_function_and_by_argument() -> None:
    said = [CALL, CALL.replace("1", "2"), CALL.replace('"f"', '"g"'), "no call"]
    found = metrics.call_figures([(call, [CALL]) for call in said])
    assert found == {"function_ratio": 0.5, "argument_f1": pytest.approx(2 * 3 / (6 + 8))}


def test_summaries_are_scored_by_longest_common_subsequence() -> None:
    pytest.importorskip("rouge_score", reason="the extra metrics is not installed")
    pairs = [("the dog sat down", ["a far other text", "the cat sat down"])]
    assert metrics.item_scores(pairs, kind="summarization", correct=[False]) == [pytest.approx(0.75)]
    found = metrics.kind_figures(pairs, kind="summarization")
    assert found["bleu"] < 0.01
    assert found["rouge1"] == pytest.approx(0.75) and found["rouge2"] == pytest.approx(1 / 3)
    assert set(found) == {"rouge1", "rouge2", "rougeL", "bleu", "chrf"}
    same = metrics.kind_figures([("one two three four five", ["one two three four five"])] * 2, kind="conversation")
    assert all(value == pytest.approx(1.0) for value in same.values())


@pytest.mark.parametrize("package", ["rouge_score.rouge_scorer", "sacrebleu"])
def test_a_missing_package_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingError, match=r"pip install 'edgedistill\[metrics\]'"):
        metrics.rouge([("a", ["b"])]) if "rouge" in package else metrics.translation_figures([("a", ["b"])])


def test_right_or_wrong_is_the_kind_s_to_say() -> None:
    assert is_correct("Answer: 4.0", "4", as_json=False, finish="stop", kind="math")
    assert not is_correct("Answer: 4.0", "4", as_json=False, finish="length", kind="math")
    assert not is_correct("Answer: 4.0", "4", as_json=False, finish="stop")
    assert is_correct("It is B.", "b", as_json=False, finish="stop", kind="classification", labels=("a b", "b"))
    assert is_correct("b", "a", as_json=False, finish="stop", kind="question-answering", others=("c", "The B"))
    assert metrics.item_scores([("x", ["y"])], kind="math", correct=[True]) == [1.0]


def test_rows_and_quality_carry_the_scores_of_a_kind() -> None:
    answers = [("the cat", ("dog", "cat")), ("a bird", ("fish",)), ("big fish", ("fish",))]
    items = [
        Item(id=str(i), prompt_ids=(1,), answer=right[0], answer_ids=(2,), kind="", scored=False,
             other_answers=tuple(right[1:]))
        for i, (_, right) in enumerate(answers)
    ]  # fmt: skip
    said = [Generation(ids=[i, 9], finish="stop") for i in range(3)]
    kind = {"kind": "question-answering"}
    rows = eval_rows(items, said, {}, decode=lambda ids: answers[ids[0]][0], as_json=False, **kind)
    assert [row.correct for row in rows] == [True, False, False] and rows[0].other_answers == ("cat",)
    assert [row.answer_score_ratio for row in rows] == [1.0, 0.0, pytest.approx(2 / 3)]
    plain = {"bits_per_byte": None, "reference": None, "teacher": None, "confidence": 0.95}
    found = quality("m", rows, **plain, **kind)
    assert found.answer_score_ratio == pytest.approx(5 / 9) == found.extra["kind"]["token_f1"]
    unscored = eval_rows(items, said, {}, decode=lambda ids: answers[ids[0]][0], as_json=False)
    assert (
        quality("m", unscored, **plain).answer_score_ratio is None
        and "kind" not in quality("m", unscored, **plain).extra
    )
