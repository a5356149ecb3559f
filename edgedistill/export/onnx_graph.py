"""Run onnxruntime-genai's model builder in a process of its own: Hugging Face folder in, float decoder graph out."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import onnx

from edgedistill.core.errors import MissingError, StageError

_BUILDER = "edgedistill.export.onnx_families"


def build_graph(*, model: Path, out: Path, threads: int) -> None:
    """Fill the folder `out` with the builder's float32 CPU export of `model` (fused attention, KV cache, tokenizer).

    The builder runs offline, never runs code from the model's folder, and writes into a folder of its own first.

    Raises:
        MissingError: the builder or a package that it needs is not installed.
        StageError: the builder failed; the message ends with the last telling line it printed.
    """
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", _BUILDER, "-i", str(model.resolve()), "-o", str(out.resolve())]
    command += ["-p", "fp32", "-e", "cpu", "--extra_options", "hf_token=false"]
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
        "PYTHONIOENCODING": "utf-8",
    }
    with tempfile.TemporaryDirectory(prefix="edgedistill-") as scratch:
        process = subprocess.run(
            [*command, "-c", str(Path(scratch) / "cache")],
            cwd=scratch,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    if process.returncode == 0 and (out / "model.onnx").is_file():
        _name_producer(out / "model.onnx")
        return
    reason = telling_line(process.stdout)
    if "No module named" in reason:
        raise MissingError(f"the ONNX model builder needs a package that is absent ({reason}); install it with pip")
    how = f"signal {-process.returncode}" if process.returncode < 0 else f"status {process.returncode}"
    raise StageError(f"the ONNX model builder ended with {how} on {model}: {reason}")


def _name_producer(file: Path) -> None:
    """Replace the version that the builder stamps, which ends in the commit of any git checkout around the package."""
    model = onnx.load_model(str(file), load_external_data=False)
    model.producer_version = version("onnxruntime-genai")
    file.write_bytes(model.SerializeToString(deterministic=True))


def telling_line(output: str) -> str:
    """The last line of a failed program's output that names an error, else its last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    named = [line for line in lines if line.split(":")[0].endswith(("Error", "Exception", "error"))]
    return (named or lines or ["it printed nothing"])[-1][:300]
