"""Batch APIs through the official SDKs: submitted once, found again after a kill, each request accounted for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from killing import killed
from synth_batch_server import BatchServer, serve_batches

from edgedistill.core.errors import StageError
from edgedistill.core.files import write_jsonl
from edgedistill.core.records import Message, Prompt
from edgedistill.core.runfolder import SilentReporter
from edgedistill.synth import pace, remote
from edgedistill.synth.journal import Journal, read_past
from edgedistill.synth.rows import make_prompt
from edgedistill.synth.service import Service

pytest.importorskip("openai", reason="the extra `api` is not installed")
pytest.importorskip("anthropic", reason="the extra `api` is not installed")
ENGINES = ("openai", "anthropic")


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "BASE_S", 0.005)
    monkeypatch.setattr(pace, "LONGEST_S", 0.02)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    write_jsonl(path, (prompt(i).model_dump(mode="json") for i in range(30)))
    return path


def prompt(number: int) -> Prompt:
    roles = (("system", "be brief"), ("user", f"number {number:04}"))
    return make_prompt([Message(role=role, content=text) for role, text in roles])


def service(engine: str, **named: Any) -> Service:
    return Service(engine, "m-1", "", {"max_tokens": 16}, 16, **named)


def ask(server: BatchServer, prompts: Path, folder: Path, engine: str, **named: Any) -> None:
    client = {
        "key": "none", "accepts": (), "timeout_s": 5.0,
        "base_url": server.url if engine == "openai" else server.url.removesuffix("/v1"),
    }  # fmt: skip
    settings = {"smoke": 0, "batch_size": 7, "poll_s": 0.02, "service": service(engine), "attempts": 3} | named
    remote.ask_all(
        [prompts], folder=folder, client=client, concurrency=1, judge=lambda answer, finish, prompt: None,
        report=SilentReporter(), **settings,
    )  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
def test_every_request_goes_in_one_batch_and_comes_back(tmp_path: Path, prompts: Path, engine: str) -> None:
    with serve_batches() as server:
        ask(server, prompts, tmp_path / "j", engine, smoke=2)
        assert [len(b["requests"]) for b in server.batches.values()] == [2, 7, 7, 7, 7]
        ask(server, prompts, tmp_path / "j", engine)
        assert len(server.batches) == 5 and set(server.answered.values()) == {1} and len(server.answered) == 30
    past, _ = read_past(tmp_path / "j" / "answers.jsonl")
    assert (past.sent, past.answered, past.in_flight, past.batches) == (30, 30, 0, {})
    journal = Journal(tmp_path / "j")
    reply = journal.reply(service(engine).question(prompt(11)).id)
    assert reply is not None and reply.text == "NUMBER 0011" and reply.tokens == (11, 2)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_a_batch_does_not_answer_goes_into_the_next(tmp_path: Path, prompts: Path, engine: str) -> None:
    names = (("3", "status=500"), ("4", "missing"), ("5", "status=400"), ("6", "status=500"))
    faults = {f"number 000{number}": fault for number, fault in names}

    def plan(text: str, attempt: int) -> str:
        lasting = text in ("number 0005", "number 0006")
        return faults.get(text, "") if attempt == 1 or lasting else ""

    with serve_batches(plan=plan, half=True) as server:
        ask(server, prompts, tmp_path / "j", engine)
    past, _ = read_past(tmp_path / "j" / "answers.jsonl")
    assert past.answered == 28 and past.in_flight == 0 and past.sent == 28 + sum(past.reasons.values())
    assert past.reasons == {"server-error": 1 + 3, "expired": 1, "bad-request": 1}
    ends = {past.failures[service(engine).question(prompt(i)).id].end for i in (5, 6)}
    assert ends == {"never", "spent"} and len(past.failures) == 2


@pytest.mark.parametrize("engine", ENGINES)
def test_a_submission_whose_reply_is_lost_is_found_and_not_sent_twice(
    tmp_path: Path, prompts: Path, engine: str
) -> None:
    with serve_batches(lose=1) as server:
        ask(server, prompts, tmp_path / "j", engine)
        assert [len(b["requests"]) for b in server.batches.values()] == [7, 7, 7, 7, 2]
        assert set(server.answered.values()) == {1}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("seed", range(2))
def test_killed_while_batches_are_at_work_nothing_is_sent_twice(
    tmp_path: Path, prompts: Path, engine: str, seed: int
) -> None:
    kills = 0
    with serve_batches() as server:  # what is imported here, no child has to import
        ask(server, prompts, tmp_path / "before", engine)
    with serve_batches(polls=6) as server:
        while killed(lambda: ask(server, prompts, tmp_path / "j", engine), after_s=0.05 + 0.05 * (seed + kills)):
            kills += 1
            assert kills < 60
        sizes = [len(b["requests"]) for b in server.batches.values()]
    assert kills >= 1 and sorted(sizes) == [2, 7, 7, 7, 7] and set(server.answered.values()) == {1}
    past, _ = read_past(tmp_path / "j" / "answers.jsonl")
    assert (past.answered, past.in_flight, past.batches) == (30, 0, {})


def test_a_batch_holds_back_what_it_can_cost(tmp_path: Path, prompts: Path) -> None:
    with serve_batches() as server:
        with pytest.raises(StageError, match=r"leave no room for another request; \d+ of 30 answers"):
            ask(server, prompts, tmp_path / "j", "openai", service=service("openai", tokens=350))
        past, _ = read_past(tmp_path / "j" / "answers.jsonl")
        assert 0 < past.answered < 30 and sum(past.tokens) <= 350
        ask(server, prompts, tmp_path / "j", "openai", service=service("openai", tokens=7000))
    assert set(server.answered.values()) == {1} and len(server.answered) == 30
