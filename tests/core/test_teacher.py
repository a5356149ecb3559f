"""The recipe's teacher: what fits together, and what an API leaves no room for."""

from __future__ import annotations

from typing import Any

import pytest

from edgedistill.core.config import validate
from edgedistill.core.errors import InputError
from edgedistill.core.recipe import Recipe
from edgedistill.core.teacher import Teacher

PRICE = {"input_per_mtok": 1.0, "output_per_mtok": 2.0, "date": "2026-01-02", "source": "a page"}


def teacher(**named: Any) -> Teacher:
    return validate(Teacher, {"model": "m"} | named, source="recipe")


def recipe(**tables: Any) -> Recipe:
    raw = {
        "name": "t", "data": {}, "student": {"model": "s"}, "teacher": {"model": "m", "engine": "openai"}, **tables,
    }  # fmt: skip
    return validate(Recipe, raw, source="recipe")


def test_a_teacher_read_back_from_its_lock_is_the_same() -> None:
    for one in (
        teacher(),
        teacher(adapt={"rank": 4}),
        teacher(engine="llamacpp"),
        teacher(engine="openai", price=PRICE, limits={"money": 1.0}, base_url="http://localhost:8000/v1"),
        teacher(engine="anthropic", terms={"training_allowed": False, "source": "x", "date": "2026-01-02"}),
    ):
        assert validate(Teacher, one.model_dump(mode="json"), source="lock") == one
    whole = recipe()
    assert validate(Recipe, whole.model_dump(mode="json"), source="lock") == whole


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"concurrency": 4}, 'expected concurrency with engine "openai" or "anthropic", found "hf"'),
        ({"engine": "llamacpp", "price": PRICE}, 'expected price with engine "openai" or "anthropic"'),
        ({"engine": "llamacpp", "adapt": {}}, r'expected engine "hf" with \[teacher.adapt\], found "llamacpp"'),
        ({"engine": "openai", "adapt": {}}, r"expected no \[teacher.adapt\] with engine \"openai\""),
        ({"engine": "openai", "limits": {"money": 1}}, r"expected \[teacher.price\] with limits.money"),
        ({"engine": "anthropic", "top_logprobs": 5}, 'expected no top_logprobs with engine "anthropic"'),
        ({"engine": "openai", "base_url": "localhost:80"}, "base_url: expected http://… or https://…"),
        ({"engine": "openai", "base_url": "https://me:secret@a.b"}, "expected no user, password or query in it"),
        ({"engine": "openai", "base_url": "https://a.b/v1?key=1"}, "name the key's variable in key_env"),
        ({"engine": "openai", "key_env": "sk-123"}, "key_env"),
        ({"engine": "openai", "top_logprobs": 21}, "top_logprobs"),
    ],
)
def test_what_does_not_fit_is_said(named: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        teacher(**named)


OTHER = {"model": "n", "engine": "anthropic"}


def test_several_teachers_share_the_work_in_one_way() -> None:
    one = teacher(engine="openai", mix="share", top_logprobs=3, further=[OTHER | {"share": 0.5}])
    assert [(t.model, t.top_logprobs) for t in one.all] == [("m", 3), ("n", 0)]
    assert validate(Teacher, one.model_dump(mode="json"), source="lock") == one
    assert one.answering()["further"][0]["share"] == 0.5
    for wrong, message in (
        ({"mix": "vote"}, r"expected mix and \[\[teacher.further\]\] together"),
        ({"further": [OTHER]}, r"expected mix and \[\[teacher.further\]\] together"),
        ({"mix": "vote", "further": [{"model": "a"}]}, 'expected further teachers of engine "openai" or "anthropic"'),
        ({"mix": "tag", "further": [OTHER]}, 'expected kinds of each further teacher with mix = "tag"'),
        ({"mix": "vote", "further": [OTHER | {"share": 0.5}]}, "expected share of each further teacher with mix ="),
        ({"mix": "share", "further": [OTHER | {"share": 0.6}] * 2}, "expected shares of at most 1 together"),
    ):
        with pytest.raises(InputError, match=message):
            teacher(engine="openai", **wrong)
    with pytest.raises(InputError, match=r"because gate.require_terms is"):
        terms = {"training_allowed": True, "source": "a page", "date": "2026-01-02"}
        both = {"model": "m", "engine": "openai", "mix": "vote", "further": [OTHER], "terms": terms}
        recipe(teacher=both, gate={"require_terms": True})


def test_an_api_has_no_weights_to_cut() -> None:
    with pytest.raises(InputError, match=r"expected student.model with teacher.engine = \"openai\""):
        recipe(student={"cut": {"layers": 1}})


SIZE: dict[str, Any] = {"metric": "artifact_bytes"}


@pytest.mark.parametrize(
    "metric",
    [{"metric": "response_ms", "target": "local-cpu"}, SIZE, {"metric": "kld_nats"}, {"metric": "exact_match_ratio"}],
)
@pytest.mark.parametrize("against", ["teacher", "teacher-gguf-q4_0"])
def test_what_a_budget_against_an_api_s_teacher_is_told_to_name_is_taken(metric: dict[str, Any], against: str) -> None:
    limited = metric | {"max_ratio": 0.5}
    with pytest.raises(InputError) as refused:
        recipe(budget={"b": limited | {"against": against}})
    head, line = str(refused.value).splitlines()
    assert head == "recipe has 1 error:"
    start = f"  budget.b.against: expected a model whose {metric['metric']} is measured, such as "
    assert line.startswith(start) and line.endswith(f", found {against!r}: the teacher is behind an API")
    named = line.removeprefix(start).partition(", found ")[0].split(", ")
    assert len(named) == 3
    for name in (*named, "previous"):
        assert recipe(budget={"b": limited | {"against": name}}).budget["b"].against == name


def test_an_absolute_budget_is_against_nothing_that_must_be_measured() -> None:
    assert recipe(budget={"b": SIZE | {"max": "1 MB"}}).models()[0] == "gguf-f16"
    with pytest.raises(InputError, match=r"budget.b.against = 'teachr' is no model of this run"):
        recipe(budget={"b": SIZE | {"max": "1 MB", "against": "teachr"}})


def test_a_gate_that_requires_terms_is_heard_before_anything_is_paid() -> None:
    asked = {"model": "m", "engine": "openai"}
    terms = {"source": "a page", "date": "2026-01-02"}
    for wrong, said in ((None, r"no \[teacher.terms\]"), (False, "False"), ("unknown", "'unknown'")):
        given = {} if wrong is None else {"terms": terms | {"training_allowed": wrong}}
        with pytest.raises(InputError, match=f"because gate.require_terms is, found {said}"):
            recipe(teacher=asked | given, gate={"require_terms": True})
    assert recipe(teacher=asked | {"terms": terms | {"training_allowed": True}}, gate={"require_terms": True})
    assert recipe(teacher={"model": "m"}, gate={"require_terms": True})  # a model of one's own has its licence


def test_the_key_s_variable_is_the_provider_s_own_unless_named() -> None:
    assert teacher(engine="openai").key_name == "OPENAI_API_KEY"
    assert teacher(engine="anthropic").key_name == "ANTHROPIC_API_KEY"
    assert teacher(engine="openai", base_url="http://localhost:1/v1").key_name is None
    assert teacher(engine="openai", base_url="https://a.b", key_env="A_B").key_name == "A_B"


def test_only_what_changes_answers_makes_them_stale() -> None:
    one = teacher(engine="openai", temperature=0.5)
    same = teacher(engine="openai", temperature=0.5, base_url="http://h:1/v1", concurrency=3, price=PRICE, attempts=2)
    assert one.answering() == same.answering()
    for changed in ({"temperature": 0.6}, {"revision": "b"}, {"extra_body": {"a": 1}}, {"max_output_tokens": 5}):
        assert teacher(**({"engine": "openai", "temperature": 0.5} | changed)).answering() != one.answering()
