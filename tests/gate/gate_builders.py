"""A small measured run as nouns, and the same as a folder: teacher, quantized teacher, two artifacts, two targets."""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping
from typing import Any

from edgedistill.core.measurement import Measurement
from edgedistill.core.records import EvalItem, Quality
from edgedistill.core.stats import wilson_interval
from edgedistill.gate.rundata import ModelFacts, RunData

HOST = "0123456789ab"
TARGETS = {"local-cpu": ("measured", 1.0), "mobile-class": ("constrained", 2.0)}
# format, bytes, parameters, response ms, peak bytes, right answers of 100
MODELS: dict[str, tuple[str, int, int, float, float, int]] = {
    "teacher": ("safetensors", 538_060_032, 134_515_008, 2000.0, 940e6, 98),
    "teacher-gguf-q4_0": ("gguf", 91_700_000, 134_515_008, 420.0, 230e6, 80),
    "gguf-q4_0": ("gguf", 16_000_000, 24_000_000, 80.0, 60e6, 97),
    "onnx-int4": ("onnx", 18_000_000, 24_000_000, 110.0, 90e6, 96),
}
ROLES = {"teacher": "teacher", "teacher-gguf-q4_0": "quantized teacher"}
ENGINES = {"safetensors": "torch", "gguf": "llamacpp", "onnx": "onnx"}


def digest(model: str) -> str:
    return (model.encode().hex() * 8)[:64]


def facts(model: str) -> ModelFacts:
    form, size, parameters, *_ = MODELS[model]
    return ModelFacts(
        role=ROLES.get(model, "artifact"),
        format=form,
        bytes=size,
        parameters=parameters,
        bits_per_weight=8 * size / parameters,
        digest=digest(model),
    )


def row(model: str, *, pair: int, workload: str, samples: Mapping[str, list[float]], **changed: Any) -> Measurement:
    target = changed.pop("target", "local-cpu")
    fields: dict[str, Any] = {
        "model": model,
        "engine": ENGINES[MODELS[model][0]],
        "target": target,
        "workload": workload,
        "pair": pair,
        "evidence": TARGETS[target][0],
        "valid": True,
        "samples": dict(samples),
        "settings": {"threads": 2},
        "environment": {"host_id": HOST},
        "artifact_digest": digest(model),
        "started": "2026-01-02T03:04:05+00:00",
    }
    return Measurement.model_validate(fields | changed)


def measurements(blocks: int = 6, seed: int = 0) -> list[Measurement]:
    """Rows of every model on both targets; each round has a drift of its own that all its models share."""
    rng = random.Random(seed)
    rows = []
    for target, (_, slowdown) in TARGETS.items():
        for pair in range(blocks):
            drift = slowdown * rng.uniform(0.9, 1.2)
            for model, (_, _, _, response, peak, _) in MODELS.items():
                times = [response * drift * rng.uniform(0.98, 1.02) for _ in range(4)]
                prompts = {
                    "load_ms": [response * drift],
                    "ttft_ms": [0.4 * t for t in times],
                    "response_ms": times,
                    "requests_per_hour": [3.6e6 * len(times) / sum(times)],
                }
                rate = 1e5 / (response * drift)
                shape = {
                    "tpot_ms": [1e3 / rate * rng.uniform(0.9, 1.1) for _ in range(16)],
                    "prefill_tokens_per_s": [5 * rate],
                    "decode_tokens_per_s": [rate],
                }
                memory = {"peak_rss_bytes": [peak * rng.uniform(0.99, 1.01)], "peak_file_bytes": [0.0]}
                for workload, samples in (("prompts", prompts), ("shape", shape), ("memory", memory)):
                    rows.append(row(model, pair=pair, workload=workload, samples=samples, target=target))
    return rows


def answers(right: int, *, of: int = 100, seed: int = 0, scored: int = 32, kld: float = 0.02) -> list[EvalItem]:
    """Answers; the first `scored` have logits at 20 positions each, a divergence around `kld`, and top-1 0.95 or 1."""
    rng = random.Random(seed)
    wrong = set(rng.sample(range(of), of - right))
    items = []
    for i in range(of):
        logits = {"kld_nats": kld * rng.uniform(0.5, 1.5), "top1_ratio": rng.choice((0.95, 1.0))} if i < scored else {}
        items.append(
            EvalItem(
                id=f"item-{i:03d}",
                answer="on",
                output="off" if i in wrong else "on",
                output_ids=(1, 2),
                finish="stop",
                correct=i not in wrong,
                answer_tokens=19,
                **logits,
            )
        )
    return items


def quality(model: str, items: list[EvalItem], **changed: Any) -> Quality:
    interval = wilson_interval(sum(item.correct for item in items), len(items), 0.95)
    scored = [item for item in items if item.kld_nats is not None]
    fields: dict[str, Any] = {
        "model": model,
        "items": len(items),
        "exact_match_ratio": interval.estimate,
        "exact_match_low": interval.low,
        "exact_match_high": interval.high,
        "mean_output_tokens": 12.0,
        "bits_per_byte": 1.4,
    }
    if scored:
        fields |= {
            "reference": "student",
            "kld_nats": statistics.fmean(item.kld_nats for item in scored),
            "top1_ratio": statistics.fmean(item.top1_ratio for item in scored),
            "scored_tokens": 20 * len(scored),
        }
    return Quality.model_validate(fields | changed)


def run_data(*, blocks: int = 6, seed: int = 0) -> RunData:
    items = {
        model: answers(MODELS[model][5], seed=i, scored=0 if model == "teacher" else 32)
        for i, model in enumerate(MODELS)
    }
    return RunData(
        host_id=HOST,
        models={model: facts(model) for model in MODELS},
        measurements=measurements(blocks, seed),
        items=items,
        qualities={model: quality(model, given) for model, given in items.items()},
    )
