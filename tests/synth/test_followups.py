"""Reasoning apart from answers, shorter answers, and a judge: what is asked, what is kept, and what is paid for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from synth_api_server import Server, serve

from edgedistill.cli.show import estimate_text
from edgedistill.core.config import validate
from edgedistill.core.errors import InputError, StageError
from edgedistill.core.files import iter_jsonl, write_jsonl
from edgedistill.core.kinds import extract
from edgedistill.core.recipe import Recipe
from edgedistill.core.records import Message
from edgedistill.core.runfolder import SilentReporter, StageContext
from edgedistill.core.teacher import Limits
from edgedistill.evals.answers import is_correct
from edgedistill.runtimes.chat import load_tokenizer
from edgedistill.runtimes.plain_tokenizer import save_plain
from edgedistill.synth import stage
from edgedistill.synth.clients import read_anthropic, read_openai
from edgedistill.synth.followups import SHORTER, score_of, score_prompt, settling, shorter_prompt
from edgedistill.synth.journal import Journal, Reply
from edgedistill.synth.reasoning import parted, with_reasoning
from edgedistill.synth.rows import make_prompt
from edgedistill.synth.service import Service, total_of
from edgedistill.synth.several import Asked

pytest.importorskip("openai", reason="the extra `api` is not installed")


@pytest.mark.parametrize(
    ("text", "beside", "expected"),
    [
        ("<think>\n2+2\n</think>\n\nAnswer: 4", "", ("2+2", "Answer: 4")),
        ("Answer: 4", "2+2", ("2+2", "Answer: 4")),
        ("2+2</think>Answer: 4", "", ("2+2", "Answer: 4")),
        ("<think>2+2 is", "", ("2+2 is", "")),
        ("<think></think>\n\n4", "", ("", "4")),
        ("Use <think> tags.", "", ("", "Use <think> tags.")),
        ("4", "", ("", "4")),
    ],
)
def test_reasoning_is_parted_from_the_answer(text: str, beside: str, expected: tuple[str, str]) -> None:
    assert parted(Reply(text, "stop", "m", None, None, beside)) == expected
    thought, answer = expected
    if answer:
        assert parted(Reply(with_reasoning(thought, answer), "stop", "m")) == expected


def test_reasoning_of_both_protocols_is_read() -> None:
    def openai(message: dict[str, Any]) -> Reply:
        return read_openai(json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode())

    assert openai({"content": "4", "reasoning_content": "2+2"}).reasoning == "2+2"
    assert openai({"content": None, "reasoning": "2+2"}) == Reply("", "stop", "", None, None, "2+2")
    blocks = [{"type": "thinking", "thinking": "2+2", "signature": "x"}, {"type": "text", "text": "4"}]
    reply = read_anthropic(json.dumps({"stop_reason": "end_turn", "content": blocks}).encode())
    assert (reply.text, reply.reasoning) == ("4", "2+2")


def test_answers_are_compared_without_their_reasoning() -> None:
    said = "<think>\n3 or 4\n</think>\n\nAnswer: 4"
    assert extract(said, kind="math") == 4
    assert is_correct('<think>x</think>{"a": 1}', '{"a":1}', as_json=True, finish="stop")
    assert not is_correct("<think>x</think>b", "a", as_json=False, finish="stop")


@pytest.mark.parametrize(
    ("text", "score"),
    [("Score: 7", 7), ("score: 3\nScore: **10**", 10), ("8/10", 8), (" 9.", 9), ("Score = 0", 0), ("7.5", 7),
     ("good", None), ("I saw 3 faults", None), ("Score: 11", None), ("Score: 100", None),
     ("Score (0-10): 8", 8), ("**Score**: **8**", 8), ("Score (8)", 8), ("Score (out of 10): 8", 8),
     ("I would give a score 3 for style.\nScore: **\\boxed{7}**", 7), ("# Score: 4/10", 4)],
)  # fmt: skip
def test_a_score_is_read_or_there_is_none(text: str, score: int | None) -> None:
    assert score_of(text) == score


def test_a_judge_is_shown_the_whole_chat_as_text() -> None:
    prompt = make_prompt([Message(role="system", content="Be brief."), Message(role="user", content="Hi")])
    asked = score_prompt(prompt, "Score: 10", rubric="whether it is polite")
    assert [m.role for m in asked.messages] == ["system", "user"] and "whether it is polite" in asked.messages[
        0
    ].content
    assert "[user]\nHi" in asked.messages[1].content and "<answer>\nScore: 10\n</answer>" in asked.messages[1].content


JUDGE = {
    "threshold": 6,
    "teacher": {
        "model": "m-judge",
        "engine": "openai",
        "price": {"input_per_mtok": 1.0, "output_per_mtok": 1.0, "date": "2026-01-02", "source": "a test"},
        "limits": {"tokens": 100_000},
    },
}


class Asks:
    """A run of four questions at a server, in this process."""

    def __init__(self, folder: Path, student: Path, server: Server) -> None:
        self.run, self.server = folder, server
        shutil.copytree(student, folder / "05-teacher", ignore=shutil.ignore_patterns("*.safetensors"))
        save_plain(load_tokenizer(folder / "05-teacher"), folder / "05-teacher")
        prompts = [make_prompt([Message(role="user", content=f"q{i}")]) for i in range(4)]
        (folder / "00-data").mkdir()
        write_jsonl(folder / "00-data" / "prompts.jsonl", [p.model_dump(mode="json") for p in prompts])

    def recipe(self, *, synth: dict[str, Any], teacher: dict[str, Any]) -> Recipe:
        its = {"model": "m-1", "engine": "openai", "base_url": self.server.url, "smoke": 2, "concurrency": 1} | teacher
        synth = {"label_gold": False} | synth
        if "judge" in synth:
            synth["judge"] = synth["judge"] | {"teacher": JUDGE["teacher"] | {"base_url": self.server.url}}
        data = {"name": "asks", "task": {"kind": "math", "max_new_tokens": 64}, "data": {}, "synth": synth}
        return validate(Recipe, data | {"teacher": its, "student": {"model": "s"}}, source="here")

    def __call__(self, *, synth: dict[str, Any], teacher: dict[str, Any] | None = None) -> dict[str, Any]:
        """Figures of the stage."""
        folder = self.run / "10-synth"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        recipe = self.recipe(synth=synth, teacher=teacher or {})
        context = StageContext(recipe, self.run, "synth", SilentReporter(), {})
        stage.run_synth(context)
        return context.figures

    def rows(self, name: str) -> list[dict[str, Any]]:
        return list(iter_jsonl(self.run / "10-synth" / f"{name}.jsonl"))

    def records(self) -> dict[str, str]:
        return {row["messages"][-1]["content"]: row["answer"] for row in self.rows("records-00000")}


def test_reasoning_is_dropped_kept_or_refused_without_asking_again(tmp_path: Path, tiny_llama: Path) -> None:
    def answer(text: str) -> str:
        return "Answer: 4" if text == "q3" else "<think>2+2</think>Answer: 4"

    with serve(answer=answer) as server:
        asks = Asks(tmp_path, tiny_llama, server)
        asks(synth={})
        assert set(asks.records().values()) == {"Answer: 4"} and len(asks.records()) == 4
        asks(synth={"reasoning": "keep"})
        kept = asks.records()
        assert kept["q0"] == "<think>\n2+2\n</think>\n\nAnswer: 4" and kept["q3"] == "Answer: 4"
        asks(synth={"reasoning": "off"})
        assert list(asks.records()) == ["q3"] and {row["reason"] for row in asks.rows("rejected")} == {"reasoned"}
        assert sum(server.arrived.values()) == 4


def test_a_shorter_answer_counts_where_it_says_the_same(tmp_path: Path, tiny_llama: Path) -> None:
    with serve() as server:

        def answer(text: str) -> str:
            if text != SHORTER:
                return "first two, then two more, Answer: 4"
            asked = server.bodies[-1]["messages"][-3]["content"]
            return {"q0": "Answer: 4", "q1": "Answer: 5", "q2": "x" * 60 + " Answer: 4"}.get(asked, "no")

        server.answer = answer
        asks = Asks(tmp_path, tiny_llama, server)
        dry = stage.estimate(tmp_path, asks.recipe(synth={"shorten": True}, teacher={}))
        assert (dry["requests"], dry["further"][0]["requests"]) == (4, 4) and not server.arrived
        assert dry["further"][0]["at_most"]["input_tokens"] > dry["at_most"]["input_tokens"] + 4 * 64
        figures = asks(synth={"shorten": True})
        found = asks.records()
        assert found["q0"] == "Answer: 4" and {found[q] for q in ("q1", "q2", "q3")} == {answer("q1")}
        assert server.arrived[SHORTER] == 4 and sum(server.arrived.values()) == 8 == figures["attempts"]
        dry = stage.estimate(tmp_path, asks.recipe(synth={"shorten": True}, teacher={}))
        assert (dry["requests"], dry["further"][0]["asks"], dry["further"][0]["requests"]) == (0, "shorter answers", 0)
        asks(synth={"shorten": True})
        assert sum(server.arrived.values()) == 8 and asks.records() == found


def test_a_shorter_answer_comes_without_the_log_probs_that_follow_the_longer_one(tmp_path: Path) -> None:
    service, asked = Service("openai", "m", "", {}, 16), make_prompt([Message(role="user", content="2+2")])
    logprobs = [[["34", -0.1]]]
    with contextlib.closing(Journal(service.journal_in(tmp_path))) as journal:
        for prompt, text in ((asked, "it is 4"), (shorter_prompt(asked, "it is 4"), "4")):
            reply = Reply(text, "stop", "m", (1, 1), logprobs)
            journal.sent(service.question(prompt).id, (1, 1))
            asyncio.run(journal.answer(service.question(prompt).id, reply, ms=1))
    for shorten, text, kept in ((False, "it is 4", logprobs), (True, "4", None)):
        with contextlib.ExitStack() as stack:
            rules = {"mix": None, "judge": lambda *_: None, "meaning": lambda said: said[-1]}
            outcome = settling([Asked(service)], tmp_path, stack, **rules, shorten=shorten)(asked)
        assert (outcome.text, outcome.logprobs) == (text, kept)


def test_a_judge_rejects_what_it_scores_low_and_is_paid_for(tmp_path: Path, tiny_llama: Path) -> None:
    def answer(text: str) -> str:
        if not text.startswith("<conversation>"):
            return f"Answer: {text[1:]}"
        return {"0": "Score: 9", "1": "Score: 6", "2": "Score: 5"}.get(text.partition("[user]\nq")[2][:1], "hm")

    with serve(answer=answer) as server:
        asks = Asks(tmp_path, tiny_llama, server)
        dry = stage.estimate(tmp_path, asks.recipe(synth={"judge": JUDGE}, teacher={}))["further"][0]
        assert (dry["asks"], dry["requests"]) == ("scores", 4) and dry["at_most"]["cost"] > 0 and not server.arrived
        figures = asks(synth={"judge": JUDGE})
        assert set(asks.records()) == {"q0", "q1"}
        said = {row["answer"]: (row["reason"], row["detail"]) for row in asks.rows("rejected")}
        assert said["Answer: 2"] == ("judged", "score 5 of 10, expected 6 by openai:m-judge")
        assert said["Answer: 3"][0] == "not-judged"
        assert figures["further"][0]["attempts"] == 4 and figures["further"][0]["cost"]["amount"] > 0
        asks(synth={"judge": JUDGE | {"threshold": 5}})
        assert set(asks.records()) == {"q0", "q1", "q2"} and sum(server.arrived.values()) == 8


def test_a_dry_run_tells_who_is_asked_for_what_and_the_total(tmp_path: Path, tiny_llama: Path) -> None:
    with serve() as server:
        asks = Asks(tmp_path, tiny_llama, server)
        dry = stage.estimate(tmp_path, asks.recipe(synth={"shorten": True, "judge": JUDGE}, teacher={}))
    parts, total = [dry, *dry["further"]], dry["total"]
    assert [part["asks"] for part in parts] == ["answers", "shorter answers", "scores"]
    assert total["requests"] == 12 == sum(part["requests"] for part in parts)
    assert total["unpriced"] == ["openai:m-1"], "the judge alone has a price"
    assert total["at_most"]["output_tokens"] == sum(part["at_most"]["output_tokens"] for part in parts)
    assert total["cost"] == {"USD": parts[2]["cost"]}
    tables = estimate_text(dry).split("\n\n")
    assert [text.split("  ")[0] for text in tables] == ["answers", "shorter answers", "scores", "total"]
    assert re.search(r"^requests +12$", tables[-1], re.MULTILINE)


def estimated(teacher: str, *, currency: str | None, seconds: float | None = 4.0) -> dict[str, Any]:
    """An estimate of three requests at 1.5 of its currency; without one the price is not known."""
    taken = {"input_tokens": 1, "output_tokens": 2, "cost": 1.5 if currency else None}
    return taken | {
        "teacher": teacher, "asks": "answers", "currency": currency, "requests": 3, "answered": 0, "prompts": 3,
        "seconds": seconds, "at_most": taken, "spent": taken, "limits": {}, "from": "a guess",
    }  # fmt: skip


def test_a_total_has_money_by_currency_and_names_what_has_no_price() -> None:
    first, *others = parts = [
        *(estimated("a", currency="USD"), estimated("b", currency="USD")),
        *(estimated("c", currency="EUR", seconds=None), estimated("d", currency=None)),
    ]
    total = total_of(parts)
    assert total["cost"] == {"USD": 3.0, "EUR": 1.5} and total["unpriced"] == ["d"]
    assert (total["requests"], total["input_tokens"], total["seconds"]) == (12, 4, None)
    shorter = total_of([first, first | {"asks": "shorter answers"}, first | {"asks": "scores"}])
    assert shorter["cost"] == {"USD": 4.5} and shorter["spent"]["cost"] == {"USD": 3.0}, "two journals, three parts"
    *_, unpriced, shown = estimate_text(first | {"further": others, "total": total}).split("\n\n")
    assert "3.00 USD + 1.50 EUR + what d costs" in shown and "unknown: no [teacher.price]\n" in unpriced


def test_a_judge_s_limits_stop_it_alone(tmp_path: Path, tiny_llama: Path) -> None:
    with serve(answer=lambda text: "Answer: 1") as server:
        asks = Asks(tmp_path, tiny_llama, server)
        recipe = asks.recipe(synth={"judge": JUDGE}, teacher={})
        referee = recipe.synth.judge.teacher.model_copy(update={"limits": Limits(tokens=10)})
        judge = recipe.synth.judge.model_copy(update={"teacher": referee})
        recipe = recipe.model_copy(update={"synth": recipe.synth.model_copy(update={"judge": judge})})
        (tmp_path / "10-synth").mkdir()
        with pytest.raises(StageError, match=r"stopped asking openai:m-judge, because \[teacher\.limits\]"):
            stage.run_synth(StageContext(recipe, tmp_path, "synth", SilentReporter(), {}))
        assert sum(server.arrived.values()) == 4


def test_the_best_judged_of_several_teachers_is_kept(tmp_path: Path, tiny_llama: Path) -> None:
    with serve() as server:

        def answer(text: str) -> str:
            if not text.startswith("<conversation>"):
                return "Answer: 4, said at length" if server.bodies[-1]["model"] == "m-1" else "Answer: 4"
            return "Score: 6" if "at length" in text else "Score: 8"

        server.answer = answer
        asks = Asks(tmp_path, tiny_llama, server)
        second = {"model": "m-2", "engine": "openai", "base_url": server.url, "concurrency": 1}
        asks(synth={"judge": JUDGE}, teacher={"mix": "judged", "further": [second]})
    assert set(asks.records().values()) == {"Answer: 4"}
    assert {row["teacher"] for row in asks.rows("records-00000")} == {"openai:m-2"}


@pytest.mark.parametrize(
    ("synth", "task", "teacher", "said"),
    [
        ({"shorten": True}, {}, {}, "expected a task.kind with right answers"),
        ({"reasoning": "keep"}, {}, {"engine": "hf"}, "with synth.reasoning, found \"hf\""),
        ({"judge": {"teacher": {"model": "m"}}}, {}, {}, 'expected a teacher of engine "openai" or "anthropic"'),
        ({}, {}, {"mix": "judged", "further": [{"model": "n", "engine": "openai"}]}, r"expected \[synth.judge\]"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(synth: Any, task: Any, teacher: Any, said: str) -> None:
    recipe = {"name": "x", "data": {}, "task": task, "synth": synth, "student": {"model": "s"}}
    with pytest.raises(InputError, match=said):
        validate(Recipe, recipe | {"teacher": {"model": "m", "engine": "openai"} | teacher}, source="here")
