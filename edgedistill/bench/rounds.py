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
from edgedistill.bench.derived import bandwidth_rows, files_row, fits_row, memory_speed
from edgedistill.bench.llama_interface import llama_interface
from edgedistill.bench.model_shape import ModelShape
from edgedistill.bench.preflight import MOST_STEAL, cpu_times, steal_share
from edgedistill.bench.shapes import FIXED_SHAPES, fixed_shape
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
MOST_WARMUP, MOST_WARMUP_SLOW = 6, 2
# What a worker says of one row alone, kept in its settings.
OF_ROW = ("load_peak_bytes", "fits", "absent", "warmed", "energy_source")
THIS_HOST = ("local", "constrained")
Rows = dict[tuple[str, int], list[Measurement]]
Block = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Subject:
    """A model to measure: its engine, the path that engine opens, and what it is asked in each round (token ids).

    `slow` models answer each prompt of a round once and run the fixed shape once. `texts` are the rounds' prompts
    before tokenizing, `shape` what the model's files say of it, and `foreign` models come from elsewhere: their
    prompts are tokens drawn by a seed. `options` go to the engine as they are; `choice` is what its rows tell of how
    engine and options were chosen.
    """

    name: str
    engine: str
    path: Path
    digest: str
    slow: bool
    end_ids: tuple[int, ...]
    rounds: tuple[tuple[tuple[int, ...], ...], ...]
    shape_ids: tuple[int, ...]
    texts: tuple[tuple[str, ...], ...] = ()
    shape: ModelShape | None = None
    foreign: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    choice: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Protocol:
    """What every block has in common."""

    requests: int
    max_new_tokens: int
    decode_tokens: int
    environment: Mapping[str, Any]
    timeout_s: float = 900.0
    memory_rounds: frozenset[int] = field(default=frozenset())
    full: bool = False
    sustained_s: float = 20.0


