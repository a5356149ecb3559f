"""The teacher's answers, shard by shard: what is asked, what is kept, and where a killed run goes on.

A shard is `records-N.jsonl`, written last, with its `logits-N.safetensors`; both are whole or absent, so the records
file says that the shard is done. `rejected.jsonl` grows by whole shards, just before the records file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from edgedistill.core.config import validate
from edgedistill.core.errors import InputError, StageError
from edgedistill.core.files import digest_of, read_jsonl, write_jsonl
from edgedistill.core.records import Prompt, Rejected, TeacherRecord
from edgedistill.runtimes.base import Generation
from edgedistill.runtimes.logit_cache import CacheIdentity, make_row, open_cache, row_key, write_cache
from edgedistill.runtimes.logit_codes import LogitRow

Ask = Callable[[list[list[int]]], Sequence[Generation]]
Judge = Callable[[str, str, Prompt], tuple[str, str] | None]


@dataclass(frozen=True)
class Request:
    """One question to the teacher; `id` is the hash of teacher revision, rendered text and sampling."""

    id: str
    prompt: Prompt
    prompt_ids: list[int]


@dataclass(frozen=True)
class Counts:
    asked: int
    kept: int
    rejected: dict[str, int]
    answer_tokens: int


def request_id(*, teacher: str, rendered: str, sampling: dict[str, Any]) -> str:
    return digest_of({"teacher": teacher, "rendered": rendered, "sampling": sampling})


def label(
    requests: Sequence[Request],
    *,
    folder: Path,
    ask: Ask,
    decode: Callable[[list[int]], str],
    judge: Judge,
    identity: CacheIdentity,
    end_ids: Collection[int],
    top_k: int,
    cut: Mapping[str, float],
    batch_size: int,
    shard_size: int,
    progress: Callable[[int, int, int], None],
) -> Counts:
    """Answer every request and write records, rejects and logits into `folder`, from the first missing shard on.

    `ask` answers a batch of prompts' ids greedily; `judge(answer, finish, prompt)` gives the reason and detail of a
    reject or None; `progress(done, total, answer tokens of this process)` is told after each batch. A repeated request
    is not asked twice but rejected as a duplicate of the first. `top_k` log-probs are asked for and `cut` as `make_row`
    does, unless they were drawn.

    Raises:
        InputError: what an earlier run left in `folder` is damaged or does not belong to these requests.
        StageError: the teacher's answers do not fit the questions, or every one was rejected.
    """
    if len({request.prompt.id for request in requests}) < len(requests):
        raise InputError(f"expected prompts of distinct ids, found one twice; run data again to write {folder} anew")
    shards = [requests[i : i + shard_size] for i in range(0, len(requests), shard_size)]
    first_of: dict[str, str] = {}
    for request in requests:
        first_of.setdefault(request.id, request.prompt.id)
    rejected, begin = _resume(shards, folder=folder, identity=identity)
    tokens = 0
    for number, shard in enumerate(shards[begin:], start=begin):
        answers: dict[str, Generation] = {}
        for batch in _by_length([r for r in shard if first_of[r.id] == r.prompt.id], batch_size):
            for request, answer in zip(batch, _checked(ask, batch, end_ids=end_ids, top_k=top_k), strict=True):
                answers[request.id] = answer
                tokens += len(answer.ids)
            progress(number * shard_size + len(answers), len(requests), tokens)
        records: list[TeacherRecord] = []
        rows: dict[str, LogitRow] = {}
        for request in shard:
            if (first := first_of[request.id]) != request.prompt.id:
                rejected.append(_reject(request, "", "duplicate", f"the same request as prompt {first}"))
                continue
            answer = answers[request.id]
            text = decode(list(answer.ids[:-1] if answer.finish == "stop" else answer.ids))
            if fault := judge(text, answer.finish, request.prompt):
                rejected.append(_reject(request, text, *fault))
                continue
            record = _record(request, text, answer.ids, identity=identity)
            records.append(record)
            rows[record.logits_key or ""] = _row(request, answer, cut=cut, drawn=identity.draws > 0)
        write_cache(folder / f"logits-{number:05d}.safetensors", rows, identity=identity)
        write_jsonl(folder / "rejected.jsonl", [r.model_dump(mode="json") for r in rejected])
        write_jsonl(folder / f"records-{number:05d}.jsonl", [r.model_dump(mode="json") for r in records])
    return _counts(shards, folder=folder, rejected=rejected)


def read_records(folder: Path) -> Iterator[tuple[Path, list[TeacherRecord]]]:
    """The records of every shard in order, with the file they stand in."""
    for path in sorted(folder.glob("records-*.jsonl")):
        rows = enumerate(read_jsonl(path), start=1)
        yield path, [validate(TeacherRecord, row, source=f"{path} line {number}") for number, row in rows]


def _by_length(requests: Sequence[Request], size: int) -> Iterator[list[Request]]:
    """Batches of requests of like length, so that little is padded."""
    ordered = iter(sorted(requests, key=lambda r: len(r.prompt_ids)))
    while batch := list(islice(ordered, size)):
        yield batch


def _checked(ask: Ask, batch: list[Request], *, end_ids: Collection[int], top_k: int) -> Sequence[Generation]:
    answers = ask([request.prompt_ids for request in batch])
    if len(answers) != len(batch):
        raise StageError(f"expected {len(batch)} answers from the teacher, found {len(answers)}")
    for request, answer in zip(batch, answers, strict=True):
        stopped = bool(answer.ids) and answer.ids[-1] in end_ids
        shapes = [np.shape(top) for top in (answer.top_ids, answer.top_logprobs)]
        if stopped != (answer.finish == "stop") or any(shape != (len(answer.ids), top_k) for shape in shapes):
            raise StageError(
                f"expected {top_k} log-probs for each of the {len(answer.ids)} tokens of the answer to prompt "
                f"{request.prompt.id} and an end token where it stopped, found {shapes[1]} and finish {answer.finish!r}"
            )
    return answers


def _reject(request: Request, answer: str, reason: str, detail: str) -> Rejected:
    return Rejected(prompt_id=request.prompt.id, answer=answer, reason=reason, detail=detail)


def _record(request: Request, text: str, answer_ids: Sequence[int], *, identity: CacheIdentity) -> TeacherRecord:
    return TeacherRecord(
        id=request.id,
        prompt_id=request.prompt.id,
        teacher=identity.teacher,
        messages=request.prompt.messages,
        answer=text,
        prompt_ids=tuple(request.prompt_ids),
        answer_ids=tuple(answer_ids),
        logits_key=row_key(request.prompt_ids, answer_ids, identity=identity),
        kind=request.prompt.kind,
    )


def _row(request: Request, answer: Generation, *, cut: Mapping[str, float], drawn: bool) -> LogitRow:
    if drawn:
        return LogitRow(answer.top_ids, answer.top_logprobs, np.zeros(len(answer.ids), np.float32))
    try:
        return make_row(answer.top_ids, answer.top_logprobs, **cut)
    except ValueError as e:
        raise StageError(
            f"the teacher's distributions for prompt {request.prompt.id} are no distributions: {e}"
        ) from None


def _resume(
    shards: Sequence[Sequence[Request]], *, folder: Path, identity: CacheIdentity
) -> tuple[list[Rejected], int]:
    """The rejects of finished shards and the first shard to do; each finished shard is held against its requests."""
    done = list(read_records(folder))
    if not done:
        return [], 0
    path = folder / "rejected.jsonl"
    rows = [validate(Rejected, row, source=f"{path} line {i}") for i, row in enumerate(read_jsonl(path), start=1)]
    kept: list[Rejected] = []
    for number, (records_path, records) in enumerate(done):
        expected = [r.prompt.id for r in shards[number]] if number < len(shards) else []
        refused = [row for row in rows if row.prompt_id in set(expected)]
        found = sorted([r.prompt_id for r in records] + [r.prompt_id for r in refused])
        if found != sorted(expected) or records_path.name != f"records-{number:05d}.jsonl":
            raise InputError(
                f"{records_path} and rejected.jsonl do not answer the {len(expected)} prompts of their shard; "
                f"delete {folder} and run synth again"
            )
        cache = open_cache([folder / f"logits-{number:05d}.safetensors"], identity=identity)
        for record in records:
            cache.row(prompt_ids=record.prompt_ids, answer_ids=record.answer_ids, record=record.id)
        kept += refused
    return kept, len(done)


def _counts(shards: Sequence[Sequence[Request]], *, folder: Path, rejected: list[Rejected]) -> Counts:
    records = [record for _, shard in read_records(folder) for record in shard]
    reasons: dict[str, int] = {}
    for row in rejected:
        reasons[row.reason] = reasons.get(row.reason, 0) + 1
    asked = sum(map(len, shards))
    if not records:
        examples = "; ".join(f"{row.reason}: {row.detail or row.answer!r}" for row in rejected[:3])
        raise StageError(f"all {asked} answers of the teacher were rejected ({examples}); look at its answers")
    return Counts(
        asked=asked,
        kept=len(records),
        rejected=dict(sorted(reasons.items())),
        answer_tokens=sum(len(r.answer_ids) for r in records),
    )
