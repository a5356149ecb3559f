"""llama.cpp's own converter as the oracle for GGUF."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import faults
import pytest

from edgedistill.core.files import atomic_folder, cache_dir

ORACLE = "llama-cpp-python==0.3.36"
DRIVER = Path(__file__).with_name("oracle_driver.py")
PARTS = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/gguf/")


@pytest.fixture(scope="session")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[tuple[Path, Path, str]]], None]:
    """Convert `(model, out, pre)` each with llama.cpp's own converter; skips where its source cannot be had."""
    root = cache_dir() / "oracle" / ORACLE.replace("==", "-")
    if not root.is_dir():
        fetched = tmp_path_factory.mktemp("sdist")
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", ORACLE]
        done = subprocess.run([*command, "-d", str(fetched)], capture_output=True, text=True, timeout=600)
        archives = list(fetched.glob("*.tar.gz"))
        if done.returncode or not archives:
            pytest.skip(f"the source of {ORACLE} cannot be downloaded: {done.stderr.strip()[-200:]}")
        with tarfile.open(archives[0]) as archive, atomic_folder(root) as folder:
            for member in archive.getmembers():
                relative = member.name.partition("/vendor/llama.cpp/")[2]
                if member.isfile() and relative.startswith(PARTS):
                    member.name = relative
                    archive.extract(member, folder, filter="data")

    def convert(jobs: list[tuple[Path, Path, str]]) -> None:
        lines = "".join(json.dumps([str(model), str(out), pre]) + "\n" for model, out, pre in jobs)
        done = subprocess.run(
            [sys.executable, str(DRIVER), str(root)], input=lines, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]

    return convert


@pytest.fixture(scope="session")
def family_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of every family that is exported. Their folders' names say nothing: the converter reads them."""
    from family_builders import FAMILIES, save_family

    root = tmp_path_factory.mktemp("families")
    letters = "abcdefghijklmnopqrstuvwxyz"
    return {name: save_family(root / letter, name=name) for name, letter in zip(FAMILIES, letters, strict=False)}


@pytest.fixture(scope="session")
def family_ggufs(family_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Our F16 GGUF of each."""
    from edgedistill.export.gguf import export_gguf_f16

    root = tmp_path_factory.mktemp("family-ggufs")
    for name, folder in family_folders.items():
        export_gguf_f16(model=folder, out=root / f"{name}.gguf")
    return {name: root / f"{name}.gguf" for name in family_folders}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a name, made once: `model`, `later`, and exports of both as `model-int4`, … Do not write there."""
    root = tmp_path_factory.mktemp("made")

    def get(name: str) -> Path:
        folder = root / name
        if folder.exists():
            return folder
        source, _, precision = name.partition("-")
        if not precision:
            return faults.save_model(folder) if name == "model" else faults.save_later(get("model"), folder)
        if precision in ("f16", "q4_0"):
            return faults.export_gguf(get(source), folder, precision=precision)
        graph = None if precision == "fp32" else get(f"{source}-fp32")
        return faults.export_onnx_folder(get(source), folder, precision=precision, graph=graph)

    return get
