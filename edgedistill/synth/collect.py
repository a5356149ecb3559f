"""Ask an API every request that has no answer yet, as fast as it takes them and never past what may be spent."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from edgedistill.core.records import Message
from edgedistill.synth.clients import AskOnce, Failed
from edgedistill.synth.journal import Failure, Journal, Reply
from edgedistill.synth.pace import Pace, backoff_s
from edgedistill.synth.spend import Purse, most_tokens

BAD_WINDOWS = 10  # in a row, and nothing more is sent
LONGEST_PAUSE_S = 600.0  # a server that asks for more is not waited for


@dataclass(frozen=True)
class Question:
    """What is asked; `id` is the hash of teacher, revision, messages and sampling."""

    id: str
    messages: Sequence[Message]


@dataclass
class Collected:
    """What one process did: answers, requests given up and why, failed attempts by reason, why it stopped early.

    `stopped` is empty where every request was asked.
    """

    answered: int = 0
    given_up: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    output_tokens: int = 0
    stopped: str = ""


Heard = Callable[[Question, Reply | Failure, Collected], None]


async def collect(
    questions: Iterator[Question],
    *,
    ask: AskOnce,
    journal: Journal,
    purse: Purse,
    max_output_tokens: int,
    concurrency: int,
    attempts: int,
    heard: Heard = lambda question, outcome, collected: None,
    into: Collected | None = None,
    seed: int | None = None,
) -> Collected:
    """Answer `questions`, none of which may have an answer in `journal`; they are taken one by one as places come free.

    An answer counts, and `heard` is told of it, once it is on the disk. A request that failed `attempts` times, or in a
    way that asking again does not mend, is given up with its reason. Where the budget has no room, the server refuses
    everybody, or only failures come back, nothing more is sent, what is in flight is waited for, and `stopped` says
    why.

    Raises:
        StageError: the journal cannot be written.
    """
    rng = random.Random(seed)
    found, pace = Collected() if into is None else into, Pace(concurrency, rng=rng)

    def stop(why: str) -> None:
        if why and not found.stopped:
            found.stopped = why
            pace.stop()

    async def attempt(question: Question) -> tuple[Reply | Failed, int] | None:
        window = await pace.enter()
        most = most_tokens(question.messages, max_output_tokens=max_output_tokens)
        held = None if found.stopped else await purse.hold(most)
        if held is None:
            stop("[teacher.limits] leave no room for another request")
            pace.withdraw()
            return None
        journal.sent(question.id, held)
        began = time.monotonic()
        try:
            outcome: Reply | Failed = await ask(question.messages)
        except Failed as failed:
            outcome = failed
        await purse.settle(held, held if outcome.tokens is None else outcome.tokens)
        if isinstance(outcome, Reply):
            pace.leave(window, good=True)
            return outcome, round(1000 * (time.monotonic() - began))
        good = outcome.end == "never"  # the server is well, the request is not
        pace.leave(window, good=good, overloaded=outcome.overloaded, retry_after_s=outcome.retry_after_s)
        stop(_stops(outcome, pace))
        return outcome, 0

    async def answer(question: Question) -> None:
        for number in range(1, attempts + 1):
            if (tried := await attempt(question)) is None:
                return
            outcome, ms = tried
            if isinstance(outcome, Reply):
                await journal.answer(question.id, outcome, ms=ms)
                found.answered += 1
                found.output_tokens += outcome.tokens[1] if outcome.tokens else 0
                heard(question, outcome, found)
                return
            given_up = outcome.end == "never" or (outcome.end == "again" and number == attempts)
            end = "again" if not given_up else "never" if outcome.end == "never" else "spent"
            failure = Failure(outcome.reason, outcome.detail, end)
            journal.failed(question.id, failure, outcome.tokens)
            found.failed[outcome.reason] += 1
            if given_up:
                found.given_up[outcome.reason] += 1
                heard(question, failure, found)
                return
            await pace.pause(max(outcome.retry_after_s, backoff_s(number, rng=rng)))

    async def worker() -> None:
        while not found.stopped and (question := next(questions, None)) is not None:
            await answer(question)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors  # the first one; what it took along says nothing more
    return found


def _stops(failed: Failed, pace: Pace) -> str:
    """Why nothing more is to be sent after this failure, or nothing."""
    said = f"{failed.reason}: {failed.detail}"
    if failed.end == "stop":
        return f"the server refused ({said})"
    if failed.retry_after_s > LONGEST_PAUSE_S:
        return f"the server asks to be left alone for {failed.retry_after_s:.0f} s ({said})"
    if pace.bad_windows >= BAD_WINDOWS:
        return f"only failures came back, the last one {said}"
    return ""
