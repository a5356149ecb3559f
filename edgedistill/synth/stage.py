"""The stages `data` (prompts and right answers, into 00-data) and `synth` (the teacher's records, into 10-synth)."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedistill.core.config import validate
from edgedistill.core.corpus import SPLITS
from edgedistill.core.errors import InputError, StageError
from edgedistill.core.files import read_jsonl, write_json, write_jsonl
from edgedistill.core.host import usable_cores
from edgedistill.core.recipe import Recipe
from edgedistill.core.records import LeftOut, Message, Prompt
from edgedistill.core.runfolder import FOLDERS, StageContext, read_manifest
from edgedistill.core.task import Task

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgedistill.core.teacher import Teacher
    from edgedistill.synth.followups import Referee
    from edgedistill.synth.label import Counts, Judge
    from edgedistill.synth.rows import Row
    from edgedistill.synth.several import Asked


def run_data(context: StageContext) -> None:
    """Write gold, valid, heldout and prompts as JSONL of `Prompt`, what is left out and why, and what was found.

    Raises:
        InputError: a file or a gold answer is not what is expected, or nothing is there to label.
        MissingError: a file needs the package `datasets` or the network.
    """
    from edgedistill.synth.card import write_prompts_card
    from edgedistill.synth.checks import check_rows, notes

    data = context.recipe.data
    rows, empty = _generated(context.recipe) if data.generator else _from_files(context.recipe)
    if not rows["gold"] and not rows["prompts"]:
        raise InputError("expected data.gold or data.prompts for the teacher to label, found neither in the recipe")
    target = data.balance.target if data.balance else None
    checked = check_rows(
        rows,
        empty=empty,
        near=data.checks.near_duplicates,
        similarity=data.checks.similarity,
        contamination=data.checks.contamination,
        overlap=data.checks.overlap,
        personal=data.checks.personal,
        balance_split=data.balance.split if data.balance else "prompts",
        balance_by=data.balance.by if data.balance else None,
        balance_target=target if isinstance(target, dict) else None,
    )
    for note in notes(checked.report):
        context.report.note(note)
    if not checked.rows["gold"] and not checked.rows["prompts"]:
        reasons = ", ".join(sorted({row.reason for row in checked.left_out}))
        raise InputError(f"expected prompts for the teacher to label, found all of them left out ({reasons})")
    for split in SPLITS:
        kept = [row.prompt.model_dump(mode="json") for row in checked.rows[split]]
        context.figures[split] = write_jsonl(context.folder / f"{split}.jsonl", kept)
    write_jsonl(context.folder / "left-out.jsonl", [row.model_dump(mode="json") for row in checked.left_out])
    write_json(context.folder / "checks.json", checked.report)
    write_prompts_card(context.folder, name=context.run.name, checked=checked)


def run_synth(context: StageContext) -> None:
    """Let the teacher answer the prompts (and gold, if the recipe says so); write records, rejects and logits.

    Raises:
        InputError: the data, the teacher or the recipe's schema is not what is expected.
        StageError: the teacher's folder is not finished, or no answer of the teacher is kept.
    """
    from edgedistill.runtimes import chat
    from edgedistill.runtimes.base import open_session
    from edgedistill.runtimes.logit_cache import CacheIdentity
    from edgedistill.runtimes.precision import session_dtype
    from edgedistill.synth.label import Request, label, request_id

    if context.recipe.teacher.is_api:
        _label_remotely(context)
        return
    recipe = context.recipe
    task, synth = recipe.task, recipe.synth
    judge = _judge(task)
    folder = context.folder_of("teacher")
    manifest = read_manifest(folder)
    if manifest is None:
        raise StageError(f"expected the teacher in {folder}, found no finished one; run the stage teacher first")
    teacher = f"sha256:{manifest.output_digest}"
    tokenizer = chat.load_tokenizer(folder)
    template = chat.template_of(tokenizer, task.chat_template)
    ends = frozenset(chat.end_ids(folder))
    drawn = synth.kept == "drawn"
    identity = CacheIdentity(
        tokenizer=chat.tokenizer_hash(folder),
        template=chat.template_hash(template),
        teacher=teacher,
        draws=synth.top_k if drawn else 0,
    )
    cut = {} if drawn else {"top_p": synth.top_p, "least": synth.least_probability}
    asked = {"greedy": True, "max_new_tokens": task.max_new_tokens, "end_ids": sorted(ends)}
    sampling = asked | {"kept": synth.kept, "top_k": synth.top_k, **cut}
    requests = []
    for prompt in _prompts(context):
        text = chat.render(tokenizer, prompt.messages, template=template)
        identifier = request_id(teacher=teacher, rendered=text, sampling=sampling)
        requests.append(Request(id=identifier, prompt=prompt, prompt_ids=chat.encode(tokenizer, text)))
    began = time.monotonic()

    def progress(done: int, total: int, tokens: int) -> None:
        context.report.progress(done, total, "prompts", tok_s=round(tokens / max(1e-9, time.monotonic() - began)))

    engine = recipe.teacher.engine
    session = open_session(
        engine,
        _weights(context),
        threads=recipe.threads or usable_cores(),
        context=max(len(r.prompt_ids) for r in requests) + task.max_new_tokens,
        **({"dtype": session_dtype(recipe.train.dtype)} if engine == "hf" else {}),
    )
    with contextlib.closing(session):
        counts = label(
            requests,
            folder=context.folder,
            ask=lambda batch: session.generate(
                batch, max_new_tokens=task.max_new_tokens, eos_ids=ends, top_k_logprobs=synth.top_k, drawn=drawn
            ),
            decode=lambda ids: tokenizer.decode(ids, clean_up_tokenization_spaces=False),
            judge=judge,
            identity=identity,
            end_ids=ends,
            top_k=synth.top_k,
            cut=cut,
            batch_size=synth.batch_size,
            shard_size=synth.shard_size,
            progress=progress,
        )
    _tell(context, counts, teacher=teacher, prompts=(request.prompt for request in requests))


def estimate(run: Path, recipe: Recipe) -> dict[str, Any]:
    """What phase 1 would ask, use and cost, as JSON values, from the prompts in `run`; nothing is sent.

    Each of several teachers, the shorter answers and the judge have their own under `further`, and `total` is of all; a
    teacher of a cascade is told of all prompts that it may get. A teacher of one's own costs nothing, and how fast it
    is shows only when it runs.
    """
    from edgedistill.synth import asking, service

    paths, teacher = _prompt_files(recipe, run / FOLDERS["data"]), recipe.teacher
    if not teacher.is_api:
        name, most = f"{teacher.engine}:{teacher.model}", recipe.task.max_new_tokens
        found = [service.estimate_local(paths, teacher=name, max_new_tokens=most)]
    else:
        asked, rules = _asked(recipe), _rules(recipe) | {"referee": _referee(recipe)}
        found = asking.estimates(teacher.all, asked, paths, run=run, **rules)
    return found[0] | {"further": found[1:], "total": service.total_of(found)}


def _label_remotely(context: StageContext) -> None:
    """Ask the APIs for what is missing, then write records in the student's tokens from what they said."""
    from edgedistill.synth import api_records, asking, followups
    from edgedistill.synth.service import figures_of, stream_prompts

    recipe, teacher = context.recipe, context.recipe.teacher
    paths, asked, referee = _prompt_files(recipe, context.folder_of("data")), _asked(recipe), _referee(recipe)
    rules, top_k = _rules(recipe), max(one.top_logprobs for one in teacher.all)
    asking.ask_everyone(teacher.all, asked, paths, run=context.run, **rules, referee=referee, report=context.report)
    with contextlib.ExitStack() as stack:
        counts = api_records.write_records(
            paths,
            folder=context.folder,
            settle=followups.settling(asked, context.run, stack, **rules, referee=referee[1] if referee else None),
            tokens=api_records.student_tokens(
                context.folder_of("teacher"),
                chat_template=recipe.task.chat_template,
                teacher=asked[0].service.name,
                distributions=bool(top_k),
            ),
            top_k=top_k,
            shard_size=recipe.synth.shard_size,
        )
    paid = [
        *zip((a.service for a in asked), teacher.all, strict=True),
        *([(referee[1].service, referee[0])] if referee else []),
    ]
    figures = [
        figures_of(service.journal_in(context.run), service=service)
        | {"terms": one.terms.model_dump(mode="json") if one.terms else None}
        for service, one in paid
    ]
    context.figures.update(figures[0] | ({"further": figures[1:]} if figures[1:] else {}))
    _tell(context, counts, teacher=asked[0].service.name, prompts=stream_prompts(paths))


