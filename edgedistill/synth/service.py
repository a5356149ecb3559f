"""A teacher behind an API: what is asked under which id, what it costs, and an estimate before anything is sent."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgedistill.core.config import validate
from edgedistill.core.files import digest_of, iter_jsonl
from edgedistill.core.records import Prompt
from edgedistill.synth.collect import Question
from edgedistill.synth.journal import ANSWERS_FILE, Journal, Past, read_past
from edgedistill.synth.rows import said_of
from edgedistill.synth.spend import Purse, Rates, bytes_of, most_tokens

GUESS = "4 bytes a token, answers of half their limit, 50 tokens a second"


@dataclass(frozen=True)
class Service:
    """The teacher behind an API: who answers, with which settings, at what price and within which limits.

    `reasoning` says what becomes of it in an answer: `strip`, `keep`, or `off`, which rejects such answers. A `role`
    beside that of a teacher has a journal and limits of its own, even where one model plays both.
    """

    engine: str
    model: str
    revision: str
    sampling: Mapping[str, Any]
    max_output_tokens: int
    rates: Rates | None = None
    currency: str = ""
    money: float | None = None
    tokens: int | None = None
    reasoning: str = "strip"
    role: str = ""

    @property
    def name(self) -> str:
        return f"{self.engine}:{self.model}" + (f"@{self.revision}" if self.revision else "")

    def question(self, prompt: Prompt) -> Question:
        """`prompt` with the hash of everything that the answer depends on."""
        teacher = {"engine": self.engine, "model": self.model, "revision": self.revision}
        messages = [said_of(m) for m in prompt.messages]
        return Question(
            digest_of({"teacher": teacher, "messages": messages, "sampling": dict(self.sampling)}), prompt.messages
        )

    def journal_in(self, run: Path) -> Path:
        """Where this teacher's answers are kept: beside the stages, so that no change of a recipe loses them."""
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", self.model)[:40].strip("-.")
        who = [self.engine, self.model, self.revision, *([self.role] if self.role else [])]
        return run / "answers" / f"{slug}-{digest_of(who)[:8]}"

    def purse(self, past: Past) -> Purse:
        return Purse(used=past.tokens, rates=self.rates, money=self.money, tokens=self.tokens)


def stream_prompts(paths: Iterable[Path]) -> Iterator[Prompt]:
    """Prompts of JSONL files, one in memory at a time."""
    for path in paths:
        for number, row in enumerate(iter_jsonl(path), start=1):
            yield validate(Prompt, row, source=f"{path} line {number}")


def figures_of(journal: Path, *, service: Service) -> dict[str, Any]:
    """What the manifest tells of the asking, over all processes: attempts, failures by reason, tokens, cost."""
    past, _ = read_past(journal / ANSWERS_FILE)
    figures: dict[str, Any] = {
        "attempts": past.sent,
        "failed_attempts": dict(sorted(past.reasons.items())),
        "in_flight_when_killed": past.in_flight,
        "input_tokens": past.tokens[0],
        "output_tokens": past.tokens[1],
    }
    if service.rates is not None:
        figures["cost"] = {"amount": round(service.rates.cost(past.tokens), 6), "currency": service.currency}
    return figures


