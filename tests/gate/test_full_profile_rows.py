"""Rows of the full profile before the gate: what was not measured harms nothing but the budget that asks for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gate_builders import measurements, row, run_data

from edgedistill.core.budget import Budget
from edgedistill.core.metric import Metric
from edgedistill.gate.check import judge
from edgedistill.gate.estimate import RunData, UnmeasuredError, estimate

MODEL = "gguf-q4_0"


def with_full_rows() -> RunData:
    rows = measurements()
    for pair in range(3):
        rows += [
            row(MODEL, pair=pair, workload="depth-2048-64", samples={}, not_measured="the context is short"),
            row(MODEL, pair=pair, workload="energy", samples={}, not_measured="no energy counter"),
            row(MODEL, pair=pair, workload="streams-4", samples={"requests_per_hour": [1.0], "response_ms": [9e9]}),
            row(MODEL, pair=pair, workload="sustained", samples={"sustained_ratio": [0.9], "tpot_ms": [9e9]}),
            row(MODEL, pair=pair, workload="files", samples={"download_bytes": [123.0]}),
            row(MODEL, pair=pair, workload="fits", samples={"mem_fits": [1.0]}),
        ]
    return replace(run_data(), measurements=rows)


@pytest.mark.parametrize(
    "metric", [Metric.REQUESTS_PER_HOUR, Metric.RESPONSE_MS, Metric.TPOT_MS, Metric.DECODE_TOKENS_PER_S]
)
def test_a_metric_is_that_of_its_first_workload(metric: Metric) -> None:
    found, plain = (
        estimate(data, metric=metric, model=MODEL, target="local-cpu", confidence=0.95)
        for data in (with_full_rows(), run_data())
    )
    assert found == plain


@pytest.mark.parametrize(
    ("metric", "value"), [(Metric.SUSTAINED_RATIO, 0.9), (Metric.DOWNLOAD_BYTES, 123.0), (Metric.MEM_FITS, 1.0)]
)
def test_a_metric_of_the_full_profile_can_be_held_to_a_budget(metric: Metric, value: float) -> None:
    found = estimate(with_full_rows(), metric=metric, model=MODEL, target="local-cpu", confidence=0.95)
    assert found.interval.estimate == value and found.samples == 3


def test_what_was_not_measured_is_no_pass() -> None:
    with pytest.raises(UnmeasuredError, match="has no"):
        estimate(
            with_full_rows(), metric=Metric.ENERGY_PER_TOKEN_J, model=MODEL, target="local-cpu", confidence=0.95
        )  # fmt: skip


def test_a_model_that_does_not_fit_fails_its_budget() -> None:
    rows = [row(MODEL, pair=pair, workload="fits", samples={"mem_fits": [0.0]}) for pair in range(3)]
    data = replace(run_data(), measurements=measurements() + rows)
    budget = Budget(metric=Metric.MEM_FITS, target="local-cpu", min=1)
    verdict = judge(run="r", budgets={"fits": budget}, release=[MODEL], data=data, confidence=0.95, inputs={})
    assert [(check.outcome, check.estimate) for check in verdict.checks] == [("fail", 0.0)]
