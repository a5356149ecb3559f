"""The teacher's distributions over its own answers, kept on disk and joined by content, never by position.

One file per shard, in safetensors form (8-byte little-endian header length, JSON header, raw tensors), so numpy alone
reads it. `rows` answers of together `positions` tokens, `k` likeliest tokens at each:

- `keys` uint8 `[rows, 32]`: SHA-256 of what the row belongs to, see `row_key`
- `starts` int64 `[rows + 1]`: row `r` is positions `starts[r]` up to `starts[r + 1]`
- `ids` uint32 `[positions, k]`: token ids, likeliest first
- `logprobs` float32 `[positions, k]`: natural log-probabilities over the full vocabulary at temperature 1
- `tail` float32 `[positions]`: the probability of all tokens that are not in `ids`
- `sums` uint8 `[rows, 32]`: SHA-256 of the row's bytes of `ids`, `logprobs` and `tail`, one after the other

Position `i` of a row predicts answer token `i`. The header's metadata has one entry, `identity`: the canonical JSON of
`CacheIdentity`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save_file

from edgedistill.core.errors import InputError
from edgedistill.core.files import atomic_path, canonical_json, digest_of
from edgedistill.runtimes.safetensors_file import check_safetensors

FORMAT = 1
LAYOUT = {
    "keys": "uint8",
    "starts": "int64",
    "ids": "uint32",
    "logprobs": "float32",
    "tail": "float32",
    "sums": "uint8",
}


@dataclass(frozen=True)
class CacheIdentity:
    """Whose distributions a file holds: hashes of tokenizer and chat template, and the teacher's revision."""

    tokenizer: str
    template: str
    teacher: str
    format: int = FORMAT


@dataclass(frozen=True)
class LogitRow:
    """One answer's distributions: `ids` and `logprobs` `[answer tokens, k]`, `tail` `[answer tokens]`."""

    ids: np.ndarray
    logprobs: np.ndarray
    tail: np.ndarray


def row_key(prompt_ids: Sequence[int], answer_ids: Sequence[int], *, identity: CacheIdentity) -> str:
    """Hex SHA-256 that joins a record to its row: both id sequences, tokenizer, template and teacher revision."""
    return digest_of({"answer_ids": list(answer_ids), "prompt_ids": list(prompt_ids), **asdict(identity)})


def make_row(top_ids: npt.ArrayLike, top_logprobs: npt.ArrayLike) -> LogitRow:
    """A row from top-k ids and log-probs `[answer tokens, k]`, with the mass of what was cut off.

    Raises:
        ValueError: shapes differ, a log-prob is above 0 or not a number, or a position names a token twice.
    """
    ids = np.asarray(top_ids, dtype=np.uint32)
    exact = np.asarray(top_logprobs, dtype=np.float64)
    if ids.ndim != 2 or ids.shape != exact.shape or 0 in ids.shape:
        raise ValueError(f"expected ids and log-probs of one shape [tokens, k], found {ids.shape} and {exact.shape}")
    if np.isnan(exact).any() or (exact > 1e-4).any():
        raise ValueError("expected natural log-probs of at most 0, found others")
    if any(len(set(row)) < len(row) for row in ids.tolist()):
        raise ValueError("expected distinct tokens at each position, found one twice")
    tail = np.clip(1.0 - np.exp(exact).sum(axis=1), 0.0, 1.0)
    return LogitRow(ids=ids, logprobs=exact.astype(np.float32), tail=tail.astype(np.float32))


def write_cache(path: Path, rows: Mapping[str, LogitRow], *, identity: CacheIdentity, k: int) -> None:
    """Write one shard's rows, keyed by `row_key`, atomically; equal rows give equal bytes."""
    lengths = [len(row.tail) for row in rows.values()]
    tensors = {
        "keys": np.frombuffer(bytes.fromhex("".join(rows)), np.uint8).reshape(len(rows), 32),
        "starts": np.cumsum([0, *lengths], dtype=np.int64),
        "ids": np.concatenate([np.empty((0, k), np.uint32), *(row.ids for row in rows.values())]),
        "logprobs": np.concatenate([np.empty((0, k), np.float32), *(row.logprobs for row in rows.values())]),
        "tail": np.concatenate([np.empty(0, np.float32), *(row.tail for row in rows.values())]),
        "sums": np.frombuffer(b"".join(_sum(row) for row in rows.values()), np.uint8).reshape(len(rows), 32),
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"identity": canonical_json(asdict(identity))})
        temporary.chmod(0o644)


