"""Safetensors files held against their own headers and sizes without reading a weight.

Specification: https://github.com/huggingface/safetensors#format (8-byte length, JSON header, data without holes).
"""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

from edgedistill.core.errors import InputError, shortened
from edgedistill.core.files import inside, once_each, read_json

DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
    "C64": 64,
}  # fmt: skip
MOST_DIMENSIONS = 64  # of torch's tensors
HEADER_LIMIT = 100_000_000


def check_safetensors(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in `path`, after its header was held against the file's size.

    Raises:
        InputError: the file is absent, truncated, longer than its header says, or its header is damaged.
    """

    def damaged(what: str) -> InputError:
        return InputError(f"{path} is not a whole safetensors file: {what}; fetch or write it again")

    if not path.is_file():
        raise InputError(f"expected safetensors at {path}, found nothing there")
    size = path.stat().st_size
    with path.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if size < 8 or length > min(size - 8, HEADER_LIMIT):
            raise damaged(f"its header wants {length:,} bytes, the file has {size:,}")
        raw = f.read(length)
    try:
        header = json.loads(raw, object_pairs_hook=once_each)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        places = [(name, *_place(entry)) for name, entry in entries.items()]
    except (UnicodeDecodeError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        raise damaged("its header is not the JSON of tensor places") from None
    end = 0
    for name, begin, stop, bits in sorted(places, key=lambda place: place[1:3]):
        if begin != end or (stop - begin) * 8 != bits:
            raise damaged(f"the place of {shortened(repr(name))} does not fit its shape or its neighbours")
        end = stop
    if 8 + length + end != size:
        raise damaged(f"its tensors end at byte {8 + length + end:,}, the file at {size:,}")
    return {name: tuple(entry["shape"]) for name, entry in entries.items()}


def _place(entry: Any) -> tuple[int, int, int]:
    """`begin`, `end` (bytes) and the bits that dtype and shape ask for."""
    begin, end = entry["data_offsets"]
    shape = entry["shape"]
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**63 for n in (begin, end, *shape)):
        raise ValueError("not sizes")
    if len(shape) > MOST_DIMENSIONS or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError("not a place")
    return begin, end, prod(shape) * DTYPE_BITS[entry["dtype"]]


def check_weights(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a Hugging Face folder: one file, or the shards that its index names.

    Raises:
        InputError: a file is damaged, a shard is absent or lies outside the folder, or the index names absent tensors.
    """
    index = folder / "model.safetensors.index.json"
    # Also what an index does not name: a library may prefer it.
    files = {path.name: check_safetensors(weight_file(folder, path.name)) for path in _weight_paths(folder)}
    if not index.is_file():
        return {name: shape for shapes in files.values() for name, shape in shapes.items()}
    content = read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise InputError(f"expected a weight_map of tensor to file in {index}, found none; fetch it again")
    shards = {name: files.get(name) or check_safetensors(weight_file(folder, name)) for name in set(places.values())}
    for tensor, shard in places.items():
        if tensor not in shards[shard]:
            said = shortened(repr(tensor), most=80)
            raise InputError(f"{index} places {said} in {shard}, which does not hold it; fetch both again")
    return {tensor: shards[shard][tensor] for tensor, shard in places.items()}


def weight_file(folder: Path, name: str) -> Path:
    """The file of a folder's weights called `name`, which must end within the folder.

    A snapshot in the Hub's cache is a folder of links into `blobs` two levels up, so there they may lead.

    Raises:
        InputError: the name or a link leaves the folder.
    """
    cache = folder.parent.parent
    if folder.parent.name == "snapshots" and (cache / "blobs").is_dir():
        return inside(cache, f"snapshots/{folder.name}/{name}")
    return inside(folder, name)


def _weight_paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))
