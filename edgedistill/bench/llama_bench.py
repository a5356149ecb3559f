"""llama-bench's rows (`-o json`, `-o jsonl`) as our measurements, and ours as llama-bench writes them.

Field names: https://github.com/ggml-org/llama.cpp/blob/master/tools/llama-bench/README.md. A test of llama-bench is
either prefill (n_prompt) or decode (n_gen), behind n_depth tokens; a row of ours has both, so it becomes two tests.
Everything that llama-bench says is kept in `settings.llama_bench`, so that a row goes back as it came.
"""

from __future__ import annotations

import datetime
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgedistill.bench.shapes import FIXED_SHAPES
from edgedistill.core.errors import InputError
from edgedistill.core.files import write_json, write_jsonl
from edgedistill.core.measurement import Measurement, Workload
from edgedistill.core.metric import Metric

NEEDED = ("model_filename", "n_prompt", "n_gen", "n_threads", "test_time", "avg_ts")
# Of a test that only we measured: llama-bench's names and defaults for what our rows do not say.
DEFAULTS: dict[str, Any] = {
    "build_commit": "unknown", "build_number": 0, "cpu_info": "", "gpu_info": "", "backends": "CPU",
    "model_filename": "", "model_type": "", "model_size": 0, "model_n_params": 0, "n_batch": 0, "n_ubatch": 0,
    "n_threads": 0, "cpu_mask": "0x0", "cpu_strict": False, "poll": 50, "type_k": "f16", "type_v": "f16",
    "n_gpu_layers": 0, "n_cpu_moe": 0, "split_mode": "layer", "main_gpu": 0, "no_kv_offload": True, "flash_attn": -1,
    "devices": "auto", "tensor_split": "0.00", "tensor_buft_overrides": "none", "load_mode": "none",
    "lazy_mode": "auto", "embeddings": False, "no_op_offload": 1, "no_host": False, "repack": True, "fit_target": 0,
    "fit_min_ctx": 0, "n_prompt": 0, "n_gen": 0, "n_depth": 0, "test_time": "", "avg_ns": 0, "stddev_ns": 0,
    "avg_ts": 0.0, "stddev_ts": 0.0, "samples_ns": [], "samples_ts": [],
}  # fmt: skip
FLASH = {"off": 0, "on": 1, "auto": -1}


def read_llama_bench(path: Path, *, target: str = "imported") -> list[Measurement]:
    """The tests of a llama-bench file as rows of `target`, each with the file's own host, never this one.

    Raises:
        InputError: the file is absent, is not what llama-bench writes, or a test lacks a field.
    """
    seen: dict[tuple[Any, ...], int] = {}
    rows = []
    for number, test in enumerate(_tests(path), start=1):
        missing = [name for name in NEEDED if name not in test]
        if missing:
            raise InputError(
                f"{path}, test {number}: expected llama-bench's {', '.join(missing)}, found none; "
                "write the file with llama-bench -o json or -o jsonl"
            )
        key = tuple(test.get(name) for name in ("model_filename", "n_prompt", "n_gen", "n_depth", "n_threads"))
        seen[key] = seen.get(key, -1) + 1
        rows.append(_row(test, pair=seen[key], target=target))
    return rows


def write_llama_bench(path: Path, rows: Iterable[Measurement]) -> int:
    """Write the speeds of `rows` as llama-bench does: one JSON array, or lines if the name ends in .jsonl.

    Returns the number of tests.

    Raises:
        InputError: no row has a speed.
    """
    tests = [test for row in rows for test in tests_of(row)]
    if not tests:
        raise InputError("expected rows with prefill or decode speeds to write for llama-bench, found none")
    if path.suffix == ".jsonl":
        return write_jsonl(path, tests)
    write_json(path, tests)
    return len(tests)


def tests_of(row: Measurement) -> list[dict[str, Any]]:
    """The llama-bench tests that a row's samples make: prefill, then decode behind it."""
    if not row.valid or row.workload == "sustained":
        return []
    prefill, decode = row.settings.get("prefill_tokens", 0), row.settings.get("decode_tokens", 0)
    came = row.settings.get("llama_bench")
    found = []
    if speeds := row.samples.get(Metric.PREFILL_TOKENS_PER_S):
        found.append(came or _test(row, speeds, n_prompt=prefill, n_gen=0, n_depth=row.settings.get("depth", 0)))
    if speeds := row.samples.get(Metric.DECODE_TOKENS_PER_S):
        # The first of our tokens belongs to prefill: N tokens are N - 1 steps behind the prompt.
        found.append(came or _test(row, speeds, n_prompt=0, n_gen=decode - 1, n_depth=prefill))
    return found


