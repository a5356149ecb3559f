"""The student before training: cut from the teacher, or a model of the same tokenizer; and the ids the two share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgedistill.core.errors import InputError
from edgedistill.core.files import atomic_folder, read_json, write_json
from edgedistill.core.records import TeacherRecord
from edgedistill.core.runfolder import Reporter
from edgedistill.runtimes.chat import encode, load_tokenizer, render
from edgedistill.train import trim
from edgedistill.train.data import record_examples
from edgedistill.train.folders import copy_tokenizer, link_model, load_model, read_shape, save_model, token_texts
from edgedistill.train.prune import choose_layers, keep_layers, narrow_ffn

LAYER_CALIBRATION, FFN_CALIBRATION = 24, 128  # records


def cut_student(
    *,
    teacher: Path,
    folder: Path,
    layers: Sequence[int] | int,
    ffn: int | None,
    vocab: int | None,
    records: Sequence[TeacherRecord],
    template: str,
    report: Reporter,
) -> None:
    """Write the teacher with fewer layers, narrower feed-forward blocks and a smaller vocabulary into `folder`.

    Raises:
        InputError: a size does not fit the teacher.
        StageError: `vocab` is too small for what the records use.
    """
    examples = record_examples(_sample(records, FFN_CALIBRATION))
    model = load_model(teacher)
    if isinstance(layers, int):
        few = examples[:LAYER_CALIBRATION]
        layers = choose_layers(load_model(teacher, bf16=True), few, count=layers, report=report)
        report.note(f"kept layers {', '.join(map(str, layers))}")
    model = keep_layers(model, layers)
    if ffn is not None:
        model = narrow_ffn(model, examples, width=ffn)
    with atomic_folder(folder) as temporary:
        if vocab is not None and vocab < model.config.vocab_size:
            _trim(model, teacher=teacher, folder=temporary, size=vocab, records=records, template=template)
        else:
            copy_tokenizer(teacher, temporary, template=template)
        save_model(model, temporary)


def adopt_student(*, model: Path, teacher: Path, folder: Path, template: str) -> None:
    """Write the model in `model` into `folder` with the teacher's tokenizer, template and ends of generation.

    Raises:
        InputError: it has fewer embedding rows than the teacher's tokenizer has tokens.
    """
    rows, tokens = read_shape(model)["vocab_size"], max(token_texts(teacher).values()) + 1
    if rows < tokens:
        raise InputError(
            f"expected a student with the teacher's {tokens} tokens, found {rows} embedding rows in {model}; choose a "
            "student of the teacher's family, or [student.cut]"
        )
    with atomic_folder(folder) as temporary:
        link_model(model, temporary)
        copy_tokenizer(teacher, temporary, template=template)
        for name in ("config.json", "generation_config.json"):
            theirs = read_json(teacher / name) if (teacher / name).is_file() else {}
            ours = read_json(temporary / name) if (temporary / name).is_file() else {}
            ids = {f"{role}_token_id": theirs.get(f"{role}_token_id") for role in ("bos", "eos", "pad")}
            write_json(temporary / name, ours | ids)


def shared_ids(*, teacher: Path, student: Path, rows: int) -> np.ndarray:
    """The student's id of each of `rows` teacher ids, by the token's text; -1 where it has none."""
    ours = token_texts(student)
    new = np.full(rows, -1)
    for text, identity in token_texts(teacher).items():
        if identity < rows:
            new[identity] = ours.get(text, -1)
    return new


def check_tokens(
    records: Sequence[TeacherRecord], *, teacher: Path, student: Path, id_map: np.ndarray, template: str
) -> None:
    """Hold the student's own tokenization of every record against the teacher's.

    Raises:
        InputError: they differ.
    """
    ours, theirs = load_tokenizer(student), load_tokenizer(teacher)
    for record in records:
        text = render(theirs, record.messages, template=template)
        for piece, wanted in ((text, encode(theirs, text)), (record.answer, encode(theirs, record.answer))):
            found = encode(ours, piece)
            if found != id_map[wanted].tolist():
                raise InputError(
                    f"the student tokenizes record {record.id} into {found[:8]}…, the teacher's tokens are "
                    f"{id_map[wanted].tolist()[:8]}… (-1: absent); choose a student with the teacher's tokenizer, "
                    "or [student.cut]"
                )


def _sample(records: Sequence[TeacherRecord], count: int) -> list[TeacherRecord]:
    return sorted(records, key=lambda r: hashlib.sha256(r.id.encode()).digest())[:count]


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
