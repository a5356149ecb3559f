"""The worker as one file for a board: every module of ours that it needs, found by following imports from it.

A zip application without compression (https://docs.python.org/3/library/zipapp.html): standard library, no third party.
Equal sources give equal bytes, so that its hash names it.
"""

from __future__ import annotations

import ast
import io
import zipfile
from functools import cache
from pathlib import Path

from edgedistill.bench.worker import ENGINES

ROOT = Path(__file__).resolve().parents[2]
STARTS = ("edgedistill.bench.worker", "edgedistill.bench.board")
EPOCH = (1980, 1, 1, 0, 0, 0)
OLDEST_PYTHON = (3, 10)
MAIN = f"""import sys

if sys.version_info < {OLDEST_PYTHON}:
    sys.exit("expected Python >= {".".join(map(str, OLDEST_PYTHON))}, found " + sys.version.split()[0])
if sys.argv[1:2] == ["worker"]:
    # Nothing but the worker: this process is what is measured.
    from edgedistill.bench.worker import main
else:
    from edgedistill.bench.board import main
main()
"""


@cache
def worker_zip() -> bytes:
    """The file's bytes; run it as `python3 FILE describe`, `run` or `worker`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo("__main__.py", EPOCH), MAIN)
        for path in worker_files():
            archive.writestr(zipfile.ZipInfo(path.relative_to(ROOT).as_posix(), EPOCH), path.read_bytes())
    return buffer.getvalue()


def worker_files() -> list[Path]:
    """Source files of the worker, its engines and what stands beside it on a board, packages' own files included."""
    found: set[Path] = set()
    waiting = [*STARTS, *(f"edgedistill.bench.{engine}" for engine in ENGINES.values())]
    while waiting:
        name = waiting.pop()
        path = _path_of(name)
        if path is None or path in found:
            continue
        found.add(path)
        waiting += _imports(path)
        waiting += [".".join(name.split(".")[:depth]) for depth in range(1, name.count(".") + 1)]
    return sorted(found)


def _path_of(name: str) -> Path | None:
    """The module's file, or of `package.module.name` the module's; None for what is not ours."""
    if name.split(".")[0] != "edgedistill":
        return None
    base = ROOT.joinpath(*name.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py", base.parent.with_suffix(".py")):
        if path.is_file():
            return path
    return None


def _imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names