def _test(row: Measurement, speeds: Sequence[float], *, n_prompt: int, n_gen: int, n_depth: int) -> dict[str, Any]:
    times = [round(1e9 * (n_prompt + n_gen) / speed) for speed in speeds]
    settings, batch = row.settings, row.settings.get("batch", 0)
    cache = settings.get("cache_dtype", "f32" if row.engine == "torch" else "f16")
    return DEFAULTS | {
        "cpu_info": row.environment.get("hardware", {}).get("cpu", ""),
        "backends": "CPU" if row.engine == "llamacpp" else row.engine,
        "model_filename": row.model,
        "n_batch": batch,
        "n_ubatch": batch,
        "n_threads": settings.get("threads", 0),
        "type_k": cache,
        "type_v": cache,
        "flash_attn": FLASH.get(str(settings.get("flash_attention", "auto")), -1),
        "repack": bool(settings.get("repack", False)),
        "n_prompt": n_prompt,
        "n_gen": n_gen,
        "n_depth": n_depth,
        "test_time": _utc(row.started),
        "avg_ns": round(statistics.fmean(times)),
        "stddev_ns": round(_spread(times)),
        "avg_ts": statistics.fmean(speeds),
        "stddev_ts": _spread(speeds),
        "samples_ns": times,
        "samples_ts": list(speeds),
    }


def _row(test: Mapping[str, Any], *, pair: int, target: str) -> Measurement:
    prompt, generated, depth = int(test["n_prompt"]), int(test["n_gen"]), int(test.get("n_depth", 0))
    speeds = [float(speed) for speed in test.get("samples_ts") or [test["avg_ts"]]]
    broken = next((speed for speed in speeds if not (math.isfinite(speed) and speed > 0)), None)
    metric = Metric.DECODE_TOKENS_PER_S if generated else Metric.PREFILL_TOKENS_PER_S
    mixed = "llama-bench timed prefill and decode as one" if prompt and generated else None
    lengths = (
        {"prefill_tokens": depth, "decode_tokens": generated + 1}
        if generated and not prompt
        else {"prefill_tokens": prompt, "decode_tokens": generated, "depth": depth}
    )
    return Measurement(
        model=Path(str(test["model_filename"])).name.removesuffix(".gguf"),
        engine="llamacpp",
        target=target,
        workload=_workload(lengths["prefill_tokens"], lengths["decode_tokens"], depth=lengths.get("depth", 0)),
        pair=pair,
        evidence="measured",
        valid=broken is None,
        invalid_reason=None if broken is None else f"a speed of {broken}, which no measurement gives",
        not_measured=mixed,
        samples={} if mixed or broken is not None else {metric: speeds},
        settings={
            "threads": test["n_threads"],
            "batch": test.get("n_ubatch", test.get("n_batch", 0)),
            **lengths,
            "llama_bench": dict(test),
        },
        environment={"source": "llama-bench", "hardware": {"cpu": test.get("cpu_info", "")}},
        started=str(test["test_time"]),
    )


def _workload(prefill: int, decode: int, *, depth: int) -> Workload:
    """The fixed shape of these lengths; a test of prefill alone decodes nothing."""
    for name, shape in FIXED_SHAPES.items():
        if depth == 0 and shape[0] == prefill and decode in (0, shape[1]):
            return name  # type: ignore[return-value]
    return "shape"


def _tests(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"expected a llama-bench file at {path}, found none that can be read ({e})") from None
    try:
        if text.lstrip().startswith("["):
            found = json.loads(text)
        else:
            found = [json.loads(line) for line in text.splitlines() if line.strip()]
    except json.JSONDecodeError as e:
        raise InputError(f"{path} is neither JSON nor JSON lines ({e}); write it with llama-bench -o json") from None
    if not found or not all(isinstance(test, dict) for test in found):
        raise InputError(f"expected llama-bench's tests in {path}, found none; write it with llama-bench -o json")
    return found


def _utc(started: str) -> str:
    when = datetime.datetime.fromisoformat(started)
    return when.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
