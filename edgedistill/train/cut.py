"""The student cut from its teacher: fewer layers, narrower ones, a smaller vocabulary; by sizes or down to a target."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from edgedistill.core.errors import InputError
from edgedistill.core.files import atomic_folder, write_json
from edgedistill.core.records import TeacherRecord
from edgedistill.core.runfolder import Reporter
from edgedistill.quant.plan import plan_of
from edgedistill.runtimes.chat import encode, load_tokenizer
from edgedistill.train import trim
from edgedistill.train.data import Example, record_examples
from edgedistill.train.fit import Limit, Shape, depths, probed, shaped_config, tensor_shapes, try_shapes
from edgedistill.train.folders import TEMPLATE_FILE, copy_tokenizer, load_model, save_model
from edgedistill.train.prune import choose_layers, keep_layers, removal_order
from edgedistill.train.speed import Clock
from edgedistill.train.width import Widths, cut_widths, measure_activity, narrow_model, shape_notes, widths_of

FEW, MANY = 24, 128  # records of calibration: for each trial of layers or shapes, and for what is measured once
ATTEMPTS = 3  # shapes to measure, where those before were slower than foretold
CUT_FILE = "cut.json"  # what was chosen, beside the model
Row = TypeVar("Row", TeacherRecord, Example)


def cut_student(
    *,
    teacher: Path,
    folder: Path,
    layers: Sequence[int] | int | None,
    layer_score: Literal["loss", "influence"],
    vocab: int | None,
    target_parameters: int | None,
    target_bytes: float | None,
    target_tokens_per_s: float | None,
    grid: str,
    steps: int,
    records: Sequence[TeacherRecord],
    template: str,
    report: Reporter,
    clock: Clock | None = None,
    **widths: int | None,
) -> None:
    """Write the teacher with fewer layers, of the given `widths` and with a smaller vocabulary into `folder`.

    `widths` are `ffn`, `heads`, `kv_heads` and `hidden`, as `train.width.cut_widths` takes them. Under a target, in
    parameters, in bytes of weights on `grid`, or of a speed that `clock` measures, sizes that are not given are chosen
    as `train.fit` does. `cut.json` tells the layers kept, the candidates, the speed measured, and the widths, which in
    two `steps` are left to `narrow_student`.

    Raises:
        InputError: a size does not fit the teacher, or nothing fits the target.
        StageError: `vocab` is too small for what the records use, or a speed could not be measured.
    """
    examples, model = record_examples(_sample(records, MANY)), load_model(teacher)
    before = widths_of(model.config)
    fixed = {name: size for name, size in widths.items() if size is not None}
    after = cut_widths(before, **fixed)  # refused before anything long begins
    rows = model.config.vocab_size
    size = min(vocab or rows, rows)
    with atomic_folder(folder) as temporary:
        keep = _take_tokens(teacher, temporary, size=size, rows=rows, records=records, template=template)
        sets = _layer_sets(teacher, examples[:FEW], layers=layers, score=layer_score, report=report)
        search = {"layer_sets": sets, "fixed": fixed, "report": report}
        shapes, told = list[Shape](), dict[str, Any]()
        if target_tokens_per_s is not None:
            timed = {"target": target_tokens_per_s, "clock": clock, "keep": keep, "tokenizer": temporary}
            shapes, told["speed"] = _timed_shapes(model, examples[:FEW], vocab=size, **timed, **search)
        elif most := target_parameters or target_bytes:
            limit = Limit(most, size, None if target_parameters else plan_of(grid))
            shapes = try_shapes(model, examples[:FEW], limit=limit, **search)
            report.note(f"of {len(shapes)} shapes within {most:,.0f} {limit.unit} chose {shapes[0].row}")
        kept = list(shapes[0].layers) if shapes else sets[0]
        after = shapes[0].widths if shapes else after
        report.note(f"kept layers {', '.join(map(str, kept))}")
        model = keep_layers(model, kept)
        if steps == 1:
            model = _narrowed(model, examples, widths=after, report=report)
        if keep is not None:
            trim.trim_embeddings(model, keep)
        save_model(model, temporary)
        told |= {"layers": kept, "candidates": [shape.row for shape in shapes], "widths": asdict(after)}
        write_json(temporary / CUT_FILE, told)


def narrow_student(
    *, model: Path, folder: Path, examples: Sequence[Example], widths: Mapping[str, int], report: Reporter
) -> None:
    """Write the model in `model`, trained since its layers were cut, into `folder` with the `widths` of `cut.json`."""
    narrow = _narrowed(load_model(model), _sample(examples, MANY), widths=Widths(**widths), report=report)
    with atomic_folder(folder) as temporary:
        save_model(narrow, temporary)
        copy_tokenizer(model, temporary, template=(model / TEMPLATE_FILE).read_text(encoding="utf-8"))


def _narrowed(model: Any, examples: Sequence[Example], *, widths: Widths, report: Reporter) -> Any:
    before = widths_of(model.config)
    if widths == before:
        return model
    model = narrow_model(model, measure_activity(model, examples), widths=widths)
    cut = {name: getattr(widths, name) for name in ("ffn", "hidden") if getattr(widths, name) < getattr(before, name)}
    for note in shape_notes(model.config, chosen=cut):
        report.note(note)
    return model


def _layer_sets(
    teacher: Path,
    examples: Sequence[Example],
    *,
    layers: Sequence[int] | int | None,
    score: Literal["loss", "influence"],
    report: Reporter,
) -> list[list[int]]:
    """The layers to keep, or without `layers` those of every depth to try, the deepest first."""
    if isinstance(layers, Sequence):
        return [sorted(layers)]
    model = load_model(teacher, bf16=True)
    if layers is not None:
        return [choose_layers(model, examples, count=layers, report=report, score=score)]
    count = model.config.num_hidden_layers
    order = removal_order(model, examples, count=count - depths(count)[-1], report=report, score=score)
    return [sorted(set(range(count)) - set(order[: count - depth])) for depth in depths(count)]


def _sample(rows: Sequence[Row], count: int) -> list[Row]:
    return sorted(rows, key=lambda row: hashlib.sha256(row.id.encode()).digest())[:count]


def _take_tokens(
    teacher: Path, folder: Path, *, size: int, rows: int, records: Sequence[TeacherRecord], template: str
) -> np.ndarray | None:
    """Write the student's tokenizer into `folder`; which of the teacher's `rows` tokens it keeps, None for all."""
    if size == rows:
        copy_tokenizer(teacher, folder, template=template)
        return None
    parsed, tokenizer = trim.read_tokenizer(teacher), load_tokenizer(teacher)
    task: dict[int, int] = {}
    for record in records:
        # A teacher may write a text in other tokens than its tokenizer reads it in; the student needs both.
        for token in (*record.prompt_ids, *record.answer_ids, *encode(tokenizer, record.answer)):
            task[token] = task.get(token, 0) + 1
    protected = trim.protected_tokens(teacher, parsed, template=template)
    keep = trim.choose_tokens(parsed, size=size, task=task, english={}, protected=protected)
    trim.save_tokenizer(trim.trim_tokenizer(parsed, keep), source=teacher, folder=folder, template=template)
    return keep


def _timed_shapes(
    model: Any,
    examples: Sequence[Example],
    *,
    vocab: int,
    target: float,
    clock: Clock,
    keep: np.ndarray | None,
    tokenizer: Path,
    fixed: Mapping[str, int],
    report: Reporter,
    **search: Any,
) -> tuple[list[Shape], dict[str, Any]]:
    """Candidates that decode `target` tokens per second as foretold, the first as measured; and what was measured.

    `tokenizer` is the folder of the student's, of the `vocab` tokens `keep`.

    Raises:
        InputError: none is so fast.
    """
    report.note("timing untrained models of other shapes on this host, unless it is known what they take")
    made, probes = partial(_untrained, model, keep=keep), probed(model, fixed=fixed)
    shapes = [(n, tensor_shapes(model, widths, layers=n, vocab=vocab)) for n, widths in probes]
    times = clock.times(shapes, models=(made(*probe) for probe in probes), tokenizer=tokenizer)
    for _ in range(ATTEMPTS):
        limit = Limit(1e9 / target, vocab, times=times)
        found = try_shapes(model, examples, limit=limit, fixed=fixed, report=report, **search)
        best = found[0]
        (ns,) = clock.ns([made(len(best.layers), best.widths)], tokenizer=tokenizer)
        report.note(
            f"of {len(found)} shapes of {target:g} tokens per second chose {best.row}, which makes {1e9 / ns:.1f}, "
            f"{1e9 / best.size:.1f} were foretold"
        )
        if ns <= limit.most:
            foretold = {"foretold_tokens_per_s": 1e9 / best.size, "times_ns": asdict(times)}
            return found, {"tokens_per_s": 1e9 / ns, "grid": clock.plan.layers, "threads": clock.threads} | foretold
        times = times.scaled(ns / best.size)
    raise InputError(
        f"expected a student of student.cut.target_tokens_per_s = {target:g}, found {1e9 / ns:.1f} with the last of "
        f"{ATTEMPTS} shapes that were foretold to be so fast; ask for less"
    )


def _untrained(model: Any, layers: int, widths: Widths, *, keep: np.ndarray | None) -> Any:
    """A model like `model` of random weights, of so many layers of `widths`, with the tokens `keep`."""
    fresh = type(model)(shaped_config(model, widths, layers=layers))
    fresh.generation_config = copy.deepcopy(model.generation_config)
    if keep is not None:
        trim.trim_embeddings(fresh, keep)
    return fresh
