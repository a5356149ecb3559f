"""Grids by tensor and their codes, chosen on text within a budget: what `quantize` and a run's variants share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from edgedistill.core.artifact import list_files
from edgedistill.core.files import read_json
from edgedistill.core.runfolder import Reporter
from edgedistill.core.stats import Interval, ratio_of_sums_interval
from edgedistill.export.gguf import export_gguf_codes, export_gguf_f16
from edgedistill.export.imatrix import collect_imatrix, hugging_face_names, importances_of, read_moments
from edgedistill.export.pace import Measure, measure_pace
from edgedistill.export.precision import BOTH_FORMATS, GGUF_ALONE, Choice, choose_precision, grids_for
from edgedistill.export.quantize import weight_figures
from edgedistill.export.seal import ENTRIES, furnish
from edgedistill.export.tally import Tally
from edgedistill.export.weights import stored_tensors
from edgedistill.quant.blocks import decode_blocks
from edgedistill.quant.codes import CodeSet
from edgedistill.quant.grids import BLOCK
from edgedistill.quant.plan import HEAD, TABLES, Plan
from edgedistill.runtimes.base import open_session

CALIBRATED, MEASURED = 96, 8  # chunks of text that codes are chosen on, and others that candidates are measured on
GRADIENTS = 8  # of the calibrated ones, for sensitivities
MEASURED_TOKENS = 256
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Text:
    """Calibration text as token ids: chunks that codes are chosen on, and others that candidates are measured on."""

    calibrated: list[list[int]]
    measured: list[list[int]]


@dataclass(frozen=True)
class Calibrated:
    """What calibration told: the unplanned code set, costs in nats by tensor and grid, and shapes by tensor."""

    codes: CodeSet
    costs: dict[str, dict[str, float]]
    shapes: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Chosen:
    """What a budget led to: the codes of the best plan, how it was found, the float graph, and the model's own logits.

    `wanted` are those of the measured text, `[chunks, tokens, vocab]`.
    """

    codes: CodeSet
    choice: Choice
    graph: Path | None
    wanted: np.ndarray


def divided(chunks: Sequence[list[int]]) -> Text:
    """Chunks of text, at least two, for codes and for candidates: no code is chosen on what measures it."""
    measured = list(chunks[:: max(2, len(chunks) // MEASURED)][:MEASURED])
    others = [chunk for chunk in chunks if chunk not in measured]
    return Text(others[:: max(1, len(others) // CALIBRATED)][:CALIBRATED], [c[:MEASURED_TOKENS] for c in measured])


def choose_codes(
    folder: Path,
    text: Text,
    *,
    formats: Sequence[str],
    max_bytes: int | None,
    min_tokens_per_s: float | None = None,
    measure: Measure | None = None,
    dataset: str,
    work: Path,
    name: str | None = None,
    threads: int,
    report: Reporter,
) -> Chosen:
    """The codes of the Hugging Face folder `folder` that keep the budget in every format with the least divergence.

    `name` becomes a GGUF file's own. Candidates are written in `work`, which keeps the float graph.

    Raises:
        InputError: the budget cannot be kept.
        StageError: a conversion failed, or a speed could not be measured.
    """
    report.note("calibrating: inputs, gradients and costs of each tensor")
    calibrated = _calibrate(folder, text, work=work, formats=formats, dataset=dataset, threads=threads)
    wanted = _reference(folder, text.measured, place=work / "logits.npy", threads=threads)
    graph = _graph(folder, work=work, threads=threads) if "onnx" in formats else None
    largest = "onnx" if "onnx" in formats else "gguf"
    pace = None
    if min_tokens_per_s is not None and measure is not None:
        report.note("measuring what each grid costs in time, unless this host and model are known")
        pace = measure_pace(
            shapes=calibrated.shapes,
            grids=BOTH_FORMATS if "onnx" in formats else GGUF_ALONE,
            form=largest,
            threads=threads,
            max_ns=1e9 / min_tokens_per_s,
            write=partial(_uncalibrated, folder, work, form=largest, graph=graph, threads=threads),
            measure=measure,
        )

    def attempt(plan: Plan) -> tuple[int, float, float]:
        candidate = work / "candidate"
        shutil.rmtree(candidate, ignore_errors=True)
        candidate.mkdir()
        codes = calibrated.codes.replanned(plan)
        write_artifact(folder, candidate, form=largest, codes=codes, graph=graph, threads=threads, name=name)
        kld = divergence(candidate, largest, text.measured, wanted, threads=threads).estimate
        size = sum(entry.size for entry in list_files(candidate))
        ns = 0.0 if pace is None or measure is None else measure([_opened(candidate, largest)], threads)[0]
        speed = f", {1e9 / ns:.1f} tokens per second" if ns else ""
        report.note(f"candidate: {size / 1e6:.1f} MB, KLD {kld:.3g} nats{speed}")
        return size, kld, ns

    choice = choose_precision(
        shapes=calibrated.shapes,
        costs=calibrated.costs,
        formats=formats,
        max_bytes=max_bytes,
        overhead=_overhead(folder, largest, calibrated.shapes, work=work),
        attempt=attempt,
        pace=pace,
    )
    shutil.rmtree(work / "candidate")
    return Chosen(calibrated.codes.replanned(choice.best.plan), choice, graph, wanted)


def _calibrate(
    folder: Path, text: Text, *, work: Path, formats: Sequence[str], dataset: str, threads: int
) -> Calibrated:
    from edgedistill.export.sensitivity import rounding_costs, row_sensitivities, table_costs

    half = work / "f16.gguf"
    export_gguf_f16(model=folder, out=half)
    imatrix = collect_imatrix(half, text.calibrated, threads=threads, dataset=dataset, moments=work / "moments")
    names = hugging_face_names(half, model=folder)
    moments = read_moments(work / "moments", names=names)
    codes = CodeSet(Plan("Q8_0", "Q8_0"), importances=importances_of(imatrix, names), moments=moments)
    stored = stored_tensors(folder)
    tied = bool(read_json(folder / "config.json").get("tie_word_embeddings")) or HEAD not in stored
    shapes = {name: t.shape for name, t in stored.items() if name in names and not (tied and name == HEAD)}
    rows = row_sensitivities(folder, text.calibrated[:GRADIENTS], threads=threads)
    costs: dict[str, dict[str, float]] = {}
    for name, shape in shapes.items():
        if codes.plan.grid(name, shape) is None:
            continue
        weights, grids = stored[name].read().astype(np.float32), grids_for(shape, formats=formats)
        if name in TABLES:
            tables = {g: decode_blocks(codes.replanned(Plan(g, g)).blocks(name, weights)) for g in grids}
            costs[name] = table_costs(folder, tables, text.calibrated[: GRADIENTS // 2], name=name, threads=threads)
        else:
            costs[name] = rounding_costs(weights, grids=grids, moment=moments[name], rows=rows[name])
    return Calibrated(codes, costs, shapes)


def _reference(folder: Path, chunks: Sequence[Sequence[int]], *, place: Path, threads: int) -> np.ndarray:
    """The model's own logits `[chunks, tokens, vocab]`, kept on disk."""
    with closing(open_session("hf", folder, threads=threads, context=MEASURED_TOKENS, dtype="float32")) as session:
        for number, ids in enumerate(chunks):
            logits = session.logits(ids)
            if number == 0:
                shape = (len(chunks), *logits.shape)
                kept = np.lib.format.open_memmap(place, mode="w+", dtype=np.float32, shape=shape)
            kept[number] = logits
    return kept


