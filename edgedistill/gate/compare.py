"""Every model of a run beside the teacher, as data: one flat row for each model on each target.

Pure: no clock, no file, no environment. A figure that cannot be told is null, and the row's `problems` say why.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from edgedistill.core.arms import compare_arms, is_further_seed
from edgedistill.core.metric import METRICS, Metric
from edgedistill.core.stats import Interval, percentile, percentile_supported
from edgedistill.gate.estimate import estimate, estimate_ratio, rows_of
from edgedistill.gate.quality import correct_of
from edgedistill.gate.rundata import EVIDENCE, ROLES, WORKLOADS, Estimate, RunData, UnmeasuredError
from edgedistill.gate.words import one_line

TEACHER = "teacher"
BENCH = tuple(metric for metric in Metric if METRICS[metric].source == "bench")
EVAL = (
    Metric.EXACT_MATCH_RATIO, Metric.ANSWER_SCORE_RATIO, Metric.BITS_PER_BYTE, Metric.KLD_NATS, Metric.TOP1_RATIO,
)  # fmt: skip
TPOT_PERCENTILES = (50, 95)


def compare(
    *, run: str, data: RunData, release: Sequence[str], targets: Sequence[str], confidence: float
) -> dict[str, Any]:
    """The comparison table as JSON values.

    Each of `rows` has the model's size and quality, its speed and memory on `target` (null for a model that was not
    measured on any), and its change against the teacher on the same target: `latency_change_pct`,
    `throughput_ratio`, `memory_change_pct`, `bytes_change_pct`, `retention_pct`. `NAME_interval` is the two-sided
    interval of NAME at `confidence`. `arms` has the table of `core.arms`, where a student was asked; a further seed has
    a part in it and no row of its own.
    """
    rows = []
    for model in sorted(_models(data), key=lambda name: _order(data, name)):
        measured = [t for t in targets if any(r.model == model and r.target == t for r in data.measurements)]
        rows += [
            _row(data, model=model, target=target, confidence=confidence, released=model in release)
            for target in measured or [None]
        ]
    return {
        "schema_version": 1,
        "run": run,
        "reference": TEACHER,
        "confidence": confidence,
        "host_id": data.host_id,
        "targets": list(targets),
        "rows": rows,
        "arms": _arms(data, confidence=confidence),
    }


def _arms(data: RunData, *, confidence: float) -> dict[str, Any] | None:
    """The table of the arms whose files and answers are what they were; None where their items differ."""
    items = {}
    for model in data.items:
        try:
            correct_of(data, model)
        except UnmeasuredError:
            continue
        items[model] = data.items[model]
    try:
        table = compare_arms(items, confidence=confidence)
    except ValueError:
        return None
    return table.model_dump(mode="json") if table else None


def _models(data: RunData) -> Iterable[str]:
    found = data.models.keys() | data.damaged.keys() | data.qualities.keys() | {r.model for r in data.measurements}
    return {name for name in found if not is_further_seed(name)}


def _order(data: RunData, model: str) -> tuple[int, int, str]:
    facts = data.models.get(model)
    return (ROLES.index(facts.role), -facts.bytes, model) if facts else (len(ROLES), 0, model)


def _row(data: RunData, *, model: str, target: str | None, confidence: float, released: bool) -> dict[str, Any]:
    facts = data.models.get(model)
    problems: dict[str, None] = {}  # in order, each once: one broken row is the reason of many missing figures
    row: dict[str, Any] = {
        "model": model,
        "role": facts.role if facts else None,
        "format": facts.format if facts else None,
        "release": released,
        "target": target,
        "parameters": facts.parameters if facts else None,
        "artifact_bytes": facts.bytes if facts else None,
        "bits_per_weight": facts.bits_per_weight if facts else None,
    }
    if model in data.damaged:
        problems[f"{model} is not as it was exported: {data.damaged[model]}"] = None

    def add(name: str, metric: Metric, *, ratio: bool = False, scale: float = 1.0, shift: float = 0.0) -> None:
        found = _told(data, problems, metric=metric, model=model, target=target, confidence=confidence, ratio=ratio)
        row[name] = scale * (found.interval.estimate + shift) if found else None
        if found and _has_width(found.interval):
            row[f"{name}_interval"] = [scale * (found.interval.low + shift), scale * (found.interval.high + shift)]

    for metric in BENCH:
        add(metric.value, metric)
    row |= _conditions(data, model=model, target=target)
    row |= _token_times(data, model=model, target=target, confidence=confidence)
    for metric in EVAL:
        add(metric.value, metric)
    quality = data.qualities.get(model)
    row["items"] = quality.items if quality else None
    row["kld_reference"] = quality.reference if quality else None
    add("latency_change_pct", Metric.RESPONSE_MS, ratio=True, scale=100, shift=-1)
    add("throughput_ratio", Metric.REQUESTS_PER_HOUR, ratio=True)
    add("memory_change_pct", Metric.PEAK_RSS_BYTES, ratio=True, scale=100, shift=-1)
    add("bytes_change_pct", Metric.ARTIFACT_BYTES, ratio=True, scale=100, shift=-1)
    add("retention_pct", Metric.EXACT_MATCH_RATIO, ratio=True, scale=100)
    return row | {"problems": [one_line(problem) for problem in problems]}


def _told(
    data: RunData,
    problems: dict[str, None],
    *,
    metric: Metric,
    model: str,
    target: str | None,
    confidence: float,
    ratio: bool,
) -> Estimate | None:
    # What was never asked for is a gap in the table; what was tried and cannot be trusted is a problem.
    if not all(_tried(data, metric, model=name, target=target) for name in {model, TEACHER if ratio else model}):
        return None
    try:
        if ratio:
            return estimate_ratio(
                data, metric=metric, model=model, against=TEACHER, target=target, confidence=confidence
            )
        return estimate(data, metric=metric, model=model, target=target, confidence=confidence)
    except UnmeasuredError as e:
        problems[str(e)] = None
        return None


def _tried(data: RunData, metric: Metric, *, model: str, target: str | None) -> bool:
    source = METRICS[metric].source
    if source == "artifact":
        return model in data.models
    if source == "bench":
        rows = [row for row in data.measurements if row.model == model and row.target == target]
        return any(metric in row.samples or not row.valid for row in rows)
    if metric is Metric.EXACT_MATCH_RATIO:
        return model in data.items or model in data.qualities
    return getattr(data.qualities.get(model), metric.value, None) is not None


def _conditions(data: RunData, *, model: str, target: str | None) -> dict[str, Any]:
    """What the figures rest on: the engine, how its setting was chosen, threads, the weakest evidence, the rounds."""
    rows = [row for row in data.measurements if row.model == model and row.target == target]
    return {
        "engine": ", ".join(sorted({row.engine for row in rows})) or None,
        "evidence": min((row.evidence for row in rows), key=EVIDENCE.index, default=None),
        "threads": _shared([row.settings.get("threads") for row in rows]),
        "choice": _shared([row.settings.get("choice") for row in rows]),
        "blocks": {w: n for w in WORKLOADS if (n := len({row.pair for row in rows if row.workload == w}))} or None,
    }


def _shared(values: list[Any]) -> Any:
    return values[0] if values and all(value == values[0] for value in values) else None


def _token_times(data: RunData, *, model: str, target: str | None, confidence: float) -> dict[str, Any]:
    """Percentiles over every token of every block; null where the samples are too few to claim one."""
    try:
        rows = rows_of(data, metric=Metric.TPOT_MS, model=model, target=target)
    except UnmeasuredError:
        rows = []
    samples = [value for row in rows for value in row.samples[Metric.TPOT_MS]]
    return {
        f"tpot_p{p}_ms": percentile(samples, p)
        if samples and percentile_supported(n=len(samples), p=p, confidence=confidence)
        else None
        for p in TPOT_PERCENTILES
    }


def _has_width(interval: Interval) -> bool:
    return interval.low != interval.high
