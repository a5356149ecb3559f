"""llama.cpp's own `llama-bench` on a phone: its command line, and its JSON lines as our samples.

Tool and fields: https://github.com/ggml-org/llama.cpp/blob/master/tools/llama-bench/README.md. Prefill is its `pp`
test; decode its `tg` test at the depth of the prompt, so that it reads the same KV cache as after that prefill.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from edgedistill.core.errors import StageError

KEPT = (
    "build_commit",
    "build_number",
    "cpu_info",
    "backends",
    "model_type",
    "type_k",
    "type_v",
    "flash_attn",
    "use_mmap",
)


def bench_command(
    engine: str, *, model: str, threads: int, batch: int, prompt: int, generate: int, depth: int, repetitions: int
) -> str:
    """One test of `prompt` tokens, or of `generate` tokens after `depth`, on the CPU; every word quoted."""
    options: dict[str, object] = {
        "-m": model,
        "-t": threads,
        "-b": batch,
        "-ub": batch,
        "-p": prompt,
        "-n": generate,
        "-d": depth,
        "-r": repetitions,
        "-ngl": 0,
        "-o": "jsonl",
    }
    return " ".join(shlex.quote(str(word)) for word in (engine, *(w for pair in options.items() for w in pair)))


def read_rows(text: str) -> list[dict[str, Any]]:
    """llama-bench's rows of `-o jsonl`; other lines are what its backends print.

    Raises:
        StageError: there is none.
    """
    rows = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "n_prompt" in row and "samples_ts" in row:
            rows.append(row)
    if not rows:
        raise StageError("expected JSON rows from llama-bench, found none; use one that knows -o jsonl and -d")
    return rows


def speeds_of(
    rows: Sequence[Mapping[str, Any]], *, prompt: int, generate: int, threads: int, repetitions: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Samples of prefill and decode in tokens/s, and the settings that the rows report with the raw times.

    Raises:
        StageError: a test is missing, or ran with other settings than asked, or gave no finite speeds.
    """
    wanted = {"prefill_tokens_per_s": (prompt, 0, 0), "decode_tokens_per_s": (0, generate, prompt)}
    samples: dict[str, list[float]] = {}
    settings: dict[str, Any] = {}
    for metric, shape in wanted.items():
        row = next((r for r in rows if (r["n_prompt"], r["n_gen"], r.get("n_depth", 0)) == shape), None)
        if row is None:
            raise StageError(
                f"expected llama-bench's row of {shape[0]} + {shape[1]} tokens at depth {shape[2]}, found none"
            )
        if row.get("n_threads") != threads:
            raise StageError(f"expected {threads} threads, llama-bench had {row.get('n_threads')}")
        if row.get("n_gpu_layers", 0) > 0:
            raise StageError(f"expected the CPU alone, llama-bench had {row['n_gpu_layers']} layers elsewhere")
        speeds = [float(value) for value in row["samples_ts"]]
        if len(speeds) != repetitions or not all(math.isfinite(value) and value > 0 for value in speeds):
            raise StageError(f"expected {repetitions} speeds above 0, llama-bench gave {row['samples_ts']}")
        samples[metric] = speeds
        settings[f"{metric.partition('_')[0]}_samples_ns"] = row.get("samples_ns", [])
        settings |= {name: row[name] for name in KEPT if name in row}
    return samples, settings
