"""The stage `bench`: teacher, quantized teacher and every artifact, each in its own runtime, on every target."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from edgedistill.bench.derived import shipped_files
from edgedistill.bench.model_shape import shape_of
from edgedistill.bench.preflight import preflight
from edgedistill.bench.rounds import (
    THIS_HOST,
    Protocol,
    Rows,
    Subject,
    measure_round,
    memory_rounds,
    passes_of,
    read_rounds,
    schedule,
    write_rounds,
)
from edgedistill.bench.runner import Runner, open_runner
from edgedistill.bench.torch_settings import in_best_setting
from edgedistill.core.artifact import content_digest, damaged_file, load_artifact
from edgedistill.core.config import validate
from edgedistill.core.errors import InputError, StageError
from edgedistill.core.files import read_jsonl
from edgedistill.core.host import environment
from edgedistill.core.metric import Metric
from edgedistill.core.records import Prompt
from edgedistill.core.runfolder import VOLATILE, StageContext, read_manifest
from edgedistill.core.target import Target, load_target
from edgedistill.core.teacher import is_behind_api

ENGINES = {"gguf": "llamacpp", "onnx": "onnxruntime-genai"}
# A teacher, quantized or not, answers too slowly to be asked as often as an artifact.
TEACHERS = ("teacher", "teacher-")
HEADLINE = {
    Metric.RESPONSE_MS: "prompts",
    Metric.REQUESTS_PER_HOUR: "prompts",
    Metric.PEAK_RSS_BYTES: "memory",
}


def run(context: StageContext) -> None:
    """Measure all rounds of the recipe, whole ones of an interrupted run excepted.

    A model that fails a block gets an invalid row with the cause and the sweep goes on; the gate judges such rows.

    Raises:
        InputError: a target wants more cores than there are, or there is no prompt to ask.
        MissingError: a target's device, or what reaches it, is not there.
        StageError: what is to be measured is not there, or not one row is valid.
    """
    targets = [load_target(name) for name in context.recipe.bench.targets]
    with ExitStack() as stack:
        runners = {target.id: stack.enter_context(open_runner(target)) for target in targets}
        rows = _measure(context, targets, runners)
    _report(context, rows, targets)


def _measure(context: StageContext, targets: Sequence[Target], runners: Mapping[str, Runner]) -> Rows:
    """Every round that is not there yet, written as soon as it is whole."""
    bench = context.recipe.bench
    cores = {name: runner.cores(threads=context.recipe.threads) for name, runner in runners.items()}
    subjects = _subjects(context)
    protocol = Protocol(
        requests=bench.prompts_per_block,
        max_new_tokens=context.recipe.task.max_new_tokens,
        decode_tokens=bench.decode_tokens,
        environment=_environment(subjects, [cores[t.id] for t in targets if t.runner in THIS_HOST]),
        memory_rounds=memory_rounds(bench.blocks, further=bench.further_blocks),
        full=bench.profile == "full",
        sustained_s=bench.sustained_s,
    )
    for warning in protocol.environment["preflight"]["warnings"]:
        context.report.note(f"measuring anyway: {warning}")
    blocks = bench.blocks + bench.further_blocks
    rows = _of_these_devices(read_rounds(context.folder, subjects=subjects, protocol=protocol), runners)
    per_round = [
        sum(len(passes_of(subject, pair=pair, protocol=protocol)) for subject in subjects) for pair in range(blocks)
    ]
    total, done = len(targets) * sum(per_round), 0
    for target, pair in schedule(blocks=blocks, targets=targets):
        if (target.id, pair) in rows:
            done += per_round[pair]
            continue
        counter = itertools.count(done)
        asked = [
            in_best_setting(
                subject, target=target, cores=cores[target.id], protocol=protocol, run=runners[target.id].run,
                folder=context.folder, device=_device(runners[target.id], protocol), note=context.report.note,
            )
            for subject in subjects
        ]  # fmt: skip
        rows[target.id, pair] = measure_round(
            asked,
            target=target,
            pair=pair,
            cores=cores[target.id],
            protocol=protocol,
            run=runners[target.id].run,
            earlier=[row for (_, other), found in rows.items() if other == pair for row in found],
            on_block=lambda model, counter=counter, target=target: context.report.progress(
                next(counter), total, "blocks", target=target.id, model=model
            ),
        )
        done += per_round[pair]
        write_rounds(context.folder, rows)
    return rows


def _device(runner: Runner, protocol: Protocol) -> Any:
    """What identifies the machine that a runner measures on."""
    return runner.environment.get("device", protocol.environment.get("host_id"))


def _environment(subjects: Sequence[Subject], cores: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Host, versions, and the state that the host is in before the first block."""
    needed = max(sum(f.stat().st_size for f in shipped_files(subject.path)) for subject in subjects)
    state = preflight(cores=sorted({core for found in cores for core in found}), needed_bytes=needed)
    return environment() | {"preflight": state | {"files": "every hash is as its stage left it"}}


def _of_these_devices(rows: Rows, runners: Mapping[str, Runner]) -> Rows:
    """Rounds of the devices that are here now: one measured on another board, or before an update, is done again."""
    here = {name: runner.environment.get("device") for name, runner in runners.items()}
    return {
        (target, pair): found
        for (target, pair), found in rows.items()
        if target in here and all(row.environment.get("device") == here[target] for row in found)
    }


