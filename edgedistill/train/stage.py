"""The stages `teacher` (resolved, perhaps adapted, into 05-teacher) and `train` (the student's arms, into 20-train)."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedistill.core.config import validate
from edgedistill.core.errors import InputError, StageError
from edgedistill.core.files import read_json, read_jsonl, write_json
from edgedistill.core.host import usable_cores
from edgedistill.core.records import Prompt, TeacherRecord
from edgedistill.core.runfolder import StageContext
from edgedistill.core.teacher import API_TEACHER

if TYPE_CHECKING:
    from edgedistill.train.speed import Clock
    from edgedistill.train.wanted import Arm, Lesson


def run_teacher(context: StageContext) -> None:
    """Write the teacher's Hugging Face folder: as it is, or adapted to gold and then held against `valid`.

    Raises:
        InputError: the model, its template or the gold data is not what is expected.
        MissingError: the model has to be downloaded and cannot be.
        StageError: the adapted teacher is not good enough at the task.
    """
    from edgedistill.runtimes import chat
    from edgedistill.runtimes.precision import uses_bf16
    from edgedistill.runtimes.sources import resolve_model
    from edgedistill.train import adapt

    recipe = context.recipe
    if recipe.teacher.is_api:
        _take_tokenizer(context)
        return
    threads = _use_threads(context)
    source = resolve_model(recipe.teacher.model)
    template = chat.template_of(chat.load_tokenizer(source.folder), recipe.task.chat_template)
    done = (context.folder / "config.json").is_file()
    context.figures["source"] = {"ref": source.ref, "revision": source.revision}
    if recipe.teacher.adapt is None:
        if not done:
            adapt.take_teacher(source=source.folder, folder=context.folder, template=template)
        return
    settings = recipe.teacher.adapt.model_dump(exclude={"min_exact_match"})
    if not done:
        adapt.adapt_teacher(
            source=source.folder,
            folder=context.folder,
            gold=_prompts(context, "gold"),
            template=template,
            seed=recipe.seed,
            bf16=uses_bf16(recipe.train.dtype),
            report=context.report,
            checkpoint_every_s=recipe.train.checkpoint_every_s,
            **settings,
        )
    valid = _prompts(context, "valid")
    wrong = adapt.wrong_answers(
        folder=context.folder,
        prompts=valid,
        template=template,
        as_json=recipe.task.answer == "json",
        kind=recipe.task.kind,
        labels=recipe.task.all_labels(),
        answer=lambda asked: _greedy(context, asked, threads=threads),
    )
    ratio = adapt.require_exact_match(wrong, total=len(valid), minimum=recipe.teacher.adapt.min_exact_match)
    context.figures.update(valid_exact_match_ratio=ratio, valid_items=len(valid))
    context.figures.update(_arm_figures(context.folder / "metrics.jsonl", "teacher"))
    context.report.note(f"the adapted teacher answers {len(valid) - len(wrong)} of {len(valid)} of data.valid exactly")


def run(context: StageContext) -> None:
    """Write `untrained/`, then train it into `student/` and, if the recipe asks, `control/` and `gold/`, of each seed.

    Finished arms are kept.

    Raises:
        InputError: the student does not fit the teacher, or the teacher's distributions are absent or damaged.
        MissingError: a tracker is not installed.
        StageError: nothing to train on, the vocabulary is too small for the task, or a loss is not finite.
    """
    from edgedistill.runtimes import chat, precision
    from edgedistill.train import cut, data, folders, student, trackers, wanted

    recipe = context.recipe
    trackers.require_trackers(recipe.train.trackers)
    _use_threads(context)
    teacher, untrained = context.folder_of("teacher"), context.folder / "untrained"
    template = chat.template_of(chat.load_tokenizer(teacher), recipe.task.chat_template)
    records, gold = _records(context, template=template), _gold_of_arm(context, template=template)
    if not (untrained / "config.json").is_file():
        texts = records if recipe.train.gold else [*records, *gold]
        _make_student(context, records=texts, teacher=teacher, untrained=untrained, template=template)
    shape, tokens = folders.read_shape(untrained), teacher
    if _learns_by_text(context):
        template = chat.template_of(chat.load_tokenizer(untrained), recipe.task.chat_template)
        own = {"student": untrained, "template": template}
        records, gold, tokens = student.own_records(records, **own), student.own_records(gold, **own), untrained
    id_map = student.shared_ids(teacher=tokens, student=untrained, rows=folders.read_shape(tokens)["vocab_size"])
    if recipe.student.cut is not None:
        student.check_tokens([*records, *gold], teacher=teacher, student=untrained, id_map=id_map, template=template)
    further = _further_teachers(context, records, untrained=untrained, template=template)
    cache = _cache(context, records, template=template) if recipe.train.teacher == "cached" else None
    shares = recipe.train.shares if further else None
    examples = data.record_examples(records, id_map=id_map, cache=cache, shares=shares)
    if recipe.train.teacher == "cached" and recipe.train.kd_weight > 0:
        context.figures["with_distributions"] = sum(e.top_ids is not None for e in examples)
        for note in data.untaught(records, examples):
            context.report.note(note)
    longest = shape["max_position_embeddings"]
    for note in data.oddities(examples, longest=longest):
        context.report.note(note)
    examples, _ = data.fitting(examples, longest=longest)
    lesson = wanted.Lesson(*data.split_examples(examples, share=recipe.train.valid_share, seed=recipe.seed))
    lessons = {"student": lesson, "control": lesson}
    context.figures.update(records=len(records), trained_on=len(lesson.train), validated_on=len(lesson.valid))
    context.figures["dtype"] = precision.session_dtype(recipe.train.dtype)
    context.figures["shape"] = shape
    if recipe.student.cut is not None:
        context.figures["cut"] = read_json(untrained / cut.CUT_FILE)
    if recipe.train.arms.gold:
        right, _ = data.fitting(data.record_examples(gold, id_map=id_map), longest=longest)
        how_long = recipe.train.model_dump(include={"epochs", "batch_size", "evals_per_epoch"})
        lessons["gold"] = wanted.gold_lesson(
            right, beside=len(lesson.train), share=recipe.train.valid_share, seed=recipe.seed, **how_long
        )
        context.figures["gold_trained_on"] = len(lessons["gold"].train)
    for arm in wanted.wanted_arms(
        seed=recipe.seed,
        seeds=recipe.train.arms.seeds,
        kd_weight=recipe.train.kd_weight,
        control=recipe.train.control is not None,
        gold=recipe.train.arms.gold,
        cuts=1 if recipe.student.cut is None else recipe.student.cut.steps,
    ):
        if not (context.folder / arm.name / "config.json").is_file():
            _train_arm(context, arm, lessons[arm.kind], further=further)
        found = _arm_figures(context.folder / "metrics.jsonl", arm.name)
        context.figures[arm.name] = found | {"kd_weight": arm.kd_weight, "seed": arm.seed}
        context.report.note(f"{arm.name}: {context.figures[arm.name]}")
    shutil.rmtree(context.folder / "checkpoints", ignore_errors=True)


def _train_arm(context: StageContext, arm: Arm, lesson: Lesson, *, further: list[str]) -> None:
    from edgedistill.train import arms, cut, launch

    start = context.folder / arm.start
    if arm.wide and not (start / "config.json").is_file():
        cut.narrow_student(
            model=context.folder / arm.wide,
            folder=start,
            examples=lesson.train,
            widths=context.figures["cut"]["widths"],
            report=context.report,
        )
    settings = _settings(context, arm=arm, further=further) | {"untrained": start, "folder": context.folder}
    settings |= {"train": lesson.train, "valid": lesson.valid, "report": context.report}
    settings |= {"steps": lesson.steps, "eval_every": lesson.eval_every}
    if context.launch not in (None, "1"):
        launch.launch_arm(str(context.launch), **settings)
    else:
        arms.train_arm(**settings)


def _take_tokenizer(context: StageContext) -> None:
    """For a teacher behind an API: the student's tokenizer, template and settings, which its text is read with."""
    from edgedistill.runtimes import chat
    from edgedistill.runtimes.plain_tokenizer import save_plain
    from edgedistill.runtimes.sources import resolve_model
    from edgedistill.train import folders

    recipe = context.recipe
    source = resolve_model(str(recipe.student.model))
    template = chat.template_of(chat.load_tokenizer(source.folder), recipe.task.chat_template)
    folders.copy_tokenizer(source.folder, context.folder, template=template)
    folders.copy_settings(source.folder, context.folder)
    save_plain(chat.load_tokenizer(context.folder), context.folder)
    write_json(context.folder / API_TEACHER, recipe.teacher.identity())
    context.figures["source"] = {"ref": f"{recipe.teacher.engine}:{recipe.teacher.model}", "tokenizer": source.ref}