def memory_rounds(blocks: int, *, further: int = 0) -> frozenset[int]:
    """Rounds that take the memory pass too: three, spread over all, because a peak hardly varies.

    Of `further` rounds as many: what was measured of the first ones stays what it is.
    """
    step = max(1, blocks // MEMORY_ROUNDS)
    return frozenset([*range(0, blocks, step)[:MEMORY_ROUNDS], *range(blocks, blocks + further, step)])


def workloads_of(pair: int, *, protocol: Protocol) -> set[str]:
    """Workloads that a whole round has a row of for every model."""
    rare = pair in protocol.memory_rounds
    found = {*SPEED, *(MEMORY if rare else ())}
    if protocol.full:
        found |= {"text", "reload", "bandwidth", *FIXED_SHAPES}
        found |= {"sustained", "energy", "streams-2", "streams-4", "fits", "files"} if rare else set()
    return found


def schedule(*, blocks: int, targets: Sequence[Target]) -> Iterator[tuple[Target, int]]:
    """(target, round) in order of measuring: all targets before the next round."""
    for pair in range(blocks):
        yield from ((target, pair) for target in targets)


def passes_of(subject: Subject, *, pair: int, protocol: Protocol) -> list[tuple[str, ...]]:
    """What one round measures of a model: each entry is a process of its own, its workloads in order."""
    taken = [MEMORY] if pair in protocol.memory_rounds else []
    if subject.foreign:
        return [tuple(FIXED_SHAPES), *taken]
    if not protocol.full:
        return [SPEED, *taken]
    rare = [("sustained",), ("energy",), ("streams-2",), ("streams-4",)] if taken else []
    return [(*SPEED, "text", "reload"), tuple(FIXED_SHAPES), *taken, *rare]


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
    here = protocol.full and target.runner in THIS_HOST
    bandwidth = [*memory_speed(cores)] if here else []
    for subject in subjects if pair % 2 == 0 else reversed(subjects):
        for workloads in passes_of(subject, pair=pair, protocol=protocol):
            on_block(subject.name)
            known = [row for row in (*earlier, *rows) if row.model == subject.name and row.outputs and row.valid]
            known = [row for row in known if row.workload == "prompts"]
            job = block_job(subject, pair=pair, workloads=workloads, cores=cores, protocol=protocol, answers=known[:1])
            rows += _measured(job, subject=subject, target=target, pair=pair, protocol=protocol, run=run)
        if protocol.full and pair in protocol.memory_rounds:
            job = block_job(subject, pair=pair, workloads=("shape",), cores=cores, protocol=protocol)
            common = _common(job, subject=subject, target=target, pair=pair, protocol=protocol)
            rows += [fits_row(job, target=target, common=common, run=run or run_block, timeout_s=protocol.timeout_s)]
            rows += [files_row(subject.path, common=common)]
    if protocol.full:
        bandwidth += memory_speed(cores) if here else []
        rows += bandwidth_rows(rows, subjects={s.name: s.shape for s in subjects}, bandwidth=bandwidth)
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
    place = pair % len(subject.rounds)
    asked, texts = subject.rounds[place], subject.texts[place] if subject.texts else ()
    count = len(asked) if subject.slow else max(len(asked), protocol.requests)
    prompts = [list(asked[i % len(asked)]) for i in range(count)]
    most = MOST_WARMUP_SLOW if subject.slow else MOST_WARMUP
    shape = {
        "ids": list(subject.shape_ids),
        "decode": protocol.decode_tokens,
        "warmup": 0 if subject.slow else most,
        "repetitions": 1 if subject.slow else 3,
        "natural": not subject.foreign,
    }
    shapes = {name: fixed_shape(name, like=shape) for name in workloads if name in FIXED_SHAPES}
    asks = [(len(s["ids"]), s["decode"]) for s in (shapes.values() or [shape])]
    if set(workloads) - shapes.keys():
        asks.append((max(map(len, prompts)), protocol.max_new_tokens))
    longest = max(length for length, _ in asks)
    streams = next((int(name.partition("-")[2]) for name in workloads if name.startswith("streams-")), 1)
    expected = [row.outputs[i % len(row.outputs)][:EXPECTED_TOKENS] for row in answers for i in range(count)]
    options = dict(subject.options) | ({"interface": llama_interface()} if subject.engine == "llamacpp" else {})
    return {
        "engine": subject.engine,
        "model": str(subject.path),
        "options": options | ({"streams": streams} if streams > 1 and subject.engine == "llamacpp" else {}),
        "workloads": list(workloads),
        "threads": len(cores),
        "cores": list(cores),
        "context": _round_up(max(sum(ask) for ask in asks), 32),
        "batch": min(512, _round_up(longest * streams, 32)),
        "prompts": prompts,
        "texts": [texts[i % len(texts)] for i in range(count)] if texts else [],
        "end_ids": list(subject.end_ids),
        "max_new_tokens": protocol.max_new_tokens,
        "warmup": most,
        "shape": shape,
        "shapes": shapes,
        "reloads": 1 if subject.slow else 3,
        "sustained_s": protocol.sustained_s,
        "stream_requests": 1 if subject.slow else streams,
        "expected": expected,
        "expected_share": EXPECTED_SHARE,
    }


def _measured(
    job: Mapping[str, Any], *, subject: Subject, target: Target, pair: int, protocol: Protocol, run: Block | None
) -> list[Measurement]:
    """Rows of one block; a block with an invalid row is run once more, unless no further try can help."""
    common = _common(job, subject=subject, target=target, pair=pair, protocol=protocol)
    cannot = {name: why for name in job["workloads"] if (why := _cannot(subject, name, job=job, protocol=protocol))}
    rows = [
        Measurement(workload=name, valid=True, not_measured=why, **common(subject.engine, {}))
        for name, why in cannot.items()
    ]
    job = {**job, "workloads": [name for name in job["workloads"] if name not in cannot]}
    if not job["workloads"]:
        return rows
    job["context"] = min(job["context"], subject.shape.context) if subject.shape else job["context"]
    for _ in range(2):
        load, ticks = os.getloadavg()[0], cpu_times()
        result = (run or run_block)(job, memory_bytes=target.limits.memory_bytes, timeout_s=protocol.timeout_s)
        steal = steal_share(ticks, cpu_times())
        if all("invalid" not in row or _is_final(row) for row in result["rows"]):
            break
    found = {"load_average_1m": round(load, 2), "steal_share": steal, **result["settings"]}
    if steal > MOST_STEAL:
        found["warnings"] = [f"a hypervisor gave {100 * steal:.1f} % of the CPU time to others meanwhile"]
    return rows + [
        Measurement(
            workload=row["workload"],
            valid="invalid" not in row,
            invalid_reason=row.get("invalid"),
            not_measured=row.get("not_measured"),
            samples=row.get("samples", {}),
            outputs=row.get("outputs", []),
            **common(result["engine"], found | asked(job, row["workload"]) | {n: row[n] for n in OF_ROW if n in row})
            | {"environment": dict(protocol.environment) | result.get("environment", {})},
        )
        for row in result["rows"]
    ]


def asked(job: Mapping[str, Any], workload: str) -> dict[str, Any]:
    """What a job asks of one workload, as its row's settings tell it."""
    shape = job["shapes"].get(workload, job["shape"])
    return {"prefill_tokens": len(shape["ids"]), "decode_tokens": shape["decode"], "repetitions": shape["repetitions"]}


def _common(
    job: Mapping[str, Any], *, subject: Subject, target: Target, pair: int, protocol: Protocol
) -> Callable[[str, Mapping[str, Any]], dict[str, Any]]:
    """The fields that every row of a block shares, given the engine's name and the settings found."""
    settings = {
        **{name: job[name] for name in ("threads", "context", "batch", "max_new_tokens", "warmup")},
        "prompts": len(job["prompts"]),
        "memory_limit_wanted_bytes": target.limits.memory_bytes or None,
        **({"choice": dict(subject.choice)} if subject.choice else {}),
    }
    started = now()
    return lambda engine, found: {
        "model": subject.name,
        "engine": engine,
        "target": target.id,
        "pair": pair,
        "evidence": target.evidence,
        "settings": settings | dict(found),
        "environment": dict(protocol.environment),
        "artifact_digest": subject.digest,
        "started": started,
    }


def _cannot(subject: Subject, workload: str, *, job: Mapping[str, Any], protocol: Protocol) -> str | None:
    """Why a workload cannot be measured of this model or on this host; None if it can be tried."""
    if subject.shape and (shape := job["shapes"].get(workload)):
        wanted = len(shape["ids"]) + shape["decode"]
        if wanted > subject.shape.context:
            return f"the model's context of {subject.shape.context} tokens is shorter than the {wanted} of {workload}"
    if workload.startswith("streams-") and subject.engine != "llamacpp":
        return f"{subject.engine} answers one request at a time here"
    energy = protocol.environment.get("preflight", {}).get("energy", "")
    return energy if workload == "energy" and energy.startswith("no ") else None


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
        workloads = workloads_of(pair, protocol=protocol)
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
