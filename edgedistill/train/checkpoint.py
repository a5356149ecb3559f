"""Checkpoints of a training run: trainable weights, optimizer, random state and position; safetensors and JSON only.

`checkpoints/ARM/last/` is replaced whole; `checkpoints/ARM/best.safetensors` holds the weights of the best validation
so far. A run that goes on from `last` repeats what came after it bit for bit, so an older `best` is never mixed in.
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from edgedistill.core.errors import InputError
from edgedistill.core.files import atomic_folder, atomic_path, read_json, read_jsonl, write_json, write_jsonl
from edgedistill.runtimes.safetensors_file import check_safetensors
from edgedistill.train.shards import like, whole


@dataclass
class Position:
    """Where a run is: steps done, tokens and seconds they took, and the best validation loss so far.

    `most_tokens` is what a micro-batch was cut to when memory ran out.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_step: int = 0
    best_loss: float | None = None
    evals_since_best: int = 0
    most_tokens: int | None = None


def save_checkpoint(
    folder: Path, *, position: Position, weights: dict[str, Tensor], optimizer: torch.optim.Optimizer, main: bool
) -> None:
    """Replace `folder/last` by the present state; every process calls, and the `main` one writes."""
    weights = whole(weights)
    state = whole(
        {
            f"{index}.{name}": value
            for index, values in optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }
    )
    if not main:
        return
    with atomic_folder(folder / "last") as temporary:
        save_file(weights, temporary / "weights.safetensors")
        save_file(state | {"rng": torch.get_rng_state()}, temporary / "optimizer.safetensors")
        write_json(temporary / "position.json", asdict(position))


def load_checkpoint(folder: Path, *, weights: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> Position:
    """Copy `folder/last` into `weights` and `optimizer`; the start position if there is none.

    Raises:
        InputError: the checkpoint is damaged or belongs to another model.
    """
    last = folder / "last"
    if not last.is_dir():
        return Position()
    loaded = _load(last / "weights.safetensors", expected=weights)
    check_safetensors(last / "optimizer.safetensors")
    state = load_file(last / "optimizer.safetensors")
    try:
        position = Position(**read_json(last / "position.json"))
    except TypeError:
        raise InputError(f"{last / 'position.json'} is no checkpoint's position; delete {last} and run again") from None
    torch.set_rng_state(state.pop("rng"))
    values: dict[int, dict[str, Tensor]] = {}
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    for key, value in state.items():
        index, _, name = key.partition(".")
        moment = value.shape == trained[int(index)].shape
        values.setdefault(int(index), {})[name] = like(value, trained[int(index)]) if moment else value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": values})
    copy_weights(loaded, into=weights)
    return position


def save_best(folder: Path, weights: dict[str, Tensor], *, main: bool) -> None:
    """Keep `weights` as the best ones; every process calls, and the `main` one writes."""
    weights = whole(weights)
    if not main:
        return
    with atomic_path(folder / "best.safetensors") as temporary:
        save_file(weights, temporary)
        temporary.chmod(0o644)


def load_best(folder: Path, *, weights: dict[str, Tensor]) -> None:
    copy_weights(_load(folder / "best.safetensors", expected=weights), into=weights)


def copy_weights(source: dict[str, Tensor], *, into: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in into.items():
            tensor.copy_(like(source[name], tensor))


def keep_metrics_until(path: Path, *, arm: str, step: int) -> None:
    """Drop the rows of `arm` after `step` (they will be written again) and a last line cut off by a kill."""
    if not path.is_file():
        return
    whole = path.read_bytes()
    if whole and not whole.endswith(b"\n"):
        path.write_bytes(whole[: whole.rfind(b"\n") + 1])
    write_jsonl(path, [row for row in read_jsonl(path) if row["arm"] != arm or row["step"] <= step])


def append_metrics(path: Path, row: dict[str, object]) -> None:
    with path.open("a", encoding="utf-8") as f:
        f.write(json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n")


@contextlib.contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into an event, to stop between two steps; a second one acts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, frame: object) -> None:
        signal.signal(number, before[number])
        stop.set()

    for number in before:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _load(path: Path, *, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    if check_safetensors(path) != shapes:
        raise InputError(f"{path} belongs to another model; delete {path.parent} and run again")
    return load_file(path)
