"""Ask in batches: submit, remember, poll, collect; a killed run goes on with the batches that are at work."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from edgedistill.synth.batches import ID_PART, BatchClient, Outcomes
from edgedistill.synth.clients import NOTHING, Failed
from edgedistill.synth.collect import Collected, Heard, Question
from edgedistill.synth.journal import Failure, Journal, Reply, Tokens
from edgedistill.synth.pace import backoff_s
from edgedistill.synth.spend import Purse, most_tokens

AT_WORK = 4  # batches at a time


@dataclass
class _Work:
    """What is to be asked, what is at work, and how often each request failed."""

    waiting: deque[Question] = field(default_factory=deque)
    known: dict[str, Question] = field(default_factory=dict)
    tries: Counter[str] = field(default_factory=Counter)
    at_work: dict[str, tuple[str, dict[str, Tokens]]] = field(default_factory=dict)  # name → server's id, what is held


async def collect_batches(
    questions: Iterator[Question],
    *,
    client: BatchClient,
    journal: Journal,
    purse: Purse,
    max_output_tokens: int,
    size: int,
    poll_s: float,
    attempts: int,
    heard: Heard = lambda question, outcome, collected: None,
    into: Collected | None = None,
    seed: int | None = None,
) -> Collected:
    """As `collect.collect`, in batches of `size` requests, looked after every `poll_s` seconds.

    Raises:
        StageError: the journal cannot be written.
    """
    found, work, rng = Collected() if into is None else into, _Work(), random.Random(seed)

    async def steady(call: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        """Call until it works; what asking again does not mend stops everything."""
        for attempt in range(1, attempts + 1):
            try:
                return await call(*arguments)
            except Failed as failed:
                found.failed[failed.reason] += 1
                if failed.end != "again" or attempt == attempts:
                    raise
                await asyncio.sleep(max(failed.retry_after_s, backoff_s(attempt, rng=rng)))

    try:
        await _take_up(questions, work, journal=journal, purse=purse, client=client, steady=steady)
        while not found.stopped:
            await _submit(
                questions, work, found, journal=journal, purse=purse, client=client, steady=steady, size=size,
                max_output_tokens=max_output_tokens,
            )  # fmt: skip
            if not work.at_work:
                break
            ended = 0
            for name, (identity, held) in list(work.at_work.items()):
                outcomes = await steady(client.results, identity)
                if outcomes is not None:
                    ended += 1
                    await _settle(name, held, outcomes, work, found, journal, purse, attempts=attempts, heard=heard)
            if not ended:
                await asyncio.sleep(poll_s)
    except Failed as failed:
        found.stopped = f"the batch API does not answer ({failed.reason}: {failed.detail})"
    return found


async def _take_up(
    questions: Iterator[Question], work: _Work, *, journal: Journal, purse: Purse, client: BatchClient, steady: Any
) -> None:
    """Find again the batches that an earlier process left; one that never came to the server is forgotten."""
    missing: set[str] = set()
    for name, (identity, held) in journal.past.batches.items():
        known = {i for i, _ in journal.past.batches.values() if i}
        identity = identity or await steady(client.find, name, len(held), known)
        if identity is None:
            for request in held:
                journal.failed(request, Failure("not-sent", "", "again"), NOTHING)
            purse.release(_sum(held))
            continue
        journal.batch(name, identity)
        work.at_work[name] = (identity, held)
        missing |= held.keys()
    for _, held in work.at_work.values():
        purse.release(_sum(held), hold=True)
    while missing and (question := next(questions, None)) is not None:
        work.known[question.id] = question
        if question.id in missing:
            missing.discard(question.id)
        else:
            work.waiting.append(question)


async def _submit(
    questions: Iterator[Question],
    work: _Work,
    found: Collected,
    *,
    journal: Journal,
    purse: Purse,
    client: BatchClient,
    steady: Any,
    size: int,
    max_output_tokens: int,
) -> None:
    while len(work.at_work) < AT_WORK:
        chunk: dict[str, Question] = {}
        held: dict[str, Tokens] = {}
        while len(chunk) < size:
            question = work.waiting.popleft() if work.waiting else next(questions, None)
            if question is None:
                break
            kept = purse.hold_now(most_tokens(question.messages, max_output_tokens=max_output_tokens))
            if kept is None:
                work.waiting.appendleft(question)
                break
            chunk[question.id], held[question.id] = question, kept
        if not chunk:
            if work.waiting and not work.at_work:
                found.stopped = "[teacher.limits] leave no room for another request"
            return
        name = uuid.uuid4().hex
        journal.batch(name, None, held)
        messages = {i: q.messages for i, q in chunk.items()}
        known = {i for i, _ in work.at_work.values()}
        try:
            identity = await client.submit(name, messages)
        except Failed as failed:
            if failed.end != "again":
                raise
            found.failed[failed.reason] += 1
            # It may have come to the server all the same.
            identity = await steady(client.find, name, len(held), known) or await client.submit(name, messages)
        journal.batch(name, identity)
        work.known |= chunk
        work.at_work[name] = (identity, held)


async def _settle(
    name: str,
    held: dict[str, Tokens],
    outcomes: Outcomes,
    work: _Work,
    found: Collected,
    journal: Journal,
    purse: Purse,
    *,
    attempts: int,
    heard: Heard,
) -> None:
    """Journal what a batch came to: all answers are on the disk before the batch counts as done."""
    found_of = {request: outcomes.get(request[:ID_PART]) for request in held}
    replies = {request: outcome for request, outcome in found_of.items() if isinstance(outcome, Reply)}
    await asyncio.gather(*(journal.answer(i, reply, ms=0) for i, reply in replies.items()))
    for request, kept in held.items():
        outcome = found_of[request] or Failed("expired", "not among the results", tokens=NOTHING)
        await purse.settle(kept, kept if outcome.tokens is None else outcome.tokens)
        question = work.known.pop(request, None)
        if isinstance(outcome, Reply):
            found.answered += 1
            found.output_tokens += outcome.tokens[1] if outcome.tokens else 0
            if question:
                heard(question, outcome, found)
            continue
        work.tries[request] += 1
        again = outcome.end == "again" and work.tries[request] < attempts
        end = "again" if again else "never" if outcome.end == "never" else "spent"
        failure = Failure(outcome.reason, outcome.detail, end)
        journal.failed(request, failure, outcome.tokens)
        found.failed[outcome.reason] += 1
        if again and question:
            work.waiting.append(question)
        elif question:
            found.given_up[outcome.reason] += 1
            heard(question, failure, found)
    del work.at_work[name]


def _sum(held: dict[str, Tokens]) -> Tokens:
    return sum(t[0] for t in held.values()), sum(t[1] for t in held.values())
