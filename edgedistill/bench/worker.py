"""`python -m edgedistill.bench.worker`: one JSON job on stdin, one engine, one JSON result on stdout.

The process is what is measured, so it imports the standard library and the one engine, nothing else.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from time import perf_counter_ns

from edgedistill.bench.limits import apply_limits, die_with_parent, usable_cores
from edgedistill.bench.passes import InvalidRunError, run_pass
from edgedistill.bench.process_memory import reset_peak

TYPE_CHECKING = False  # as in `passes`
if TYPE_CHECKING:
    from collections.abc import Callable

    from edgedistill.bench.engine import Engine

ENGINES = {
    "llamacpp": "engine_llamacpp",
    "onnxruntime-genai": "engine_genai",
    "onnxruntime": "engine_onnxruntime",
    "torch": "engine_torch",
}


def run_job(job: dict) -> dict:
    """Apply the limits, load the engine, run the workloads; a row that must not be used has `invalid`, the reason."""
    os.environ.update(job.get("environment", {}))  # before the engine reads it
    applied = apply_limits(cores=job.get("cores"), cgroup=job.get("cgroup"))
    peak_reset = reset_peak()
    began = perf_counter_ns()
    module = importlib.import_module(f"edgedistill.bench.{ENGINES[job['engine']]}")
    wanted = {name: job[name] for name in ("threads", "context", "batch")} | job.get("options", {})
    # Held in a list, so that a pass that closes the engine is not left with a second reference to it.
    engines = [module.open_engine(job["model"], **wanted)]
    load_ms = (perf_counter_ns() - began) / 1e6
    name, settings = engines[0].name, engines[0].settings() | applied | {"peak_reset": peak_reset}

    def reopen() -> Engine:
        engines[0] = module.open_engine(job["model"], **wanted)
        return engines[0]

    rows = [_row(engines[0], job, workload, settings, reopen) for workload in job["workloads"]]
    if rows and rows[0]["workload"] != "memory" and "samples" in rows[0]:
        rows[0]["samples"]["load_ms"] = [load_ms]
    return {"engine": name, "settings": settings, "rows": rows}


def _row(engine: Engine, job: dict, workload: str, settings: dict, reopen: Callable[[], Engine] | None = None) -> dict:
    try:
        if workload == "memory" and not settings["peak_reset"]:
            raise InvalidRunError("the kernel does not let the peak be reset (/proc/self/clear_refs)")
        row = run_pass(workload, engine, job, reopen)
    except InvalidRunError as e:
        return {"workload": workload, "invalid": str(e)}
    return row | ({"invalid": wrong} if (wrong := _wrong_settings(job, settings)) else {})


def _wrong_settings(job: dict, settings: dict) -> str | None:
    if settings["threads"] != job["threads"]:
        return f"expected {job['threads']} threads, the engine has {settings['threads']}"
    if (backend := settings.get("backend", "cpu")) != job.get("backend", "cpu"):
        return f"expected the backend {job.get('backend', 'cpu')}, the engine runs on {backend}"
    if job.get("cores") and usable_cores() != sorted(job["cores"]):
        return f"expected cores {sorted(job['cores'])}, found {usable_cores()} after the run"
    return None


def main() -> None:
    """Read the job, run it, write the result; an error of any kind becomes the result's one sentence."""
    # What libraries print must not mix with the result.
    result_fd = os.dup(1)
    os.dup2(2, 1)
    die_with_parent()
    try:
        result = run_job(json.load(sys.stdin))
    except Exception as e:  # the subprocess edge
        result = {"error": f"{type(e).__name__}: {e}"}
    with os.fdopen(result_fd, "w") as f:
        json.dump(result, f, allow_nan=False)
    sys.stderr.flush()
    os._exit(0)  # engines' C++ teardown is not measured and must not crash a finished result


if __name__ == "__main__":
    main()
