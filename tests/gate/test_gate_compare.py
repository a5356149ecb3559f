"""The comparison table: every required key, right numbers, gaps where nothing was measured, reasons where it broke."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from typing import Any

import pytest
from gate_builders import MODELS, run_data

from edgedistill.gate.compare import compare
from edgedistill.gate.rundata import RunData

CHANGES = ("latency_change_pct", "throughput_ratio", "memory_change_pct", "bytes_change_pct", "retention_pct")
TARGETS = ["local-cpu", "mobile-class"]


def table(data: RunData) -> dict[str, Any]:
    return compare(run="x", data=data, release=["gguf-q4_0"], targets=TARGETS, confidence=0.95)


def row(data: RunData, model: str, target: str | None = "local-cpu") -> dict[str, Any]:
    (found,) = [r for r in table(data)["rows"] if (r["model"], r["target"]) == (model, target)]
    return found


def test_there_is_a_row_for_each_model_on_each_target_teacher_first() -> None:
    rows = table(run_data())["rows"]
    assert [(r["model"], r["target"]) for r in rows] == [
        (model, target) for model in ("teacher", "teacher-gguf-q4_0", "onnx-int4", "gguf-q4_0") for target in TARGETS
    ]
    assert len({frozenset(k for k in r if not k.endswith("_interval")) for r in rows}) == 1
    assert [r["model"] for r in rows if r["release"]] == ["gguf-q4_0"] * 2
    assert [r["evidence"] for r in rows[:2]] == ["measured", "constrained"]
    assert not any(r["problems"] for r in rows)


def test_changes_are_against_the_teacher_on_the_same_target() -> None:
    for target in TARGETS:
        found = row(run_data(), "gguf-q4_0", target)
        _, size, _, response, peak, right = MODELS["gguf-q4_0"]
        _, _, parameters, slow, high, best = MODELS["teacher"]
        assert found["latency_change_pct"] == pytest.approx(100 * (response / slow - 1), abs=0.1)
        assert found["throughput_ratio"] == pytest.approx(slow / response, rel=0.02)
        assert found["memory_change_pct"] == pytest.approx(100 * (peak / high - 1), abs=0.2)
        assert found["bytes_change_pct"] == pytest.approx(100 * (size / (4 * parameters) - 1))
        assert found["retention_pct"] == pytest.approx(100 * right / best)
        low, high_end = found["latency_change_pct_interval"]
        assert low < found["latency_change_pct"] < high_end < 0
    teacher = row(run_data(), "teacher")
    assert [round(teacher[name], 9) for name in CHANGES] == [0, 1, 0, 0, 100]


def test_speed_memory_and_quality_are_told_with_their_intervals() -> None:
    data = run_data()
    found = row(data, "gguf-q4_0")
    blocks = [r.samples for r in data.measurements if (r.model, r.target) == ("gguf-q4_0", "local-cpu")]
    medians = [statistics.median(s["response_ms"]) for s in blocks if "response_ms" in s]
    assert found["response_ms"] == pytest.approx(statistics.median(medians))
    assert found["response_ms_interval"][0] < found["response_ms"] < found["response_ms_interval"][1]
    tokens = sorted(t for s in blocks for t in s.get("tpot_ms", []))
    assert tokens[len(tokens) // 2 - 1] <= found["tpot_p50_ms"] <= tokens[len(tokens) // 2]
    assert found["tpot_p95_ms"] > found["tpot_p50_ms"]
    assert (found["exact_match_ratio"], found["items"]) == (0.97, 100)
    assert found["exact_match_ratio_interval"] == pytest.approx([0.9155, 0.9897], abs=1e-3)
    assert found["kld_nats_interval"][0] < found["kld_nats"] < found["kld_nats_interval"][1]
    assert (found["kld_reference"], found["threads"]) == ("student", 2)
    assert found["blocks"] == {"prompts": 6, "shape": 6, "memory": 6}


def test_a_percentile_that_the_tokens_cannot_support_is_not_claimed() -> None:
    found = row(run_data(blocks=3), "gguf-q4_0")  # 48 tokens; p95 at 95 % needs 59
    assert (found["tpot_p95_ms"], found["tpot_p50_ms"] > 0) == (None, True)


def test_a_model_without_measurements_has_one_row_with_its_quality() -> None:
    data = run_data()
    kept = [r for r in data.measurements if r.model != "gguf-q4_0"]
    found = row(replace(data, measurements=kept), "gguf-q4_0", None)
    assert (found["response_ms"], found["latency_change_pct"], found["evidence"]) == (None, None, None)
    assert found["retention_pct"] == pytest.approx(100 * 97 / 98)
    assert not found["problems"]


def test_what_cannot_be_trusted_is_null_with_the_reason_once() -> None:
    data = run_data()
    broken = [
        r.model_copy(update={"valid": False, "invalid_reason": "out of memory"})
        if (r.model, r.pair, r.workload) == ("gguf-q4_0", 2, "prompts")
        else r
        for r in data.measurements
    ]
    found = row(replace(data, measurements=broken), "gguf-q4_0")
    assert (found["response_ms"], found["latency_change_pct"], found["throughput_ratio"]) == (None, None, None)
    assert found["decode_tokens_per_s"] > 0
    assert found["problems"] == ["round 2 of gguf-q4_0 is invalid (out of memory)"]
    damaged = row(replace(data, models={k: v for k, v in data.models.items() if k != "gguf-q4_0"},
                          damaged={"gguf-q4_0": "model.gguf is missing"}), "gguf-q4_0")  # fmt: skip
    assert (damaged["artifact_bytes"], damaged["response_ms"], damaged["retention_pct"]) == (None, None, None)
    assert damaged["problems"] == ["gguf-q4_0 is not as it was exported: model.gguf is missing"]


def test_no_figure_is_ever_nan() -> None:
    for data in (run_data(), RunData(host_id="h")):
        for found in table(data)["rows"]:
            assert not [k for k, v in found.items() if isinstance(v, float) and not math.isfinite(v)]