def _subjects(context: StageContext) -> list[Subject]:
    """The teacher first, then what was exported, the recipe's order kept.

    Raises:
        StageError: the teacher or the artifacts are absent.
    """
    teacher = context.folder_of("teacher")
    manifest = read_manifest(teacher)
    if manifest is None or not (teacher / "config.json").is_file():
        raise StageError(f"expected the teacher's model in {teacher}, found none; run the stage teacher first")
    if damage := damaged_file(teacher, manifest.files, rehash=True):
        raise StageError(f"expected the teacher as its stage left it; {damage}; run the stage teacher again")
    prompts = _prompts(context)
    digest = content_digest(manifest.files, volatile=VOLATILE)
    subjects = []
    if not is_behind_api(teacher):
        subjects.append(_subject(context, "teacher", "torch", teacher, teacher, digest, prompts))
    export = context.recipe.export
    found = {path.parent.name: path.parent for path in context.folder_of("export").glob("*/artifact.json")}
    known = {name: i for i, name in enumerate(export.variants)}
    for name in sorted(found, key=lambda name: (known.get(name, -1), name)):
        artifact = load_artifact(found[name])
        path = found[name] / artifact.entry if artifact.format == "gguf" else found[name]
        digest = content_digest(artifact.files)
        subjects.append(_subject(context, name, ENGINES[artifact.format], path, found[name], digest, prompts))
    if not found:
        raise StageError(f"expected artifacts in {context.folder_of('export')}, found none; run the stage export first")
    return subjects


def _subject(
    context: StageContext,
    name: str,
    engine: str,
    path: Path,
    folder: Path,
    digest: str,
    prompts: Sequence[Prompt],
) -> Subject:
    from edgedistill.runtimes import chat

    bench = context.recipe.bench
    tokenizer = chat.load_tokenizer(folder)
    template = chat.template_of(tokenizer, context.recipe.task.chat_template)
    texts = [chat.render(tokenizer, prompt.messages, template=template) for prompt in prompts]
    ids = [tuple(chat.encode(tokenizer, text)) for text in texts]
    size = bench.teacher_prompts_per_block
    rounds = tuple(tuple(ids[i : i + size]) for i in range(0, len(ids), size))
    return Subject(
        name=name,
        engine=engine,
        path=path.resolve(),
        digest=digest,
        slow=name.startswith(TEACHERS),
        end_ids=chat.end_ids(folder),
        rounds=rounds,
        shape_ids=tuple(itertools.islice(itertools.cycle(itertools.chain(*ids)), bench.prefill_tokens)),
        texts=tuple(tuple(texts[i : i + size]) for i in range(0, len(texts), size)),
        shape=shape_of(engine, path) if bench.profile == "full" else None,
    )


def _prompts(context: StageContext) -> list[Prompt]:
    """As many prompts as all rounds together ask, spread over the recipe's; every model gets the same ones.

    Raises:
        InputError: there is none.
    """
    bench = context.recipe.bench
    for split in ("prompts", "gold"):
        path = context.folder_of("data") / f"{split}.jsonl"
        rows = read_jsonl(path) if path.is_file() else []
        if rows:
            step = max(1, len(rows) // (bench.blocks * bench.teacher_prompts_per_block))
            wanted = rows[::step][: bench.blocks * bench.teacher_prompts_per_block]
            return [validate(Prompt, row, source=str(path)) for row in wanted]
    raise InputError("expected data.prompts or data.gold to ask the models with, found neither in the recipe")


def _report(context: StageContext, rows: Rows, targets: Sequence[Target]) -> None:
    """Headline medians per target and model for the manifest, and a note for everything that did not go as wanted.

    Raises:
        StageError: no row is valid.
    """
    every = [row for found in rows.values() for row in found]
    invalid = [row for row in every if not row.valid]
    for target in targets:
        figures: dict[str, dict[str, Any]] = {}
        for row in every:
            if row.target == target.id and row.valid:
                for metric, workload in HEADLINE.items():
                    found = row.samples.get(metric, []) if row.workload == workload else []
                    figures.setdefault(row.model, {}).setdefault(metric.value, []).extend(found)
        context.figures[target.id] = {
            model: {name: round(statistics.median(values), 3) for name, values in found.items() if values}
            for model, found in figures.items()
        }
        missing = {r.settings["memory_limit_missing"] for r in every if "memory_limit_missing" in r.settings}
        for reason in sorted(missing) if target.limits.memory_bytes else []:
            context.report.note(f"{target.id}: the memory limit was not applied: {reason}")
        unfixed = {r.settings["fixed_performance_missing"] for r in every if "fixed_performance_missing" in r.settings}
        for reason in sorted(unfixed) if target.runner == "adb" else []:
            context.report.note(f"{target.id}: clocks were not held: {reason}")
    context.figures["rows"], context.figures["invalid_rows"] = len(every), len(invalid)
    for model, target, reason in sorted({(row.model, row.target, str(row.invalid_reason)) for row in invalid}):
        context.report.note(f"invalid: {model} on {target}: {reason}")
    for model, target, reason in sorted({(r.model, r.target, r.not_measured) for r in every if r.not_measured}):
        context.report.note(f"not measured: {model} on {target}: {reason}")
    if len(invalid) == len(every):
        raise StageError(
            f"expected measurements, found {len(invalid)} invalid rows; the first: {invalid[0].invalid_reason}"
        )
