"""The stage `export`: every variant of the student, and the teacher merely quantized, each proven and whole."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedistill.core.artifact import Artifact, content_digest, list_files, load_artifact
from edgedistill.core.config import validate
from edgedistill.core.errors import InputError, StageError
from edgedistill.core.files import atomic_folder, read_jsonl
from edgedistill.core.host import usable_cores
from edgedistill.core.records import TeacherRecord
from edgedistill.core.runfolder import NOT_OUTPUT, VOLATILE, StageContext
from edgedistill.core.teacher import is_behind_api
from edgedistill.export.seal import ENTRIES, seal

if TYPE_CHECKING:
    from edgedistill.export.imatrix import Imatrix
    from edgedistill.export.mixed import Chosen
    from edgedistill.export.onnx_check import OnnxFacts
    from edgedistill.export.parity import Prediction
    from edgedistill.export.quantize import WeightFigures
    from edgedistill.quant.codes import CodeSet

MIXED = "mixed"
LEAST_OF_CHUNK, MOST_OF_CHUNK, CHUNKS = 32, 512, 24  # tokens of the chunks that mixed precision is chosen on; how many
CALIBRATION_RECORDS = 256  # held-in records that the importance matrix of K- and IQ-quants is taken from


@dataclass(frozen=True)
class Order:
    """One variant to build: its name, its source folder, and how its weights are stored (f16, q4_0, int8, …)."""

    variant: str
    source: Path
    form: str
    precision: str


@dataclass(frozen=True)
class Source:
    """What every variant of one model is held against: its content digest and its own predictions."""

    digest: str
    predictions: Sequence[Prediction]


def run(context: StageContext) -> None:
    """Build what the recipe names into a folder per variant; one that stands whole is kept.

    Raises:
        InputError: the student or the teacher cannot be exported in a wanted format.
        StageError: a conversion failed, or an artifact is not equal to its source; nothing of it is left.
    """
    from edgedistill.export.weights import check_finite
    from edgedistill.quant.codes import CodeSet
    from edgedistill.quant.plan import GRIDS_OF_LAYERS, plan_of

    recipe = context.recipe
    threads = recipe.threads or usable_cores()
    orders = _orders(context)
    for source in {order.source for order in orders if _finished(context.folder / order.variant) is None}:
        check_finite(source)
    records = _records(context, count=recipe.export.parity_texts)
    sources: dict[Path, Source] = {}
    chosen_by = _calibration(context, orders, threads=threads) if recipe.export.calibrate else {}
    codes = {plan.layers: CodeSet(plan, **chosen_by) for plan in map(plan_of, GRIDS_OF_LAYERS)}
    mixed = _mixed(context, threads=threads)
    if said := _ended_prompt(context.folder_of("train") / "student", override=recipe.task.chat_template):
        context.report.note(said)
    for number, order in enumerate(orders):
        context.report.progress(number, len(orders), "variants", building=order.variant)
        artifact = _finished(context.folder / order.variant)
        if artifact is None:
            if order.source not in sources:
                texts = _texts(order.source, records, override=recipe.task.chat_template)
                sources = {order.source: _source(order.source, texts=texts, threads=threads)}
            artifact = _build(
                order,
                source=sources[order.source],
                context=context,
                threads=threads,
                codes=codes.get(GRIDS_OF_LAYERS.get(order.precision, "")),
                mixed=mixed,
            )
        context.figures[order.variant] = _headline(artifact)
        context.report.note(_sentence(artifact))
    shutil.rmtree(_work(context), ignore_errors=True)


def _orders(context: StageContext) -> list[Order]:
    export = context.recipe.export
    student = context.folder_of("train") / "student"
    orders = [Order(name, student, *name.split("-")) for name in export.variants]
    for name in () if is_behind_api(context.folder_of("teacher")) else export.teacher_variants:
        form, precision = name.split("-")
        orders.append(Order(f"teacher-{precision}", context.folder_of("teacher"), form, precision))
    return orders


def _records(context: StageContext, *, count: int) -> list[TeacherRecord]:
    """`count` held-in records, evenly from all of them."""
    rows = [row for path in sorted(context.folder_of("synth").glob("records-*.jsonl")) for row in read_jsonl(path)]
    if not rows:
        raise StageError(f"expected the teacher's records in {context.folder_of('synth')}, found none; run synth first")
    wanted = rows[:: max(1, len(rows) // count)][:count]
    return [validate(TeacherRecord, row, source=str(context.folder_of("synth"))) for row in wanted]


def _texts(source: Path, records: Sequence[TeacherRecord], *, override: str | None) -> list[list[int]]:
    """Each record as the model sees it: rendered prompt and answer, in the ids of the tokenizer in `source`."""
    from edgedistill.runtimes import chat

    tokenizer = chat.load_tokenizer(source)
    template = chat.template_of(tokenizer, override)
    return [
        chat.encode(tokenizer, chat.render(tokenizer, record.messages, template=template) + record.answer)
        for record in records
    ]


def _ended_prompt(folder: Path, *, override: str | None) -> str | None:
    """What to say where prompts end with an end-of-generation token, at which some programs stop at once."""
    from edgedistill.core.records import Message
    from edgedistill.runtimes import chat

    tokenizer = chat.load_tokenizer(folder)
    text = chat.render(tokenizer, [Message(role="user", content="a")], template=chat.template_of(tokenizer, override))
    last = chat.encode(tokenizer, text)[-1:]
    if not set(last) & set(chat.end_ids(folder)):
        return None
    return (
        f"the chat template ends prompts with {tokenizer.decode(last)}, which also ends answers: llama-cpp-python's "
        "chat answers nothing then; let task.chat_template end prompts with another token"
    )


def _finished(folder: Path) -> Artifact | None:
    """The artifact of an earlier, interrupted run, if it stands as it was written."""
    if not (folder / "artifact.json").is_file():
        return None
    try:
        return load_artifact(folder, rehash=True)
    except InputError:
        return None


def _source(folder: Path, *, texts: list[list[int]], threads: int) -> Source:
    from edgedistill.export.parity import predict

    # when the source's own stage ran, and how fast, makes no other model
    digest = content_digest(list_files(folder, skip=NOT_OUTPUT), volatile=VOLATILE)
    return Source(digest=digest, predictions=predict(model=folder, texts=texts, threads=threads))


def _build(
    order: Order,
    *,
    source: Source,
    context: StageContext,
    threads: int,
    codes: CodeSet | None,
    mixed: Chosen | None,
) -> Artifact:
    with atomic_folder(context.folder / order.variant) as folder:
        make = _make_gguf if order.form == "gguf" else _make_onnx
        chosen = mixed if order.precision == MIXED else None
        weights = make(order, folder=folder, context=context, threads=threads, codes=chosen.codes if chosen else codes)
        if chosen is not None:
            weights |= {"grids": dict(chosen.choice.counts), "max_bytes": context.recipe.export.most_bytes}
        artifact = seal(
            folder,
            variant=order.variant,
            form=order.form,
            precision=order.precision,
            model=order.source,
            source_digest=source.digest,
            predictions=source.predictions,
            weights=weights,
            threads=threads,
        )
        if artifact.max_bytes is not None and artifact.total_bytes > artifact.max_bytes:
            raise StageError(
                f"{order.variant}: expected at most {artifact.max_bytes:,} bytes, found {artifact.total_bytes:,} "
                "written; raise export.max_bytes by the difference"
            )
        return artifact


def _work(context: StageContext) -> Path:
    """Intermediate files of this stage; a name that a new run clears."""
    return context.folder / ".work.tmp"


def _make_gguf(
    order: Order, *, folder: Path, context: StageContext, threads: int, codes: CodeSet | None
) -> dict[str, Any]:
    """The student's matrices are those of the code set; the teacher's are llama.cpp's own, what one would ship now."""
    from edgedistill.export.gguf import export_gguf_codes, export_gguf_f16
    from edgedistill.export.quantize import check_label, quantize_gguf, weight_figures

    out, name, scheme = folder / ENTRIES["gguf"], context.recipe.name, order.precision.upper()
    if order.variant.startswith("teacher-"):
        half = out if scheme == "F16" else _work(context) / "teacher.gguf"
        if half == out or not half.is_file():
            export_gguf_f16(model=order.source, out=half, name=f"{name} teacher")
        if half != out:
            quantize_gguf(source=half, out=out, scheme=scheme, threads=threads)
        return _weights(weight_figures(out, scheme=scheme))
    if scheme == "F16":
        export_gguf_f16(model=order.source, out=out, name=name)
        return _weights(weight_figures(out, scheme=scheme))
    if codes is None:
        half, imatrix = _calibrated(context, order.source, threads=threads)
        quantize_gguf(source=half, out=out, scheme=scheme, threads=threads, importances=imatrix.means())
        check_label(out, scheme=scheme)
        return _weights(weight_figures(out, scheme=scheme))
    fallbacks = export_gguf_codes(model=order.source, out=out, codes=codes, name=name)
    return _weights(weight_figures(out, scheme=scheme, fallbacks=fallbacks))


