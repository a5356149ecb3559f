"""Rows out of users' files: JSONL, JSON, CSV, Parquet, or a Hugging Face data set by name; a fault names its line."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgedistill.core.corpus import HUB
from edgedistill.core.errors import InputError, MissingError, shortened
from edgedistill.core.records import LeftOut
from edgedistill.synth.forms import Rules, kind_of, to_row, unanswered
from edgedistill.synth.rows import Row

_HUB_NAME = re.compile(r"hf:(?P<name>[^:@#]+)(:(?P<config>[^@#]+))?(@(?P<revision>[^#]+))?(#(?P<split>.+))?")
Place = tuple[str, dict[str, Any]]


@dataclass
class Loaded:
    """Rows of one source, and what was left out because it asks nothing."""

    rows: list[Row] = field(default_factory=list)
    empty: list[LeftOut] = field(default_factory=list)


def load_rows(source: str, *, split: str, rules: Rules, needs_answer: bool = False) -> Loaded:
    """Read every row of a file or of `hf:NAME[:CONFIG][@REVISION][#SPLIT]`; rows with an empty request are left out.

    Raises:
        InputError: the source is absent, holds no prompt, or a row is not what is expected; the message names it.
        MissingError: the source needs the package `datasets` or the network, and it is not there.
    """
    loaded = Loaded()
    for place, raw in _raw_rows(source):
        row = to_row(raw, place, source=source, rules=rules)
        if row is None:
            loaded.empty.append(LeftOut(split=split, place=place, reason="empty"))
        elif needs_answer and not (row.prompt.answer or "").strip():
            raise InputError(unanswered(raw, place, rules=rules))
        else:
            loaded.rows.append(row)
    if not loaded.rows:
        raise InputError(f"expected at least one prompt in {source}, found none")
    return loaded


def _raw_rows(source: str) -> Iterator[Place]:
    if source.startswith(HUB):
        yield from _hub_rows(source)
        return
    path = Path(source)
    if not path.is_file():
        raise InputError(f"expected a file of prompts at {path}, found nothing there")
    yield from _READERS.get(path.suffix.lower(), _jsonl_rows)(path)


def _jsonl_rows(path: Path) -> Iterator[Place]:
    with path.open("rb") as f:
        for number, raw in enumerate(f, start=1):
            if raw.strip():
                place = f"{path} line {number}"
                yield place, _object(_json(raw, place, expected="one JSON object"), place)


def _json_rows(path: Path) -> Iterator[Place]:
    rows = _json(path.read_bytes(), str(path), expected="a JSON list of objects")
    if not isinstance(rows, list):
        raise InputError(f"{path}: expected a JSON list of objects, found {kind_of(rows)}; name JSON Lines .jsonl")
    for number, row in enumerate(rows, start=1):
        yield (place := f"{path} row {number}"), _object(row, place)


def _csv_rows(path: Path) -> Iterator[Place]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as f:
            reader = csv.DictReader(f, strict=True)
            for row in reader:
                place = f"{path} line {reader.line_num}"
                if None in row or None in row.values():
                    raise InputError(f"{place}: expected {len(reader.fieldnames or ())} values, found another number")
                yield place, row
    except (UnicodeDecodeError, csv.Error) as e:
        raise InputError(f"{path}: expected CSV in UTF-8 with a header, found damaged text ({e})") from None


def _parquet_rows(path: Path) -> Iterator[Place]:
    datasets = _datasets(str(path))
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            features = datasets.Features.from_arrow_schema(file.schema_arrow)
            rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
            yield from _table_rows(rows, features, str(path))
    except (ArrowException, OSError) as e:
        raise InputError(f"{path}: expected a Parquet file, found a damaged one ({shortened(e)})") from None


def _hub_rows(source: str) -> Iterator[Place]:
    match = _HUB_NAME.fullmatch(source)
    if match is None:
        raise InputError(f"expected hf:NAME[:CONFIG][@REVISION][#SPLIT], found {source!r}")
    datasets = _datasets(source)
    try:
        found = datasets.load_dataset(
            match["name"], match["config"], revision=match["revision"], split=match["split"] or "train"
        )
    except ValueError as e:  # an unknown config or split
        raise InputError(f"{source}: {shortened(e)}") from None
    except Exception as e:
        raise MissingError(f"{source} could not be had: {shortened(e)}; check its name and the network") from None
    yield from _table_rows(found, found.features, source)


def _table_rows(rows: Iterable[dict[str, Any]], features: Any, source: str) -> Iterator[Place]:
    """The rows with their places; a class stands by its name, not by its number."""
    names = {column: kept.names for column, kept in features.items() if hasattr(kept, "names")}
    for number, row in enumerate(rows, start=1):
        for column, classes in names.items():
            if isinstance(row[column], int) and row[column] >= 0:
                row[column] = classes[row[column]]
        yield f"{source} row {number}", row


def _datasets(source: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise MissingError(
            f"{source} is read through the package datasets, which is not installed; "
            "pip install 'edgedistill[datasets]', or give a JSONL file"
        ) from None
    return datasets


def _json(raw: bytes, place: str, *, expected: str) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise InputError(f"{place}: expected {expected}, found damaged text ({shortened(e)})") from None


def _object(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise InputError(f"{place}: expected a JSON object, found {kind_of(row)}")
    return row


_READERS: dict[str, Callable[[Path], Iterator[Place]]] = {
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