def estimate(
    paths: Sequence[Path],
    *,
    journal: Path,
    service: Service,
    concurrency: int,
    wanted: Callable[[Prompt], bool] = lambda prompt: True,
    turned: Callable[[Prompt], Iterable[Prompt]] = lambda prompt: (prompt,),
    answer_tokens: int = 0,
) -> dict[str, Any]:
    """What asking for the missing answers would take, sending nothing; `at_most` is what would be held back for it.

    `turned` gives what is asked in a prompt's place, with an answer of at most `answer_tokens` in it that is not known.

    Where answers are there already, their tokens and times stand for the rest; else a token is taken for four bytes of
    English, an answer for half its limit, at 50 tokens a second.
    """
    past, _ = read_past(journal / ANSWERS_FILE)
    mean_out = past.output_tokens / past.answered if past.answered else service.max_output_tokens / 2
    mean_s = past.answer_ms / past.answered / 1000 if past.answer_ms else mean_out / 50
    known = Journal(journal) if past.answered else None
    try:
        total = waiting = typical_in = most_in = 0
        for prompt in (one for whole in filter(wanted, stream_prompts(paths)) for one in turned(whole)):
            total += 1
            if known is None or not known.answered(service.question(prompt).id):
                most, _ = most_tokens(prompt.messages, max_output_tokens=0)
                waiting, most_in = waiting + 1, most_in + most + answer_tokens
                typical_in += bytes_of(prompt.messages) // 4 + 8 + answer_tokens // 2
    finally:
        if known:
            known.close()
    likely = (typical_in, round(waiting * mean_out))
    most_of_all = (most_in, waiting * service.max_output_tokens)
    rates = service.rates
    return {
        "teacher": service.name,
        "asks": "answers",
        "prompts": total,
        "answered": total - waiting,
        "requests": waiting,
        "input_tokens": likely[0],
        "output_tokens": likely[1],
        "at_most": {"input_tokens": most_of_all[0], "output_tokens": most_of_all[1],
                    "cost": round(rates.cost(most_of_all), 4) if rates else None},
        "cost": round(rates.cost(likely), 4) if rates else None,
        "currency": service.currency or None,
        "spent": {"input_tokens": past.tokens[0], "output_tokens": past.tokens[1],
                  "cost": round(rates.cost(past.tokens), 4) if rates else None},
        "limits": {"money": service.money, "tokens": service.tokens},
        "seconds": round(waiting * mean_s / concurrency, 1),
        "from": f"{past.answered} answers" if past.answered else GUESS,
    }  # fmt: skip


def estimate_local(paths: Sequence[Path], *, teacher: str, max_new_tokens: int) -> dict[str, Any]:
    """As `estimate`, for a teacher of one's own: every prompt is asked, nothing is paid, no time is foretold."""
    total = typical_in = most_in = 0
    for prompt in stream_prompts(paths):
        most, _ = most_tokens(prompt.messages, max_output_tokens=0)
        total, typical_in, most_in = total + 1, typical_in + bytes_of(prompt.messages) // 4 + 8, most_in + most
    return {
        "teacher": teacher,
        "asks": "answers",
        "prompts": total,
        "answered": 0,
        "requests": total,
        "input_tokens": typical_in,
        "output_tokens": total * max_new_tokens // 2,
        "at_most": {"input_tokens": most_in, "output_tokens": total * max_new_tokens, "cost": 0.0},
        "cost": 0.0,
        "currency": None,
        "spent": {"input_tokens": 0, "output_tokens": 0, "cost": 0.0},
        "limits": {"money": None, "tokens": None},
        "seconds": None,
        "from": "4 bytes a token, answers of half their limit",
    }


def total_of(estimates: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What several estimates make together; money by currency, without what the teachers in `unpriced` take.

    What a teacher has spent on answers and on shorter ones is one sum, in one journal. `seconds` is None where one of
    them is not known.
    """
    seconds = [one["seconds"] for one in estimates]

    journals = {(one["teacher"], one["asks"] == "scores"): one for one in estimates}.values()

    def summed(parts: Sequence[tuple[Mapping[str, Any], str | None]]) -> dict[str, Any]:
        money: dict[str, float] = {}
        for part, currency in parts:
            if part["cost"] is not None and currency:
                money[currency] = round(money.get(currency, 0.0) + part["cost"], 4)
        tokens = {name: sum(part[name] for part, _ in parts) for name in ("input_tokens", "output_tokens")}
        return tokens | {"cost": money}

    return {
        "requests": sum(one["requests"] for one in estimates),
        **summed([(one, one["currency"]) for one in estimates]),
        "at_most": summed([(one["at_most"], one["currency"]) for one in estimates]),
        "spent": summed([(one["spent"], one["currency"]) for one in journals]),
        "seconds": None if None in seconds else round(sum(seconds), 1),
        "unpriced": sorted({one["teacher"] for one in estimates if one["cost"] is None}),
    }
