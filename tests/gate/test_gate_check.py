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
from edgedistill.core.sequential import Look, plan_looks
from edgedistill.core.stats import Interval
from edgedistill.gate.check import decide, judge
from edgedistill.gate.rundata import RunData

TODAY = "2026-06-01"
Change = Callable[[RunData], RunData]


def verdict_of(
    data: RunData,
    budgets: dict[str, dict[str, Any]],
    release: tuple[str, ...] = ("gguf-q4_0",),
    looks: tuple[Look, ...] = (),
) -> Verdict:
    made = {name: Budget.model_validate(fields) for name, fields in budgets.items()}
    return judge(
        run="x",
        budgets=made,
        release=release,
        data=data,
        confidence=0.95,
        inputs={"bench": "d"},
        today=TODAY,
        looks=looks,
    )


def bench(metric: str = "response_ms", **limits: Any) -> dict[str, Any]:
    return {"metric": metric, "target": "local-cpu"} | limits


def quality_budget(**limits: Any) -> dict[str, Any]:
    return {"metric": "exact_match_ratio"} | limits


WAIVER = {"reason": "known", "expires": "2026-12-31"}
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


def graded(**shift: float) -> Change:
    """Every item of a model with a score around 0.6, by so much more or less."""

    def changed(data: RunData) -> RunData:
        for name, more in shift.items():
            model = name.replace("_", "-", 1)
            scores = [0.5 + more + 0.002 * i for i in range(len(data.items[model]))]
            items = [
                item.model_copy(update={"answer_score_ratio": score})
                for item, score in zip(data.items[model], scores, strict=True)
            ]
            mean = {"answer_score_ratio": sum(scores) / len(scores)}
            quality_of = data.qualities[model].model_copy(update=mean)
            data = replace(data, items=data.items | {model: items}, qualities=data.qualities | {model: quality_of})
        return data

    return changed


def agreeing(model: str) -> Change:
    def changed(data: RunData) -> RunData:
        items = [i.model_copy(update={"top1_ratio": 1.0}) if i.top1_ratio else i for i in data.items[model]]
        return replace(
            data, items=data.items | {model: items}, qualities=data.qualities | {model: quality(model, items)}
        )

    return changed


def with_items(model: str, which: range = range(100), **fields: Any) -> Change:
    def changed(data: RunData) -> RunData:
        items = [i.model_copy(update=fields) if n in which else i for n, i in enumerate(data.items[model])]
        return replace(data, items=data.items | {model: items})

    return changed


