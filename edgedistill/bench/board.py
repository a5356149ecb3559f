"""What runs on a board beside the worker: describing it, and one block with the board's state before and after.

Packed with the worker into one file (`worker_zip`); standard library only, so that a board needs Python and one engine.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import sys

from edgedistill.bench.block import run_block
from edgedistill.bench.device_state import read_state
from edgedistill.bench.limits import die_with_parent, usable_cores

PACKAGES = ("llama-cpp-python", "onnxruntime", "onnxruntime-genai", "torch", "transformers")


def main() -> None:
    """`describe` writes what the board is; `run` reads a block's job on stdin and writes its result: one JSON line."""
    mode = sys.argv[1] if len(sys.argv) > 1 else ""
    if mode not in ("describe", "run"):
        sys.exit(f"expected describe, run or worker, found {mode!r}")
    # What libraries print must not mix with the result.
    result_fd = os.dup(1)
    os.dup2(2, 1)
    result = describe() if mode == "describe" else run(json.load(sys.stdin))
    with os.fdopen(result_fd, "w") as f:
        f.write(json.dumps(result, allow_nan=False) + "\n")


def describe() -> dict:
    """Hardware, versions, cores with their highest frequency, and each engine: what it needs, or why it is missing."""
    speeds = {}
    for core, found in read_state()["cores"].items():
        speeds[int(core)] = found["max_khz"] or 0
    return {
        "hardware": {
            "cpu": _cpu_name(),
            "arch": platform.machine(),
            "cores": len(usable_cores()),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "system": platform.system(),
        },
        "kernel": platform.release(),
        "versions": _versions(),
        "speeds": {core: speeds.get(core, 0) for core in usable_cores()},
        "engines": {
            "llamacpp": _llamacpp(),
            "onnxruntime-genai": _installed("onnxruntime", "onnxruntime_genai"),
            "onnxruntime": _installed("onnxruntime"),
            "torch": _installed("torch", "transformers"),
        },
    }


def run(order: dict) -> dict:
    """The block's result as `run_block` gives it, and the board's `state` before and after."""
    die_with_parent()
    before = read_state()
    # The worker is this file again, in a fresh process.
    command = (sys.executable, sys.argv[0], "worker")
    result = run_block(order["job"], memory_bytes=order["memory_bytes"], timeout_s=order["timeout_s"], command=command)
    # At once: a core that is done forgets within milliseconds that it was slowed down.
    after = read_state()
    result["state"] = {"before": before, "after": after}
    result["settings"].setdefault("load_average_1m", round(os.getloadavg()[0], 2))
    return result


def _cpu_name() -> str:
    for path in ("/proc/device-tree/model", "/proc/cpuinfo"):
        try:
            with open(path, errors="replace") as f:
                text = f.read()
        except OSError:
            continue
        if path.endswith("model"):
            return text.strip("\0 \n")
        for line in text.splitlines():
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _versions() -> dict:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _llamacpp() -> dict:
    """The interface of the board's own bindings: structures differ from build to build."""
    if importlib.util.find_spec("llama_cpp") is None:
        return {"missing": "llama-cpp-python is not installed"}
    from edgedistill.bench.llama_interface import llama_interface

    try:
        return {"interface": llama_interface()}
    except Exception as e:  # the edge to foreign bindings: whatever they raise is the reason
        return {"missing": f"llama-cpp-python does not work ({e})"}


def _installed(*packages: str) -> dict:
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return {"missing": f"{' and '.join(absent)}{_are(absent)} not installed"} if absent else {}


def _are(names: list) -> str:
    return " is" if len(names) == 1 else " are"
