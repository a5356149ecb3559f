"""The worker: what it reports, what it imports, what it limits, and what makes its rows invalid."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench_cgroup import require_memory_group

from edgedistill.bench import block
from edgedistill.bench.block import run_block
from edgedistill.bench.limits import usable_cores
from edgedistill.bench.process_memory import memory_now

Job = Callable[..., dict[str, Any]]
MIB = 2**20


def test_llamacpp_measures_prompts_and_shape(job: Job, tiny_gguf: Path, torch_answers: list[list[int]]) -> None:
    result = run_block(
        job("llamacpp", tiny_gguf, workloads=["prompts", "shape"], expected=[a[:3] for a in torch_answers])
    )
    prompts, shape = result["rows"]
    assert "invalid" not in prompts and "invalid" not in shape
    assert [len(tokens) for tokens in prompts["outputs"]] == [6, 6]
    assert {name: len(values) for name, values in prompts["samples"].items()} == {
        "ttft_ms": 2, "response_ms": 2, "requests_per_hour": 1, "load_ms": 1,
    }  # fmt: skip
    first, whole = prompts["samples"]["ttft_ms"], prompts["samples"]["response_ms"]
    assert all(0 < a < b for a, b in zip(first, whole, strict=True))
    assert prompts["samples"]["requests_per_hour"][0] == pytest.approx(3600e3 / (sum(whole) / 2))
    assert {name: len(values) for name, values in shape["samples"].items()} == {
        "prefill_tokens_per_s": 2, "decode_tokens_per_s": 2, "tpot_ms": 2 * 7,
    }  # fmt: skip
    assert shape["samples"]["decode_tokens_per_s"][0] == pytest.approx(7e3 / sum(shape["samples"]["tpot_ms"][:7]))
    assert len(shape["outputs"][0]) == 8
    assert result["settings"]["threads"] == 1 and result["settings"]["repack"] is True


def test_genai_ends_at_its_end_id_and_decodes_past_it_when_told(
    job: Job, tiny_onnx: Path, torch_answers: list[list[int]], tmp_path: Path
) -> None:
    end = next(token for token in torch_answers[0][1:] if token != torch_answers[0][0])
    length = torch_answers[0].index(end) + 1
    folder = tmp_path / "onnx"
    folder.mkdir()
    for path in tiny_onnx.iterdir():
        (folder / path.name).symlink_to(path)
    config = json.loads((tiny_onnx / "genai_config.json").read_text())
    config["model"]["eos_token_id"] = [end]
    (folder / "genai_config.json").unlink()
    (folder / "genai_config.json").write_text(json.dumps(config))
    shape = {"ids": job("torch", folder)["prompts"][0], "decode": 8, "warmup": 0, "repetitions": 2}
    result = run_block(
        job("onnxruntime-genai", folder, workloads=["prompts", "shape"], end_ids=[end], shape=shape, threads=2)
    )
    prompts, fixed = result["rows"]
    assert "invalid" not in prompts and "invalid" not in fixed
    assert prompts["outputs"][0] == torch_answers[0][:length]
    assert len(fixed["outputs"][0]) == 8
    assert result["settings"]["threads"] == 2 and result["engine"] == "onnxruntime-genai"


def test_memory_is_the_workers_own_and_not_its_parents(job: Job, tiny_gguf: Path) -> None:
    ballast = bytearray(300 * MIB)
    ballast[::4096] = b"x" * len(ballast[::4096])
    result = run_block(job("llamacpp", tiny_gguf, workloads=["memory"]))
    samples = result["rows"][0]["samples"]
    (peak,), (anonymous,), (mapped,) = (samples[f"peak_{n}_bytes"] for n in ("rss", "anon", "file"))
    assert 10 * MIB < peak < 80 * MIB < memory_now()["anon_bytes"]
    assert max(anonymous, mapped) < peak <= anonymous + mapped + MIB
    assert result["rows"][0]["load_peak_bytes"] <= peak
    del ballast


def test_the_peak_is_the_kernels_high_water_mark() -> None:
    code = """
import json
from edgedistill.bench.process_memory import memory_now, reset_peak
spike = bytearray(96 << 20); spike[::4096] = b"x" * len(spike[::4096]); del spike
reset = reset_peak()
before = memory_now()
block = bytearray(64 << 20); block[::4096] = b"x" * len(block[::4096]); del block
after = memory_now()
print(json.dumps([reset, before, after]))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    reset, before, after = json.loads(out)
    assert reset
    assert before["peak_rss_bytes"] - before["rss_bytes"] < MIB
    assert abs(after["peak_rss_bytes"] - before["rss_bytes"] - 64 * MIB) < MIB
    assert after["rss_bytes"] - before["rss_bytes"] < 2 * MIB


