"""Which requests a run makes of which teacher, in which order, and what they would cost before any is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from edgedistill.core.records import Prompt
from edgedistill.core.runfolder import Reporter
from edgedistill.core.teacher import Teacher
from edgedistill.synth import remote, service, several
from edgedistill.synth.clients import read_key, sampling_of
from edgedistill.synth.followups import Answers, Meaning, Referee, no_score, score_prompt, shorter_prompt
from edgedistill.synth.journal import ANSWERS_FILE
from edgedistill.synth.label import Judge
from edgedistill.synth.service import Service
from edgedistill.synth.several import Asked
from edgedistill.synth.spend import Rates


def service_of(teacher: Teacher, *, limit: int, reasoning: str, role: str = "") -> Service:
    """The teacher as requests see it; `limit` is the most tokens of an answer where it names none."""
    most, price = teacher.max_output_tokens or limit, teacher.price
    return Service(
        engine=teacher.engine,
        model=teacher.model,
        revision=teacher.revision,
        sampling=sampling_of(
            teacher.engine,
            max_output_tokens=most,
            temperature=teacher.temperature,
            top_logprobs=teacher.top_logprobs,
            max_tokens_name=teacher.max_tokens_name,
            official=teacher.base_url is None,
            extra_body=teacher.extra_body,
        ),
        max_output_tokens=most,
        rates=Rates(price.input_per_mtok, price.output_per_mtok) if price else None,
        currency=price.currency if price else "",
        money=teacher.limits.money,
        tokens=teacher.limits.tokens,
        reasoning=reasoning,
        role=role,
    )


def ask_everyone(
    teachers: Sequence[Teacher],
    asked: Sequence[Asked],
    paths: Sequence[Path],
    *,
    run: Path,
    mix: str | None,
    judge: Judge,
    meaning: Meaning,
    shorten: bool,
    referee: tuple[Teacher, Referee] | None,
    report: Reporter,
) -> None:
    """Ask the teachers the prompts of `paths`, then for shorter answers, then the judge for scores; each is journaled.

    Raises:
        MissingError: a key or an SDK is absent; nothing has been sent.
        StageError: as `remote.ask_all`.
    """
    for one in (*teachers, *((referee[0],) if referee else ())):
        read_key(one.key_name)  # the last one's missing key is said before the first one is paid
    rules: dict[str, Any] = {"mix": mix, "judge": judge}
    more: dict[str, Any] = {"meaning": meaning, "shorten": shorten, "referee": referee[1] if referee else None}
    for number, teacher in enumerate(teachers):
        if teacher.terms is None or teacher.terms.training_allowed is not True:
            said = "unknown" if teacher.terms is None else str(teacher.terms.training_allowed).lower()
            report.note(f"terms: whether {asked[number].service.name} allows training on its answers: {said}")
        with ExitStack() as stack:
            wanted = several.waits_for(asked, number, run, stack, **rules)
            _ask(teacher, asked[number].service, paths, run, judge=judge, report=report, wanted=wanted)
    for number, teacher in enumerate(teachers if shorten else ()):
        with ExitStack() as stack:
            answers = Answers(asked, run, stack, **rules, **more | {"referee": None})
            turned = _bound(answers.to_shorten, number)
            _ask(teacher, asked[number].service, paths, run, judge=judge, report=report, turned=turned, smoke=0)
    if referee:
        with ExitStack() as stack:
            answers = Answers(asked, run, stack, **rules, **more)
            _ask(
                referee[0], referee[1].service, paths, run, judge=no_score, report=report, turned=answers.to_score
            )  # fmt: skip


def estimates(
    teachers: Sequence[Teacher],
    asked: Sequence[Asked],
    paths: Sequence[Path],
    *,
    run: Path,
    mix: str | None,
    judge: Judge,
    meaning: Meaning,
    shorten: bool,
    referee: tuple[Teacher, Referee] | None,
) -> list[dict[str, Any]]:
    """An estimate of each teacher, of each one's shorter answers, and of the judge, as `service.estimate`.

    Answers that are not there yet stand as empty ones, and count at their most where the most is told.
    """
    found = [
        service.estimate(
            paths,
            journal=asked[number].service.journal_in(run),
            service=asked[number].service,
            concurrency=teacher.concurrency,
            wanted=_routed(number, asked, mix),
        )
        | ({"asks": "answers, where none is kept yet"} if mix == "cascade" and number else {})
        for number, teacher in enumerate(teachers)
    ]
    with ExitStack() as stack:
        whole = all((one.service.journal_in(run) / ANSWERS_FILE).is_file() for one in asked)
        scored = referee is not None and (referee[1].service.journal_in(run) / ANSWERS_FILE).is_file()
        named: dict[str, Any] = {"mix": mix, "judge": judge, "meaning": meaning, "shorten": shorten}
        known = (
            Answers(asked, run, stack, **named, referee=referee[1] if referee and scored else None) if whole else None
        )
        for number, teacher in enumerate(teachers if shorten else ()):

            def shorter(prompt: Prompt, number: int = number) -> Iterable[Prompt]:
                return (known and list(known.to_shorten(prompt, number))) or [shorter_prompt(prompt, "")]

            one = asked[number].service
            found.append(
                service.estimate(
                    paths,
                    journal=one.journal_in(run),
                    service=one,
                    concurrency=teacher.concurrency,
                    wanted=_routed(number, asked, mix),
                    turned=shorter,
                    answer_tokens=one.max_output_tokens,
                )
                | {"asks": "shorter answers"}
            )
        if referee:
            words = referee[1].rubric

            def scoring(prompt: Prompt) -> Iterable[Prompt]:
                real = list(known.to_score(prompt)) if known else []
                return real or [score_prompt(prompt, "", rubric=words)] * len(several.route(prompt, asked, mix=mix))

            found.append(
                service.estimate(
                    paths,
                    journal=referee[1].service.journal_in(run),
                    service=referee[1].service,
                    concurrency=referee[0].concurrency,
                    turned=scoring,
                    answer_tokens=max(one.service.max_output_tokens for one in asked),
                )
                | {"asks": "scores"}
            )
    return found


def _ask(
    teacher: Teacher,
    its: Service,
    paths: Sequence[Path],
    run: Path,
    *,
    judge: Judge,
    report: Reporter,
    wanted: Callable[[Prompt], bool] = lambda prompt: True,
    turned: Callable[[Prompt], Iterable[Prompt]] = lambda prompt: (prompt,),
    smoke: int | None = None,
) -> None:
    remote.ask_all(
        paths,
        folder=its.journal_in(run),
        service=its,
        client={
            "key": read_key(teacher.key_name),
            "base_url": teacher.base_url,
            "accepts": teacher.accepts,
            "timeout_s": teacher.timeout_s,
        },
        concurrency=teacher.concurrency,
        attempts=teacher.attempts,
        smoke=teacher.smoke if smoke is None else smoke,
        judge=judge,
        report=report,
        batch_size=teacher.batch_size if teacher.mode == "batch" else 0,
        poll_s=teacher.poll_s,
        wanted=wanted,
        turned=turned,
    )


def _routed(number: int, asked: Sequence[Asked], mix: str | None) -> Callable[[Prompt], bool]:
    return lambda prompt: number in several.route(prompt, asked, mix=mix)


def _bound(function: Callable[[Prompt, int], Iterator[Prompt]], number: int) -> Callable[[Prompt], Iterator[Prompt]]:
    return lambda prompt: function(prompt, number)
