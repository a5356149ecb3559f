"""llama-bench of the very llama.cpp that llama-cpp-python pins, built from its sdist into the cache, once."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from edgedistill.core.errors import MissingError
from edgedistill.core.files import atomic_folder, cache_dir

INSIDE = "/vendor/llama.cpp/"
# As the wheel is built: Release, shared libraries, this CPU's instructions; nothing that only other tools need.
FLAGS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "ON",
    "GGML_NATIVE": "ON",
    "LLAMA_CURL": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_SERVER": "OFF",
}


def llama_bench(*, jobs: int = 2) -> Path:
    """Path of the built tool; the first call downloads and compiles, which takes minutes.

    Raises:
        MissingError: the sdist cannot be had, or there is nothing to build it with; the last words of the tool.
    """
    root = _root()
    tool = root / "build" / "bin" / "llama-bench"
    if tool.is_file():
        return tool
    source = llama_source()
    flags = [f"-D{name}={value}" for name, value in FLAGS.items()]
    _run("cmake", "-S", str(source), "-B", str(root / "build"), *flags)
    _run("cmake", "--build", str(root / "build"), "--target", "llama-bench", "-j", str(jobs))
    return tool


def llama_source() -> Path:
    """llama.cpp's part of the sdist of the llama-cpp-python installed here; the first call downloads it.

    Raises:
        MissingError: the sdist cannot be had.
    """
    source = _root() / "source"
    if not source.is_dir():
        _fetch(f"llama-cpp-python=={importlib.metadata.version('llama-cpp-python')}", source)
    return source


def _root() -> Path:
    return cache_dir() / "llama-bench" / f"llama-cpp-python-{importlib.metadata.version('llama-cpp-python')}"


def _fetch(requirement: str, target: Path) -> None:
    """llama.cpp's part of the sdist at `target`, whole or not at all; links and paths that lead out are refused."""
    with tempfile.TemporaryDirectory() as scratch:
        _run(
            sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", requirement,
            "--dest", scratch,
        )  # fmt: skip
        archive = next(Path(scratch).glob("*.tar.gz"))
        with tarfile.open(archive) as packed, atomic_folder(target) as folder:
            for member in packed.getmembers():
                member.name = member.name.partition(INSIDE)[2]
                if member.isfile() and member.name:
                    packed.extract(member, folder, filter="data")


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, preexec_fn=lambda: os.nice(15))
    except FileNotFoundError:
        raise MissingError(f"expected {command[0]}, found none; install it to build llama-bench") from None
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise MissingError(f"{' '.join(command[:4])} failed ({' '.join(last)}); llama-bench cannot be built")