def _calibration(context: StageContext, orders: Sequence[Order], *, threads: int) -> dict[str, Any]:
    """What `CodeSet` chooses the student's codes by; nothing where no variant is still to be built."""
    from edgedistill.export.imatrix import hugging_face_names, importances_of, read_moments

    student = context.folder_of("train") / "student"
    if all(_finished(context.folder / order.variant) for order in orders):
        return {}
    context.report.note("calibrating the codes on the student's records")
    half, imatrix = _calibrated(context, student, threads=threads, moments=True)
    names = hugging_face_names(half, model=student)
    moments = read_moments(half.parent / "moments", names=names)
    return {"importances": importances_of(imatrix, names), "moments": moments}


def _mixed(context: StageContext, *, threads: int) -> Chosen | None:
    """Grids and codes of the variants of mixed precision, chosen for all of them at once; None where all stand."""
    names = context.recipe.export.mixed
    if all(_finished(context.folder / name) for name in names):
        return None
    from edgedistill.export.imatrix import chunks_of
    from edgedistill.export.mixed import choose_codes, divided

    student, work = context.folder_of("train") / "student", _work(context) / MIXED
    for name in names:  # one that an interrupted run left may have other codes
        shutil.rmtree(context.folder / name, ignore_errors=True)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    records = _records(context, count=CALIBRATION_RECORDS)
    texts = _texts(student, records, override=context.recipe.task.chat_template)
    ids = [identity for text in texts for identity in text]
    chunks = chunks_of(ids, size=min(MOST_OF_CHUNK, max(LEAST_OF_CHUNK, len(ids) // CHUNKS)))
    if len(chunks) < 2:
        raise InputError(
            f"expected records of at least {2 * LEAST_OF_CHUNK} tokens to choose {names[0]} on, found {len(ids)}; "
            "collect more, or leave it out of export.variants"
        )
    return choose_codes(
        student,
        divided(chunks),
        formats=[name.split("-")[0] for name in names],
        max_bytes=context.recipe.export.most_bytes,
        dataset="held-in records",
        work=work,
        name=context.recipe.name,
        threads=threads,
        report=context.report,
    )


def _calibrated(context: StageContext, student: Path, *, threads: int, moments: bool = False) -> tuple[Path, Imatrix]:
    """The student in half precision and its importance matrix on held-in records, kept beside it."""
    from edgedistill.export.gguf import export_gguf_f16
    from edgedistill.export.imatrix import chunks_of, collect_imatrix, read_imatrix, write_imatrix

    half = _work(context) / "student.gguf"
    kept, outer = half.with_suffix(".imatrix.gguf"), half.parent / "moments"
    if not kept.is_file() or (moments and not outer.is_dir()):
        shutil.rmtree(outer, ignore_errors=True)
        export_gguf_f16(model=student, out=half, name=context.recipe.name)
        records = _records(context, count=CALIBRATION_RECORDS)
        texts = _texts(student, records, override=context.recipe.task.chat_template)
        chunks = chunks_of([identity for text in texts for identity in text])
        imatrix = collect_imatrix(
            half, chunks, threads=threads, dataset="held-in records", moments=outer if moments else None
        )
        write_imatrix(imatrix, kept)
    return half, read_imatrix(kept)


def _make_onnx(
    order: Order, *, folder: Path, context: StageContext, threads: int, codes: CodeSet | None
) -> dict[str, Any]:
    from edgedistill.export.onnx import export_onnx
    from edgedistill.export.onnx_graph import build_graph

    graph = _work(context) / f"{order.source.name}-graph"
    if not graph.is_dir():
        with atomic_folder(graph) as made:
            build_graph(model=order.source, out=made, threads=threads)
    return _weights(export_onnx(model=order.source, out=folder, threads=threads, graph=graph, codes=codes))


def _weights(found: WeightFigures | OnnxFacts) -> dict[str, Any]:
    return {
        "parameters": found.parameters,
        "bits_per_weight": found.bits_per_weight,
        "fallback_tensors": found.fallback_tensors,
    }


def _headline(artifact: Artifact) -> dict[str, Any]:
    return {
        "bytes": artifact.total_bytes,
        "bits_per_weight": artifact.bits_per_weight,
        "fallback_tensors": artifact.fallback_tensors,
        "kld_nats": artifact.parity["cached"]["kld_nats"],
        "top1_ratio": artifact.parity["cached"]["top1_ratio"],
    }


def _sentence(artifact: Artifact) -> str:
    found = artifact.parity["cached"]
    return (
        f"{artifact.variant}: {artifact.total_bytes / 1e6:.1f} MB, {artifact.bits_per_weight:.2f} bits per weight, "
        f"KLD {found['kld_nats']:.2g} nats, top-1 {found['top1_ratio']:.1%} of its source"
    )
