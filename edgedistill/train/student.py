"""A student that comes as a model: with the teacher's tokenizer, or with its own and the teacher's text alone.

Whether two tokenizers are one is found by encoding every record with both, never by sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgedistill.core.errors import InputError
from edgedistill.core.files import atomic_folder, read_json, write_json
from edgedistill.core.records import TeacherRecord
from edgedistill.runtimes.chat import encode, end_ids, load_tokenizer, render, turn_end
from edgedistill.train.folders import copy_tokenizer, link_model, read_shape, token_texts

# What always works, whatever the tokenizers: sequence-level distillation (arXiv:1606.07947).
BY_TEXT = "or set train.kd_weight = 0, by which the student learns the teacher's text in its own tokens"


def adopt_student(*, model: Path, teacher: Path, folder: Path, template: str) -> None:
    """Write the model in `model` into `folder` with the teacher's tokenizer, template and ends of generation.

    Raises:
        InputError: it has fewer embedding rows than the teacher's tokenizer has tokens.
    """
    rows, tokens = read_shape(model)["vocab_size"], max(token_texts(teacher).values()) + 1
    if rows < tokens:
        raise InputError(
            f"expected a student with the teacher's {tokens} tokens, found {rows} embedding rows in {model}; choose a "
            f"student of the teacher's family, {BY_TEXT}"
        )
    with atomic_folder(folder) as temporary:
        link_model(model, temporary)
        copy_tokenizer(teacher, temporary, template=template)
        for name in ("config.json", "generation_config.json"):
            theirs = read_json(teacher / name) if (teacher / name).is_file() else {}
            ours = read_json(temporary / name) if (temporary / name).is_file() else {}
            ids = {f"{role}_token_id": theirs.get(f"{role}_token_id") for role in ("bos", "eos", "pad")}
            write_json(temporary / name, ours | ids)


def take_student(*, model: Path, folder: Path, template: str) -> None:
    """Write the model in `model` into `folder` as it is, but for the chat template."""
    with atomic_folder(folder) as temporary:
        link_model(model, temporary)
        copy_tokenizer(model, temporary, template=template)


def own_records(records: Sequence[TeacherRecord], *, student: Path, template: str) -> list[TeacherRecord]:
    """The same texts in the tokens, template and end of the model in `student`; no distributions go with them.

    Raises:
        InputError: its embedding has no row for a token of its tokenizer.
    """
    tokenizer, rows = load_tokenizer(student), read_shape(student)["vocab_size"]
    end = turn_end(tokenizer, template=template, ends=end_ids(student))
    found = []
    for record in records:
        asked = encode(tokenizer, render(tokenizer, record.messages, template=template))
        told = [*encode(tokenizer, record.answer), end]
        if (highest := max(*asked, *told)) >= rows:
            raise InputError(
                f"expected a row for each token of the tokenizer in {student}, found {rows} rows and token {highest} "
                f"in record {record.id}; the tokenizer is another model's"
            )
        tokens = {"prompt_ids": tuple(asked), "answer_ids": tuple(told), "logits_key": None}
        found.append(record.model_copy(update=tokens))
    return found


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
                    f"{BY_TEXT}"
                )
