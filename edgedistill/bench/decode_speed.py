"""How long models take for a token, measured side by side: what a speed budget is solved with and held against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from edgedistill.bench.block import run_block
from edgedistill.bench.limits import usable_cores
from edgedistill.bench.model_shape import shape_of
from edgedistill.bench.shapes import seeded_ids
from edgedistill.core.errors import StageError

BLOCKS = 5  # fresh processes for each model
PROMPT, DECODE, REPETITIONS = 32, 64, 2


def decode_times(paths: Sequence[Path], *, threads: int, blocks: int = BLOCKS) -> list[float]:
    """Nanoseconds for a token of each model (a GGUF file or a genai folder), its cache 32 to 96 tokens long.

    The models take turns, each time in a fresh process, so that what else the host does falls on all alike; a figure
    is the median over all tokens.

    Raises:
        StageError: a process failed, or what it measured must not be used.
    """
    jobs = [_job(path, threads=threads) for path in paths]
    times: list[list[float]] = [[] for _ in paths]
    for _ in range(blocks):
        for job, found in zip(jobs, times, strict=True):
            (row,) = run_block(job)["rows"]
            if "invalid" in row:
                raise StageError(f"the decode speed of {job['model']} could not be measured: {row['invalid']}")
            found += row["samples"]["tpot_ms"]
    return [1e6 * median(found) for found in times]


def _job(path: Path, *, threads: int) -> dict[str, Any]:
    engine = "llamacpp" if path.suffix == ".gguf" else "onnxruntime-genai"
    options = {}
    if engine == "llamacpp":
        from edgedistill.bench.llama_interface import llama_interface

        options = {"interface": llama_interface()}
    ids = seeded_ids(vocab=shape_of(engine, path).vocab, count=PROMPT)
    return {
        "engine": engine, "model": str(path.resolve()), "options": options, "workloads": ["shape"], "threads": threads,
        "cores": usable_cores()[:threads], "context": PROMPT + DECODE + 1, "batch": PROMPT, "prompts": [],
        "end_ids": [], "max_new_tokens": 1, "warmup": 0,
        "shape": {"ids": list(ids), "decode": DECODE, "warmup": 2, "repetitions": REPETITIONS},
    }  # fmt: skip
