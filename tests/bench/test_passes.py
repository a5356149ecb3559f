"""The passes on an engine made of arithmetic: what is counted, and every reason to call a row invalid."""

from __future__ import annotations

from typing import Any

import pytest

from edgedistill.bench.passes import InvalidRunError, run_prompts, run_shape
from edgedistill.bench.worker import _row


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
