"""Budgets: quantities with units, what is refused and how it is said."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from edgedistill.core.budget import Budget
from edgedistill.core.metric import METRICS, Metric, parse_quantity


def test_every_metric_has_a_definition_and_a_unit_its_name_carries() -> None:
    assert set(METRICS) == set(Metric)
    ends = {"bytes": "_bytes", "ms": "_ms", "ratio": "_ratio", "nats": "_nats", "tokens/s": "_tokens_per_s"}
    ends |= {"requests/h": "requests_per_hour", "bits/byte": "bits_per_byte", "flag": "_fits", "J": "_j"}
    for metric, info in METRICS.items():
        assert metric.value.endswith(ends[info.unit]) or metric is Metric.BYTES_READ_PER_TOKEN, metric
        assert info.definition.endswith("."), metric


@pytest.mark.parametrize(
    ("value", "unit", "number"),
    [
        ("150 MB", "bytes", 150e6),
        ("1 KiB", "bytes", 1024),
        ("1.5GB", "bytes", 1.5e9),
        ("1_000", "bytes", 1000),
        ("1e9", "bytes", 1e9),
        ("2.5e-3 GB", "bytes", 2.5e6),
        ("512kb", "bytes", 512e3),
        ("40 ms", "ms", 40),
        ("2 s", "ms", 2000),
        ("85 %", "ratio", 0.85),
        ("0.5", "ratio", 0.5),
        (3, "ms", 3.0),
        ("12 tokens/s", "tokens/s", 12),
    ],
)
def test_quantities_are_read_in_the_metrics_unit(value: float | str, unit: str, number: float) -> None:
    assert parse_quantity(value, unit=unit) == pytest.approx(number)


@pytest.mark.parametrize(
    ("value", "unit", "example"),
    [
        ("1 parsec", "bytes", "150 MB"),
        ("60 XB", "bytes", "150 MB"),
        ("1e", "bytes", "150 MB"),
        ("40 MB", "ms", "40 ms"),
        ("5 s", "ratio", "95 %"),
        ("", "ms", "40 ms"),
    ],
)
def test_other_quantities_are_refused_with_an_example(value: str, unit: str, example: str) -> None:
    with pytest.raises(ValueError, match=f"expected a number or a text such as '{example}'"):
        parse_quantity(value, unit=unit)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metric": "artifact_bytes"}, "expected at least one of max, min, max_ratio, min_ratio"),
        ({"metric": "response_ms", "max": "1 s"}, 'expected target = "…", because response_ms is measured on a target'),
        ({"metric": "artifact_bytes", "max": 1, "target": "x"}, "expected no target, because artifact_bytes does not"),
        ({"metric": "artifact_bytes", "max": "1 s"}, "a number or a text such as '150 MB'; units are B, KB"),
        ({"metric": "artifact_bytes", "max": 1, "min": 2}, "expected min <= max, found 2 and 1"),
        ({"metric": "artifact_bytes", "max": -1}, "expected at least 0, because no artifact_bytes is negative"),
        ({"metric": "kld_nats", "min_ratio": "-5 %"}, "expected at least 0, because no kld_nats is negative"),
        ({"metric": "kld_nats", "max_ratio": 1, "min_ratio": "200 %"}, "expected min_ratio <= max_ratio"),
        ({"metric": "artifact_bytes", "max": float("nan")}, "finite number"),
        ({"metric": "tpot_ms", "max": 1, "target": "t", "statistic": "p42"}, "'p95'"),
        ({"metric": "kld_nats", "max": 1, "statistic": "p95"}, "because kld_nats has no samples in time"),
        (
            {"metric": "decode_tokens_per_s", "min": 1, "target": "t", "statistic": "p95"},
            "because p95 of decode_tokens_per_s is its good end",
        ),
        ({"metric": "artifact_bytes", "max": 1, "workload": "shape"}, "expected no workload, because artifact_bytes"),
        ({"metric": "artifact_bytes", "max": 1, "waiver": {"reason": " ", "expires": "2026-01-01"}}, "at least 1 char"),
        ({"metric": "artifact_bytes", "max": 1, "waiver": {"reason": "x", "expires": "soon"}}, "valid date"),
        ({"metric": "artifact_bytes", "max": 1, "waiver": {"reason": "x"}}, "Field required"),
        ({"metric": "artifact_bytes", "maximum": 1}, "Extra inputs are not permitted"),
        ({"metric": "artifact_bytes", "max": 1, "min_evidence": "guessed"}, "'published', 'projected'"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as e:
        Budget.model_validate(fields)
    assert message in str(e.value)


def test_limits_are_numbers_ratios_dimensionless() -> None:
    budget = Budget(metric="response_ms", target="t", max="2 s", max_ratio="15 %")
    assert budget.limits() == {"max": 2000.0, "max_ratio": 0.15}
