"""The gate's truth table: what passes, what fails, what cannot be told, and what must never pass."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from gate_builders import HOST, answers, measurements, quality, run_data

from edgedistill.core.budget import Budget, Verdict
from edgedistill.core.files import canonical_json
from edgedistill.core.measurement import Measurement
from edgedistill.core.stats import Interval
from edgedistill.gate.check import decide, judge
from edgedistill.gate.rundata import RunData

Change = Callable[[RunData], RunData]


def verdict_of(data: RunData, budgets: dict[str, dict[str, Any]], release: tuple[str, ...] = ("gguf-q4_0",)) -> Verdict:
    made = {name: Budget.model_validate(fields) for name, fields in budgets.items()}
    return judge(run="x", budgets=made, release=release, data=data, confidence=0.95, inputs={"bench": "d"})


def bench(metric: str = "response_ms", **limits: Any) -> dict[str, Any]:
    return {"metric": metric, "target": "local-cpu"} | limits


def quality_budget(**limits: Any) -> dict[str, Any]:
    return {"metric": "exact_match_ratio"} | limits


LATENCY = bench(max_ratio=0.15)
MEMORY = bench("peak_rss_bytes", max="200 MB")


def rows(change: Callable[[Measurement], Measurement | list[Measurement]]) -> Change:
    """A change of measurement rows: each is replaced by what `change` makes of it."""

    def changed(data: RunData) -> RunData:
        made = [change(r) for r in data.measurements]
        return replace(data, measurements=[r for m in made for r in (m if isinstance(m, list) else [m])])

    return changed


def of(model: str, workload: str = "prompts", pair: int | None = None) -> Callable[[Measurement], bool]:
    return lambda r: r.model == model and r.workload == workload and (pair is None or r.pair == pair)


def updating(which: Callable[[Measurement], bool], **fields: Any) -> Change:
    return rows(lambda r: r.model_copy(update=fields) if which(r) else r)


def sampling(which: Callable[[Measurement], bool], metric: str, values: list[float]) -> Change:
    return rows(lambda r: r.model_copy(update={"samples": {**r.samples, metric: values}}) if which(r) else r)


def scaled(which: Callable[[Measurement], bool], metric: str, factor: float) -> Change:
    def scale(r: Measurement) -> Measurement:
        samples = {**r.samples, metric: [factor * v for v in r.samples[metric]]}
        return r.model_copy(update={"samples": samples})

    return rows(lambda r: scale(r) if which(r) else r)


def dropping(which: Callable[[Measurement], bool]) -> Change:
    return rows(lambda r: [] if which(r) else r)


def doubling(which: Callable[[Measurement], bool]) -> Change:
    return rows(lambda r: [r, r] if which(r) else r)


def without(name: str, model: str) -> Change:
    return lambda data: replace(data, **{name: {k: v for k, v in getattr(data, name).items() if k != model}})


def with_quality(model: str, **fields: Any) -> Change:
    return lambda data: replace(
        data, qualities=data.qualities | {model: data.qualities[model].model_copy(update=fields)}
    )


def answering(model: str, right: int, **how: Any) -> Change:
    def changed(data: RunData) -> RunData:
        items = answers(right, **how)
        return replace(
            data, items=data.items | {model: items}, qualities=data.qualities | {model: quality(model, items)}
        )

    return changed


def agreeing(model: str) -> Change:
    def changed(data: RunData) -> RunData:
        items = [i.model_copy(update={"top1_ratio": 1.0}) if i.top1_ratio else i for i in data.items[model]]
        return replace(
            data, items=data.items | {model: items}, qualities=data.qualities | {model: quality(model, items)}
        )

    return changed


def same(data: RunData) -> RunData:
    return data


OURS, TEACHERS = of("gguf-q4_0"), of("teacher")
TRUTH: list[tuple[str, Change, dict[str, Any], str, str]] = [
    # Limits that are kept, broken, or inside the interval.
    ("ratio kept", same, LATENCY, "pass", "response_ms is 0.04× the teacher's (0.0"),
    ("ratio broken", same, bench(max_ratio=0.02), "fail", "over the limit of 0.02×"),
    ("ratio inside its interval", same, bench(max_ratio=0.04), "inconclusive",
     "too close to the limit of 0.04× to tell"),
    ("faster asked for and kept", same, bench("requests_per_hour", min_ratio=10), "pass", "at least the 10× asked for"),
    ("faster asked for and not kept", same, bench("requests_per_hour", min_ratio=30), "fail",
     "under the 30× asked for"),
    ("absolute kept", same, bench(max="200 ms"), "pass", "within the limit of 200 ms"),
    ("absolute broken", same, bench(max="20 ms"), "fail", "over the limit of 20 ms"),
    ("absolute inside", same, bench(max="84 ms"), "inconclusive", "further blocks are likely to"),
    ("minimum kept", same, bench("decode_tokens_per_s", min=500), "pass", "at least the 500 tokens/s asked for"),
    ("minimum broken", same, bench("decode_tokens_per_s", min=5000), "fail", "under the 5,000 tokens/s asked for"),
    ("memory kept", same, MEMORY, "pass", "within the limit of 200 MB"),
    ("mean as the statistic", same, bench(max="200 ms", statistic="mean"), "pass", "within the limit"),
    ("against a named model", same, LATENCY | {"max_ratio": 0.25, "against": "teacher-gguf-q4_0"}, "pass",
     "teacher-gguf-q4_0's"),
    ("three blocks are enough", dropping(lambda r: r.pair > 2), LATENCY, "pass", "within"),
    # Exact quantities have no spread: equal is kept.
    ("bytes equal to the limit", same, {"metric": "artifact_bytes", "max": 16_000_000}, "pass", "is 16 MB, within"),
    ("a byte too many", same, {"metric": "artifact_bytes", "max": 15_999_999}, "fail", "over the limit of 16 MB"),
    ("bytes against the teacher", same, {"metric": "artifact_bytes", "max_ratio": 0.1}, "pass",
     "0.0297× the teacher's,"),
    ("too few bytes", same, {"metric": "artifact_bytes", "min": "1 GB"}, "fail", "under the 1 GB asked for"),
    # Quality.
    ("retention kept", same, quality_budget(min_ratio=0.9), "pass", "at least the 0.9× asked for"),
    ("retention lost", answering("gguf-q4_0", 60), quality_budget(min_ratio=0.9), "fail", "under the 0.9× asked for"),
    ("retention on few items", answering("gguf-q4_0", 95), quality_budget(min_ratio=0.95), "inconclusive", "further items are likely to settle it"),
    ("accuracy kept", same, quality_budget(min="85 %"), "pass", "is 97 % (91.5–99 %), at least the 85 % asked for"),
    ("accuracy near", same, quality_budget(min="95 %"), "inconclusive", "too close to the 95 % asked for"),
    ("divergence kept", same, {"metric": "kld_nats", "max": 0.05}, "pass", "is 0.0227 nats (0.02"),
    ("divergence near", same, {"metric": "kld_nats", "max": 0.0225}, "inconclusive", "limit of 0.0225 nats to tell"),
    ("divergence against another", same, {"metric": "kld_nats", "max_ratio": 1.5, "against": "onnx-int4"}, "pass",
     "onnx-int4's"),
    ("agreement broken", same, {"metric": "top1_ratio", "min": 0.999}, "fail", ", under the 99.9 % asked for"),
    ("agreement everywhere is no certainty", agreeing("gguf-q4_0"), {"metric": "top1_ratio", "min": 0.999},
     "inconclusive",
     "is 100 % (99.4–100 %)"),
    ("divergence scored on other items", answering("gguf-q4_0", 97, scored=20), {"metric": "kld_nats", "max_ratio": 2,
     "against": "onnx-int4"},
     "error", "were scored on different items (20 in common)"),
    ("a divergence of other answers", with_quality("gguf-q4_0", kld_nats=0.001), {"metric": "kld_nats", "max": 1},
     "error",
     "the kld_nats of gguf-q4_0 (0.001) is not that of its answers"),
    ("a divergence without answers", without("items", "gguf-q4_0"), {"metric": "kld_nats", "max": 1}, "error",
     "in its summary and in none of its answers"),
    ("no divergence to divide by", answering("onnx-int4", 97, kld=0.0), {"metric": "kld_nats", "max_ratio": 1,
     "against": "onnx-int4"},
     "error", "expected a positive sum to divide by"),
    ("bits per byte against the teacher", same, {"metric": "bits_per_byte", "max_ratio": 1.1}, "pass",
     "1× the teacher's"),
    # Missing.
    ("no row of ours", dropping(OURS), LATENCY, "error", "gguf-q4_0 has no measurement of response_ms"),
    ("no row of the teacher", dropping(TEACHERS), LATENCY, "error", "teacher has no measurement of response_ms"),
    ("no row at all", dropping(lambda r: True), LATENCY, "error", "has no measurement"),
    ("a row without the metric", rows(lambda r: r.model_copy(update={"samples": {}}) if of("gguf-q4_0",
     pair=2)(r) else r),
     LATENCY, "error", "round 2 of gguf-q4_0 has no sample of response_ms"),
    ("an empty list of samples", sampling(of("gguf-q4_0", pair=0), "response_ms", []), LATENCY, "error",
     "has no sample"),
    ("two blocks", dropping(lambda r: r.pair > 1), LATENCY, "error", "found 2 rounds that measured both"),
    ("two blocks, absolute", dropping(lambda r: r.pair > 1), MEMORY, "error",
     "found 2 blocks, an interval needs at least 3"),
    ("two rounds in common", rows(lambda r: r.model_copy(update={"pair": r.pair + 4}) if TEACHERS(r) else r), LATENCY,
     "error", "found 2 rounds that measured both gguf-q4_0 and teacher"),
    ("no such model to compare with", same, LATENCY | {"against": "teachr"}, "error", "did you mean 'teacher'?"),
    ("no such artifact", same, LATENCY | {"artifacts": ("gguf-q8_0",)}, "error", "no model named 'gguf-q8_0'"),
    ("no answers", without("items", "gguf-q4_0"), quality_budget(min=0.9), "error", "no answers to the held-out items"),
    ("no answers of the teacher", without("items", "teacher"), quality_budget(min_ratio=0.9), "error",
     "teacher has no"),
    ("no quality", without("qualities", "gguf-q4_0"), {"metric": "kld_nats", "max": 1}, "error",
     "no measurement of kld"),
    ("answers without a summary", without("qualities", "gguf-q4_0"), quality_budget(min=0.5), "error",
     "no quality figures"),
    ("divergence of the teacher from itself", same, {"metric": "kld_nats", "max_ratio": 1}, "error", "teacher has no"),
    # Stale, invalid, elsewhere, impossible.
    ("stale rows", updating(OURS, artifact_digest="0" * 64), LATENCY, "error", "is stale: it measured other files"),
    ("one stale row", updating(of("gguf-q4_0", pair=5), artifact_digest=""), LATENCY, "error",
     "round 5 of gguf-q4_0 is stale"),
    ("a stale teacher", updating(TEACHERS, artifact_digest="0" * 64), LATENCY, "error", "round 0 of teacher is stale"),
    ("a damaged artifact", lambda data: replace(data, damaged={"gguf-q4_0": "model.gguf is missing"}), LATENCY, "error",
     "not as it was exported: model.gguf is missing"),
    ("one invalid row of six", updating(of("gguf-q4_0", pair=3), valid=False, invalid_reason="out of\n\x1bmemory"),
     LATENCY,
     "error", "round 3 of gguf-q4_0 is invalid (out of memory)"),
    ("an invalid row that carries nothing", updating(of("gguf-q4_0", pair=3), valid=False, samples={}), LATENCY,
     "error",
     "invalid (no reason given)"),
    ("every row invalid and empty", updating(lambda r: True, valid=False, samples={}), LATENCY, "error", "is invalid"),
    ("the teacher's row invalid", updating(of("teacher", pair=1), valid=False), LATENCY, "error",
     "round 1 of teacher is"),
    ("NaN", sampling(of("gguf-q4_0", pair=4), "response_ms", [80.0, math.nan]), LATENCY, "error",
     "has nan as a sample"),
    ("infinity", sampling(of("gguf-q4_0", pair=4), "response_ms", [math.inf]), LATENCY, "error", "has inf as a sample"),
    ("a time of nothing", sampling(of("gguf-q4_0", pair=4), "response_ms", [0.0]), LATENCY, "error",
     "has 0.0 as a sample"),
    ("a negative peak", sampling(of("gguf-q4_0", "memory", 4), "peak_rss_bytes", [-1.0]), MEMORY, "error",
     "has -1.0 as"),
    ("mapped memory of nothing", same, bench("peak_file_bytes", max="1 MB"), "pass", "is 0 B, within"),
    ("a ratio to nothing", same, bench("peak_file_bytes", max_ratio=1), "error",
     "expected positive values for a ratio"),
    ("measured on another host", updating(lambda r: True, environment={"host_id": "ffff"}), LATENCY, "error",
     "was measured on host ffff, this is 0123456789ab"),
    ("one row from another host", updating(of("teacher", pair=2), environment={"host_id": "ffff"}), LATENCY, "error",
     "round 2 of teacher was measured on host ffff"),
    ("no host told", updating(OURS, environment={}), LATENCY, "error", "host unknown"),
    ("a round twice", doubling(of("gguf-q4_0", pair=1)), LATENCY, "error", "measured more than once"),
    ("two engines", updating(of("gguf-q4_0", pair=1), engine="onnx"), LATENCY, "error",
     "different engines (llamacpp, onnx)"),
    ("other items", answering("gguf-q4_0", 48, of=50), quality_budget(min_ratio=0.9), "error",
     "different items (50 in common)"),
    ("an item twice", lambda data: replace(data, items=data.items | {"gguf-q4_0": data.items["gguf-q4_0"] * 2}),
     quality_budget(min=0.5), "error", "answered an item more than once"),
    ("a summary of other answers", with_quality("gguf-q4_0", exact_match_ratio=0.99), quality_budget(min=0.5), "error",
     "(0.99 of 100 items) is not that of its answers (0.97 of 100)"),
    ("a summary of more answers", with_quality("gguf-q4_0", items=101), quality_budget(min=0.5), "error",
     "of 101 items"),
    ("a teacher that is never right", answering("teacher", 0), quality_budget(min_ratio=0.9), "error",
     "nothing can be retained"),
    ("a divergence of NaN", with_quality("gguf-q4_0", kld_nats=math.nan), {"metric": "kld_nats", "max": 1}, "error",
     "has nan"),
    ("a ratio to a zero figure", with_quality("teacher", bits_per_byte=0.0), {"metric": "bits_per_byte",
     "max_ratio": 1},
     "error", "bits_per_byte of 0, which nothing can be divided by"),
    # Evidence.
    ("weaker evidence than asked for", same, {"metric": "response_ms", "target": "mobile-class", "max": "1 s",
     "min_evidence": "measured"}, "error", "its evidence is constrained, the budget asks for measured"),
    ("enough evidence", same, {"metric": "response_ms", "target": "mobile-class", "max": "1 s"}, "pass",
     "on mobile-class"),
    ("one projected row among measured", updating(of("gguf-q4_0", pair=1), evidence="projected"), LATENCY, "error",
     "its evidence is projected, the budget asks for constrained"),
    ("the other model's evidence counts too", updating(of("teacher", pair=1), evidence="published"), LATENCY, "error",
     "its evidence is published"),
    ("projected where that is enough", updating(of("gguf-q4_0", pair=1), evidence="projected"),
     LATENCY | {"min_evidence": "published"}, "pass", "within"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "budget", "outcome", "reason"), [case[1:] for case in TRUTH], ids=[c[0] for c in TRUTH]
)
def test_truth_table(change: Change, budget: dict[str, Any], outcome: str, reason: str) -> None:
    verdict = verdict_of(change(run_data()), {"b": budget})
    (check,) = verdict.checks
    assert (check.outcome, verdict.outcome) == (outcome, outcome)
    assert reason in check.reason
    assert "\n" not in check.reason
    assert check.reason.startswith(f"{check.artifact} on {check.target}: " if check.target else f"{check.artifact}: ")
    assert (check.estimate is None) == (check.low is None) == (check.high is None)
    assert check.outcome == "error" or check.samples > 0


def test_the_table_is_as_long_as_it_claims() -> None:
    assert len(TRUTH) >= 40
    assert {case[3] for case in TRUTH} == {"pass", "fail", "inconclusive", "error"}


@pytest.mark.parametrize(
    ("kind", "limit", "outcome"),
    [("max", 3.0, "pass"), ("max", 2.999, "inconclusive"), ("max", 1.0, "inconclusive"), ("max", 0.999, "fail"),
     ("min", 1.0, "pass"), ("min", 1.001, "inconclusive"), ("min", 3.0, "inconclusive"), ("min", 3.001, "fail")],
)  # fmt: skip
def test_decisions_at_the_edges_of_the_interval(kind: Any, limit: float, outcome: str) -> None:
    assert decide(Interval(2.0, 1.0, 3.0), kind=kind, limit=limit) == outcome
    assert decide(Interval(2.0, 1.0, 3.0), kind=f"{kind}_ratio", limit=limit) == outcome


def warn(budget: dict[str, Any]) -> dict[str, Any]:
    return budget | {"level": "warn"}


BROKEN, UNDECIDED = bench(max="20 ms"), bench(max="84 ms")
UNMEASURED = {"metric": "kld_nats", "max_ratio": 1}


@pytest.mark.parametrize(
    ("budgets", "outcome"),
    [
        ([], "error"),
        ([LATENCY, MEMORY], "pass"),
        ([LATENCY, UNDECIDED], "inconclusive"),
        ([LATENCY, UNDECIDED, UNMEASURED], "error"),
        ([LATENCY, UNDECIDED, UNMEASURED, BROKEN], "fail"),
        ([LATENCY, warn(BROKEN), warn(UNDECIDED), warn(UNMEASURED)], "pass"),
        ([UNDECIDED, warn(BROKEN)], "inconclusive"),
        ([warn(LATENCY)], "pass"),
        ([warn(BROKEN)], "pass"),
        ([warn(UNMEASURED)], "error"),
        ([UNMEASURED, warn(LATENCY)], "error"),
    ],
)
def test_the_verdict_is_the_worst_binding_check(budgets: list[dict[str, Any]], outcome: str) -> None:
    assert verdict_of(run_data(), {f"b{i}": budget for i, budget in enumerate(budgets)}).outcome == outcome


def test_nothing_measured_is_no_pass() -> None:
    assert verdict_of(RunData(host_id=HOST), {"latency": LATENCY, "size": quality_budget(min=0.1)}).outcome == "error"


def test_nothing_released_is_no_pass() -> None:
    verdict = verdict_of(run_data(), {"latency": LATENCY}, release=())
    assert verdict.outcome == "error"
    assert verdict.checks[0].reason.endswith("because the budget names no artifact and the recipe releases none")


def test_every_limit_of_every_budget_on_every_artifact_is_one_check() -> None:
    verdict = verdict_of(
        run_data(),
        {"b": LATENCY | {"max": "1 s"}, "a": quality_budget(min=0.5, artifacts=("onnx-int4",))},
        release=("gguf-q4_0", "onnx-int4"),
    )
    assert [(c.budget, c.artifact, c.limit_kind) for c in verdict.checks] == [
        ("a", "onnx-int4", "min"),
        ("b", "gguf-q4_0", "max"),
        ("b", "gguf-q4_0", "max_ratio"),
        ("b", "onnx-int4", "max"),
        ("b", "onnx-int4", "max_ratio"),
    ]
    assert [c.against for c in verdict.checks] == [None, None, "teacher", None, "teacher"]


def test_equal_rows_give_a_byte_identical_verdict_in_whatever_order_they_come() -> None:
    budgets = {
        "latency": LATENCY | {"max": "1 s"},
        "speed": bench("tpot_ms", max=10),
        "q": quality_budget(min_ratio=0.9),
    }
    data = run_data()
    shuffled = list(data.measurements)
    random.Random(5).shuffle(shuffled)
    again = replace(run_data(), measurements=shuffled, items={m: i[::-1] for m, i in data.items.items()})
    one, two = (canonical_json(verdict_of(d, budgets).model_dump(mode="json")) for d in (data, again))
    assert one == two
    other = replace(data, measurements=measurements(seed=1))
    assert canonical_json(verdict_of(other, budgets).model_dump(mode="json")) != one


def test_a_small_slowdown_of_one_model_does_not_hide_in_the_rounds_drift() -> None:
    """Rounds drift by 30 %, both models alike: a limit 5 % from the truth is still decided."""
    limit = bench(max_ratio=0.042)
    assert verdict_of(run_data(), {"b": limit}).outcome == "pass"
    assert verdict_of(scaled(OURS, "response_ms", 1.15)(run_data()), {"b": limit}).outcome == "fail"