def _further_teachers(
    context: StageContext, records: Sequence[TeacherRecord], *, untrained: Path, template: str
) -> list[str]:
    """Folders of the further teachers.

    Raises:
        InputError: one of them has no record of its kinds, or tokenizes one otherwise than the student.
    """
    from edgedistill.runtimes.sources import resolve_model
    from edgedistill.train import folders, student

    found = []
    for further in context.recipe.train.further_teachers:
        theirs = [record for record in records if further.teaches(record.kind)]
        if not theirs:
            raise InputError(
                f"expected records of the kinds {', '.join(further.kinds)} for {further.model} in "
                f"train.further_teachers, found {', '.join(sorted({r.kind or 'none' for r in records}))}; correct kinds"
            )
        if further.kinds:
            context.report.note(f"{further.model} has a share in {len(theirs)} of {len(records)} records")
        folder = resolve_model(further.model).folder
        ids = student.shared_ids(teacher=folder, student=untrained, rows=folders.read_shape(folder)["vocab_size"])
        student.check_tokens(theirs, teacher=folder, student=untrained, id_map=ids, template=template)
        found.append(str(folder))
    return found


def _settings(context: StageContext, *, arm: Arm, further: list[str]) -> dict[str, Any]:
    """The arguments of `arms.train_arm` that the recipe gives: JSON and paths. Only the student has a teacher."""
    from edgedistill.runtimes.precision import uses_bf16

    recipe = context.recipe.train
    own = {
        "kd_weight", "divergence", "beta", "temperature", "valid_share", "dtype", "control", "gold", "teacher", "match",
        "on_policy", "further_teachers", "arms",
    }  # fmt: skip
    settings = recipe.model_dump(mode="json", exclude=own)
    settings |= {"arm": arm.name, "seed": arm.seed, "kd_weight": arm.kd_weight, "bf16": uses_bf16(recipe.dtype)}
    settings["how"] = {"kind": recipe.divergence, "beta": recipe.beta, "temperature": recipe.temperature}
    if recipe.trackers:
        settings["tracker_folder"] = context.run / "logs" / "trackers"
    if recipe.teacher == "online" and arm.kind == "student":
        settings |= {"teacher": context.folder_of("teacher"), "further": further, "on_policy": recipe.on_policy}
        if recipe.match is not None:
            kept = sorted(context.figures["cut"]["layers"]) if "cut" in context.figures else []
            settings["match"] = recipe.match.model_dump(mode="json") | {"kept": kept}
        settings["max_new_tokens"] = context.recipe.task.max_new_tokens
    return settings