@dataclass(frozen=True)
class LogitCache:
    """Rows of any number of files of one identity; a row is checked against its SHA-256 when it is read."""

    identity: CacheIdentity
    files: tuple[tuple[Path, dict[str, np.ndarray]], ...]
    index: dict[str, tuple[int, int]]

    def row(self, *, prompt_ids: Sequence[int], answer_ids: Sequence[int], record: str) -> LogitRow:
        """The distributions over `answer_ids` after `prompt_ids`.

        Raises:
            InputError: no row belongs to this text under this tokenizer, template and teacher, or the row is damaged;
                the message names `record`.
        """
        place = self.index.get(row_key(prompt_ids, answer_ids, identity=self.identity))
        if place is None:
            raise InputError(
                f"expected the teacher's distributions for record {record}, found none for its text with this "
                "tokenizer, template and teacher; run synth again"
            )
        path, tensors = self.files[place[0]]
        begin, end = tensors["starts"][place[1] : place[1] + 2]
        row = LogitRow(*(tensors[name][begin:end] for name in ("ids", "logprobs", "tail")))
        if len(row.tail) != len(answer_ids) or _sum(row) != tensors["sums"][place[1]].tobytes():
            raise InputError(
                f"the teacher's distributions for record {record} in {path} are damaged (SHA-256 differs); "
                "delete the file and run synth again"
            )
        return row


def open_cache(paths: Iterable[Path], *, identity: CacheIdentity | None = None) -> LogitCache:
    """Open shard files; all must have one identity, and that of the argument if it is given.

    Raises:
        InputError: there is no file, one is damaged, or it belongs to another tokenizer, template or teacher.
    """
    files = []
    index: dict[str, tuple[int, int]] = {}
    for number, path in enumerate(paths):
        found, tensors = _read(path)
        identity = identity or found
        for name, value in asdict(found).items():
            if value != asdict(identity)[name]:
                raise InputError(
                    f"{path} is stale: expected distributions of {name} {str(asdict(identity)[name])[:16]!r}, "
                    f"found {str(value)[:16]!r}; delete it and run synth again"
                )
        files.append((path, tensors))
        for place, key in enumerate(tensors["keys"]):
            index[key.tobytes().hex()] = (number, place)
    if identity is None or not files:
        raise InputError("expected at least one file of teacher distributions, found none; run synth again")
    return LogitCache(identity=identity, files=tuple(files), index=index)


def _sum(row: LogitRow) -> bytes:
    digest = hashlib.sha256()
    for part in (row.ids, row.logprobs, row.tail):
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.digest()


def _read(path: Path) -> tuple[CacheIdentity, dict[str, np.ndarray]]:
    names = set(check_safetensors(path))
    with safe_open(path, framework="np") as f:
        metadata = f.metadata() or {}
        tensors = {name: f.get_tensor(name) for name in sorted(names)}
    try:
        identity = CacheIdentity(**json.loads(metadata["identity"]))
        dtypes = {name: str(tensor.dtype) for name, tensor in tensors.items()}
        starts, positions = tensors["starts"], len(tensors["tail"])
        fits = (
            dtypes == LAYOUT
            and tensors["keys"].shape == tensors["sums"].shape == (len(starts) - 1, 32)
            and tensors["ids"].shape == tensors["logprobs"].shape
            and len(tensors["ids"]) == positions == starts[-1]
            and starts[0] == 0
            and bool((np.diff(starts) > 0).all())
        )
    except (KeyError, TypeError, ValueError, IndexError):
        fits = False
    if not fits:
        raise InputError(f"{path} is no whole file of teacher distributions; delete it and run synth again")
    return identity, tensors
