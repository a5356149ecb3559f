"""Reasoning apart from answers, shorter answers, and a judge: what is asked, what is kept, and what is paid for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from synth_api_server import Server, serve
from test_api_stage import call

from edgedistill.core.config import validate
from edgedistill.core.errors import InputError
from edgedistill.core.files import iter_jsonl, read_json
from edgedistill.core.kinds import extract
from edgedistill.core.recipe import Recipe
from edgedistill.core.records import Message
from edgedistill.evals.answers import is_correct
from edgedistill.synth.clients import read_anthropic, read_openai
from edgedistill.synth.followups import SHORTER, score_of, score_prompt
from edgedistill.synth.journal import Reply
from edgedistill.synth.reasoning import parted, with_reasoning
from edgedistill.synth.rows import make_prompt

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
     ("good", None), ("I saw 3 faults", None), ("Score: 11", None), ("Score: 100", None)],
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


RECIPE = """
name = "asks"
threads = 1
[task]
kind = "math"
max_new_tokens = 64
[data]
prompts = "prompts.jsonl"
[synth]
{synth}
[teacher]
model = "m-1"
engine = "openai"
base_url = "{url}"
smoke = 2
{teacher}
[student]
model = "student"
"""
JUDGE = """
[synth.judge]
threshold = 6
[synth.judge.teacher]
model = "m-judge"
engine = "openai"
base_url = "{url}"
price = {{ input_per_mtok = 1.0, output_per_mtok = 1.0, date = 2026-01-02, source = "a test" }}
limits = {{ tokens = 100000 }}
"""


def run(tmp_path: Path, student: Path, server: Server, *, synth: str = "", teacher: str = "", more: str = "") -> Path:
    rows = [{"question": f"q{i}"} for i in range(4)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if not (tmp_path / "student").exists():
        shutil.copytree(student, tmp_path / "student")
    recipe = (RECIPE + more).format(url=server.url, synth=synth, teacher=teacher)
    (tmp_path / "asks.toml").write_text(recipe)
    done = call("synth", tmp_path / "asks.toml", "--runs-dir", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    return tmp_path / "runs" / "asks" / "10-synth"


def records(folder: Path) -> dict[str, str]:
    found = [row for path in sorted(folder.glob("records-*.jsonl")) for row in iter_jsonl(path)]
    return {row["messages"][-1]["content"]: row["answer"] for row in found}


def test_reasoning_is_dropped_kept_or_refused_without_asking_again(tmp_path: Path, tiny_llama: Path) -> None:
    def answer(text: str) -> str:
        return "Answer: 4" if text == "q3" else "<think>2+2</think>Answer: 4"

    with serve(answer=answer) as server:
        stripped = records(run(tmp_path, tiny_llama, server))
        assert set(stripped.values()) == {"Answer: 4"} and len(stripped) == 4
        kept = records(run(tmp_path, tiny_llama, server, synth='reasoning = "keep"'))
        assert kept["q0"] == "<think>\n2+2\n</think>\n\nAnswer: 4" and kept["q3"] == "Answer: 4"
        folder = run(tmp_path, tiny_llama, server, synth='reasoning = "off"')
        assert list(records(folder)) == ["q3"]
        assert {row["reason"] for row in iter_jsonl(folder / "rejected.jsonl")} == {"reasoned"}
        assert sum(server.arrived.values()) == 4


def test_a_shorter_answer_counts_where_it_says_the_same(tmp_path: Path, tiny_llama: Path) -> None:
    with serve() as server:

        def answer(text: str) -> str:
            if text != SHORTER:
                return "first two, then two more, Answer: 4"
            asked = server.bodies[-1]["messages"][-3]["content"]
            return {"q0": "Answer: 4", "q1": "Answer: 5", "q2": "x" * 60 + " Answer: 4"}.get(asked, "no")

        server.answer = answer
        folder = run(tmp_path, tiny_llama, server, synth="shorten = true", teacher="concurrency = 1")
        found = records(folder)
        assert found["q0"] == "Answer: 4" and {found[q] for q in ("q1", "q2", "q3")} == {answer("q1")}
        assert server.arrived[SHORTER] == 4 and sum(server.arrived.values()) == 8
        assert read_json(folder / "manifest.json")["figures"]["attempts"] == 8
        dry = json.loads(
            call("synth", tmp_path / "asks.toml", "--runs-dir", tmp_path / "runs", "--dry-run", "--json").stdout
        )
        assert (dry["requests"], dry["further"][0]["asks"], dry["further"][0]["requests"]) == (0, "shorter answers", 0)


def test_a_judge_rejects_what_it_scores_low_and_is_paid_for(tmp_path: Path, tiny_llama: Path) -> None:
    def answer(text: str) -> str:
        if not text.startswith("<conversation>"):
            return f"Answer: {text[1:]}"
        return {"0": "Score: 9", "1": "Score: 6", "2": "Score: 5"}.get(text.partition("[user]\nq")[2][:1], "hm")

    with serve(answer=answer) as server:
        (tmp_path / "first").mkdir()
        folder = run(tmp_path, tiny_llama, server, more=JUDGE)
        assert set(records(folder)) == {"q0", "q1"}
        said = {row["answer"]: (row["reason"], row["detail"]) for row in iter_jsonl(folder / "rejected.jsonl")}
        assert said["Answer: 2"] == ("judged", "score 5 of 10, expected 6 by openai:m-judge")
        assert said["Answer: 3"][0] == "not-judged"
        figures = read_json(folder / "manifest.json")["figures"]
        assert figures["further"][0]["attempts"] == 4 and figures["further"][0]["cost"]["amount"] > 0
        shutil.rmtree(folder.parent / "answers")
        dry = json.loads(
            call("synth", tmp_path / "asks.toml", "--runs-dir", tmp_path / "runs", "--dry-run", "--json").stdout
        )
        assert dry["further"][0]["asks"] == "scores" and dry["further"][0]["requests"] == 4
        assert dry["further"][0]["at_most"]["input_tokens"] > 4 * 64


def test_the_best_judged_of_several_teachers_is_kept(tmp_path: Path, tiny_llama: Path) -> None:
    with serve() as server:

        def answer(text: str) -> str:
            if not text.startswith("<conversation>"):
                return "Answer: 4, said at length" if server.bodies[-1]["model"] == "m-1" else "Answer: 4"
            return "Score: 6" if "at length" in text else "Score: 8"

        server.answer = answer
        further = 'mix = "judged"\nconcurrency = 1\nfurther = [{{ model = "m-2", engine = "openai", smoke = 0, '
        further += f'base_url = "{server.url}", concurrency = 1 }}]'
        folder = run(tmp_path, tiny_llama, server, teacher=further, more=JUDGE)
    assert set(records(folder).values()) == {"Answer: 4"}
    assert {row["teacher"] for row in iter_jsonl(folder / "records-00000.jsonl")} == {"openai:m-2"}


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