def _rules(recipe: Recipe) -> dict[str, Any]:
    """How answers are judged, compared and chosen."""
    from edgedistill.synth.several import meaning_of

    task = recipe.task
    return {
        "mix": recipe.teacher.mix,
        "judge": _judge(task),
        "meaning": lambda text: meaning_of(text, kind=task.kind, labels=task.all_labels()),
        "shorten": recipe.synth.shorten,
    }


def _asked(recipe: Recipe) -> list[Asked]:
    from edgedistill.synth.asking import service_of
    from edgedistill.synth.several import Asked

    rules = {"limit": recipe.task.max_new_tokens, "reasoning": recipe.synth.reasoning}
    return [Asked(service_of(one, **rules), one.kinds, one.share) for one in recipe.teacher.all]


def _referee(recipe: Recipe) -> tuple[Teacher, Referee] | None:
    from edgedistill.synth.asking import service_of
    from edgedistill.synth.followups import Referee

    judge = recipe.synth.judge
    if judge is None:
        return None
    service = service_of(judge.teacher, limit=recipe.task.max_new_tokens, reasoning="strip", role="judge")
    return judge.teacher, Referee(service, judge.rubric, judge.threshold)


def _tell(context: StageContext, counts: Counts, *, teacher: str, prompts: Iterable[Prompt]) -> None:
    from edgedistill.synth.card import write_answers_card

    context.figures.update(
        {
            "asked": counts.asked,
            "kept": counts.kept,
            "rejected": counts.rejected,
            "answer_tokens": counts.answer_tokens,
            "teacher": teacher,
        }
    )
    reasons = ", ".join(f"{n} {reason}" for reason, n in counts.rejected.items()) or "none rejected"
    context.report.note(f"{counts.kept} of {counts.asked} answers kept ({reasons})")
    write_answers_card(context.folder, name=context.run.name, figures=context.figures, prompts=prompts)


