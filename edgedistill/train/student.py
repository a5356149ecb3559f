"""A student that is a model of the teacher's tokenizer, and the ids that a student and its teacher share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgedistill.core.errors import InputError
from edgedistill.core.files import atomic_folder, read_json, write_json
from edgedistill.core.records import TeacherRecord
from edgedistill.runtimes.chat import encode, load_tokenizer, render
from edgedistill.train.folders import copy_tokenizer, link_model, read_shape, token_texts


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
