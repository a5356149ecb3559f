"""The benchmarks of generation see what they claim to count; and a real server of OpenAI's API, faults and all."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from scripts_outside import ROOT, script

from edgedistill.synth.journal import Failure, Journal, Reply

pytest.importorskip("openai", reason="the extra `api` is not installed")


@pytest.fixture(scope="module")
def faults() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module("generation_faults")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def ident(number: int) -> str:
    return f"{number:064x}"


def journal_with(folder: Path, rows: list[tuple[int, str]]) -> None:
    """Answers of requests, in order; for the text `fail` a failure instead."""
    journal = Journal(folder)
    for number, text in rows:
        journal.sent(ident(number), (9, 9))
        if text == "fail":
            journal.failed(ident(number), Failure("cut", "", "again"), None)
        else:
            asyncio.run(journal.answer(ident(number), Reply(text, "stop", "m", (1, 1)), ms=0))
    journal.close()


def test_what_is_repeated_lost_corrupt_or_unaccounted_is_counted(faults: ModuleType, tmp_path: Path) -> None:
    asked = {ident(i): f"text {i}" for i in range(4)}
    sound = [(0, "a0"), (1, "fail"), (1, "a1"), (2, "a2"), (3, "a3")]

    def compared(name: str, rows: list[tuple[int, str]], *, cuts: int = 1) -> dict[str, int]:
        state = faults.Proxy(0)
        for i in range(4):
            state.said[f"text {i}"].add(f"a{i}")
        for number, _ in rows:
            state.came[f"text {number}"].append(0)
        state.done = Counter(passed=len(rows) - cuts, cut=cuts)
        journal_with(tmp_path / name, rows)
        found = faults._compared(tmp_path / name, asked, state, again=0)
        return {key: found[key] for key in ("repeated", "lost", "corrupt", "unaccounted")}

    none = {"repeated": 0, "lost": 0, "corrupt": 0, "unaccounted": 0}
    assert compared("sound", sound) == none
    assert compared("twice", [*sound, (0, "a0")]) == none | {"repeated": 1}
    assert compared("lost", sound[:-1]) == none | {"lost": 1}
    assert compared("corrupt", [*sound[:-1], (3, "a2")]) == none | {"corrupt": 1}
    assert compared("unnoted", sound, cuts=2)["unaccounted"] > 0
    assert compared("invented", sound, cuts=0)["unaccounted"] > 0


def test_a_real_server_behind_faults_loses_nothing(
    faults: ModuleType, tmp_path: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("uvicorn", reason="the parts of llama-cpp-python's server are not installed")
    pytest.importorskip("starlette_context", reason="the parts of llama-cpp-python's server are not installed")
    monkeypatch.setattr(faults, "FAULTS", tuple(f for f in faults.FAULTS if f != "timeout"))
    monkeypatch.setattr(faults, "SHARE", 0.25)
    with faults._server(tiny_gguf, threads=1) as port:
        found = faults.faulty_run(tmp_path, port, requests=24)
    assert {found[name] for name in ("repeated", "lost", "corrupt", "unaccounted")} == {0}
    assert sum(found["faults"].values()) >= 3 and found["attempts"] == 24 + sum(found["faults"].values())


def test_the_headline_is_of_what_was_run() -> None:
    speed = script("benchmarks/generation_speed.py")
    rows = {"ours": [{"ms": 1.0}, {"ms": 3.0}, {"ms": 2.0}], "sdk": [{"ms": 1.5}]}
    part = {"prompts": 1_000_000, "rss_mb": 120.0}
    assert speed.headline_of({"overhead": rows}) == {"overhead_ms": 2.0, "sdk_ms": 1.5}
    assert speed.headline_of({"memory": part}) == {"rss_mb_1m": 120.0}
    assert "rss_mb_1m" not in speed.headline_of({"memory": part | {"prompts": 20}})


def test_the_whole_runner_is_measured_without_torch() -> None:
    """What 1,000,000 prompts take, at 2,000: transformers' model code alone would pass the limit."""
    pytest.importorskip("aiohttp", reason="the extra `api` is not installed")
    found = script("benchmarks/generation_speed.py").memory(prompts=2000)
    assert (found["kept"], found["rejected"], found["torch"]) == (1800, 200, False)
    assert 50 < found["rss_mb"] < 200
