"""A run that meets a full disk, too little memory, damaged stages or a vanished model: one sentence, the right exit
code, and finished work kept."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_kill import RECIPE, teach

from edgedistill import stage_process
from edgedistill.core import host

# Limits are set by a process of its own: code between fork and exec may wait for ever on a lock of another thread.
LIMITED = """
import os, resource, sys
kind, size = int(sys.argv[1]), int(sys.argv[2])
if size:
    resource.setrlimit(kind, (size, size))
os.execv(sys.executable, [sys.executable, "-m", "edgedistill.cli.main", *sys.argv[3:]])
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    words = [f"turn the light {i} on in the kitchen" for i in range(16)]
    teach(shutil.copytree(tiny_llama, folder / "teacher"), words)
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": w}) + "\n" for w in words))
    (folder / "heldout.jsonl").write_text(json.dumps({"prompt": "close lock 1", "answer": "x"}) + "\n")
    (folder / "tiny.toml").write_text(RECIPE)
    return folder / "tiny.toml"


def synth(recipe: Path, runs: Path, *, kind: int = resource.RLIMIT_AS, limit: int = 0) -> tuple[int, str]:
    """Exit code, and the one line that an error is; `limit` in bytes holds for files or the address space."""
    command = [sys.executable, "-c", LIMITED, str(kind), str(limit), "synth", str(recipe), "--runs-dir", str(runs)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300)
    assert "Traceback" not in done.stderr, done.stderr
    sentences = [line for line in done.stderr.splitlines() if line.startswith("edgedistill: ")]
    assert len(sentences) == (done.returncode != 0), done.stderr
    return done.returncode, "".join(sentences)


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    assert synth(recipe, runs) == (0, "")
    return runs


def test_no_room_for_files(recipe: Path, tmp_path: Path) -> None:
    code, said = synth(recipe, tmp_path, kind=resource.RLIMIT_FSIZE, limit=12_000)
    assert code == 4 and "failed: the disk is full" in said and "free space and run again" in said, said
    whole = {path: path.stat().st_mtime_ns for path in tmp_path.glob("tiny/*/manifest.json")}
    assert whole, "no stage before the full one was kept"
    assert synth(recipe, tmp_path) == (0, "")
    assert {path: path.stat().st_mtime_ns for path in whole} == whole


def test_asking_for_the_commit_writes_nothing_into_the_checkout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A run that dies of a full disk while it asks must not leave the checkout's index locked."""
    module = tmp_path / "edgedistill" / "core" / "host.py"
    module.parent.mkdir(parents=True)
    module.write_text("x")
    author = ["-c", "user.name=a", "-c", "user.email=a@b.example"]
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "a"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    os.utime(module, (1, 1))  # what git would note in its index
    before = (tmp_path / ".git" / "index").read_bytes()
    monkeypatch.setattr(host, "__file__", str(module))
    commit = host.source_commit.__wrapped__()
    assert commit is not None and len(commit) == 40
    assert (tmp_path / ".git" / "index").read_bytes() == before


def test_a_commit_is_marked_for_changed_code_and_not_for_new_results(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module, result = tmp_path / "edgedistill" / "core" / "host.py", tmp_path / "benchmarks" / "results" / "a.json"
    for path in (module, result):
        path.parent.mkdir(parents=True)
        path.write_text("x")
    author = ["-c", "user.name=a", "-c", "user.email=a@b.example"]
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "a"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    monkeypatch.setattr(host, "__file__", str(module))
    result.write_text("y")
    assert len(host.source_commit.__wrapped__() or "") == 40
    module.write_text("y")
    assert (host.source_commit.__wrapped__() or "").endswith("+")


def test_no_room_for_the_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The stage's process tells its cause though the traceback cannot be written."""
    order = {"stage": "data", "run": str(tmp_path)}
    orders, events = os.pipe(), os.pipe()
    os.write(orders[1], json.dumps(order).encode() + b"\n")
    monkeypatch.setattr(sys, "argv", ["stage_process", str(orders[0]), str(events[1])])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model.gguf")

    monkeypatch.setattr(stage_process, "_run", full)
    monkeypatch.setattr(stage_process, "_end_with_parent", lambda orders: None)
    monkeypatch.setattr("traceback.print_exc", full)
    with pytest.raises(SystemExit):
        stage_process.main()
    with os.fdopen(events[0]) as pipe:
        said = json.loads(pipe.read())
    assert said["exit_code"] == 4 and "data failed: the disk is full, writing model.gguf" in said["message"]


def test_no_memory(recipe: Path, tmp_path: Path) -> None:
    code, said = synth(recipe, tmp_path, limit=300 << 20)
    assert code == 4 and "failed: memory ran out; free memory or lower batch_size" in said, said
    assert (tmp_path / "tiny" / "00-data" / "manifest.json").is_file()


def test_runs_folder_that_takes_nothing(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    code, said = synth(recipe, tmp_path / "file")
    assert code == 4 and "Not a directory; make room or give access" in said


@pytest.mark.parametrize(("stage", "what"), [
    ("00-data", "manifest is a folder"), ("00-data", "stage is a file"), ("00-data", "manifest damaged"),
    ("05-teacher", "file is a folder"), ("10-synth", "manifest is a folder"), ("10-synth", "stage is a file"),
])  # fmt: skip
def test_damaged_stages_are_made_again(recipe: Path, finished: Path, tmp_path: Path, stage: str, what: str) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "runs")) / "tiny" / stage
    manifest = json.loads((folder / "manifest.json").read_text())
    if what == "stage is a file":
        shutil.rmtree(folder)
        folder.write_text("x")
    elif what == "manifest damaged":
        (folder / "manifest.json").write_bytes(b'{"stage": "\xff')
    else:
        name = "manifest.json" if what == "manifest is a folder" else manifest["files"][0]["path"]
        (folder / name).unlink()
        (folder / name).mkdir()
    assert synth(recipe, tmp_path / "runs") == (0, "")
    assert json.loads((folder / "manifest.json").read_text())["output_digest"] == manifest["output_digest"]


def test_a_model_that_disappears(recipe: Path, finished: Path, tmp_path: Path) -> None:
    teacher = recipe.parent / "teacher"
    away = teacher.rename(recipe.parent / "away")
    try:
        code, said = synth(recipe, tmp_path)
        assert code == 2 and "expected a model folder" in said and "found 'teacher'" in said
        assert not (tmp_path / "tiny").exists()  # said before the first stage
    finally:
        away.rename(teacher)
    assert synth(recipe, tmp_path) == (0, "")
