"""systemd's way to a memory limit, with a `systemd-run` that makes the group itself: no systemd runs in a container."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench_cgroup import require_memory_group

from edgedistill.bench import scope
from edgedistill.bench.block import run_block
from edgedistill.bench.cgroup import memory_group
from edgedistill.bench.scope import MemoryScope, memory_limit

MIB = 2**20
# Does what a scope does: a group with the limit, itself in it, then the command in its place.
SYSTEMD_RUN = """#!{python}
import os, sys
arguments, command = sys.argv[1:sys.argv.index("--")], sys.argv[sys.argv.index("--") + 1:]
with open({log!r}, "a") as f:
    f.write(" ".join(arguments) + "\\n")
if {refusal!r}:
    sys.exit({refusal!r})
limit = next(a.removeprefix("--property=MemoryMax=") for a in arguments if a.startswith("--property=MemoryMax="))
folder = os.path.join({parent!r}, next(a.removeprefix("--unit=") for a in arguments if a.startswith("--unit=")))
if {honest}:
    os.mkdir(folder)
    for name in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"):
        if os.path.exists(f"{{folder}}/{{name}}"):
            open(f"{{folder}}/{{name}}", "w").write(limit)
    open(f"{{folder}}/cgroup.procs", "w").write(str(os.getpid()))
os.execvp(command[0], command)
"""
Job = Callable[..., dict[str, Any]]


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts the stand-in on PATH and says that systemd runs; returns the file with the arguments of each call."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()

    def install(*, honest: bool = True, refusal: str = "", result: str = "success") -> Path:
        parent = ""
        if honest and not refusal:
            require_memory_group()
            with memory_group(MIB) as group:
                if group.version != 1:
                    pytest.skip("the stand-in makes version 1 groups")
                parent = str(group.folder.parent)
        log = tmp_path / "calls"
        script = SYSTEMD_RUN.format(python=sys.executable, log=str(log), refusal=refusal, parent=parent, honest=honest)
        for name, text in (("systemd-run", script), ("systemctl", f"#!/bin/sh\necho {result}\n")):
            (bin_folder / name).write_text(text)
            (bin_folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{bin_folder}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setattr(scope, "BOOTED", tmp_path)
        return log

    yield install
    with memory_group(MIB) as group:
        for left in group.folder.parent.glob("edgedistill-*.scope") if not isinstance(group, str) else []:
            left.rmdir()


def test_a_worker_in_a_scope_reads_its_limit_back(job: Job, tiny_gguf: Path, systemd: Callable[..., Path]) -> None:
    log = systemd()
    result = run_block(job("llamacpp", tiny_gguf), memory_bytes=256 * MIB)
    assert "invalid" not in result["rows"][0]
    assert result["settings"]["memory_limit_by"] == "systemd"
    assert result["settings"]["memory_limit_bytes"] == 256 * MIB
    assert "memory_limit_missing" not in result["settings"]
    probe, run = log.read_text().splitlines()
    user = "" if os.geteuid() == 0 else "--user "
    assert run.startswith(f"{user}--scope --quiet --unit=edgedistill-{os.getpid()}-")
    assert run.endswith(f"--property=MemoryMax={256 * MIB} --property=MemorySwapMax=0 --property=MemoryAccounting=yes")
    assert probe.partition("--unit")[0] == run.partition("--unit")[0]


def test_a_scope_s_kill_is_told_from_any_other(job: Job, tiny_gguf: Path, systemd: Callable[..., Path]) -> None:
    systemd(result="oom-kill")
    (row,) = run_block(job("llamacpp", tiny_gguf), memory_bytes=8 * MIB)["rows"]
    assert row["invalid"] == f"the kernel killed the worker at its memory limit of {8 * MIB} bytes"
    assert row["fits"] is False


def test_a_limit_that_is_not_proven_is_not_claimed(job: Job, tiny_gguf: Path, systemd: Callable[..., Path]) -> None:
    """The stand-in says yes and limits nothing: the worker reads the group it was in all along."""
    require_memory_group()
    systemd(honest=False)
    result = run_block(job("llamacpp", tiny_gguf, workloads=["memory"]), memory_bytes=2 * MIB)
    reason = result["settings"]["memory_limit_missing"]
    assert reason.startswith(f"expected {2 * MIB} bytes, the worker read ") and reason.endswith(" back")
    assert result["rows"][0]["fits"] is False


def test_a_refused_scope_leaves_the_control_group(systemd: Callable[..., Path]) -> None:
    systemd(refusal="Failed to connect to bus: No medium found")
    with memory_limit(64 * MIB) as group:
        if isinstance(group, str):
            assert group.startswith("systemd-run makes no scope (Failed to connect to bus: No medium found); ")
        else:
            assert not isinstance(group, MemoryScope) and group.limit_bytes() == 64 * MIB


def test_reasons_of_both_ways_are_kept(systemd: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    systemd(refusal="no")
    monkeypatch.setattr("edgedistill.bench.cgroup._parents", lambda: iter(()))
    with memory_limit(MIB) as group:
        assert group == "systemd-run makes no scope (no); this kernel has no memory control group"
    monkeypatch.setattr(scope.shutil, "which", lambda name: None)
    with memory_limit(MIB) as group:
        assert group == ("systemd runs this host, systemd-run is not on PATH; this kernel has no memory control group")
