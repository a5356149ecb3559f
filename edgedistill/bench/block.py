"""One block: a job to a fresh worker process, and what came of it. The parent blocks; it never polls."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from edgedistill.bench.cgroup import MemoryGroup
from edgedistill.bench.scope import MemoryScope, memory_limit

# Set for every engine alike. One malloc arena: threads of their own arenas keep freed memory from one another.
WORKER_ENVIRONMENT = {
    "GGML_NO_BACKTRACE": "1",
    "HF_HUB_OFFLINE": "1",
    "MALLOC_ARENA_MAX": "1",
    "PYTHONHASHSEED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
COMMAND = (sys.executable, "-P", "-m", "edgedistill.bench.worker")
LAST_LINES = 3


def run_block(
    job: Mapping[str, Any], *, memory_bytes: int = 0, timeout_s: float = 600.0, command: Sequence[str] = ()
) -> dict[str, Any]:
    """Run `job` in a worker of its own, limited to `memory_bytes` where the kernel lets us (0: no limit).

    Returns `engine`, `settings` and `rows`, one for each of the job's workloads in order. Whatever happens to the
    worker, every row is there; one that must not be used has `invalid`, the reason, and `fits` false if the reason is
    the target's memory. `settings` says which limits were
    applied and `memory_limit_missing` why the memory limit was not.
    """
    command = tuple(command) or COMMAND
    if not memory_bytes:
        return _run(job, group=None, timeout_s=timeout_s, command=command)
    with memory_limit(memory_bytes) as group:
        if isinstance(group, str):
            result = _run(job, group=None, timeout_s=timeout_s, command=command)
            return unlimited(result, memory_bytes, group)
        result = _run({**job, "cgroup": group.job_entry()}, group=group, timeout_s=timeout_s, command=command)
        result["settings"] |= {
            "group_peak_bytes": group.peak_bytes(),
            "swap_limited": group.swap_limited(),
            "memory_limit_by": "systemd" if isinstance(group, MemoryScope) else "cgroup",
        }
        if "memory_limit_bytes" in result["settings"]:
            found = result["settings"]["memory_limit_bytes"]
            # The kernel rounds a limit down to whole pages.
            if found is None or found > memory_bytes:
                return unlimited(result, memory_bytes, f"expected {memory_bytes} bytes, the worker read {found} back")
        return result


def worker_environment(threads: int) -> dict[str, str]:
    """The parent's environment with the worker's settings; OpenMP gets the threads that the job asks for."""
    return os.environ | WORKER_ENVIRONMENT | {"OMP_NUM_THREADS": str(threads)}


def _run(
    job: Mapping[str, Any], *, group: MemoryScope | MemoryGroup | None, timeout_s: float, command: tuple[str, ...]
) -> dict[str, Any]:
    try:
        done = subprocess.run(
            (*group.prefix, *command) if group else command,
            input=json.dumps(job),
            capture_output=True,
            text=True,
            errors="replace",
            env=worker_environment(job["threads"]),
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        return all_invalid(job, f"the worker gave no result within {timeout_s:g} s")
    if done.returncode != 0:
        if group is not None and group.kills():
            limit = group.limit_bytes()
            return all_invalid(job, f"the kernel killed the worker at its memory limit of {limit} bytes", fits=False)
        return all_invalid(job, _death(done.returncode, done.stderr))
    try:
        result = json.loads(done.stdout)
    except json.JSONDecodeError:
        return all_invalid(job, f"the worker wrote no result{_said(done.stderr)}")
    if "error" in result:
        return all_invalid(job, result["error"])
    return result


def _death(code: int, stderr: str) -> str:
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"the worker was killed by {name}{_said(stderr)}"
    return f"the worker ended with exit code {code}{_said(stderr)}"


def _said(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return f"; it said: {' | '.join(lines[-LAST_LINES:])}" if lines else ""


def unlimited(result: dict[str, Any], memory_bytes: int, reason: str) -> dict[str, Any]:
    """Without a limit nothing stops a model that does not fit: its own peak does. The reason is kept."""
    result["settings"]["memory_limit_missing"] = reason
    for row in result["rows"]:
        peak = max(row.get("samples", {}).get("peak_rss_bytes", [0]))
        if peak > memory_bytes and "invalid" not in row:
            row |= {"invalid": f"the worker took {peak:.0f} bytes, the target has {memory_bytes}", "fits": False}
    return result


def all_invalid(job: Mapping[str, Any], reason: str, *, fits: bool = True) -> dict[str, Any]:
    """A block's result when there is none: every row invalid for one reason."""
    wrong = {"invalid": reason} | ({} if fits else {"fits": False})
    rows = [{"workload": workload} | wrong for workload in job["workloads"]]
    return {"engine": job["engine"], "settings": {}, "rows": rows}
