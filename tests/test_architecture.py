"""The rules of the house, held against the source: who imports whom, how long files are, what carries a docstring."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "edgedistill"
FILES = sorted(PACKAGE.rglob("*.py"))
STAGE_PACKAGES = {"synth", "train", "export", "evals", "bench", "gate"}
# What a package may import of ours besides itself; the two top-level files stand under their own names.
MAY_IMPORT = {
    "core": set[str](),
    "quant": {"core"},
    "runtimes": {"core", "quant"},
    **{package: {"core", "quant", "runtimes"} for package in STAGE_PACKAGES},
    "stage_process": {"core"},
    "stages": {"core"},
    "plan": {"core", "stage_process", "stages"},
    "cli": {"core", "plan"},
}
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
BANNED = set(CONFIG["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-module-level-imports"])
LONGEST_FILE = 400
LONGEST_COMMAND = 15


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def package_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0] if parts[0] != "__init__" else ""


def imports(tree: ast.AST) -> list[str]:
    """Dotted names of every import at any depth; `from a import b` counts as `a.b`."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_there_is_a_house() -> None:
    assert len(FILES) > 50
    assert {package_of(p) for p in FILES} - {""} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_follow_the_order_of_the_house(path: Path) -> None:
    package = package_of(path)
    ours = {name.split(".")[1] for name in imports(parse(path)) if name.startswith("edgedistill.")}
    assert ours <= MAY_IMPORT.get(package, set()) | {package}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_are_short_and_say_what_they_are_for(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_FILE
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_docstrings_begin_with_one_line(path: Path) -> None:
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and (text := ast.get_docstring(node)):
            first, *rest = text.splitlines()
            assert first.strip() and (not rest or not rest[0].strip()), f"{node.name}: {text[:80]}"


def test_long_public_functions_have_a_docstring() -> None:
    """A public function of more than six lines says what it is for; shorter ones may speak for themselves."""
    missing = []
    for path in FILES:
        for node in parse(path).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                lines = (node.end_lineno or 0) - node.lineno
                if lines > 6 and not ast.get_docstring(node) and not node.decorator_list:
                    missing.append(f"{name_of(path)}:{node.lineno} {node.name}")
    assert not missing


def test_only_stages_see_the_recipe() -> None:
    allowed = {PACKAGE / f"{name}.py" for name in ("plan", "stages", "stage_process")} | set(
        (PACKAGE / "core").glob("*.py")
    )
    readers = {p for p in FILES if "edgedistill.core.recipe.Recipe" in imports(parse(p))}
    assert {name_of(p) for p in readers - allowed if p.name != "stage.py"} == set()
    assert any(p.name == "stage.py" for p in readers)


def test_the_pure_files_have_no_clock_no_file_and_no_environment() -> None:
    impure = {"os", "time", "datetime", "pathlib", "subprocess", "io", "shutil", "socket", "tempfile"}
    pure = ("check", "estimate", "guard", "previous", "quality", "rundata", "suggest")
    for path in (
        *(PACKAGE / "core" / f"{n}.py" for n in ("stats", "sequential", "crossed", "arms")),
        *(PACKAGE / "gate" / f"{n}.py" for n in pure),
    ):
        assert not {name.split(".")[0] for name in imports(parse(path))} & impure
        calls = [n.func.id for n in ast.walk(parse(path)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
        assert "open" not in calls


def test_commands_are_short() -> None:
    commands = {}
    for node in ast.walk(parse(PACKAGE / "cli" / "main.py")):
        if isinstance(node, ast.FunctionDef) and node.decorator_list:
            commands[node.name] = (node.end_lineno or 0) - node.lineno + 1
    assert len(commands) >= 13
    assert {name: lines for name, lines in commands.items() if lines > LONGEST_COMMAND} == {}


def test_only_the_command_line_prints() -> None:
    speakers = set()
    for path in FILES:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                speakers.add(name_of(path))
    # A benchmark's child process answers its parent with one line on stdout.
    assert {s for s in speakers if not s.startswith(("edgedistill/cli/", "edgedistill/bench/"))} == set()


def test_the_map_of_the_heavy_code_is_true() -> None:
    ignores = CONFIG["tool"]["ruff"]["lint"]["per-file-ignores"]
    for name in ignores:
        if "*" in name:
            continue
        assert (ROOT / name).is_file(), f"{name} is not there"
        heavy = {n.split(".")[0] for node in parse(ROOT / name).body for n in imports_of(node)} & BANNED
        assert heavy, f"{name} imports nothing heavy at module level"
        assert not name.endswith("stage.py") and name.split("/")[1] not in ("core", "gate", "cli")


def imports_of(node: ast.stmt) -> list[str]:
    return imports(node) if isinstance(node, ast.Import | ast.ImportFrom) else []


def test_no_pickle_and_no_foreign_code() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert "import pickle" not in text and "torch.load" not in text, name_of(path)
        assert "trust_remote_code=True" not in text, name_of(path)


def test_the_light_side_loads_no_ml_library() -> None:
    modules = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in FILES if p.name == "stage.py"]
    assert len(modules) == len(STAGE_PACKAGES)
    modules += ["edgedistill.cli.main", "edgedistill.cli.follow", "edgedistill.plan", "edgedistill.gate.check"]
    code = f"import sys, {', '.join(modules)}; print([m for m in {sorted(BANNED)} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_source_names_no_machine_and_no_registry() -> None:
    for path in [*FILES, *ROOT.glob("scripts/*"), *ROOT.glob("*.md")]:
        text = path.read_text(encoding="utf-8")
        for word in ("/work/", "/opt/", "pypi.org", "files.pythonhosted"):
            assert word not in text, f"{name_of(path)} has {word}"
