"""What this host is and which versions run on it: the provenance of every number."""

from __future__ import annotations

import contextlib
import datetime
import functools
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from edgedistill.core.errors import InputError
from edgedistill.core.files import cache_dir, digest_of, read_json_object, write_json

PACKAGES = (
    "edgedistill",
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "onnxruntime",
    "onnxruntime-genai",
    "llama-cpp-python",
    "gguf",
    "tokenizers",
)


def now() -> str:
    """UTC time, ISO 8601 to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model() -> str:
    """The processor's name as the system gives it, else its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@functools.cache
def package_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@functools.cache
def source_commit() -> str | None:
    """Commit of the checkout the package runs from, `+` appended when it has uncommitted changes; None elsewhere."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        # Without its locks git only reads: with them it rewrites the index, and dying at that it blocks the checkout.
        changes = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(root), "status", "--porcelain", "--untracked-files=no", "--",
             ".", ":(exclude)benchmarks/results"],  # what a benchmark wrote is not what it ran
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + "+" * bool(changes)


def hardware() -> dict[str, Any]:
    """What must be equal for two measurements to be compared."""
    return {
        "cpu": cpu_model(),
        "arch": platform.machine(),
        "cores": usable_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": platform.system(),
    }


def host_id() -> str:
    """Twelve hex digits that name this hardware without naming the machine."""
    return digest_of(hardware())[:12]


def measured_once(kind: str, known_by: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
    """What `measure` finds of this host, as JSON values; kept in the cache by host, `kind` and `known_by`.

    Where nothing can be kept, or what was is damaged, it is measured again.
    """
    key = {**known_by, "host": host_id()}
    kept = cache_dir() / "measured" / kind / f"{digest_of(key)[:16]}.json"
    with contextlib.suppress(InputError, KeyError, OSError):
        return read_json_object(kept)["found"]
    found = measure()
    with contextlib.suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, {"known_by": key, "found": found})
    return found


def environment() -> dict[str, Any]:
    """Host, versions, commit and date, as every published number carries them."""
    return {
        "host_id": host_id(),
        "hardware": hardware(),
        "kernel": platform.release(),
        "versions": package_versions(),
        "commit": source_commit(),
        "date": now(),
    }
