"""What was asked of an API and what came back: one JSON line each, appended, and on the disk before it counts.

Lines of `answers.jsonl`, by their one name of `sent`, `answer`, `failed` or `batch`, whose value is the request's id,
or a batch's name:

- `sent`: an attempt begins; `tokens` `[input, output]` are the most that it can use
- `answer`: it came back whole; `text`, `finish`, `model`, `tokens` as billed (null: unknown), `ms`, perhaps `logprobs`
  and `reasoning`
- `failed`: it did not; `reason`, `detail`, `tokens` as billed (null: unknown), and `end`: `again` (another attempt
  follows, or may in a later run), `spent` (no attempt is left in this run) or `never` (asking again is of no use)

- `batch`: one request a batch API takes all `requests` of, each with the most tokens it can use: the line stands before
  the batch is sent, and again with the server's `id` after that; its requests end as others do

What is unknown counts as its most. A `sent` without a later line of its id was in flight when the process died: it is
asked again, and its most too is counted as used. A line that is not whole, which only the last can be, never happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import threading
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgedistill.core.errors import InputError, StageError
from edgedistill.core.files import canonical_json, fsync_dir

Tokens = tuple[int, int]  # input, output
ANSWERS_FILE = "answers.jsonl"
ANSWER_BEGINS = b'{"answer":"'  # canonical JSON: names are sorted
ID_HEX = 64


@dataclass(frozen=True)
class Reply:
    """A whole answer. `tokens` as the server bills them, None where it does not say.

    `logprobs` has one row per answer token: pairs `[bytes of the token in hex, natural log-prob]`, the token said
    first, then the likeliest ones. `reasoning` is what the server gives apart from the text.
    """

    text: str
    finish: str
    model: str
    tokens: Tokens | None = None
    logprobs: list[list[list[Any]]] | None = None
    reasoning: str = ""


@dataclass(frozen=True)
class Failure:
    """Why a request has no answer; `end` as in the journal."""

    reason: str
    detail: str
    end: str


@dataclass
class Past:
    """What earlier processes left: ids with an answer and where, failures without one, tokens used, attempts."""

    ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    places: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    failures: dict[str, Failure] = field(default_factory=dict)
    tokens: Tokens = (0, 0)
    sent: int = 0
    answered: int = 0
    in_flight: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    batches: dict[str, tuple[str | None, dict[str, Tokens]]] = field(default_factory=dict)  # at work: id, requests
    output_tokens: int = 0  # of answers alone, as their time is
    answer_ms: int = 0


class Journal:
    """`answers.jsonl` in `folder`, open for appending; a torn last line is cut off. One process at a time.

    Raises:
        InputError: a line before the last is damaged; the message names it.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / ANSWERS_FILE
        self.past, whole = read_past(self.path)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        os.ftruncate(self._fd, whole)
        fsync_dir(folder)
        self._lines: list[bytes] = []
        self._queued = self._flushed = 0
        self._one_flush = asyncio.Lock()
        self._one_write = threading.Lock()
        self._broken: OSError | None = None

    def close(self) -> None:
        os.close(self._fd)

    def reply(self, request: str) -> Reply | None:
        """The answer to a request that had one when the journal was opened."""
        place = self._place(request)
        if place is None:
            return None
        row = json.loads(_line_at(self._fd, place))
        tokens = (row["tokens"][0], row["tokens"][1]) if row["tokens"] else None
        return Reply(row["text"], row["finish"], row["model"], tokens, row.get("logprobs"), row.get("reasoning", ""))

    def answered(self, request: str) -> bool:
        return self._place(request) is not None

    def sent(self, request: str, most: Tokens) -> None:
        """Note that an attempt begins, before it does; in the system's hands, where a killed process leaves it."""
        self._write([_line({"sent": request, "tokens": list(most)})])

    def batch(self, name: str, identity: str | None, held: dict[str, Tokens] | None = None) -> None:
        """Note a batch before it is sent, with what is `held` for each request, and again once it has its id."""
        row: dict[str, Any] = {"batch": name, "id": identity}
        self._write([_line(row | ({"requests": held} if held else {}))])

    def failed(self, request: str, failure: Failure, tokens: Tokens | None) -> None:
        self._write([_line({"failed": request, "tokens": list(tokens) if tokens else None, **asdict(failure)})])

    async def answer(self, request: str, reply: Reply, *, ms: int) -> None:
        """Return once the answer is on the disk; answers that come meanwhile share one fsync."""
        row: dict[str, Any] = {"answer": request, "text": reply.text, "finish": reply.finish, "model": reply.model}
        row |= {"tokens": list(reply.tokens) if reply.tokens else None, "ms": ms}
        if reply.logprobs is not None:
            row["logprobs"] = reply.logprobs
        if reply.reasoning:
            row["reasoning"] = reply.reasoning
        self._lines.append(_line(row))
        self._queued += 1
        mine = self._queued
        async with self._one_flush:
            # Whoever finds its line flushed leaves newer ones to those that wait for them: else each would go alone.
            if self._flushed < mine:
                lines, self._lines = self._lines, []
                await asyncio.to_thread(self._flush, lines)
                self._flushed += len(lines)
        self._check()

    def _place(self, request: str) -> int | None:
        """Where the answer's line begins; the index has 64 bits of each id, so the line has the last word."""
        short = np.uint64(_short(request))
        wanted = ANSWER_BEGINS + request.encode()
        for at in range(int(np.searchsorted(self.past.ids, short)), len(self.past.ids)):
            if self.past.ids[at] != short:
                break
            if os.pread(self._fd, len(wanted), int(self.past.places[at])) == wanted:
                return int(self.past.places[at])
        return None

    def _flush(self, lines: list[bytes]) -> None:
        with contextlib.suppress(StageError):  # raised by whoever waits for these lines, from what is kept
            self._write(lines)
            try:
                os.fsync(self._fd)
            except OSError as e:
                self._broken = self._broken or e

    def _write(self, lines: list[bytes]) -> None:
        """Append whole lines; nothing after a write that failed, or its half line would no longer be the last."""
        data = b"".join(lines)
        with self._one_write:
            if not self._broken:
                try:
                    if os.write(self._fd, data) < len(data):  # a regular file takes all, or there is no room
                        self._broken = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                except OSError as e:
                    self._broken = e
        self._check()

    def _check(self) -> None:
        if self._broken:
            raise StageError(
                f"{self.path} could not be written ({self._broken.strerror}); free space and run again: every answer "
                "before that is kept"
            )


