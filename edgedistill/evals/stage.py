"""The stage `eval`: the quality of every model and artifact of the run on the same held-out items."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedistill.core.arms import arm_models, compare_arms
from edgedistill.core.artifact import load_artifact
from edgedistill.core.config import validate
from edgedistill.core.errors import InputError
from edgedistill.core.files import read_json, read_jsonl, write_json, write_jsonl
from edgedistill.core.host import usable_cores
from edgedistill.core.records import EvalItem, Prompt
from edgedistill.core.runfolder import StageContext
from edgedistill.core.teacher import is_behind_api

if TYPE_CHECKING:
    import numpy as np

    from edgedistill.evals.score import Item
    from edgedistill.runtimes.base import Session

SUMMARY = "summary.json"
ARMS = "arms.json"
ENGLISH = Path(__file__).with_name("plain_english.txt")
CONFIDENCE = 0.95  # of the intervals in the summary; the gate makes its own from the rows
TEXT_BYTES = 16384  # of a longer text the beginning is enough, and every model reads it


@dataclass(frozen=True)
class Model:
    """A model to score: its engine, what the engine opens, and the model that it is held against."""

    name: str
    engine: str
    path: Path
    reference: str | None = None


@dataclass(frozen=True)
class Family:
    """Models that read the same token ids, the float32 one first; `tokenizer` is the folder of the tokenizer."""

    tokenizer: Path
    models: tuple[Model, ...]


@dataclass(frozen=True)
class Questions:
    """What the models of a family are asked, in its ids: held-out items, plain text, and how an answer ends."""

    tokenizer: Any
    items: tuple[Item, ...]
    text: str
    text_ids: tuple[int, ...]
    eos_ids: frozenset[int]
    context: int


def run(context: StageContext) -> None:
    """Write a row per item for every model, then the summary and the table of arms.

    A model whose rows stand is not asked again.

    Raises:
        InputError: there is no held-out item with a right answer, or a model or an earlier row is damaged.
        StageError: a model cannot be held against its reference.
    """
    prompts, text = _heldout(context), _text(context.recipe.eval.text)
    families = _families(context)
    for family in families:
        todo = [model for model in family.models if not _finished(context.folder, model.name, prompts)]
        if todo:
            _score_family(context, family, todo, _questions(context, family, prompts, text))
    _summarize(context, [model for family in families for model in family.models])


def _families(context: StageContext) -> list[Family]:
    teacher, train = context.folder_of("teacher"), context.folder_of("train")
    student = train / "student"
    artifacts = []
    for path in sorted(context.folder_of("export").glob("*/artifact.json")):
        artifact = load_artifact(path.parent)
        entry = path.parent / artifact.entry
        engine, opened = ("llamacpp", entry) if artifact.format == "gguf" else ("onnx", path.parent)
        source = "teacher" if artifact.variant.startswith("teacher-") else "student"
        artifacts.append(Model(artifact.variant, engine, opened, source))
    trained = [path.parent.name for path in train.glob("*/config.json")]
    arms = [Model(name, "hf", train / name) for name in arm_models(trained) if name != "student"]
    of = {name: [model for model in artifacts if model.reference == name] for name in ("teacher", "student")}
    families = [Family(student, (Model("student", "hf", student), *of["student"], *arms))]
    if not is_behind_api(teacher):
        families.insert(0, Family(teacher, (Model("teacher", "hf", teacher), *of["teacher"])))
    return families


def _questions(context: StageContext, family: Family, prompts: Sequence[Prompt], text: str) -> Questions:
    from edgedistill.evals.likelihood import WINDOW
    from edgedistill.evals.score import Item
    from edgedistill.runtimes import chat
    from edgedistill.runtimes.tool_chat import spoken

    task = context.recipe.task
    tokenizer = chat.load_tokenizer(family.tokenizer)
    template = chat.template_of(tokenizer, task.chat_template)
    step = max(1, len(prompts) // context.recipe.eval.kld_items)
    scored = {prompt.id for prompt in prompts[::step][: context.recipe.eval.kld_items]}
    items = tuple(
        Item(
            id=prompt.id,
            prompt_ids=tuple(chat.encode(tokenizer, chat.render(tokenizer, prompt.messages, template=template))),
            answer=prompt.answer or "",
            answer_ids=tuple(
                chat.encode(tokenizer, spoken(tokenizer, prompt.messages, prompt.answer or "", template=template))
            ),
            kind=prompt.kind,
            other_answers=prompt.other_answers,
            scored=prompt.id in scored,
        )
        for prompt in prompts
    )
    longest = max(len(i.prompt_ids) + max(task.max_new_tokens, len(i.answer_ids)) for i in items)
    return Questions(
        tokenizer=tokenizer,
        items=items,
        text=text,
        text_ids=tuple(chat.encode(tokenizer, text)),
        eos_ids=frozenset(chat.end_ids(family.tokenizer)),
        context=max(longest, WINDOW),
    )


def _score_family(context: StageContext, family: Family, todo: Sequence[Model], questions: Questions) -> None:
    from edgedistill.evals.score import answer_logits

    first = family.models[0]
    reference: dict[str, np.ndarray] | None = None
    for model in (first, *(model for model in todo if model is not first)):
        needed = reference is None and any(other.reference == first.name for other in todo)
        if model not in todo and not needed:
            continue
        began = time.monotonic()
        with closing(_open(context, model, questions)) as session:
            if model is first and needed:
                scored = [item for item in questions.items if item.scored]
                reference = {item.id: answer_logits(session.logits, item) for item in scored}
            if model in todo:
                _score_model(context, model, session, questions, reference if model.reference else None)
                context.report.note(f"{model.name}: asked in {time.monotonic() - began:.1f} s")


def _open(context: StageContext, model: Model, questions: Questions) -> Session:
    from edgedistill.runtimes.base import open_session

    options: dict[str, Any] = {"dtype": "float32"} if model.engine == "hf" else {}
    threads = context.recipe.threads or usable_cores()
    return open_session(model.engine, model.path, threads=threads, context=questions.context, **options)


def _score_model(
    context: StageContext,
    model: Model,
    session: Session,
    questions: Questions,
    reference: dict[str, np.ndarray] | None,
) -> None:
    from edgedistill.evals.likelihood import bits_per_byte
    from edgedistill.evals.score import answer_all, eval_rows, score_answers

    tokenizer, task = questions.tokenizer, context.recipe.task
    answers = answer_all(
        session,
        questions.items,
        max_new_tokens=task.max_new_tokens,
        eos_ids=questions.eos_ids,
        progress=lambda done, total: context.report.progress(done, total, "items", model=model.name),
    )
    rows = eval_rows(
        questions.items,
        answers,
        score_answers(session.logits, questions.items, reference=reference),
        decode=lambda ids: tokenizer.decode(ids, clean_up_tokenization_spaces=False),
        as_json=task.answer == "json",
        kind=task.kind,
        labels=task.all_labels(),
    )
    per_byte = bits_per_byte(
        session.logits,
        ids=questions.text_ids,
        text=questions.text,
        first=tokenizer.decode(list(questions.text_ids[:1])),
    )
    write_json(_scores(context.folder, model.name), {"bits_per_byte": per_byte})
    write_jsonl(context.folder / f"{model.name}.jsonl", [row.model_dump(mode="json") for row in rows])


def _summarize(context: StageContext, models: Sequence[Model]) -> None:
    from edgedistill.evals.score import quality

    rows = {model.name: _rows(context.folder, model.name) for model in models}
    summary = {}
    for model in models:
        found = quality(
            model.name,
            rows[model.name],
            bits_per_byte=read_json(_scores(context.folder, model.name))["bits_per_byte"],
            reference=model.reference,
            teacher=None if model.name == "teacher" else rows.get("teacher"),
            confidence=CONFIDENCE,
            kind=context.recipe.task.kind,
            labels=context.recipe.task.all_labels(),
        )
        summary[model.name] = found.model_dump(mode="json")
        context.figures[model.name] = {
            "exact_match_ratio": found.exact_match_ratio,
            "bits_per_byte": found.bits_per_byte,
            "kld_nats": found.kld_nats,
        }
        right = sum(row.correct for row in rows[model.name])
        context.report.note(f"{model.name}: {right} of {found.items} right")
    write_json(context.folder / SUMMARY, summary)
    if arms := compare_arms(rows, confidence=CONFIDENCE):
        write_json(context.folder / ARMS, arms.model_dump(mode="json"))
        context.figures["arms"] = {"outcome": arms.outcome, "difference": arms.difference}
        context.report.note(arms.sentence)


def _scores(folder: Path, model: str) -> Path:
    return folder / "scores" / f"{model}.json"


def _rows(folder: Path, model: str) -> list[EvalItem]:
    path = folder / f"{model}.jsonl"
    rows = enumerate(read_jsonl(path), start=1)
    return [validate(EvalItem, row, source=f"{path} line {number}") for number, row in rows]


def _finished(folder: Path, model: str, prompts: Sequence[Prompt]) -> bool:
    """Whether an earlier, interrupted run asked this model everything. The rows are written last, and whole."""
    if not (folder / f"{model}.jsonl").is_file() or not _scores(folder, model).is_file():
        return False
    try:
        return [row.id for row in _rows(folder, model)] == [prompt.id for prompt in prompts]
    except InputError:
        return False


def _heldout(context: StageContext) -> list[Prompt]:
    path = context.folder_of("data") / "heldout.jsonl"
    rows = enumerate(read_jsonl(path) if path.is_file() else [], start=1)
    prompts = [validate(Prompt, row, source=f"{path} line {number}") for number, row in rows]
    if not prompts:
        raise InputError("expected held-out items to judge the models on, found none; set data.heldout in the recipe")
    if unanswered := next((prompt.id for prompt in prompts if not prompt.answer), None):
        raise InputError(f"{path}: expected a right answer to every held-out item, found none to {unanswered}")
    return prompts


def _text(source: str | None) -> str:
    """The plain text for bits per byte: the recipe's, from its beginning, or the project's own.

    Raises:
        InputError: the file is absent or not UTF-8.
    """
    path = Path(source) if source else ENGLISH
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"expected plain text at {path}, as eval.text says, found no such file") from None
    except UnicodeDecodeError as e:
        raise InputError(f"{path}: expected UTF-8 text, found other bytes ({e.reason} at byte {e.start})") from None
    return text.encode()[:TEXT_BYTES].decode(errors="ignore")