def _generated(recipe: Recipe) -> tuple[dict[str, list[Row]], list[LeftOut]]:
    from edgedistill.synth.home import splits
    from edgedistill.synth.rows import Row, make_prompt

    sizes = {split: int(getattr(recipe.data, split)) for split in SPLITS}  # type: ignore[arg-type]
    data = splits(recipe.seed, **sizes)
    said = recipe.task.all_system()
    system = [Message(role="system", content=said)] if said is not None else []
    made: dict[str, list[Row]] = {}
    for split in SPLITS:
        made[split] = []
        for number, item in enumerate(getattr(data, split), start=1):
            answer = json.loads(item.answer) if item.answer else None
            kind = f"{answer['device']}.{answer['action']}" if answer else ""
            prompt = make_prompt([*system, Message(role="user", content=item.text)], answer=item.answer, kind=kind)
            made[split].append(Row(prompt, f"{split} {number}", recipe.data.generator or ""))
    return made, []


def _from_files(recipe: Recipe) -> tuple[dict[str, list[Row]], list[LeftOut]]:
    from edgedistill.synth.forms import Rules
    from edgedistill.synth.prompt_files import load_rows
    from edgedistill.synth.split import split_rows

    data, task = recipe.data, recipe.task
    judge = _judge(task)
    rules = Rules(form=data.form, kind=task.kind, columns=data.columns, group=data.group, system=task.all_system(),
                  tools=task.tools, native=task.tool_calls == "native")  # fmt: skip
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    empty: list[LeftOut] = []
    for split in SPLITS:
        for source in data.sources(split):
            its = replace(rules, needs_group=split == "gold")  # which is what [data.split] divides
            loaded = load_rows(source, split=split, rules=its, needs_answer=split != "prompts")
            for row in loaded.rows:
                if row.prompt.answer is not None and (fault := judge(row.prompt.answer, "stop", row.prompt)):
                    said = f"{fault[0]}: {fault[1]}" if fault[1] else fault[0]
                    raise InputError(f"{row.place}: the answer is not what the task says ({said})")
            rows[split] += loaded.rows
            empty += loaded.empty
    if data.split:
        shares = {"heldout": data.split.heldout, "valid": data.split.valid}
        divided = split_rows(rows["gold"], {k: v for k, v in shares.items() if v}, rest="gold", seed=recipe.seed)
        rows |= divided
    return rows, empty


def _judge(task: Task) -> Judge:
    """What finds the fault of an answer to a prompt, as the recipe's task sees it."""
    from edgedistill.synth.validate import check_answer, schema_check

    schema = schema_check(task.answer_schema) if task.answer_schema is not None else None
    return lambda answer, finish, prompt: check_answer(
        answer,
        finish=finish,
        as_json=task.answer == "json",
        schema=schema,
        expected=prompt.answer,
        prompt="\n".join(message.content for message in prompt.messages),
        copied=task.copied,
        kind=task.kind,
        labels=task.all_labels(),
        tools=prompt.tools,
        pattern=task.answer_pattern,
        words=task.answer_words,
        language=task.language,
        refusals=task.refusals == "keep",
        others=prompt.other_answers,
        native=task.tool_calls == "native",
    )


def _prompts(context: StageContext) -> list[Prompt]:
    prompts = []
    for path in _prompt_files(context.recipe, context.folder_of("data")):
        rows = enumerate(read_jsonl(path), start=1)
        prompts += [validate(Prompt, row, source=f"{path} line {number}") for number, row in rows]
    if not prompts:
        raise InputError("expected prompts for the teacher to label, found none; set data.prompts or synth.label_gold")
    return prompts


def _prompt_files(recipe: Recipe, data: Path) -> list[Path]:
    names = ("gold", "prompts") if recipe.synth.label_gold else ("prompts",)
    return [data / f"{name}.jsonl" for name in names]


def _weights(context: StageContext) -> Path:
    """What the recipe's engine opens: the teacher's folder, or for llama.cpp the GGUF that the teacher came from.

    Raises:
        InputError: llama.cpp is asked for, and the teacher is no GGUF.
    """
    from edgedistill.runtimes.sources import resolve_model

    teacher = context.recipe.teacher
    if teacher.engine == "hf":
        return context.folder_of("teacher")
    source = resolve_model(teacher.model)
    if source.gguf is None:
        raise InputError(
            f'teacher.engine = "{teacher.engine}" expects a GGUF teacher, found {teacher.model!r}; use engine "hf"'
        )
    return source.gguf