def _learns_by_text(context: StageContext) -> bool:
    """Whether nothing of the teacher but its text is learnt, so that a model with any tokenizer may be the student."""
    train = context.recipe.train
    return context.recipe.student.model is not None and train.kd_weight == 0 and train.teacher == "cached"


def _make_student(
    context: StageContext, *, records: Sequence[TeacherRecord], teacher: Path, untrained: Path, template: str
) -> None:
    from edgedistill.runtimes import chat
    from edgedistill.runtimes.sources import resolve_model
    from edgedistill.train import cut, folders, student

    recipe = context.recipe.student
    if recipe.cut is not None:
        cut.cut_student(
            teacher=teacher,
            folder=untrained,
            records=records,
            template=template,
            report=context.report,
            clock=_clock(context, grid=recipe.cut.grid) if recipe.is_timed else None,
            **recipe.cut.model_dump() | {"target_bytes": recipe.cut.most_bytes},
        )
        return
    source = resolve_model(str(recipe.model))
    if _learns_by_text(context):
        own = chat.template_of(chat.load_tokenizer(source.folder), context.recipe.task.chat_template)
        student.take_student(model=source.folder, folder=untrained, template=own)
        return
    id_map = student.shared_ids(teacher=teacher, student=source.folder, rows=folders.read_shape(teacher)["vocab_size"])
    student.check_tokens(records, teacher=teacher, student=source.folder, id_map=id_map, template=template)
    student.adopt_student(model=source.folder, teacher=teacher, folder=untrained, template=template)


def _clock(context: StageContext, *, grid: str) -> Clock:
    from edgedistill.quant.plan import plan_of
    from edgedistill.train.speed import Clock

    threads = context.recipe.threads or usable_cores()
    return Clock(context.lent["write_gguf"], context.lent["decode_times"], plan_of(grid), threads)