def before(change: Change = lambda data: data) -> Change:
    """A baseline, as `change` makes it of a run measured at another time."""
    return lambda data: replace(data, previous=change(replace(data, measurements=measurements(seed=9))))


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
    ("retention on few items", answering("gguf-q4_0", 95), quality_budget(min_ratio=0.95), "inconclusive",
     "further items are likely to settle it"),
    ("accuracy kept", same, quality_budget(min="85 %"), "pass", "is 97 % (91.5–99 %), at least the 85 % asked for"),
    ("accuracy near", same, quality_budget(min="95 %"), "inconclusive", "too close to the 95 % asked for"),
    ("divergence kept", same, {"metric": "kld_nats", "max": 0.05}, "pass", "is 0.0227 nats (0.02"),
    ("divergence near", same, {"metric": "kld_nats", "max": 0.0225}, "inconclusive", "limit of 0.0225 nats to tell"),
    ("divergence against another", same, {"metric": "kld_nats", "max_ratio": 1.5, "against": "onnx-int4"}, "pass",
     "onnx-int4's"),
    ("score", graded(gguf_q4_0=0.0), {"metric": "answer_score_ratio", "min": 0.5}, "pass", "is 59.9 %"),
    ("score against the teacher", graded(gguf_q4_0=-0.1, teacher=0.0),
     {"metric": "answer_score_ratio", "min_ratio": 0.95}, "fail", "teacher's"),
    ("score that is not its answers'", lambda data: with_quality("gguf-q4_0", answer_score_ratio=0.9)(
        graded(gguf_q4_0=0.0)(data)), {"metric": "answer_score_ratio", "min": 0.5}, "error",
     "the answer_score_ratio of gguf-q4_0 (0.9) is not that of its answers (0.599)"),
    ("no score", same, {"metric": "answer_score_ratio", "min": 0.5}, "error",
     "has no measurement of answer_score_ratio"),
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
    # Percentiles, and whose rows count.
    ("a percentile kept", same, bench("tpot_ms", max="2 ms", statistic="p95"), "pass", "tpot_ms (p95) is "),
    ("a percentile broken", same, bench("tpot_ms", max="0.5 ms", statistic="p50"), "fail", "over the limit of 0.5 ms"),
    ("a percentile inside its bounds", same, bench("tpot_ms", max=0.84, statistic="p50"), "inconclusive", "to tell"),
    ("p99 of too few samples", same, bench("tpot_ms", max="9 ms", statistic="p99"), "error",
     "found 96 samples, a p99 at 95 % confidence needs at least 299"),
    ("p95 of too few samples", same, bench(max="9 s", statistic="p95"), "error",
     "found 24 samples, a p95 at 95 % confidence needs at least 59"),
    ("p90 of too few samples", same, bench(max="9 s", statistic="p90"), "error", "needs at least 29"),
    ("a ratio of percentiles kept", same, bench("tpot_ms", max_ratio=0.2, statistic="p95"), "pass", "within"),
    ("a ratio of percentiles of too few", same, bench(max_ratio=0.2, statistic="p95"), "error",
     "a p95 at 97.5 % confidence needs at least 72"),
    ("the workload that measures it", same, LATENCY | {"workload": "prompts"}, "pass", "within"),
    ("a workload that does not", same, LATENCY | {"workload": "shape"}, "error",
     "round 0 of gguf-q4_0 has no sample of response_ms"),
    ("a workload without rows", dropping(lambda r: r.workload == "shape"), bench("tpot_ms", max=9, workload="shape"),
     "error", "has no measurement of tpot_ms by the workload shape"),
    # Answers that hide in accuracy.
    ("answers thrice as long", with_items("gguf-q4_0", output_ids=(1,) * 6), quality_budget(min_ratio=0.9), "fail",
     "but answers have 6 tokens in the mean, 3× those of teacher, outside of 0.67–1.5×"),
    ("answers half as long", with_items("gguf-q4_0", output_ids=(1,)), quality_budget(min=0.85), "fail", "0.5× those"),
    ("answers a little longer", with_items("gguf-q4_0", output_ids=(1, 2, 3)), quality_budget(min=0.85), "pass",
     "at least"),
    ("answers that do not end", with_items("gguf-q4_0", finish="length", which=range(3)), quality_budget(min=0.85),
     "fail", "97 % of answers end by themselves, 100 % of those of teacher; the rest ran to the limit"),
    ("two that do not end", with_items("gguf-q4_0", finish="length", which=range(2)), quality_budget(min=0.85),
     "pass", "at least"),
    ("a reference that says nothing", with_items("teacher", output_ids=()), quality_budget(min_ratio=0.9), "error",
     "teacher answered with no token at all"),
    # The stored baseline.
    ("as before", before(), bench(max_ratio=1.1, against="previous"), "pass",
     "its baseline's (0.9"),
    ("as before, beside the teacher", before(), bench(max_ratio=1.1, against="previous"), "pass",
     "both taken beside the same teacher"),
    ("slower than before", before(scaled(OURS, "response_ms", 0.7)), bench(max_ratio=1.1, against="previous"), "fail",
     "over the limit of 1.1×"),
    ("a slower host is no slower model", before(scaled(lambda r: r.workload == "prompts", "response_ms", 0.7)),
     bench(max_ratio=1.1, against="previous"), "pass", "within the limit"),
    ("too near to before", before(), bench(max_ratio=1.0, against="previous"), "inconclusive", "to tell"),
    ("memory as before", before(), bench("peak_rss_bytes", max_ratio=1.1, against="previous"), "pass", "within"),
    ("bytes as before", before(), {"metric": "artifact_bytes", "max_ratio": 1.0, "against": "previous"}, "pass",
     "1× its baseline's"),
    ("as right as before", before(), quality_budget(min_ratio=0.95, against="previous"), "pass", "at least"),
    ("less right than before", before(answering("gguf-q4_0", 100)), quality_budget(min_ratio=0.999,
     against="previous"), "inconclusive", "to tell"),
    ("as near as before", before(), {"metric": "kld_nats", "max_ratio": 1.1, "against": "previous"}, "pass", "within"),
    ("tokens as before", before(), bench("tpot_ms", max_ratio=1.5, statistic="p50", against="previous"), "pass",
     "within"),
    ("longer than before", before(with_items("gguf-q4_0", output_ids=(1,))), quality_budget(min_ratio=0.9,
     against="previous"), "fail", "2× those of its baseline"),
    ("no baseline named", same, bench(max_ratio=1.1, against="previous"), "error",
     "no baseline is named; set baseline in the recipe's [gate]"),
    ("a baseline that is missing", lambda data: replace(data, previous="the baseline b.json is missing; save one"),
     bench(max_ratio=1.1, against="previous"), "error", "the baseline b.json is missing"),
    ("a baseline of another host", before(lambda data: replace(data, host_id="ffff")),
     bench(max_ratio=1.1, against="previous"), "error", "the baseline was measured on host ffff, this is 0123456789ab"),
    ("another host's quality", before(lambda data: replace(data, host_id="ffff")), quality_budget(min_ratio=0.5,
     against="previous"), "error", "was measured on host ffff"),
    ("a baseline without the artifact", before(without("models", "gguf-q4_0")), bench(max_ratio=1.1,
     against="previous"), "error", "the baseline has no gguf-q4_0"),
    ("a baseline with other settings", before(updating(OURS, settings={"threads": 4})), bench(max_ratio=1.1,
     against="previous"), "error", "the baseline is stale: threads was 4, is 2; save a new one"),
    ("a baseline by another engine", before(updating(OURS, engine="onnx")), bench(max_ratio=1.1, against="previous"),
     "error", "the baseline is stale: engine was onnx, is llamacpp"),
    ("a baseline of other items", before(answering("gguf-q4_0", 40, of=50)), quality_budget(min_ratio=0.5,
     against="previous"), "error", "answered different items (50 in common)"),
    ("a baseline of two blocks", before(dropping(lambda r: r.pair > 1)), bench(max_ratio=1.1, against="previous"),
     "error", "found 2 blocks now or in the baseline"),
    ("NaN in the baseline", before(sampling(of("gguf-q4_0", pair=4), "response_ms", [math.nan])),
     bench(max_ratio=1.1, against="previous"), "error", "has nan as a sample"),
    ("an invalid row in the baseline", before(updating(of("gguf-q4_0", pair=3), valid=False)),
     bench(max_ratio=1.1, against="previous"), "error", "is invalid"),
    # Waivers, on 2026-06-01.
    ("a waiver that is not needed", same, LATENCY | {"waiver": WAIVER}, "pass", "until 2026-12-31 is not needed"),
    ("a waiver of what was not measured", dropping(OURS), LATENCY | {"waiver": WAIVER}, "error",
     "its waiver (known) until 2026-12-31 does not cover what was not measured"),
    ("an expired waiver", same, bench(max_ratio=0.02, waiver=WAIVER | {"expires": "2026-05-31"}), "fail",
     "its waiver (known) expired on 2026-05-31, so it binds again"),
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
    assert len(TRUTH) >= 120
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


