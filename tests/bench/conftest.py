"""The tiny model in each engine's form, and jobs for a worker."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgedistill.bench.block import run_block
from edgedistill.bench.limits import usable_cores
from edgedistill.bench.llama_interface import llama_interface

PROMPTS = [[1, 70, 80, 90, 100], [1, 71, 81, 91, 101, 111, 121]]
# No token of the tiny model: answers run to their limit.
NEVER = [383]


@pytest.fixture(scope="session")
def tiny_gguf(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edgedistill.export.gguf import export_gguf_f16

    out = tmp_path_factory.mktemp("bench-gguf") / "model.gguf"
    export_gguf_f16(model=tiny_llama, out=out)
    return out


@pytest.fixture(scope="session")
def tiny_onnx(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An onnxruntime-genai folder; its configuration has the model's own end id, 2."""
    from edgedistill.export.onnx import export_onnx

    folder = tmp_path_factory.mktemp("bench-onnx") / "onnx"
    folder.mkdir()
    export_onnx(model=tiny_llama, out=folder, threads=1)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        if (tiny_llama / name).is_file():
            shutil.copy(tiny_llama / name, folder / name)
    return folder


@pytest.fixture
def job() -> Callable[..., dict[str, Any]]:
    """Builds a job on one core: two prompts of 6 new tokens, a shape of 16 + 8, two repetitions."""

    def build(engine: str, model: Path, **changed: Any) -> dict[str, Any]:
        return {
            "engine": engine,
            "model": str(model),
            "options": {"interface": llama_interface()} if engine == "llamacpp" else {},
            "workloads": ["prompts"],
            "threads": 1,
            "cores": usable_cores()[-1:],
            "context": 64,
            "batch": 32,
            "prompts": PROMPTS,
            "end_ids": NEVER,
            "max_new_tokens": 6,
            "warmup": 1,
            "shape": {"ids": list(range(60, 76)), "decode": 8, "warmup": 1, "repetitions": 2},
        } | changed

    return build


@pytest.fixture(scope="session")
def torch_answers(tiny_llama: Path) -> list[list[int]]:
    """What transformers answers to `PROMPTS`, through a worker."""
    result = run_block(
        {
            "engine": "torch", "model": str(tiny_llama), "workloads": ["prompts"], "threads": 1,
            "cores": usable_cores()[-1:], "context": 64, "batch": 32, "prompts": PROMPTS, "end_ids": NEVER,
            "max_new_tokens": 6, "warmup": 1, "shape": {},
        }
    )  # fmt: skip
    assert result["engine"] == "torch" and result["settings"]["threads"] == 1
    assert result["settings"]["dtype"] == "float32"
    row = result["rows"][0]
    assert "invalid" not in row
    return row["outputs"]