def test_the_worker_imports_only_what_it_needs(job: Job, tiny_gguf: Path, tiny_onnx: Path) -> None:
    code = (
        "import json, os, sys; from edgedistill.bench.worker import run_job; run_job(json.load(sys.stdin)); "
        "print(json.dumps(sorted(sys.modules)), flush=True); os._exit(0)"
    )
    for engine, model in (("llamacpp", tiny_gguf), ("onnxruntime-genai", tiny_onnx)):
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(job(engine, model)),
            capture_output=True,
            text=True,
            check=True,
        )
        loaded = set(json.loads(done.stdout))
        assert {"edgedistill.bench.passes", "edgedistill.bench.limits"} <= loaded
        heavy = {"numpy", "pydantic", "psutil", "torch", "transformers", "llama_cpp", "onnxruntime_genai", "typing"}
        assert not heavy & loaded


def test_limits_are_applied_and_read_back(job: Job, tiny_gguf: Path) -> None:
    require_memory_group()
    core = usable_cores()[:1]
    result = run_block(job("llamacpp", tiny_gguf, cores=core), memory_bytes=256 * MIB)
    assert "invalid" not in result["rows"][0]
    assert result["settings"]["cores"] == core
    assert result["settings"]["memory_limit_bytes"] == 256 * MIB
    assert MIB < result["settings"]["group_peak_bytes"] < 256 * MIB


def test_a_model_that_does_not_fit_is_an_invalid_row(job: Job, tiny_gguf: Path) -> None:
    require_memory_group()
    result = run_block(job("llamacpp", tiny_gguf, workloads=["prompts", "shape"]), memory_bytes=2 * MIB)
    for row in result["rows"]:
        assert row["invalid"] == f"the kernel killed the worker at its memory limit of {2 * MIB} bytes"
        assert row["fits"] is False


def test_without_a_control_group_the_peak_itself_is_judged(
    job: Job, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgedistill.bench.cgroup._parents", lambda: iter(()))
    monkeypatch.setattr("edgedistill.bench.scope.BOOTED", Path("/nowhere"))
    result = run_block(job("llamacpp", tiny_gguf, workloads=["memory"]), memory_bytes=2 * MIB)
    assert result["settings"]["memory_limit_missing"] == "this kernel has no memory control group"
    assert result["settings"]["memory_limit_bytes"] is None
    assert result["rows"][0]["fits"] is False
    assert f"the target has {2 * MIB}" in result["rows"][0]["invalid"]


def test_unexpected_first_tokens_invalidate(job: Job, tiny_gguf: Path) -> None:
    wrong = job("llamacpp", tiny_gguf, expected=[[0, 0], []])
    (row,) = run_block(wrong)["rows"]
    assert row["invalid"].startswith("0 of 1 answers begin as expected; one begins [")
    assert row["invalid"].endswith("expected [0, 0]")
    assert "samples" not in row
    assert "invalid" not in run_block(wrong | {"expected_share": 0.0})["rows"][0]


def test_a_damaged_model_is_an_invalid_row(job: Job, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + b"\0" * 64)
    (row,) = run_block(job("llamacpp", path))["rows"]
    assert row["invalid"].startswith(f"RuntimeError: llama.cpp cannot load {path}: ")
    (row,) = run_block(job("onnxruntime-genai", tmp_path))["rows"]
    assert row["invalid"].startswith("RuntimeError: OgaCreateConfig: ")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "the worker was killed by SIGKILL"),
        ("import sys; sys.exit('no luck')", "the worker ended with exit code 1; it said: no luck"),
        ("import sys; print('hello'); print('odd', file=sys.stderr)", "the worker wrote no result; it said: odd"),
        ("import time; time.sleep(60)", "the worker gave no result within 0.5 s"),
    ],
)
def test_a_worker_that_dies_leaves_rows_with_the_cause(
    job: Job, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch, code: str, reason: str
) -> None:
    monkeypatch.setattr(block, "COMMAND", (sys.executable, "-c", code))
    result = run_block(job("llamacpp", tiny_gguf, workloads=["prompts", "shape"]), timeout_s=0.5)
    assert [row["workload"] for row in result["rows"]] == ["prompts", "shape"]
    assert {row["invalid"] for row in result["rows"]} == {reason}
