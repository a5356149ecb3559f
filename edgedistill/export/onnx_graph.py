"""Hugging Face folder to the decoder graph that onnxruntime-genai's model builder makes of it, in a child process.

The builder's code runs on stand-ins for the weights (see `onnx_builder`), and the graph's matrices are read from the
model's own file when they are written. A model that cannot be traced so is built whole: slower, with more memory, and
with matrices whose names in the model are not known.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
from onnx.external_data_helper import load_external_data_for_tensor

from edgedistill.core.errors import MissingError, StageError
from edgedistill.core.files import read_json
from edgedistill.export.weights import stored_tensors
from edgedistill.quant.plan import HEAD
from edgedistill.runtimes.onnx_file import all_tensors

GRAPH, ORIGINS = "model.onnx", "origins.json"
# The place that external tensors of a traced graph name: the model's own weights.
WEIGHTS = "weights"
# The builder's exit status where its graph could not be traced to the weights.
UNTRACEABLE = 3
# What the builder's tokenizer writer notes about how it was called, not about the tokenizer.
CALL_NOTES = ("is_local", "local_files_only", "name_or_path")
_BUILDER = "edgedistill.export.onnx_builder"


class Rows(Protocol):
    """A matrix that can be read by rows; `name` is what plans of grids call it."""

    @property
    def name(self) -> str: ...

    @property
    def path(self) -> Path: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self, begin: int = 0, end: int | None = None) -> np.ndarray: ...


@dataclass(frozen=True)
class Part:
    """Rows `begin` to `end` of a matrix."""

    source: Rows
    begin: int
    end: int


@dataclass(frozen=True)
class Matrix:
    """What an initializer is made of: parts, one under the other, stored as they are or `transposed`."""

    parts: tuple[Part, ...]
    transposed: bool


@dataclass(frozen=True)
class _Columns:
    """The rows of a matrix that a file holds transposed, as `[columns, rows]` float32."""

    name: str
    shape: tuple[int, ...]
    path: Path
    start: int

    def read(self, begin: int = 0, end: int | None = None) -> np.ndarray:
        stored = np.memmap(self.path, dtype="<f4", mode="r", offset=self.start, shape=self.shape[::-1])
        return np.array(stored[:, begin:end].T)


def build_graph(*, model: Path, out: Path, threads: int) -> None:
    """Fill the folder `out` with the builder's float32 CPU graph of `model` and all that belongs beside it.

    The builder runs offline and never runs code from the model's folder.

    Raises:
        MissingError: the builder or a package that it needs is not installed.
        StageError: the builder failed; the message ends with the last telling line it printed.
    """
    done = _run(model, out, threads=threads)
    if done.returncode == UNTRACEABLE:
        shutil.rmtree(out, ignore_errors=True)
        done = _run(model, out, "--whole", threads=threads)
    if done.returncode == 0 and (out / GRAPH).is_file():
        return
    reason = telling_line(done.stdout)
    if "No module named" in reason:
        raise MissingError(f"the ONNX model builder needs a package that is absent ({reason}); install it with pip")
    how = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
    raise StageError(f"the ONNX model builder ended with {how} on {model}: {reason}")


def _run(model: Path, out: Path, *flags: str, threads: int) -> subprocess.CompletedProcess[str]:
    out.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
        "PYTHONIOENCODING": "utf-8",
    }
    return subprocess.run(
        [sys.executable, "-P", "-m", _BUILDER, str(model.resolve()), str(out.resolve()), *flags],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )


def is_traced(folder: Path) -> bool:
    """Whether `folder`, filled by `build_graph`, tells which stored tensors its matrices are."""
    return (folder / ORIGINS).is_file()


def load_graph(folder: Path, *, model: Path) -> tuple[onnx.ModelProto, dict[str, Matrix]]:
    """The graph in `folder`, filled by `build_graph`, and by initializer the rows of `model` that its matrices are.

    Of a model built whole the matrices are what it multiplies by, under the names that the graph has; one that tokens
    are looked up in too, or that the logits come from, is the head.
    """
    made = onnx.load_model(str(folder / GRAPH), load_external_data=False)
    if is_traced(folder):
        stored = stored_tensors(model)
        return made, {
            name: Matrix(tuple(Part(stored[n], begin, end) for n, begin, end in found["parts"]), found["transposed"])
            for name, found in read_json(folder / ORIGINS).items()
        }
    outputs = {o.name for o in made.graph.output}
    looked_up = {n.input[0] for n in made.graph.node if n.op_type == "Gather"}
    views = {n.input[0] for n in made.graph.node if n.op_type == "Transpose" and n.output[0] in looked_up}
    multiplied = {n.input[1]: n.output[0] for n in made.graph.node if n.op_type == "MatMul"}
    found = {}
    for tensor in all_tensors(made.graph):
        if not tensor.external_data:
            continue
        if tensor.name not in multiplied or tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) != 2:
            load_external_data_for_tensor(tensor, str(folder))
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        name = HEAD if tensor.name in views or multiplied[tensor.name] in outputs else tensor.name
        rows = _Columns(name, tuple(tensor.dims)[::-1], folder / place["location"], int(place.get("offset", 0)))
        found[tensor.name] = Matrix((Part(rows, 0, rows.shape[0]),), transposed=True)
    return made, found


def telling_line(output: str) -> str:
    """The last line of a failed program's output that names an error, else its last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    named = [line for line in lines if line.split(":")[0].endswith(("Error", "Exception", "error"))]
    return (named or lines or ["it printed nothing"])[-1][:300]
