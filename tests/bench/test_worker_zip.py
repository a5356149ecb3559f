"""The file that goes to a board: what is in it, that it stands alone, and what it says of itself."""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgedistill.bench.worker_zip import MAIN, ROOT, worker_files, worker_zip

ENGINES = {"torch", "transformers", "tokenizers", "llama_cpp", "numpy", "onnxruntime"}


@pytest.fixture
def pyz(tmp_path: Path) -> Path:
    path = tmp_path / "worker.pyz"
    path.write_bytes(worker_zip())
    return path


def test_equal_sources_give_equal_bytes(pyz: Path) -> None:
    worker_zip.cache_clear()
    assert worker_zip() == pyz.read_bytes()
    with zipfile.ZipFile(io.BytesIO(pyz.read_bytes())) as archive:
        names = archive.namelist()
        assert archive.read("__main__.py").decode() == MAIN
    assert names == ["__main__.py", *(p.relative_to(ROOT).as_posix() for p in worker_files())]
    assert all(not name.startswith("/") and ".." not in name for name in names)
    assert len(names) < 40, "the worker grew: does it import what it does not need?"


def test_it_needs_the_standard_library_and_an_engine_alone() -> None:
    for path in worker_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            foreign = {m.split(".")[0] for m in modules} - sys.stdlib_module_names - {"edgedistill", "__future__"}
            assert foreign <= ENGINES, f"{path.name} imports {sorted(foreign - ENGINES)}"


def run(pyz: Path, *words: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *flags, str(pyz), *words], capture_output=True, text=True, cwd=pyz.parent)


def test_it_describes_a_board_with_and_without_engines(pyz: Path) -> None:
    full = json.loads(run(pyz, "describe").stdout)
    assert full["engines"]["llamacpp"]["interface"]["structures"]
    assert full["engines"]["onnxruntime-genai"] == {} and full["versions"]["llama-cpp-python"]
    assert full["hardware"]["cores"] == len(full["speeds"]) and full["hardware"]["memory_gib"] > 0
    bare = json.loads(run(pyz, "describe", flags=("-S", "-E")).stdout)
    assert {name: engine["missing"] for name, engine in bare["engines"].items()} == {
        "llamacpp": "llama-cpp-python is not installed",
        "onnxruntime-genai": "onnxruntime and onnxruntime_genai are not installed",
        "onnxruntime": "onnxruntime is not installed",
        "torch": "torch and transformers are not installed",
    }


def test_its_code_is_its_own(pyz: Path) -> None:
    """Also where edgedistill is installed, the file's modules are used."""
    code = "import runpy, sys; sys.argv = [sys.argv[1], 'nope']; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run([sys.executable, "-v", "-c", code, str(pyz)], capture_output=True, text=True)
    loaded = [line for line in done.stderr.splitlines() if "import 'edgedistill.bench.board'" in line]
    assert loaded and "zipimport" in loaded[0]
    assert done.stderr.splitlines() and "expected describe, run or worker, found 'nope'" in done.stderr


def test_its_main_is_read_by_any_python_3() -> None:
    assert ast.parse(MAIN, feature_version=(3, 4))
    old = MAIN.replace("sys.version_info", "(3, 7)")
    done = subprocess.run([sys.executable, "-c", old], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("expected Python >= 3.10, found ")
