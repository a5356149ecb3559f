"""The order of measuring, and its results on disk: rounds in which every model is measured once, back to back.

A round's models run in the recipe's order, the next round's in the opposite (ABBA), so that a host that slows down or
speeds up meanwhile favours none; ratios are taken within a round. A round is kept whole or measured again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgedistill.bench.block import run_block
from edgedistill.bench.llama_interface import llama_interface
from edgedistill.core.config import validate
from edgedistill.core.errors import InputError
from edgedistill.core.files import read_jsonl, write_jsonl
from edgedistill.core.host import now
from edgedistill.core.measurement import Measurement
from edgedistill.core.target import Target

MEMORY_ROUNDS = 3
SPEED, MEMORY = ("prompts", "shape"), ("memory",)
# Answers of one model to one prompt must begin alike wherever it runs; kernels may break a later tie differently.
EXPECTED_TOKENS = 4
EXPECTED_SHARE = 0.5
Rows = dict[tuple[str, int], list[Measurement]]
Block = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Subject:
    """A model to measure: its engine, the path that engine opens, and what it is asked in each round (token ids).

    `slow` models answer each prompt of a round once and run the fixed shape once.
    """

    name: str
    engine: str
    path: Path
    digest: str
    slow: bool
    end_ids: tuple[int, ...]
    rounds: tuple[tuple[tuple[int, ...], ...], ...]
    shape_ids: tuple[int, ...]


@dataclass(frozen=True)
class Protocol:
    """What every block has in common."""

    requests: int
    max_new_tokens: int
    decode_tokens: int
    environment: Mapping[str, Any]
    timeout_s: float = 900.0
    memory_rounds: frozenset[int] = field(default=frozenset())


def memory_rounds(blocks: int) -> frozenset[int]:
    """Rounds that take the memory pass too: three, spread over all, because a peak hardly varies."""
    step = max(1, blocks // MEMORY_ROUNDS)
    return frozenset(range(0, blocks, step)[:MEMORY_ROUNDS])


def schedule(*, blocks: int, targets: Sequence[Target]) -> Iterator[tuple[Target, int]]:
    """(target, round) in order of measuring: all targets before the next round."""
    for pair in range(blocks):
        yield from ((target, pair) for target in targets)


def measure_round(
    subjects: Sequence[Subject],
    *,
    target: Target,
    pair: int,
    cores: Sequence[int],
    protocol: Protocol,
    earlier: Sequence[Measurement] = (),
    run: Block | None = None,
    on_block: Callable[[str], None] = lambda model: None,
) -> list[Measurement]:
    """Measure every subject once on one target; `earlier` rows of the same round say how answers begin.

    `run` is the target's runner; without one, blocks run on this host.
    """
    rows: list[Measurement] = []
    for subject in subjects if pair % 2 == 0 else reversed(subjects):
        passes = [SPEED, MEMORY] if pair in protocol.memory_rounds else [SPEED]
        for workloads in passes:
            on_block(subject.name)
            known = [row for row in (*earlier, *rows) if row.model == subject.name and row.outputs and row.valid]
            known = [row for row in known if row.workload == "prompts"]
            job = block_job(subject, pair=pair, workloads=workloads, cores=cores, protocol=protocol, answers=known[:1])
            rows += _measured(job, subject=subject, target=target, pair=pair, protocol=protocol, run=run)
    return rows


def block_job(
    subject: Subject,
    *,
    pair: int,
    workloads: Sequence[str],
    cores: Sequence[int],
    protocol: Protocol,
    answers: Sequence[Measurement] = (),
) -> dict[str, Any]:
    """The worker's job: threads = cores, room for the longest request, and answers known to begin so."""
    asked = subject.rounds[pair % len(subject.rounds)]
    count = len(asked) if subject.slow else max(len(asked), protocol.requests)
    prompts = [list(asked[i % len(asked)]) for i in range(count)]
    longest = max(len(ids) for ids in (*prompts, subject.shape_ids))
    room = max(max(map(len, prompts)) + protocol.max_new_tokens, len(subject.shape_ids) + protocol.decode_tokens)
    expected = [row.outputs[i % len(row.outputs)][:EXPECTED_TOKENS] for row in answers for i in range(count)]
    return {
        "engine": subject.engine,
        "model": str(subject.path),
        "options": {"interface": llama_interface()} if subject.engine == "llamacpp" else {},
        "workloads": list(workloads),
        "threads": len(cores),
        "cores": list(cores),
        "context": _round_up(room, 32),
        "batch": min(512, _round_up(longest, 32)),
        "prompts": prompts,
        "end_ids": list(subject.end_ids),
        "max_new_tokens": protocol.max_new_tokens,
        "warmup": 1 if subject.slow else 2,
        "shape": {
            "ids": list(subject.shape_ids),
            "decode": protocol.decode_tokens,
            "warmup": 0 if subject.slow else 1,
            "repetitions": 1 if subject.slow else 3,
        },
        "expected": expected,
        "expected_share": EXPECTED_SHARE,
    }


