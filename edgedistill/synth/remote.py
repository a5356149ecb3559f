"""Asking a teacher behind an API every prompt that has no answer yet: a few first, which are shown, then the rest."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from edgedistill.core.errors import StageError, shortened
from edgedistill.core.records import Prompt
from edgedistill.core.runfolder import Reporter
from edgedistill.synth.batches import open_batches
from edgedistill.synth.clients import open_client
from edgedistill.synth.collect import Collected, Question, collect
from edgedistill.synth.collect_batches import collect_batches
from edgedistill.synth.journal import Failure, Journal, Reply
from edgedistill.synth.label import Judge
from edgedistill.synth.reasoning import parted
from edgedistill.synth.service import Service, stream_prompts
from edgedistill.synth.spend import Purse

QUIET_S = 0.5  # between two reports of progress
SHOWN = 60  # characters of a prompt or an answer in a note


def ask_all(
    paths: Sequence[Path],
    *,
    folder: Path,
    service: Service,
    client: Mapping[str, Any],
    concurrency: int,
    attempts: int,
    smoke: int,
    judge: Judge,
    report: Reporter,
    wanted: Callable[[Prompt], bool] = lambda prompt: True,
    turned: Callable[[Prompt], Iterable[Prompt]] = lambda prompt: (prompt,),
    batch_size: int = 0,
    poll_s: float = 60.0,
) -> None:
    """Ask every `wanted` prompt of `paths` that has no answer in `folder`'s journal; show the first `smoke` of them.

    `turned` gives what is asked in a prompt's place.
    `client` has the further arguments of `open_client`. With a `batch_size` the batch API is asked.

    Raises:
        StageError: none of the first answers is kept, or asking stopped before every prompt was asked; what came back
            is in the journal, and running again goes on from there.
        MissingError: the engine's SDK is not installed.
    """

    def asked() -> Iterator[Prompt]:
        return (one for prompt in filter(wanted, stream_prompts(paths)) for one in turned(prompt))

    journal = Journal(folder)
    try:
        total = before = 0
        for prompt in asked():
            total += 1
            before += journal.past.answered > 0 and journal.answered(service.question(prompt).id)
        found = asyncio.run(
            _asked(
                asked, journal=journal, service=service, client=client, concurrency=concurrency, attempts=attempts,
                smoke=smoke, judge=judge, report=report, total=total, before=before,
                batch_size=batch_size, poll_s=poll_s,
            )
        )  # fmt: skip
    finally:
        journal.close()
    if found.stopped:
        kept = f"{before + found.answered} of {total} answers are kept in {journal.path}"
        raise StageError(
            f"stopped asking {service.name}, because {found.stopped}; {kept}: mend the cause and run again, which asks "
            "for the others only"
        )


async def _asked(
    asked: Callable[[], Iterator[Prompt]],
    *,
    journal: Journal,
    service: Service,
    client: Mapping[str, Any],
    concurrency: int,
    attempts: int,
    smoke: int,
    judge: Judge,
    report: Reporter,
    total: int,
    before: int,
    batch_size: int,
    poll_s: float,
) -> Collected:
    prompts: dict[str, Prompt] = {}  # those in flight

    def questions() -> Iterator[Question]:
        for prompt in asked():
            question = service.question(prompt)
            if not journal.answered(question.id):
                prompts[question.id] = prompt
                yield question

    purse = service.purse(journal.past)
    rejected: Counter[str] = Counter()
    shown: list[str] = []
    kept = [0]
    tell = _progress(report, total=total, before=before, purse=purse, currency=service.currency)

    def heard(question: Question, outcome: Reply | Failure, found: Collected) -> None:
        prompt = prompts.pop(question.id)
        if isinstance(outcome, Failure):
            fault: tuple[str, str] | None = (outcome.reason, outcome.detail)
        else:
            fault = judge(parted(outcome)[1], outcome.finish, prompt)
        if fault:
            rejected[fault[0]] += 1
        kept[0] += not fault
        if found is first:
            said = outcome.text if isinstance(outcome, Reply) else outcome.detail
            shown.append(f"{_short(prompt.messages[-1].content)} → {_short(said)} ({fault[0] if fault else 'kept'})")
        tell(found, rejected)

    waiting = questions()
    settings: dict[str, Any] = {
        "journal": journal, "purse": purse, "max_output_tokens": service.max_output_tokens, "attempts": attempts,
    }  # fmt: skip
    first = Collected()
    common = {"model": service.model, "sampling": service.sampling, **client}
    async with contextlib.AsyncExitStack() as stack:
        if batch_size:
            batches = await stack.enter_async_context(open_batches(service.engine, poll_s=poll_s, **common))
            asking = functools.partial(collect_batches, client=batches, poll_s=poll_s, **settings)
            few, all_of_them = {"size": max(smoke, 1)}, {"size": batch_size}
        else:
            ask = await stack.enter_async_context(open_client(service.engine, concurrency=concurrency, **common))
            asking = functools.partial(collect, ask=ask, **settings)
            few, all_of_them = {"concurrency": max(1, min(smoke, concurrency))}, {"concurrency": concurrency}
        if smoke and not journal.past.batches:  # those at work have been begun after the first answers
            await asking(islice(waiting, smoke), heard=heard, into=first, **few)
            for line in shown:
                report.note(f"first answers: {line}")
            if shown and not kept[0] and not first.stopped:
                first.stopped = f"none of the first {len(shown)} answers is kept ({', '.join(rejected)})"
            if first.stopped:
                return first
        found = await asking(waiting, heard=heard, **all_of_them)
    found.answered += first.answered
    return found


def _progress(
    report: Reporter, *, total: int, before: int, purse: Purse, currency: str
) -> Callable[[Collected, Counter[str]], None]:
    """Tells of rows and tokens a second, cost and rejects by reason, now and then."""
    began = told = time.monotonic()
    done = tokens = 0
    last: Collected | None = None

    def tell(found: Collected, rejected: Counter[str]) -> None:
        nonlocal told, done, tokens, last
        if last is not None and found is not last:  # the smoke batch is over
            done, tokens = done + last.answered + sum(last.given_up.values()), tokens + last.output_tokens
        last = found
        now = time.monotonic()
        if now - told < QUIET_S:
            return
        told = now
        here = done + found.answered + sum(found.given_up.values())
        seconds = max(now - began, 1e-9)
        figures: dict[str, object] = {
            "rows_s": round(here / seconds, 1), "tok_s": round((tokens + found.output_tokens) / seconds)
        }  # fmt: skip
        if purse.cost is not None:
            figures["cost"] = f"{purse.cost:.2f} {currency}"
        figures |= {reason.replace("-", "_"): count for reason, count in rejected.most_common(4)}
        report.progress(before + here, total, "prompts", **figures)

    return tell


def _short(text: str) -> str:
    return shortened(text, most=SHOWN)
