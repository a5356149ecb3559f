"""Asking: pace, budget, retries and stops, against an asker of our own; no network."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from edgedistill.core.errors import StageError
from edgedistill.core.files import sha256_bytes
from edgedistill.core.records import Message
from edgedistill.synth import collect as collecting
from edgedistill.synth import pace as pacing
from edgedistill.synth.clients import NOTHING, Failed
from edgedistill.synth.collect import Collected, Question, collect
from edgedistill.synth.journal import Failure, Journal, Reply
from edgedistill.synth.pace import Pace, backoff_s
from edgedistill.synth.spend import MESSAGE_TOKENS, REQUEST_TOKENS, Purse, Rates, most_tokens

Told = list[tuple[str, Reply | Failure]]


def question(number: int) -> Question:
    return Question(sha256_bytes(str(number).encode()), [Message(role="user", content=f"number {number:04}")])


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "BASE_S", 0.001)
    monkeypatch.setattr(pacing, "LONGEST_S", 0.01)


def run(
    folder: Path,
    ask: Callable,
    *,
    count: int = 40,
    concurrency: int = 8,
    attempts: int = 4,
    money: float | None = None,
    tokens: int | None = None,
    told: Told | None = None,
) -> tuple[Collected, Purse, Journal]:
    async def whole() -> tuple[Collected, Purse, Journal]:
        journal = Journal(folder)
        purse = Purse(used=journal.past.tokens, rates=Rates(1.0, 2.0), money=money, tokens=tokens)
        wanted = (q for q in map(question, range(count)) if not journal.answered(q.id))
        found = await collect(
            wanted,
            ask=ask,
            journal=journal,
            purse=purse,
            max_output_tokens=10,
            concurrency=concurrency,
            attempts=attempts,
            heard=lambda q, outcome, found: told.append((q.id, outcome)) if told is not None else None,
            seed=0,
        )
        journal.close()
        return found, purse, Journal(folder)

    return asyncio.run(whole())


def answering(
    *faults: Callable[[], Failed | None], used: tuple[int, int] = (5, 3), seconds: float = 0.0
) -> tuple[Callable, Counter[str]]:
    """An asker that fails each text as `faults` say, one a try, then answers; and how often it was asked."""
    asked: Counter[str] = Counter()

    async def ask(messages: Sequence[Message]) -> Reply:
        text = messages[-1].content
        asked[text] += 1
        await asyncio.sleep(seconds)
        fault = faults[asked[text] - 1]() if asked[text] <= len(faults) else None
        if fault is not None:
            raise fault
        return Reply(text.upper(), "stop", "m", used)

    return ask, asked


def test_every_question_is_answered_once_and_a_second_run_asks_nothing(tmp_path: Path) -> None:
    ask, asked = answering()
    told: Told = []
    found, purse, journal = run(tmp_path, ask, told=told)
    assert (found.answered, found.stopped, found.output_tokens) == (40, "", 120)
    assert set(asked.values()) == {1} and len(asked) == 40 == len(told)
    assert purse.used == (200, 120) and purse.held == (0, 0) and purse.cost == pytest.approx((200 + 240) / 1e6)
    assert journal.reply(question(7).id) == Reply("NUMBER 0007", "stop", "m", (5, 3))
    again, purse, _ = run(tmp_path, ask)
    assert again.answered == 0 and sum(asked.values()) == 40 and purse.used == (200, 120)


def test_failures_are_repeated_up_to_the_ceiling_and_counted_by_reason(tmp_path: Path) -> None:
    failing, asked = answering(lambda: Failed("timeout"), lambda: Failed("half-json"))

    async def ask(messages: Sequence[Message]) -> Reply:
        if int(messages[-1].content[-4:]) % 4:
            return Reply("yes", "stop", "m", (5, 3))
        return await failing(messages)

    found, _, journal = run(tmp_path, ask, count=40)
    assert found.answered == 40 and found.failed == {"timeout": 10, "half-json": 10} and not found.given_up
    assert journal.past.reasons == {"timeout": 10, "half-json": 10} and journal.past.sent == 60
    assert set(asked.values()) == {3}


def test_what_never_works_is_given_up_and_asked_again_only_in_a_later_run(tmp_path: Path) -> None:
    healthy = Counter[str]()

    async def ask(messages: Sequence[Message]) -> Reply:
        text = messages[-1].content
        healthy[text] += 1
        if text == "number 0003":
            raise Failed("half-json", "10 bytes")
        if text == "number 0005":
            raise Failed("bad-request", "400 too long", end="never", tokens=NOTHING)
        return Reply("yes", "stop", "m", (1, 1))

    told: Told = []
    found, _, journal = run(tmp_path, ask, count=10, attempts=3, told=told)
    assert found.given_up == {"half-json": 1, "bad-request": 1} and found.answered == 8 and not found.stopped
    assert (healthy["number 0003"], healthy["number 0005"]) == (3, 1)
    assert journal.past.failures[question(3).id] == Failure("half-json", "10 bytes", "spent")
    assert journal.past.failures[question(5).id] == Failure("bad-request", "400 too long", "never")
    assert len(told) == 10


@pytest.mark.parametrize("concurrency", [1, 64])
@pytest.mark.parametrize("limit", [{"tokens": 2000}, {"money": 0.002}])
def test_no_budget_is_overrun_at_any_concurrency(tmp_path: Path, concurrency: int, limit: dict) -> None:
    """Every answer uses all that was held back for it, so any request too many would show."""
    most = most_tokens(question(100).messages, max_output_tokens=10)
    ask, _ = answering(used=most, seconds=0.001)
    found, purse, journal = run(tmp_path, ask, count=500, concurrency=concurrency, **limit)
    used = sum(purse.used) if "tokens" in limit else (purse.cost or 0)
    one = sum(most) if "tokens" in limit else Rates(1.0, 2.0).cost(most)
    allowed = next(iter(limit.values()))
    assert used <= allowed and used + one > allowed
    assert "[teacher.limits] leave no room for another request" in found.stopped
    assert journal.past.answered == found.answered == round(used / one)
    again, purse_again, _ = run(tmp_path, ask, count=500, concurrency=concurrency, **limit)
    assert again.answered == 0 and purse_again.used == purse.used


def test_answers_that_use_less_leave_room_for_more(tmp_path: Path) -> None:
    ask, _ = answering(used=(1, 1), seconds=0.001)
    found, purse, _ = run(tmp_path, ask, count=200, concurrency=64, tokens=300)
    assert found.stopped and sum(purse.used) <= 300 and found.answered > 80


@pytest.mark.parametrize("reason", ["timeout", "cut", "half-json"])
def test_what_may_have_been_billed_counts_as_its_most(tmp_path: Path, reason: str) -> None:
    ask, _ = answering(lambda: Failed(reason), used=(1, 1))
    _, purse, _ = run(tmp_path, ask, count=1)
    most = most_tokens(question(0).messages, max_output_tokens=10)
    assert purse.used == (most[0] + 1, most[1] + 1)
    assert most == (len("number 0000") + MESSAGE_TOKENS + REQUEST_TOKENS, 10)


def test_a_server_that_bills_more_than_foreseen_is_foreseen_from_then_on(tmp_path: Path) -> None:
    ask, _ = answering(used=(1000, 1))
    _, purse, _ = run(tmp_path, ask, count=3, concurrency=1)
    most = most_tokens(question(0).messages, max_output_tokens=10)
    assert purse.margin == 1000 - most[0]


def test_a_refusal_of_everybody_stops_at_once_and_says_so(tmp_path: Path) -> None:
    ask, asked = answering(*[lambda: Failed("not-allowed", "401 no", end="stop", tokens=NOTHING)] * 9)
    found, purse, _ = run(tmp_path, ask, count=100)
    assert found.stopped == "the server refused (not-allowed: 401 no)"
    assert sum(asked.values()) <= 8 and purse.used == NOTHING


def test_only_failures_open_the_circuit_and_what_was_answered_stays(tmp_path: Path) -> None:
    good = {f"number {i:04}" for i in range(10)}

    async def ask(messages: Sequence[Message]) -> Reply:
        if messages[-1].content not in good:
            raise Failed("server-error", "500 down", overloaded=True)
        return Reply("yes", "stop", "m", (1, 1))

    found, _, journal = run(tmp_path, ask, count=300, attempts=50)
    assert found.answered == 10 == journal.past.answered
    assert found.stopped == "only failures came back, the last one server-error: 500 down"
    assert 10 <= found.failed["server-error"] < 60 and not found.given_up


def test_a_pause_longer_than_patience_stops(tmp_path: Path) -> None:
    fault = lambda: Failed("rate-limited", "429", tokens=NOTHING, overloaded=True, retry_after_s=86400)  # noqa: E731
    found, _, _ = run(tmp_path, answering(fault)[0], count=30)
    assert found.stopped == "the server asks to be left alone for 86400 s (rate-limited: 429)"


def test_retry_after_is_honoured_by_everybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[float] = []

    async def ask(messages: Sequence[Message]) -> Reply:
        sent.append(asyncio.get_running_loop().time())
        if len(sent) == 1:
            raise Failed("rate-limited", "429", tokens=NOTHING, overloaded=True, retry_after_s=0.2)
        return Reply("yes", "stop", "m", (1, 1))

    found, _, _ = run(tmp_path, ask, count=12, concurrency=1)
    assert found.answered == 12
    assert sent[1] - sent[0] >= 0.2 and sent[-1] - sent[1] < 0.2


def test_an_unforeseen_error_is_not_wrapped(tmp_path: Path) -> None:
    async def ask(messages: Sequence[Message]) -> Reply:
        raise StageError("no room on the disk")

    with pytest.raises(StageError, match="no room on the disk"):
        run(tmp_path, ask)


def test_the_pace_rises_by_one_a_round_trip_and_halves_once_a_window() -> None:
    async def scenario() -> None:
        pace = Pace(64, rng=random.Random(0))
        assert pace.limit == 4
        for _ in range(4):
            pace.leave(await pace.enter(), good=True)
        assert 4.9 < pace.limit < 5
        windows = [await pace.enter() for _ in range(4)]
        for window in windows:
            pace.leave(window, good=False, overloaded=True)
        assert 2.4 < pace.limit < 2.5 and pace.bad_windows == 1
        pace.leave(await pace.enter(), good=False, overloaded=True)
        assert 1.2 < pace.limit < 1.3 and pace.bad_windows == 2
        for _ in range(3):
            pace.leave(await pace.enter(), good=False, overloaded=True)
        assert pace.limit == 1
        pace.leave(await pace.enter(), good=True)
        assert pace.limit == 2 and pace.bad_windows == 0

    asyncio.run(scenario())


def test_no_more_than_the_limit_are_in_flight(tmp_path: Path) -> None:
    now = most = 0

    async def ask(messages: Sequence[Message]) -> Reply:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        now -= 1
        return Reply("yes", "stop", "m", (1, 1))

    assert run(tmp_path, ask, count=300, concurrency=7)[0].answered == 300
    assert most == 7


def test_backoff_is_jittered_and_bounded() -> None:
    rng = random.Random(1)
    waits = [backoff_s(attempt, rng=rng) for attempt in range(1, 30)]
    assert max(waits) <= pacing.LONGEST_S and len(set(waits)) == len(waits)
    assert collecting.BAD_WINDOWS > 1
