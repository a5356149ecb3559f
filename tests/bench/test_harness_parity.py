"""The comparison with the engines' own tools: order, ratios, what the other side is told, and a safe unpacking."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from scripts_outside import ROOT, script

from edgedistill.bench.block import run_block
from edgedistill.bench.engine_genai import SESSION
from edgedistill.bench.limits import usable_cores

STAND_IN = """#!{python}
import json, os, sys
arguments = sys.argv[1:]
value = lambda name: arguments[arguments.index(name) + 1]
with open({log!r}, "a") as f:
    f.write(json.dumps([arguments, sorted(os.sched_getaffinity(0)), os.environ["OMP_NUM_THREADS"]]) + "\\n")
print(json.dumps([{{"n_threads": int(value("-t")), "load_mode": value("-lm"), "repack": value("--repack") == "1",
                   "samples_ts": [float(value("-p")) + 1, 5.0, 9.0]}}]))
"""


@pytest.fixture
def parity(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return script("benchmarks/harness_parity.py")


def test_sides_take_turns_and_the_ratio_is_ours_over_theirs(parity: ModuleType) -> None:
    order: list[str] = []
    speeds = iter([1.0, 2.0, 3.0])

    def ours() -> dict[str, float]:
        order.append("ours")
        return {"decode": next(speeds)}

    def theirs() -> dict[str, float]:
        order.append("theirs")
        return {"decode": 4.0}

    found = parity.rounds({"ours": ours, "theirs": theirs}, count=3)
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert parity.ratio(found, "decode", against="theirs") == 0.5


def test_llama_bench_gets_our_settings_threads_and_cores(parity: ModuleType, tmp_path: Path) -> None:
    tool, log = tmp_path / "llama-bench", tmp_path / "log"
    tool.write_text(STAND_IN.format(python=sys.executable, log=str(log)))
    tool.chmod(0o755)
    cores = usable_cores()[-1:]
    assert parity.theirs(tool, tmp_path / "m.gguf", cores=cores) == {"prefill": 9.0, "decode": 5.0}
    calls = [json.loads(line) for line in log.read_text().splitlines()]
    for arguments, pinned, threads in calls:
        assert (pinned, threads) == (cores, "1")
        for name, value in {
            "-t": "1", "-b": "512", "-ub": "512", "-lm": "none", "--repack": "1", "-fa": "auto", "-ctk": "f16",
        }.items():  # fmt: skip
            assert arguments[arguments.index(name) + 1] == value
    assert calls[0][0][-4:] == ["-p", "512", "-n", "0"]
    assert calls[1][0][-6:] == ["-p", "0", "-n", "64", "-d", "512"]


def test_our_side_is_a_worker_and_the_bare_loop_a_process(parity: ModuleType, tiny_gguf: Path, tiny_onnx: Path) -> None:
    cores = usable_cores()[-1:]
    speeds = parity.ours(parity.job("llamacpp", tiny_gguf, cores=cores, prefill=16, steps=8))
    assert speeds.keys() == {"prefill", "decode"} and min(speeds.values()) > 0
    work = parity.job("onnxruntime-genai", tiny_onnx, cores=cores, prefill=16, steps=8)
    session = parity.sessions(1)["same_options"]
    assert parity.bare(work, session=session)["decode"] > 0 < parity.ours(work)["decode"]
    assert len(parity.bare_loop({**work, "session": session})) == work["shape"]["repetitions"]


def test_the_bare_loop_gets_our_engine_s_session_options_and_its_defaults_apart(
    parity: ModuleType, job: Callable[..., dict[str, Any]], tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = parity.sessions(1)
    settings = run_block(job("onnxruntime-genai", tiny_onnx))["settings"]
    assert given["same_options"] == {name: settings[name] for name in SESSION} | {"intra_op_num_threads": 1}
    assert given["default_options"] == {"intra_op_num_threads": 1}

    overlays: list[dict[str, Any]] = []

    class Config:
        def __init__(self, folder: str) -> None:
            assert folder == str(tiny_onnx)

        def overlay(self, text: str) -> None:
            overlays.append(json.loads(text))
            raise StopIteration

    monkeypatch.setitem(sys.modules, "onnxruntime_genai", SimpleNamespace(Config=Config))
    for session in given.values():
        with pytest.raises(StopIteration):
            parity.bare_loop({"model": str(tiny_onnx), "session": session})
    assert [found["model"]["decoder"]["session_options"] for found in overlays] == list(given.values())


def test_only_llama_cpp_is_unpacked_and_nothing_outside(
    parity: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = sys.modules["llama_bench_build"]

    def packed(names: list[str]) -> Any:
        def run(*command: str) -> None:
            with tarfile.open(Path(command[-1]) / "x.tar.gz", "w:gz") as archive:
                for name in names:
                    member = tarfile.TarInfo(name)
                    member.size = 2
                    archive.addfile(member, io.BytesIO(b"ok"))
                link = tarfile.TarInfo("x/vendor/llama.cpp/link")
                link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
                archive.addfile(link)

        return run

    monkeypatch.setattr(build, "_run", packed(["x/setup.py", "x/vendor/llama.cpp/CMakeLists.txt"]))
    build._fetch("x==1", tmp_path / "source")
    assert [path.name for path in (tmp_path / "source").iterdir()] == ["CMakeLists.txt"]
    monkeypatch.setattr(build, "_run", packed(["x/vendor/llama.cpp/../../../evil"]))
    with pytest.raises(tarfile.OutsideDestinationError):
        build._fetch("x==1", tmp_path / "other")
    assert not (tmp_path / "other").exists() and not (tmp_path.parent / "evil").exists()


def test_a_tool_that_is_built_is_not_built_again(
    parity: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = sys.modules["llama_bench_build"]
    monkeypatch.setattr(build, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(build.importlib.metadata, "version", lambda name: "9.9")
    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr(build, "_run", lambda *command: ran.append(command))
    monkeypatch.setattr(build, "_fetch", lambda requirement, target: ran.append((requirement,)))
    tool = build.llama_bench()
    assert ran[0] == ("llama-cpp-python==9.9",) and "-DGGML_NATIVE=ON" in ran[1]
    assert ran[2][-4:] == ("--target", "llama-bench", "-j", "2")
    tool.parent.mkdir(parents=True)
    tool.touch()
    ran.clear()
    assert build.llama_bench() == tool and ran == []
