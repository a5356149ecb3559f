"""Training in several processes through `accelerate launch`: what they get, how they report, and how they end.

The stage writes its examples and settings to `launch/` in its folder and starts `train.worker` N times. The workers'
standard input is a pipe that the stage holds open: when the stage is gone it closes, and they end.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from edgedistill.core.errors import EdgeDistillError, InputError, MissingError, StageError
from edgedistill.core.files import read_json, write_json
from edgedistill.core.runfolder import Reporter, check_launch
from edgedistill.train.data import Example

ERRORS = {error.exit_code: error for error in (InputError, StageError, MissingError)}
GRACE_S = 8  # for a last checkpoint after an interruption
ORDER = "order.json"


def launch_arm(
    launch: str, *, folder: Path, train: Sequence[Example], valid: Sequence[Example], report: Reporter, **settings: Any
) -> None:
    """`arms.train_arm` in several processes; `launch` is their number, or the path of an accelerate configuration.

    `settings` are JSON values and paths.

    Raises:
        InputError: `launch` is neither, or one of the processes says so.
        StageError: a process failed.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch", *launch_options(launch)]
    orders = folder.resolve() / "launch"
    write_order(orders, folder=folder, train=train, valid=valid, **settings)
    process = subprocess.Popen(
        [*command, "--module", "edgedistill.train.worker", str(orders)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | _device(),
    )
    try:
        error = _follow(process.stdout or (), report)
        code = process.wait()
    except BaseException:
        process.terminate()
        try:
            process.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    finally:
        shutil.rmtree(orders, ignore_errors=True)
    if error:
        raise ERRORS.get(error["exit_code"], StageError)(error["message"])
    if code:
        raise StageError(f"accelerate launch ended with exit code {code}; what its processes printed is in the log")


def launch_options(launch: str) -> list[str]:
    """What `accelerate launch` is told.

    Raises:
        InputError: neither a number of processes nor a file.
    """
    check_launch(launch)
    if not launch.isdecimal():
        return ["--config_file", launch]
    # torchrun starts them, on a CPU too: accelerate's own CPU launcher needs MPI.
    return ["--multi_gpu", "--num_processes", launch, "--num_machines", "1", "--mixed_precision", "no",
            "--dynamo_backend", "no", "--main_process_port", "0"]  # fmt: skip


def write_order(orders: Path, *, train: Sequence[Example], valid: Sequence[Example], **settings: Any) -> None:
    orders.mkdir(exist_ok=True)
    for name, examples in (("train", train), ("valid", valid)):
        save_examples(orders / f"{name}.npz", examples)
    write_json(orders / ORDER, {k: str(v.resolve()) if isinstance(v, Path) else v for k, v in settings.items()})


def read_order(orders: Path) -> dict[str, Any]:
    """The arguments of `train_arm`, but for the reporter."""
    settings = read_json(orders / ORDER)
    paths = {k: Path(settings[k]) for k in ("untrained", "folder", "teacher", "tracker_folder") if settings.get(k)}
    examples = {name: load_examples(orders / f"{name}.npz") for name in ("train", "valid")}
    return {**settings, **paths, **examples}


def save_examples(path: Path, examples: Sequence[Example]) -> None:
    """Every field as one array; of fields that are arrays themselves, their values end to end and their shapes."""
    arrays: dict[str, np.ndarray] = {"count": np.array(len(examples))}
    for name in (field.name for field in fields(Example)):
        values = [getattr(e, name) for e in examples]
        if not any(isinstance(value, np.ndarray) for value in values):
            arrays[name] = np.array(values) if None not in values else np.array([], bool)
            continue
        present = [value for value in values if value is not None]
        arrays[f"{name}.there"] = np.array([value is not None for value in values])
        arrays[f"{name}.shapes"] = np.array([value.shape for value in present])
        arrays[f"{name}.values"] = np.concatenate([value.ravel() for value in present])
    with path.open("wb") as f:
        np.savez(f, **arrays)


def load_examples(path: Path) -> list[Example]:
    with np.load(path, allow_pickle=False) as arrays:
        columns = {field.name: _column(arrays, field.name) for field in fields(Example)}
        return [Example(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]


def _column(arrays: Any, name: str) -> list[Any]:
    count = int(arrays["count"])
    if name in arrays:
        return arrays[name].tolist() if len(arrays[name]) == count else [None] * count
    shapes, values = arrays[f"{name}.shapes"], arrays[f"{name}.values"]
    ends = np.cumsum(shapes.prod(axis=1))[:-1] if len(shapes) else []
    parts = (part.reshape(shape) for part, shape in zip(np.split(values, ends), shapes, strict=True))
    return [next(parts) if there else None for there in arrays[f"{name}.there"]]


def _follow(lines: Iterable[str], report: Reporter) -> dict[str, Any] | None:
    """Forward what the first process reports; the rest goes to the log. The first error, if any."""
    error: dict[str, Any] | None = None
    for line in lines:
        event = _event(line)
        if event is None:
            sys.stdout.write(line)
            sys.stdout.flush()
        elif event["event"] == "note":
            report.note(event["message"])
        elif event["event"] == "progress":
            report.progress(event["done"], event["total"], event["unit"], **event["figures"])
        else:
            error = error or event
    return error


def _event(line: str) -> dict[str, Any] | None:
    if not line.startswith('{"event"'):
        return None
    try:
        found: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return found


def _device() -> dict[str, str]:
    import torch

    return {} if torch.cuda.is_available() else {"ACCELERATE_USE_CPU": "true"}


def as_error(error: EdgeDistillError) -> dict[str, Any]:
    return {"event": "error", "exit_code": error.exit_code, "message": str(error)}
