"""Weights of a Hugging Face folder, read one tensor at a time without a deep-learning library.

Format: https://huggingface.co/docs/safetensors (8-byte header length, JSON header, raw little-endian tensors).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from edgedistill.core.errors import InputError
from edgedistill.core.files import read_json
from edgedistill.runtimes.safetensors_file import check_weights, weight_file

READ_AT_ONCE = 1 << 22  # weights
READ_AS = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: its name, file, stored type, shape, and its first byte."""

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int

    def read(self, begin: int = 0, end: int | None = None) -> np.ndarray:
        """The tensor, or its rows `begin` to `end`, as float32, or as float16 where it is stored so."""
        kind, row = READ_AS[self.dtype], prod(self.shape[1:])
        shape = (len(range(*slice(begin, end).indices(self.shape[0]))), *self.shape[1:]) if self.shape else ()
        raw = np.fromfile(self.path, dtype=kind, count=prod(shape), offset=self.start + begin * row * kind.itemsize)
        if self.dtype == "BF16":  # the upper half of a float32
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.reshape(shape)


def stored_tensors(model: Path) -> dict[str, StoredTensor]:
    """Every tensor of `model.safetensors`, or of the shards that `model.safetensors.index.json` names.

    Raises:
        InputError: no safetensors, a damaged file, or a type other than F32, F16, BF16.
    """
    if not check_weights(model):
        raise InputError(f"expected weights in {model}, found no safetensors file; save the model as safetensors")
    index = model / "model.safetensors.index.json"
    names = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else None
    paths = sorted(model.glob("*.safetensors")) if names is None else [weight_file(model, name) for name in names]
    return {name: tensor for path in paths for name, tensor in _stored_in(path).items()}


def check_finite(model: Path) -> None:
    """Read every weight of a Hugging Face folder once, before anything is made of it.

    Raises:
        InputError: one is NaN or infinite, by tensor and row; or as `stored_tensors`.
    """
    for tensor in stored_tensors(model).values():
        step = max(1, READ_AT_ONCE // max(1, prod(tensor.shape[1:])))
        for begin in range(0, tensor.shape[0] if tensor.shape else 1, step):
            values = tensor.read(begin, begin + step) if tensor.shape else tensor.read()
            rows = ~np.isfinite(values).reshape(len(values) if tensor.shape else 1, -1).all(axis=1)
            if rows.any():
                raise InputError(
                    f"expected finite weights in {tensor.path}, found NaN or infinity in {tensor.name!r}, row "
                    f"{begin + int(rows.argmax())}; train again with a lower rate, or take an earlier checkpoint"
                )


def _stored_in(path: Path) -> dict[str, StoredTensor]:
    with path.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
        header = json.loads(f.read(length))
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if entry["dtype"] not in READ_AS:
            raise InputError(
                f"{path}: expected tensors of type {', '.join(READ_AS)}, found {name!r} of type {entry['dtype']}; "
                "save the model unquantized"
            )
    return {
        name: StoredTensor(name, path, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
    }