def read_past(path: Path) -> tuple[Past, int]:
    """What the lines of `path` say, and how many of its bytes are whole lines.

    Raises:
        InputError: a line before the last is damaged.
    """
    past, whole = Past(), 0
    if not path.is_file():
        return past, whole
    ids, places = array("Q"), array("q")
    open_sends: dict[str, list[Tokens]] = {}
    batch_of: dict[str, str] = {}
    used = [0, 0]
    for number, begin, raw in _whole_lines(path):
        whole = begin + len(raw)
        try:
            row = json.loads(raw)
            kind = next(name for name in ("sent", "answer", "failed", "batch") if name in row)
            request = row[kind]
            if kind == "batch":
                _read_batch(past, row, open_sends, batch_of)
                continue
            if kind == "sent":
                past.sent += 1
                open_sends.setdefault(request, []).append(tuple(row["tokens"]))
                continue
            most = open_sends[request].pop()
            if not open_sends[request]:
                del open_sends[request]
            _leave_batch(past, request, batch_of)
            billed = row["tokens"] or most
            used = [used[0] + billed[0], used[1] + billed[1]]
            if kind == "answer":
                past.answered += 1
                past.output_tokens += billed[1]
                past.answer_ms += row["ms"]
                ids.append(_short(request))
                places.append(begin)
                past.failures.pop(request, None)
            else:
                past.reasons[row["reason"]] += 1
                if row["end"] != "again":
                    past.failures[request] = Failure(row["reason"], row["detail"], row["end"])
        except (ValueError, KeyError, IndexError, TypeError, StopIteration):
            raise InputError(
                f"{path} line {number}: expected a line of the journal, found damage; delete that line (its request is "
                "asked again) and run again"
            ) from None
    past.in_flight = sum(map(len, open_sends.values()))
    for most in (tokens for sends in open_sends.values() for tokens in sends):
        used = [used[0] + most[0], used[1] + most[1]]
    past.tokens = (used[0], used[1])
    order = np.argsort(np.frombuffer(ids, np.uint64), kind="stable")
    past.ids, past.places = np.frombuffer(ids, np.uint64)[order], np.frombuffer(places, np.int64)[order]
    return past, whole


def _read_batch(past: Past, row: dict[str, Any], open_sends: dict[str, list[Tokens]], batch_of: dict[str, str]) -> None:
    name = row["batch"]
    if "requests" not in row:
        if name in past.batches:
            past.batches[name] = (row["id"], past.batches[name][1])
        return
    held = {request: (tokens[0], tokens[1]) for request, tokens in row["requests"].items()}
    past.batches[name] = (row["id"], held)
    past.sent += len(held)
    for request, tokens in held.items():
        open_sends.setdefault(request, []).append(tokens)
        batch_of[request] = name


def _leave_batch(past: Past, request: str, batch_of: dict[str, str]) -> None:
    """Take a request out of its batch, which is at work as long as one of its requests is."""
    name = batch_of.pop(request, None)
    if name is not None:
        del past.batches[name][1][request]
        if not past.batches[name][1]:
            del past.batches[name]


def _whole_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(number, place, bytes) of each line that has its end."""
    begin = 0
    with path.open("rb") as f:
        for number, raw in enumerate(f, start=1):
            if raw.endswith(b"\n"):
                yield number, begin, raw
                begin += len(raw)


def _short(request: str) -> int:
    if len(request) != ID_HEX:
        raise ValueError(f"expected an id of {ID_HEX} hex digits, found {request!r}")
    return int(request[:16], 16)


def _line_at(fd: int, begin: int) -> bytes:
    data, size = b"", 1 << 16
    while b"\n" not in data:
        piece = os.pread(fd, size, begin + len(data))
        if not piece:
            break
        data += piece
    return data.partition(b"\n")[0]


def _line(row: dict[str, Any]) -> bytes:
    return (canonical_json(row) + "\n").encode("utf-8", "replace")  # half a character of a reply is no text
