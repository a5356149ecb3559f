"""The student cut from its teacher: fewer layers, narrower ones, a smaller vocabulary; by sizes or within a target."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeVar

from edgedistill.core.files import atomic_folder, write_json
from edgedistill.core.records import TeacherRecord
from edgedistill.core.runfolder import Reporter
from edgedistill.quant.plan import plan_of
from edgedistill.runtimes.chat import encode, load_tokenizer
from edgedistill.train import trim
from edgedistill.train.data import Example, record_examples
from edgedistill.train.fit import Limit, depths, try_shapes
from edgedistill.train.folders import TEMPLATE_FILE, copy_tokenizer, load_model, save_model
from edgedistill.train.prune import choose_layers, keep_layers, removal_order
from edgedistill.train.width import Widths, cut_widths, measure_activity, narrow_model, shape_notes, widths_of

FEW, MANY = 24, 128  # records of calibration: for each trial of layers or shapes, and for what is measured once
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
    grid: str,
    steps: int,
    records: Sequence[TeacherRecord],
    template: str,
    report: Reporter,
    **widths: int | None,
) -> None:
    """Write the teacher with fewer layers, of the given `widths` and with a smaller vocabulary into `folder`.

    `widths` are `ffn`, `heads`, `kv_heads` and `hidden`, as `train.width.cut_widths` takes them. Under a target, in
    parameters or in bytes of weights on `grid`, sizes that are not given are chosen as `train.fit` does. `cut.json`
    tells the layers kept, the candidates, and the widths, which in two `steps` are left to `narrow_student`.

    Raises:
        InputError: a size does not fit the teacher, or nothing fits the target.
        StageError: `vocab` is too small for what the records use.
    """
    examples, model = record_examples(_sample(records, MANY)), load_model(teacher)
    before = widths_of(model.config)
    fixed = {name: size for name, size in widths.items() if size is not None}
    after = cut_widths(before, **fixed)  # refused before anything long begins
    sets = _layer_sets(teacher, examples[:FEW], layers=layers, score=layer_score, report=report)
    kept, candidates = sets[0], list[dict[str, Any]]()
    if most := target_parameters or target_bytes:
        plan = None if target_parameters else plan_of(grid)
        limit = Limit(most, min(vocab or model.config.vocab_size, model.config.vocab_size), plan)
        shapes = try_shapes(model, examples[:FEW], layer_sets=sets, limit=limit, fixed=fixed, report=report)
        kept, after, candidates = list(shapes[0].layers), shapes[0].widths, [shape.row for shape in shapes]
        report.note(f"of {len(shapes)} shapes within {most:,.0f} {limit.unit} chose {candidates[0]}")
    report.note(f"kept layers {', '.join(map(str, kept))}")
    model = keep_layers(model, kept)
    if steps == 1:
        model = _narrowed(model, examples, widths=after, report=report)
    with atomic_folder(folder) as temporary:
        if vocab is not None and vocab < model.config.vocab_size:
            _trim(model, teacher=teacher, folder=temporary, size=vocab, records=records, template=template)
        else:
            copy_tokenizer(teacher, temporary, template=template)
        save_model(model, temporary)
        write_json(temporary / CUT_FILE, {"layers": kept, "candidates": candidates, "widths": asdict(after)})


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


def _trim(
    model: Any, *, teacher: Path, folder: Path, size: int, records: Sequence[TeacherRecord], template: str
) -> None:
    parsed, tokenizer = trim.read_tokenizer(teacher), load_tokenizer(teacher)
    task: dict[int, int] = {}
    for record in records:
        # A teacher may write a text in other tokens than its tokenizer reads it in; the student needs both.
        for token in (*record.prompt_ids, *record.answer_ids, *encode(tokenizer, record.answer)):
            task[token] = task.get(token, 0) + 1
    protected = trim.protected_tokens(teacher, parsed, template=template)
    keep = trim.choose_tokens(parsed, size=size, task=task, english={}, protected=protected)
    trim.save_tokenizer(trim.trim_tokenizer(parsed, keep), source=teacher, folder=folder, template=template)
    trim.trim_embeddings(model, keep)