def test_a_waiver_keeps_a_missed_limit_from_binding_and_stays_visible() -> None:
    missed = [bench(max_ratio=0.02, waiver=WAIVER), bench(max_ratio=0.04, waiver=WAIVER)]
    verdict = verdict_of(run_data(), {"a": missed[0], "b": missed[1], "c": LATENCY})
    assert verdict.outcome == "pass"
    assert [(c.outcome, c.waived) for c in verdict.checks] == [("fail", True), ("inconclusive", True), ("pass", False)]
    assert verdict.checks[0].reason.endswith("; waived until 2026-12-31: known")
    last_day = bench(max_ratio=0.02, waiver=WAIVER | {"expires": TODAY})
    assert verdict_of(run_data(), {"a": last_day}).outcome == "pass"
    over = bench(max_ratio=0.02, waiver=WAIVER | {"expires": "2026-05-31"})
    assert verdict_of(run_data(), {"a": over, "c": LATENCY}).outcome == "fail"


def test_without_a_date_no_waiver_holds() -> None:
    budget = Budget.model_validate(bench(max_ratio=0.02, waiver=WAIVER))
    verdict = judge(run="x", budgets={"a": budget}, release=("gguf-q4_0",), data=run_data(), confidence=0.95, inputs={})
    assert (verdict.outcome, verdict.checks[0].waived) == ("fail", False)


