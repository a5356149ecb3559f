"""The teacher's distributions over its own answers, kept on disk and joined by content, never by position.

One file per shard, in safetensors form (8-byte little-endian header length, JSON header, raw tensors), so numpy alone
reads it; a file is mapped into memory, and a row is decoded when it is asked for:

- `keys` uint8 `[rows, 16]`: the first half of the SHA-256 of what the row belongs to, see `row_key`
- `positions` uint32 `[rows]`: answer tokens of each row; position `i` predicts answer token `i`
- `sizes` uint32 `[rows]`: bytes of each row in `body`, where rows lie one after another
- `sums` uint32 `[rows]`: CRC-32 of these bytes
- `tokens` uint16 or, where an id needs it, uint32 `[span]`: every token id in the file, by how often it is kept
- `body` uint8 `[bytes]`: rows as `runtimes.logit_codes` describes them, tokens by their places in `tokens`

The header's metadata has one entry, `identity`: the canonical JSON of `CacheIdentity`.
A position keeps as many tokens as `make_row` leaves it, or those that were drawn.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from edgedistill.core.errors import InputError
from edgedistill.core.files import atomic_path, canonical_json, digest_of
from edgedistill.runtimes.logit_codes import MOST_KEPT, LogitRow, decode_row, encode_row
from edgedistill.runtimes.safetensors_file import check_safetensors

FORMAT = 3
KEY_BYTES = 16
LAYOUT = {"body": "U8", "keys": "U8", "positions": "U32", "sizes": "U32", "sums": "U32"}
NUMBERS = {"U8": np.dtype(np.uint8), "U16": np.dtype("<u2"), "U32": np.dtype("<u4")}


@dataclass(frozen=True)
class CacheIdentity:
    """Whose distributions a file holds: hashes of tokenizer and chat template, and the teacher's revision.

    With `draws`, tokens of each position were drawn so often from the whole distribution; without, the likeliest stand.
    """

    tokenizer: str
    template: str
    teacher: str
    draws: int = 0
    format: int = FORMAT


def row_key(prompt_ids: Sequence[int], answer_ids: Sequence[int], *, identity: CacheIdentity) -> str:
    """Hex SHA-256 that joins a record to its row: both id sequences, tokenizer, template and teacher revision."""
    return digest_of({"answer_ids": list(answer_ids), "prompt_ids": list(prompt_ids), **asdict(identity)})


def make_row(
    top_ids: npt.ArrayLike, top_logprobs: npt.ArrayLike, *, top_p: float = 1.0, least: float = 0.0
) -> LogitRow:
    """A row from the likeliest ids and their log-probs `[answer tokens, k]`, with the mass of what was cut off.

    A position keeps its likeliest tokens until they hold `top_p` of the mass, of these such as have a probability of
    `least`, and always the first.

    Raises:
        ValueError: shapes differ, a log-prob is above 0 or not a number, or a position names a token twice.
    """
    ids = np.asarray(top_ids, dtype=np.int64)
    exact = np.asarray(top_logprobs, dtype=np.float64)
    if ids.ndim != 2 or ids.shape != exact.shape or 0 in ids.shape or ids.shape[1] > MOST_KEPT:
        raise ValueError(
            f"expected ids and log-probs of one shape [tokens, k] with k of at most {MOST_KEPT}, found {ids.shape} and "
            f"{exact.shape}"
        )
    if np.isnan(exact).any() or (exact > 1e-4).any():
        raise ValueError("expected natural log-probs of at most 0, found others")
    if (np.diff(np.sort(ids, axis=1), axis=1) == 0).any() or (ids < 0).any():
        raise ValueError("expected distinct token ids of at least 0 at each position, found others")
    order = np.argsort(-exact, axis=1, kind="stable")
    ids, exact = (np.take_along_axis(x, order, axis=1) for x in (ids, exact))
    mass = np.exp(exact)
    kept = (np.cumsum(mass, axis=1) - mass < top_p) & (mass >= least)
    kept[:, 0] = True
    return _placed(ids, exact, kept, tail=1.0 - (mass * kept).sum(axis=1))


def _placed(ids: np.ndarray, logprobs: np.ndarray, kept: np.ndarray, *, tail: np.ndarray) -> LogitRow:
    """Kept tokens, without the columns that no position fills; `kept` ones stand before others."""
    widest = max(1, int(kept.sum(1).max()))
    ids, logprobs, kept = (x[:, :widest] for x in (ids, logprobs, kept))
    return LogitRow(
        ids=np.where(kept, ids, -1).astype(np.int32),
        logprobs=np.where(kept, logprobs, 0).astype(np.float32),
        tail=np.clip(tail, 0.0, 1.0).astype(np.float32),
    )


def write_cache(path: Path, rows: Mapping[str, LogitRow], *, identity: CacheIdentity) -> None:
    """Write one shard's rows, keyed by `row_key`, atomically; equal rows give equal bytes."""
    tokens, places = _ranked(rows.values())
    bodies = [
        encode_row(_at_places(row, places), span=max(1, len(tokens)), draws=identity.draws) for row in rows.values()
    ]
    keys = b"".join(bytes.fromhex(key)[:KEY_BYTES] for key in rows)
    tensors = {
        "keys": np.frombuffer(keys, np.uint8).reshape(len(rows), KEY_BYTES),
        "positions": np.array([len(row.tail) for row in rows.values()], np.uint32),
        "sizes": np.array([len(body) for body in bodies], np.uint32),
        "sums": np.array([zlib.crc32(body) for body in bodies], np.uint32),
        "tokens": tokens.astype(np.uint32 if tokens.max(initial=0) > np.iinfo(np.uint16).max else np.uint16),
        "body": np.frombuffer(b"".join(bodies), np.uint8),
    }
    metadata = {"identity": canonical_json(asdict(identity))}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)
        temporary.chmod(0o644)


