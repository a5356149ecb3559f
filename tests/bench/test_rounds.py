"""Order, pairing and resuming of rounds, with blocks that no process runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from edgedistill.bench import rounds
from edgedistill.bench.model_shape import ModelShape
from edgedistill.bench.rounds import (
    MEMORY,
    SPEED,
    Protocol,
    Subject,
    block_job,
    measure_round,
    memory_rounds,
    passes_of,
    read_rounds,
    schedule,
    workloads_of,
    write_rounds,
)
from edgedistill.bench.shapes import FIXED_SHAPES
from edgedistill.core.files import read_jsonl, write_text
from edgedistill.core.measurement import Workload
from edgedistill.core.target import load_target

LOCAL, MOBILE = load_target("local-cpu"), load_target("mobile-class")


def subject(name: str, *, slow: bool = False, engine: str = "torch") -> Subject:
    asked = (((1, 2, 3), (1, 2)), ((1, 5), (1, 6, 7, 8)))
    return Subject(
        name=name, engine=engine, path=Path("/models") / name, digest=name * 2, slow=slow, end_ids=(2,),
        rounds=asked, shape_ids=tuple(range(10, 50)),
    )  # fmt: skip


SUBJECTS = [subject("teacher", slow=True), subject("a"), subject("b")]
PROTOCOL = Protocol(
    requests=5, max_new_tokens=30, decode_tokens=8, environment={"host_id": "h"}, memory_rounds=frozenset({0})
)


class Blocks:
    """Stands in for `run_block`: remembers the jobs; `faults` is asked for an invalid reason by model and try."""

    def __init__(self, faults: Mapping[str, list[dict[str, Any]]] | None = None) -> None:
        self.jobs: list[Mapping[str, Any]] = []
        self.faults = {model: list(found) for model, found in (faults or {}).items()}

    def __call__(self, job: Mapping[str, Any], *, memory_bytes: int, timeout_s: float) -> dict[str, Any]:
        self.jobs.append({**job, "memory_bytes": memory_bytes})
        name = Path(job["model"]).name
        fault = self.faults[name].pop(0) if self.faults.get(name) else {}
        outputs = [[len(ids), 9, 9, 9, 9] for ids in job["prompts"]]
        row = {"samples": {"response_ms": [1.0], "peak_rss_bytes": [2.0]}, "outputs": outputs}
        rows = [{"workload": workload} | (fault or row) for workload in job["workloads"]]
        return {"engine": job["engine"], "settings": {"threads": job["threads"]}, "rows": rows}

    def order(self) -> list[str]:
        return [f"{Path(job['model']).name}:{job['workloads'][0]}" for job in self.jobs]


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> Blocks:
    found = Blocks()
    monkeypatch.setattr(rounds, "run_block", found)
    return found


def test_rounds_alternate_their_order_and_targets_share_a_round(blocks: Blocks) -> None:
    assert [(t.id, pair) for t, pair in schedule(blocks=2, targets=[LOCAL, MOBILE])] == [
        ("local-cpu", 0), ("mobile-class", 0), ("local-cpu", 1), ("mobile-class", 1),
    ]  # fmt: skip
    for pair in (0, 1):
        measure_round(SUBJECTS, target=LOCAL, pair=pair, cores=[3], protocol=PROTOCOL)
    assert blocks.order() == [
        "teacher:prompts", "teacher:memory", "a:prompts", "a:memory", "b:prompts", "b:memory",
        "b:prompts", "a:prompts", "teacher:prompts",
    ]  # fmt: skip
    assert {job["memory_bytes"] for job in blocks.jobs} == {0}


@pytest.mark.parametrize(
    ("count", "expected"), [(1, {0}), (2, {0, 1}), (3, {0, 1, 2}), (5, {0, 1, 2}), (6, {0, 2, 4}), (12, {0, 4, 8})]
)
def test_memory_is_taken_in_three_rounds_spread_over_all(count: int, expected: set[int]) -> None:
    assert memory_rounds(count) == expected


def test_a_job_has_room_for_its_longest_request_and_threads_for_its_cores() -> None:
    job = block_job(SUBJECTS[1], pair=1, workloads=SPEED, cores=[1, 3], protocol=PROTOCOL)
    assert job["prompts"] == [[1, 5], [1, 6, 7, 8], [1, 5], [1, 6, 7, 8], [1, 5]]
    assert (job["threads"], job["cores"]) == (2, [1, 3])
    assert job["context"] == 64 >= max(4 + 30, 40 + 8)
    assert job["batch"] == 64 >= 40
    slow = block_job(SUBJECTS[0], pair=3, workloads=SPEED, cores=[1], protocol=PROTOCOL)
    assert slow["prompts"] == [[1, 5], [1, 6, 7, 8]]
    assert (slow["warmup"], slow["shape"]["warmup"], slow["shape"]["repetitions"]) == (2, 0, 1)


def test_later_blocks_of_a_round_expect_the_answers_of_the_first(blocks: Blocks) -> None:
    first = measure_round(SUBJECTS[1:2], target=LOCAL, pair=0, cores=[0], protocol=PROTOCOL)
    measure_round(SUBJECTS[1:2], target=MOBILE, pair=0, cores=[0], protocol=PROTOCOL, earlier=first)
    expected = [[len(ids), 9, 9, 9] for ids in blocks.jobs[0]["prompts"]]
    assert [job["expected"] for job in blocks.jobs] == [[], expected, expected, expected]
    assert blocks.jobs[2]["memory_bytes"] == MOBILE.limits.memory_bytes == 2**30
    assert {row.evidence for row in first} == {"measured"}


def test_an_invalid_block_is_tried_once_more_and_then_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    once, twice, never = {"invalid": "noise"}, {"invalid": "broken"}, {"invalid": "too big", "fits": False}
    found = Blocks({"teacher": [once], "a": [twice, twice], "b": [never, never]})
    monkeypatch.setattr(rounds, "run_block", found)
    rows = measure_round(SUBJECTS, target=LOCAL, pair=1, cores=[0], protocol=PROTOCOL)
    assert found.order() == ["b:prompts", "a:prompts", "a:prompts", "teacher:prompts", "teacher:prompts"]
    states = {row.model: (row.valid, row.invalid_reason, row.settings.get("fits")) for row in rows}
    assert states == {
        "teacher": (True, None, None), "a": (False, "broken", None), "b": (False, "too big", False),
    }  # fmt: skip


def test_rounds_survive_on_disk_and_partial_or_damaged_ones_do_not(blocks: Blocks, tmp_path: Path) -> None:
    rows = {
        (target.id, pair): measure_round(SUBJECTS, target=target, pair=pair, cores=[0], protocol=PROTOCOL)
        for target, pair in schedule(blocks=2, targets=[LOCAL, MOBILE])
    }
    write_rounds(tmp_path, rows)
    path = tmp_path / "local-cpu" / "a" / "prompts.jsonl"
    assert [row["pair"] for row in read_jsonl(path)] == [0, 1]
    again = read_rounds(tmp_path, subjects=SUBJECTS, protocol=PROTOCOL)
    key = lambda row: (row.model, row.workload)  # noqa: E731
    assert {k: sorted(v, key=key) for k, v in again.items()} == {k: sorted(v, key=key) for k, v in rows.items()}
    write_text(path, path.read_text().splitlines()[0] + "\n")
    assert read_rounds(tmp_path, subjects=SUBJECTS, protocol=PROTOCOL).keys() == rows.keys() - {("local-cpu", 1)}
    write_text(path, "{")
    left = read_rounds(tmp_path, subjects=SUBJECTS, protocol=PROTOCOL).keys()
    assert left == {("mobile-class", 0), ("mobile-class", 1)}
    assert not read_rounds(tmp_path, subjects=SUBJECTS[:2], protocol=PROTOCOL)


@pytest.mark.parametrize(
    ("fault", "kept"),
    [({"invalid": "noise"}, 0), ({"invalid": "big", "fits": False}, 1), ({"invalid": "no way", "absent": True}, 1)],
)
def test_a_failed_round_is_measured_again_unless_the_model_cannot_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: dict[str, Any], kept: int
) -> None:
    monkeypatch.setattr(rounds, "run_block", Blocks({"a": [fault, fault]}))
    rows = measure_round(SUBJECTS, target=LOCAL, pair=1, cores=[0], protocol=PROTOCOL)
    write_rounds(tmp_path, {("local-cpu", 1): rows})
    assert len(read_rounds(tmp_path, subjects=SUBJECTS, protocol=PROTOCOL)) == kept


def test_workloads_are_those_of_the_measurement() -> None:
    assert get_args(Workload)[:3] == (*SPEED, *MEMORY)
    full = replace(PROTOCOL, full=True)
    assert workloads_of(0, protocol=full) == set(get_args(Workload))
    for pair in (0, 1):
        taken = {name for process in passes_of(SUBJECTS[1], pair=pair, protocol=full) for name in process}
        derived = {"bandwidth"} | ({"fits", "files"} if pair == 0 else set())
        assert taken | derived == workloads_of(pair, protocol=full)
    assert passes_of(replace(SUBJECTS[1], foreign=True), pair=1, protocol=PROTOCOL) == [tuple(FIXED_SHAPES)]


def test_what_a_model_cannot_do_is_a_row_with_the_reason_and_no_block(blocks: Blocks) -> None:
    short = replace(SUBJECTS[1], shape=ModelShape(context=600, vocab=9, weight_bytes=1, cache_bytes=1), foreign=True)
    rows = measure_round([short], target=LOCAL, pair=1, cores=[0], protocol=PROTOCOL)
    assert [(row.workload, row.valid, row.not_measured) for row in rows] == [
        ("shape-512-128", True, "the model's context of 600 tokens is shorter than the 640 of shape-512-128"),
        ("depth-2048-64", True, "the model's context of 600 tokens is shorter than the 2112 of depth-2048-64"),
        ("shape-64-64", True, None),
    ]
    assert [(job["workloads"], job["context"]) for job in blocks.jobs] == [(["shape-64-64"], 600)]
    assert not any(row.samples for row in rows[:2])


def test_a_host_without_an_energy_counter_says_so_in_place_of_the_row(blocks: Blocks) -> None:
    none = "no energy counter: this kernel has no /sys/class/powercap"
    for found, reason in ((none, none), ("RAPL package", None)):
        protocol = replace(PROTOCOL, environment={"preflight": {"energy": found}}, full=True)
        job = block_job(SUBJECTS[1], pair=0, workloads=("energy",), cores=[0], protocol=protocol)
        assert rounds._cannot(SUBJECTS[1], "energy", job=job, protocol=protocol) == reason


def test_time_that_a_hypervisor_took_is_a_warning_of_the_row(blocks: Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([(0, 0), (5, 100), (5, 100), (6, 200)])
    monkeypatch.setattr(rounds, "cpu_times", lambda: next(ticks))
    rows = measure_round(SUBJECTS[1:], target=LOCAL, pair=1, cores=[0], protocol=PROTOCOL)
    assert {row.model: row.settings["steal_share"] for row in rows} == {"b": 0.05, "a": 0.01}
    warned = {row.model: row.settings.get("warnings") for row in rows}
    assert warned == {"b": ["a hypervisor gave 5.0 % of the CPU time to others meanwhile"], "a": None}