def test_an_inconclusive_check_says_how_many_further_blocks_would_settle_it() -> None:
    (near,) = verdict_of(run_data(), {"b": bench(max_ratio=0.0403)}).checks
    assert near.outcome == "inconclusive" and near.further_blocks and near.further_blocks > 1
    assert f"; about {near.further_blocks} further blocks are likely to settle it" in near.reason
    far = verdict_of(run_data(blocks=6 + near.further_blocks), {"b": bench(max_ratio=0.0403)}).checks[0]
    assert far.high - far.low < near.high - near.low
    (memory,) = verdict_of(
        dropping(lambda r: r.workload == "memory" and r.pair % 2)(run_data()),
        {"b": bench("peak_rss_bytes", max="60.2 MB")},
    ).checks
    assert memory.outcome == "inconclusive" and memory.further_blocks and memory.samples == 3
    (items,) = verdict_of(run_data(), {"b": quality_budget(min="95 %")}).checks
    assert items.further_blocks is None and "further items" in items.reason


LOOKS = plan_looks(blocks=6, further=6, confidence=0.95)


def test_a_look_is_stricter_than_a_single_one_and_the_first_that_decides_counts() -> None:
    once = verdict_of(run_data(), {"b": LATENCY}).checks[0]
    first = verdict_of(run_data(), {"b": LATENCY}, looks=LOOKS).checks[0]
    assert (once.confidence, first.confidence) == (0.95, LOOKS[0].confidence)
    assert first.low <= once.low and once.high <= first.high and first.outcome == "pass"
    grown = verdict_of(run_data(blocks=12), {"b": LATENCY}, looks=LOOKS).checks[0]
    assert (grown.outcome, grown.samples, grown.confidence) == ("pass", 6, LOOKS[0].confidence)
    late = verdict_of(run_data(blocks=12), {"b": bench(max_ratio=0.04)}, looks=LOOKS).checks[0]
    assert (late.samples, late.confidence) == (12, LOOKS[-1].confidence)
    between = verdict_of(run_data(blocks=11), {"b": bench(max_ratio=0.04)}, looks=LOOKS).checks[0]
    assert (between.samples, between.confidence) == (10, LOOKS[2].confidence)


def test_a_block_after_the_look_that_decided_must_still_be_sound() -> None:
    broken = updating(of("gguf-q4_0", pair=9), valid=False)(run_data(blocks=12))
    assert verdict_of(broken, {"b": LATENCY}, looks=LOOKS).outcome == "error"


def test_quality_is_looked_at_once_whatever_the_blocks() -> None:
    (check,) = verdict_of(run_data(), {"b": quality_budget(min=0.85)}, looks=LOOKS).checks
    assert check.confidence == 0.95