def _ranked(rows: Iterable[LogitRow]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids by how often they are kept, ties by id; and each token's place among them, `[highest id + 1]`."""
    counts = np.bincount(np.concatenate([np.empty(0, np.int64), *(row.ids[row.ids >= 0] for row in rows)]))
    tokens = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    places = np.full(len(counts), -1)
    places[tokens] = np.arange(len(tokens))
    return tokens, places


def _at_places(row: LogitRow, places: np.ndarray) -> LogitRow:
    """A row of places in rising order instead of token ids."""
    absent = np.iinfo(np.int64).max
    found = np.where(row.ids >= 0, places[row.ids], absent)
    order = np.argsort(found, axis=1)
    found = np.take_along_axis(found, order, axis=1)
    logprobs = np.take_along_axis(row.logprobs, order, axis=1)
    return LogitRow(np.where(found == absent, -1, found), logprobs, row.tail)


@dataclass(frozen=True)
class CacheFile:
    """A mapped file: whose distributions it holds, its tensors, and where each row's bytes begin."""

    path: Path
    identity: CacheIdentity
    tensors: dict[str, np.ndarray]
    begins: np.ndarray


@dataclass(frozen=True)
class LogitCache:
    """Rows of any number of files, whose identities differ in the teacher at most.

    A row is checked against its CRC-32 when it is read.
    """

    identity: CacheIdentity
    files: tuple[CacheFile, ...]
    index: dict[bytes, tuple[int, int]]

    def row(
        self, *, prompt_ids: Sequence[int], answer_ids: Sequence[int], record: str, teacher: str | None = None
    ) -> LogitRow:
        """The distributions of `teacher`, else that of `identity`, over `answer_ids` after `prompt_ids`.

        Likeliest tokens come first.

        Raises:
            InputError: no row belongs to this text under this tokenizer, template and teacher, or the row is damaged;
                the message names `record`.
        """
        teacher = self.identity.teacher if teacher is None else teacher
        file, number = self._place(prompt_ids, answer_ids, record=record, teacher=teacher)
        begin, size = int(file.begins[number]), int(file.tensors["sizes"][number])
        raw = file.tensors["body"][begin : begin + size]
        try:
            if zlib.crc32(raw) != file.tensors["sums"][number]:
                raise ValueError("CRC-32 differs")
            tokens = file.tensors["tokens"]
            row = decode_row(
                np.asarray(raw), positions=len(answer_ids), span=max(1, len(tokens)), draws=self.identity.draws
            )
            ids = np.where(row.ids >= 0, tokens[row.ids].astype(np.int32), np.int32(-1)) if len(tokens) else row.ids
            order = np.argsort(np.where(ids < 0, np.inf, -row.logprobs), axis=1, kind="stable")
            ids, logprobs = (np.take_along_axis(x, order, axis=1) for x in (ids, row.logprobs))
            return LogitRow(ids, logprobs, row.tail)
        except (ValueError, IndexError) as e:
            raise InputError(
                f"the teacher's distributions for record {record} in {file.path} are damaged ({e}); "
                "delete the file and run synth again"
            ) from None

    def _place(
        self, prompt_ids: Sequence[int], answer_ids: Sequence[int], *, record: str, teacher: str
    ) -> tuple[CacheFile, int]:
        def find(name: str) -> tuple[int, int] | None:
            key = row_key(prompt_ids, answer_ids, identity=replace(self.identity, teacher=name))
            return self.index.get(bytes.fromhex(key)[:KEY_BYTES])

        place = find(teacher)
        if place is not None and self.files[place[0]].identity.teacher == teacher:
            return self.files[place[0]], place[1]
        places = (place, *map(find, sorted({file.identity.teacher for file in self.files})))
        other = next((self.files[place[0]] for place in places if place is not None), None)
        if other is None:
            raise InputError(
                f"expected the teacher's distributions for record {record}, found none for its text with this "
                "tokenizer, template and teacher; run synth again"
            )
        raise InputError(
            f"expected the distributions of {teacher} for record {record}, found those of {other.identity.teacher} for "
            f"its text in {other.path}; run synth again"
        )


def open_cache(
    paths: Iterable[Path], *, identity: CacheIdentity | None = None, teachers: Collection[str] = ()
) -> LogitCache:
    """Map shard files; all must have one identity, and that of the argument if it is given.

    A file may be of one of `teachers` as well.

    Raises:
        InputError: there is no file, one is damaged, or it belongs to another tokenizer, template or teacher.
    """
    files: list[CacheFile] = []
    index: dict[bytes, tuple[int, int]] = {}
    for number, path in enumerate(paths):
        file = _mapped(path)
        identity = identity or file.identity
        for name, value in asdict(file.identity).items():
            if value != asdict(identity)[name] and not (name == "teacher" and value in teachers):
                raise InputError(
                    f"{path} is stale: expected distributions of {name} {str(asdict(identity)[name])[:16]!r}, "
                    f"found {str(value)[:16]!r}; delete it and run synth again"
                )
        files.append(file)
        index |= {key.tobytes(): (number, place) for place, key in enumerate(file.tensors["keys"])}
    if identity is None or not files:
        raise InputError("expected at least one file of teacher distributions, found none; run synth again")
    return LogitCache(identity=identity, files=tuple(files), index=index)


def _mapped(path: Path) -> CacheFile:
    shapes = check_safetensors(path)
    with path.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
        header = json.loads(f.read(length))
    try:
        identity = CacheIdentity(**json.loads(header["__metadata__"]["identity"]))
        rows = shapes["sizes"][0]
        expected = {"keys": (rows, KEY_BYTES), **dict.fromkeys(("positions", "sizes", "sums"), (rows,))}
        dtypes = {name: header[name]["dtype"] for name in shapes}
        fits = dtypes in (LAYOUT | {"tokens": "U16"}, LAYOUT | {"tokens": "U32"})
        fits &= {name: shape for name, shape in shapes.items() if name not in ("body", "tokens")} == expected
    except (KeyError, TypeError, ValueError, IndexError):
        fits = False
    if fits:
        tensors = {
            name: _tensor(path, begin=8 + length + header[name]["data_offsets"][0], dtype=dtype, shape=shapes[name])
            for name, dtype in dtypes.items()
        }
        ends = np.cumsum(tensors["sizes"], dtype=np.int64)
        if tensors["body"].shape == (int(ends[-1]) if rows else 0,):
            return CacheFile(path, identity, tensors, ends - tensors["sizes"])
    raise InputError(f"{path} is no whole file of teacher distributions; delete it and run synth again")


def _tensor(path: Path, *, begin: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    numbers = NUMBERS[dtype]
    return np.memmap(path, numbers, "r", offset=begin, shape=shape) if prod(shape) else np.zeros(shape, numbers)
