"""The passes on an engine made of arithmetic: what is counted, and every reason to call a row invalid."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from edgedistill.bench.passes import (
    InvalidRunError,
    require_varied,
    run_energy,
    run_memory,
    run_prompts,
    run_reload,
    run_shape,
    run_streams,
    run_sustained,
    run_text,
    warm_up,
)
from edgedistill.bench.rounds import MEMORY, SPEED
from edgedistill.bench.worker import _row, run_job
from edgedistill.core.measurement import QUICK
from edgedistill.core.metric import FULL, METRICS, Metric


class CountingEngine:
    """Answers p, p + 1, p + 2, … for a prompt that ends in p; `leak` adds what it was asked before."""

    name = "counting"

    def __init__(self, *, leak: int = 0, finite: bool = True) -> None:
        self.leak, self.is_finite, self.asked, self.limits = leak, finite, 0, []

    def settings(self) -> dict[str, object]:
        return {"threads": 1}

    def prefill(self, ids: list[int], *, limit: int) -> int:
        self.limits.append(limit)
        self.token = ids[-1] + self.leak * self.asked
        self.asked += 1
        return self.token

    def step(self) -> int:
        self.token += 1
        return self.token

    def finite(self) -> bool:
        return self.is_finite

    def tokenize(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def close(self) -> None:
        self.closed = True


def job(**changed: Any) -> dict[str, Any]:
    shape = {"ids": [5, 6], "decode": 4, "warmup": 1, "repetitions": 2}
    fields = {"prompts": [[1, 10], [2, 20], [1, 10]], "end_ids": [12], "max_new_tokens": 5, "warmup": 2, "shape": shape}
    return {"threads": 1} | fields | changed


def test_answers_end_at_an_end_id_or_at_the_limit() -> None:
    row = run_prompts(CountingEngine(), job())
    assert row["outputs"] == [[10, 11, 12], [20, 21, 22, 23, 24], [10, 11, 12]]
    assert [len(values) for values in row["samples"].values()] == [3, 3, 1]


def test_a_fixed_shape_ignores_end_ids_and_says_so_to_the_engine() -> None:
    engine = CountingEngine()
    row = run_shape(engine, job(end_ids=[7]))
    assert row["outputs"] == [[6, 7, 8, 9]]
    assert engine.limits == [4, 4, 4]
    assert row["warmed"] == {"repetitions": 1, "settled": False}
    assert len(row["samples"]["tpot_ms"]) == 2 * 3


def test_state_that_leaks_between_requests_invalidates() -> None:
    with pytest.raises(InvalidRunError, match="one prompt got two answers"):
        run_prompts(CountingEngine(leak=1), job())
    with pytest.raises(InvalidRunError, match="repetitions of one shape made different tokens"):
        run_shape(CountingEngine(leak=1), job())


@pytest.mark.parametrize("workload", ["prompts", "shape"])
def test_logits_that_are_not_finite_invalidate(workload: str) -> None:
    row = _row(CountingEngine(finite=False), job(), workload, {"threads": 1})
    assert row == {"workload": workload, "invalid": "the logits hold NaN or infinity"}


def test_expectations_are_met_by_a_share_of_the_prompts() -> None:
    expected = [[10, 11], [9], []]
    run_prompts(CountingEngine(), job(expected=expected, expected_share=0.5))
    with pytest.raises(InvalidRunError, match=r"1 of 2 answers begin as expected; one begins \[20\], expected \[9\]"):
        run_prompts(CountingEngine(), job(expected=expected, expected_share=0.6))


def test_settings_that_are_not_the_wanted_ones_invalidate() -> None:
    row = _row(CountingEngine(), job(threads=3), "prompts", {"threads": 1})
    assert row["invalid"] == "expected 3 threads, the engine has 1"
    row = _row(CountingEngine(), job(cores=[4096]), "prompts", {"threads": 1})
    assert row["invalid"].startswith("expected cores [4096], found [")
    row = _row(CountingEngine(), job(), "memory", {"threads": 1, "peak_reset": False})
    assert row["invalid"].startswith("the kernel does not let the peak be reset")
    row = _row(CountingEngine(), job(), "prompts", {"threads": 1, "backend": "cuda"})
    assert row["invalid"] == "expected the backend cpu, the engine runs on cuda"


def test_warming_up_ends_when_two_times_agree_or_at_the_cap() -> None:
    times = iter([100.0, 60.0, 50.0, 49.0, 30.0])
    assert warm_up(lambda: next(times), most=8) == {"repetitions": 4, "settled": True}
    times = iter([4.0, 3.0, 2.0])
    assert warm_up(lambda: next(times), most=3) == {"repetitions": 3, "settled": False}
    assert warm_up(lambda: 1 / 0, most=0) == {"repetitions": 0, "settled": False}


def test_one_token_over_and_over_is_no_answer() -> None:
    require_varied([[7] * 15, [7] * 15, [1, 2]])
    require_varied([[7] * 16, [7] * 15 + [8]])
    with pytest.raises(InvalidRunError, match="2 of 3 answers are degenerate: token 7 over and over"):
        require_varied([[7] * 16, [7] * 20, [7] * 15 + [8]])

    class Stuck(CountingEngine):
        def step(self) -> int:
            return self.token

    with pytest.raises(InvalidRunError, match="answers are degenerate: token 10 over and over"):
        run_prompts(Stuck(), job(prompts=[[1, 10]], max_new_tokens=16))
    shape = {"ids": [5, 6], "decode": 16, "warmup": 0, "repetitions": 1}
    assert run_shape(Stuck(), job(shape=shape))["outputs"] == [[6] * 16]
    with pytest.raises(InvalidRunError, match="answers are degenerate: token 6 over and over"):
        run_shape(Stuck(), job(shape=shape | {"natural": True}))


def test_text_is_tokenized_by_the_engine_and_must_give_the_same_ids() -> None:
    row = run_text(CountingEngine(), job(texts=["ab", "c"], prompts=[[97, 98], [99]]))
    assert len(row["samples"]["ttft_text_ms"]) == 2
    with pytest.raises(InvalidRunError, match="gives other ids than the model's from token 1 on"):
        run_text(CountingEngine(), job(texts=["ab"], prompts=[[97, 99]]))


def test_a_reload_closes_and_opens_and_must_answer_alike() -> None:
    opened = [CountingEngine() for _ in range(3)]
    first, engines = CountingEngine(), iter(opened)
    row = run_reload(first, job(reloads=3), lambda: next(engines))
    assert len(row["samples"]["warm_load_ms"]) == 3
    assert first.closed and opened[0].closed and opened[1].closed and not hasattr(opened[2], "closed")
    different = CountingEngine(leak=1)
    different.asked = 1
    engines = iter([CountingEngine(), different])
    with pytest.raises(InvalidRunError, match=r"answers differently: first tokens \[10, 11\]"):
        run_reload(CountingEngine(), job(reloads=2), lambda: next(engines))


def test_a_long_run_compares_its_last_fifth_with_its_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**9))
    now = {"ns": 0}

    def slower() -> int:
        now["ns"] += 1_000_000 + next(clock) * 10_000
        return now["ns"]

    monkeypatch.setattr("edgedistill.bench.passes.perf_counter_ns", slower)
    row = run_sustained(CountingEngine(), job(sustained_s=0.5))
    tpot = row["samples"]["tpot_ms"]
    fifth = len(tpot) // 5
    assert len(tpot) >= 50
    assert row["samples"]["sustained_ratio"] == [sum(tpot[:fifth]) / sum(tpot[-fifth:])]
    assert row["samples"]["sustained_ratio"][0] < 0.9


def test_energy_is_what_the_counter_rose_by_over_decoded_tokens(tmp_path: Path) -> None:
    package = tmp_path / "intel-rapl:0"
    package.mkdir()
    for name, value in {"name": "package-0", "energy_uj": "500", "max_energy_range_uj": "1000000000"}.items():
        (package / name).write_text(value)

    class Hungry(CountingEngine):
        """Each step takes 2 J, each prefill 100 J, which is not decode."""

        def prefill(self, ids: list[int], *, limit: int) -> int:
            self.take(100e6)
            return super().prefill(ids, limit=limit)

        def step(self) -> int:
            self.take(2e6)
            return super().step()

        def take(self, microjoules: float) -> None:
            counter = int((package / "energy_uj").read_text())
            (package / "energy_uj").write_text(str(int(counter + microjoules) % 1_000_000_000))

    row = run_energy(Hungry(), job(meter={"powercap": str(tmp_path)}, energy_s=0.05))
    assert row["samples"]["energy_per_token_j"] == [pytest.approx(2.0)]
    assert row["energy_source"] == "RAPL package"
    with pytest.raises(InvalidRunError, match="RAPL package did not move in"):
        run_energy(CountingEngine(), job(meter={"powercap": str(tmp_path)}, energy_s=0.001))
    row = run_energy(CountingEngine(), job(meter={"powercap": str(tmp_path / "none")}))
    assert row["not_measured"] == f"no energy counter: this kernel has no {tmp_path / 'none'}"


def test_an_engine_of_one_stream_says_so() -> None:
    assert run_streams(CountingEngine(), job(), "streams-2")["not_measured"] == "counting answers one request at a time"


def test_the_quick_profile_measures_every_metric_but_those_called_full() -> None:
    assert (*SPEED, *MEMORY) == QUICK
    taken = "".join(map(inspect.getsource, (run_prompts, run_shape, run_memory, run_job)))
    quick = {name for name in Metric if re.search(rf'"{name.value}"', taken)}
    assert quick == {name for name, info in METRICS.items() if info.source == "bench"} - FULL