def _graph(folder: Path, *, work: Path, threads: int) -> Path:
    from edgedistill.export.onnx_graph import build_graph

    build_graph(model=folder, out=work / "graph", threads=threads)
    return work / "graph"


def _overhead(folder: Path, form: str, shapes: Mapping[str, tuple[int, ...]], *, work: Path) -> int:
    """About the bytes that are no matrix on a grid: companions, metadata or graph, vectors."""
    beside = work / "companions"
    beside.mkdir()
    if form == "gguf":
        os.link(work / "f16.gguf", beside / ENTRIES[form])  # a Modelfile says what its GGUF says
    furnish(beside, model=folder, form=form)
    (beside / ENTRIES[form]).unlink(missing_ok=True)
    size = sum(path.stat().st_size for path in beside.iterdir())
    if form == "gguf":
        matrices = sum(prod(shape) for shape in shapes.values() if len(shape) == 2 and shape[1] % BLOCK == 0)
        return size + (work / "f16.gguf").stat().st_size - 2 * matrices
    vectors = sum(prod(shape) for shape in shapes.values() if len(shape) < 2)
    return size + (work / "graph" / ENTRIES["onnx"]).stat().st_size + 4 * vectors


def write_artifact(
    folder: Path,
    into: Path,
    *,
    form: str,
    codes: CodeSet,
    graph: Path | None,
    threads: int,
    name: str | None = None,
) -> dict[str, Any]:
    """The weights of one format and all beside them, so that a candidate's bytes are those of what ships."""
    out = into / ENTRIES[form]
    if form == "gguf":
        fallbacks = export_gguf_codes(model=folder, out=out, codes=codes, name=name)
        found: Any = weight_figures(out, scheme="Q8_0", fallbacks=fallbacks)
    else:
        from edgedistill.export.onnx import export_onnx

        found = export_onnx(model=folder, out=into, threads=threads, graph=graph, codes=codes)
    furnish(into, model=folder, form=form)
    return {
        "parameters": found.parameters,
        "bits_per_weight": found.bits_per_weight,
        "fallback_tensors": found.fallback_tensors,
    }


def _uncalibrated(
    folder: Path, work: Path, plan: Plan, name: str, *, form: str, graph: Path | None, threads: int
) -> Path:
    """The model on `plan`, with codes that nothing was searched for, to be measured for speed."""
    place = work / "pace" / name
    place.mkdir(parents=True)
    write_artifact(folder, place, form=form, codes=CodeSet(plan), graph=graph, threads=threads)
    return _opened(place, form)


def _opened(folder: Path, form: str) -> Path:
    """What the format's engine opens of an artifact's folder."""
    return folder / ENTRIES["gguf"] if form == "gguf" else folder


def divergence(
    folder: Path, form: str, chunks: Sequence[Sequence[int]], wanted: np.ndarray, *, threads: int
) -> Interval:
    """KL(model ‖ artifact) in nats per token, with its interval over chunks."""
    engine, path = "llamacpp" if form == "gguf" else "onnx", _opened(folder, form)
    totals = []
    with closing(open_session(engine, path, threads=threads, context=MEASURED_TOKENS)) as session:
        for ids, logits in zip(chunks, wanted, strict=True):
            tally = Tally()
            tally.add(logits, session.logits(ids))
            totals.append(tally.kld)
    return ratio_of_sums_interval(totals, [float(len(ids)) for ids in chunks], confidence=CONFIDENCE, seed=0)