def _measured(
    job: Mapping[str, Any], *, subject: Subject, target: Target, pair: int, protocol: Protocol, run: Block | None
) -> list[Measurement]:
    """Rows of one block; a block with an invalid row is run once more, unless no further try can help."""
    for _ in range(2):
        started, load = now(), os.getloadavg()[0]
        result = (run or run_block)(job, memory_bytes=target.limits.memory_bytes, timeout_s=protocol.timeout_s)
        if all("invalid" not in row or _is_final(row) for row in result["rows"]):
            break
    asked = {"prompts": len(job["prompts"]), "prefill_tokens": len(job["shape"]["ids"])}
    settings = {
        **{name: job[name] for name in ("threads", "context", "batch", "max_new_tokens", "warmup")},
        **asked,
        "decode_tokens": job["shape"]["decode"],
        "repetitions": job["shape"]["repetitions"],
        "memory_limit_wanted_bytes": target.limits.memory_bytes or None,
        "load_average_1m": round(load, 2),
        **result["settings"],
    }
    return [
        Measurement(
            model=subject.name,
            engine=result["engine"],
            target=target.id,
            workload=row["workload"],
            pair=pair,
            evidence=target.evidence,
            valid="invalid" not in row,
            invalid_reason=row.get("invalid"),
            samples=row.get("samples", {}),
            outputs=row.get("outputs", []),
            settings=settings | {name: row[name] for name in ("load_peak_bytes", "fits", "absent") if name in row},
            environment=dict(protocol.environment) | result.get("environment", {}),
            artifact_digest=subject.digest,
            started=started,
        )
        for row in result["rows"]
    ]


def read_rounds(folder: Path, *, subjects: Sequence[Subject], protocol: Protocol) -> Rows:
    """Whole rounds that an interrupted run left; damaged, partial, failed or foreign ones are left out."""
    rows: Rows = {}
    for path in sorted(folder.glob("*/*/*.jsonl")):
        try:
            found = [validate(Measurement, row, source=str(path)) for row in read_jsonl(path)]
        except InputError:
            continue
        for row in found:
            rows.setdefault((row.target, row.pair), []).append(row)
    models = {subject.name for subject in subjects}
    whole = {}
    for (target, pair), found in rows.items():
        workloads = SPEED + MEMORY * (pair in protocol.memory_rounds)
        wanted = {(model, workload) for model in models for workload in workloads}
        settled = all(row.valid or _is_final(row.settings) for row in found)
        if settled and {(row.model, row.workload) for row in found} == wanted and len(found) == len(wanted):
            whole[target, pair] = found
    return whole


def write_rounds(folder: Path, rows: Rows) -> None:
    """Write `<target>/<model>/<workload>.jsonl`, one row a round."""
    files: dict[Path, list[Measurement]] = {}
    for found in rows.values():
        for row in found:
            files.setdefault(folder / row.target / row.model / f"{row.workload}.jsonl", []).append(row)
    for path, group in files.items():
        group.sort(key=lambda row: row.pair)
        write_jsonl(path, [row.model_dump(mode="json") for row in group])


def _is_final(row: Mapping[str, Any]) -> bool:
    """Whether an invalid row stays so: the model does not fit, or the device cannot be asked for such a thing."""
    return row.get("fits") is False or row.get("absent") is True


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