def _greedy(context: StageContext, asked: list[list[int]], *, threads: int) -> list[list[int]]:
    from edgedistill.runtimes.base import open_session
    from edgedistill.runtimes.chat import end_ids
    from edgedistill.runtimes.precision import session_dtype

    limit = context.recipe.task.max_new_tokens
    longest = max((len(ids) for ids in asked), default=1)
    dtype = session_dtype(context.recipe.train.dtype)
    session = open_session("hf", context.folder, threads=threads, context=longest + limit, dtype=dtype)
    try:
        ends, size, answers = frozenset(end_ids(context.folder)), context.recipe.synth.batch_size, []
        for begin in range(0, len(asked), size):
            batch = asked[begin : begin + size]
            answers += [g.ids for g in session.generate(batch, max_new_tokens=limit, eos_ids=ends)]
            context.report.progress(len(answers), len(asked), "validation prompts")
        return answers
    finally:
        session.close()


def _prompts(context: StageContext, split: str) -> list[Prompt]:
    path = context.folder_of("data") / f"{split}.jsonl"
    return [
        validate(Prompt, row, source=f"{path} line {number}") for number, row in enumerate(read_jsonl(path), start=1)
    ]


def _records(context: StageContext, *, template: str) -> list[TeacherRecord]:
    """What the student learns from: the teacher's records and, if the recipe says so, the right answers of gold."""
    records = []
    for path in sorted(context.folder_of("synth").glob("records-*.jsonl")):
        rows = enumerate(read_jsonl(path), start=1)
        records += [validate(TeacherRecord, row, source=f"{path} line {number}") for number, row in rows]
    if not records:
        raise StageError(f"expected the teacher's records in {context.folder_of('synth')}, found none; run synth first")
    return records + (_gold(context, template=template) if context.recipe.train.gold else [])


def _gold_of_arm(context: StageContext, *, template: str) -> list[TeacherRecord]:
    return _gold(context, template=template) if context.recipe.train.arms.gold else []


def _gold(context: StageContext, *, template: str) -> list[TeacherRecord]:
    """The prompts of gold with their right answers, in the teacher's ids."""
    from edgedistill.runtimes import chat
    from edgedistill.train import data

    teacher = context.folder_of("teacher")
    tokenizer = chat.load_tokenizer(teacher)
    end = chat.turn_end(tokenizer, template=template, ends=chat.end_ids(teacher))
    return data.gold_records(_prompts(context, "gold"), tokenizer=tokenizer, template=template, end_id=end)


def _cache(context: StageContext, records: Sequence[TeacherRecord], *, template: str) -> Any | None:
    """Each teacher's distributions, held against the tokenizer and template in use; None if none were kept."""
    from edgedistill.runtimes import chat
    from edgedistill.runtimes.logit_cache import CacheIdentity, open_cache

    taught, synth = [record for record in records if record.logits_key is not None], context.recipe.synth
    if not taught:
        return None
    identity = CacheIdentity(
        tokenizer=chat.tokenizer_hash(context.folder_of("teacher")),
        template=chat.template_hash(template),
        teacher=taught[0].teacher,
        draws=synth.top_k if synth.kept == "drawn" and not context.recipe.teacher.is_api else 0,
    )
    return open_cache(
        sorted(context.folder_of("synth").glob("logits-*.safetensors")),
        identity=identity,
        teachers={record.teacher for record in taught},
    )


def _arm_figures(metrics: Path, arm: str) -> dict[str, Any]:
    """Headline numbers of an arm out of its metrics; validation losses in nats per token, of the best evaluation."""
    rows = [row for row in read_jsonl(metrics) if row["arm"] == arm]
    last = [row for row in rows if "loss" in row][-1]
    figures = {"steps": last["step"], "tokens": last["tokens"], "tok_s": last["tok_s"], "loss": last["loss"]}
    evaluations = [row for row in rows if "valid_loss" in row]
    if evaluations:
        best = min(evaluations, key=lambda row: (row["valid_loss"], row["step"]))
        figures |= {"best_step": best["step"], **{k: v for k, v in best.items() if k.startswith("valid_")}}
    return figures


def _use_threads(context: StageContext) -> int:
    import torch

    threads = context.recipe.threads or usable_cores()
    torch.set_num_threads(threads)
    return threads
