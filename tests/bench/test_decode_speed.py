"""Decode times for a speed budget: of every model, from fresh processes in turn, and no figure from a failed one."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgedistill.bench import decode_speed
from edgedistill.core.errors import StageError


def test_real_models_of_both_engines_tell_a_time(tiny_gguf: Path, tiny_onnx: Path) -> None:
    times = decode_speed.decode_times([tiny_gguf, tiny_onnx], threads=1, blocks=1)
    assert len(times) == 2 and all(1e3 < ns < 1e9 for ns in times)


def test_each_model_gets_the_median_of_its_tokens_from_blocks_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    order = []

    def run_block(job: dict) -> dict:
        order.append(job["model"])
        return {"rows": [{"samples": {"tpot_ms": [len(order), 3.0, 100.0]}}]}

    monkeypatch.setattr(decode_speed, "run_block", run_block)
    monkeypatch.setattr(decode_speed, "_job", lambda path, threads: {"model": path.name, "threads": threads})
    assert decode_speed.decode_times([Path("a"), Path("b")], threads=1, blocks=3) == [3e6, 4e6]
    assert order == ["a", "b"] * 3
    monkeypatch.setattr(decode_speed, "run_block", lambda job: {"rows": [{"invalid": "it died"}]})
    with pytest.raises(StageError, match="the decode speed of a could not be measured: it died"):
        decode_speed.decode_times([Path("a")], threads=1)
