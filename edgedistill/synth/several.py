"""Several teachers of one run: who is asked what, and which of their answers counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgedistill.core.errors import StageError
from edgedistill.core.files import canonical_json, sha256_bytes
from edgedistill.core.kinds import extract, strict_json
from edgedistill.core.records import Prompt
from edgedistill.synth.journal import Failure, Journal, Reply
from edgedistill.synth.label import Judge
from edgedistill.synth.reasoning import parted, with_reasoning
from edgedistill.synth.service import Service

Fault = tuple[str, str]


@dataclass(frozen=True)
class Asked:
    """A teacher with its part: the kinds of prompts that are its own, or its share of all of them."""

    service: Service
    kinds: tuple[str, ...] = ()
    share: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a prompt at one teacher; `fault` is the reason and detail of a reject, None where it is kept.

    `text` is what is learnt, `answer` what of it is no reasoning, where it has some; `score` is a judge's.
    """

    service: Service
    request: str
    text: str
    fault: Fault | None
    logprobs: list[list[list[Any]]] | None = None
    answer: str | None = None
    score: int | None = None

    @property
    def said(self) -> str:
        return self.text if self.answer is None else self.answer


def route(prompt: Prompt, asked: Sequence[Asked], *, mix: str | None) -> tuple[int, ...]:
    """Which teachers may answer a prompt, in order; the first one has what is nobody else's.

    Shares go by the hash of the prompt's id: a prompt stays with its teacher as prompts are added.
    """
    if mix == "tag":
        return (next((i for i, a in enumerate(asked) if prompt.kind in a.kinds), 0),)
    if mix == "share":
        place = int(sha256_bytes(prompt.id.encode())[:12], 16) / 16**12
        for i, one in enumerate(asked[1:], start=1):
            if place < (one.share or 0):
                return (i,)
            place -= one.share or 0
        return (0,)
    return tuple(range(len(asked)))


def outcome_of(prompt: Prompt, service: Service, journal: Journal, judge: Judge) -> Outcome | None:
    """What a teacher's journal has of a prompt, judged; None where it was not asked."""
    request = service.question(prompt).id
    reply: Reply | Failure | None = journal.reply(request) or journal.past.failures.get(request)
    if reply is None:
        return None
    if isinstance(reply, Failure):
        return Outcome(service, request, "", (reply.reason, reply.detail))
    thought, answer = parted(reply)
    fault = judge(answer, reply.finish, prompt)
    if fault is None and thought and service.reasoning == "off":
        fault = ("reasoned", 'expected no reasoning with synth.reasoning = "off"')
    text = with_reasoning(thought, answer) if service.reasoning == "keep" else answer
    return Outcome(service, request, text, fault, reply.logprobs, answer)


def meaning_of(text: str, *, kind: str | None = None, labels: Sequence[str] = ()) -> object:
    """What an answer says, so that equal ones can be counted: what its kind of task reads, else its JSON, else itself.

    A text is taken without the blanks at its ends.
    """
    if kind is not None and (said := extract(text, kind=kind, labels=labels)) is not None:
        return said
    try:
        return canonical_json(strict_json(text))
    except ValueError:
        return text.strip()


def chosen(
    prompt: Prompt,
    outcomes: Sequence[Outcome],
    *,
    mix: str | None,
    meaning: Callable[[str], object] = meaning_of,
) -> Outcome:
    """The answer that counts: the first kept one, by vote the one that more than half of the teachers give.

    With `judged` it is the kept one with the highest score, the first of equal ones.

    Answers are equal by `meaning`. Where none counts, the last reject does.

    Raises:
        StageError: nobody was asked.
    """
    if not outcomes:
        raise StageError(f"expected an answer to prompt {prompt.id}, found none in the journal; run synth again")
    kept = [outcome for outcome in outcomes if outcome.fault is None]
    if kept and mix == "judged":
        return max(kept, key=lambda outcome: outcome.score or 0)
    if not kept or mix != "vote":
        return kept[0] if kept else outcomes[-1]
    votes = Counter(meaning(outcome.said) for outcome in kept)
    most, count = votes.most_common(1)[0]
    if 2 * count <= len(outcomes):
        said = f"{count} of {len(outcomes)} teachers agree"
        return Outcome(kept[0].service, kept[0].request, kept[0].text, ("no-majority", said))
    return next(outcome for outcome in kept if meaning(outcome.said) == most)


def waits_for(
    asked: Sequence[Asked], number: int, run: Path, stack: ExitStack, *, mix: str | None, judge: Judge
) -> Callable[[Prompt], bool]:
    """Whether teacher `number` is to be asked a prompt; in a cascade, where those before it have no answer kept."""
    before = asked[:number] if mix == "cascade" else ()
    journals = [stack.enter_context(closing(Journal(one.service.journal_in(run)))) for one in before]

    def wanted(prompt: Prompt) -> bool:
        if number not in route(prompt, asked, mix=mix):
            return False
        said = (outcome_of(prompt, a.service, j, judge) for a, j in zip(before, journals, strict=True))
        return not any(outcome is not None and outcome.fault is None for outcome in said)

    return wanted
