"""GGUF files read with every count, length and offset held against the file's size, before any engine maps them.

Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from edgedistill.core.errors import InputError, shortened

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
NAME_BYTES = 64  # GGML_MAX_NAME, the closing NUL included
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d"}

# ggml type id -> (name, weights in a block, bytes in a block)
TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}


@dataclass(frozen=True)
class GgufTensor:
    """One tensor's place: `shape` is ggml's order (fastest dimension first), `start` counts from the file's begin."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    start: int
    size: int


@dataclass(frozen=True)
class GgufFile:
    """The header of a GGUF file: metadata by key and tensors by name.

    `kinds` has the value type of each key, of an array `(ARRAY, type of its values)`.
    """

    path: Path
    version: int
    fields: dict[str, Any]
    kinds: dict[str, tuple[int, ...]]
    tensors: dict[str, GgufTensor]


class _Cursor:
    """A place in a mapped file that never moves beyond its end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at, self.size = path, data, 0, len(data)

    def fail(self, what: str) -> InputError:
        return InputError(f"{self.path} is not a whole GGUF file: {shortened(what)}; fetch or write it again")

    def scalar(self, code: str, what: str) -> Any:
        width = struct.calcsize(code)
        if self.at + width > self.size:
            raise self.fail(f"it ends at byte {self.size} inside {what}")
        value = struct.unpack_from(code, self.data, self.at)[0]
        self.at += width
        return value

    def count(self, what: str, *, least: int) -> int:
        """A 64-bit count of items of at least `least` bytes each, which must fit into the rest of the file."""
        value = self.scalar("<Q", what)
        if value * least > self.size - self.at:
            raise self.fail(f"it promises {value:,} for {what}, more than its {self.size:,} bytes can hold")
        return value

    def name(self, what: str) -> str:
        """A text that engines keep as a C string: not empty, and without a NUL that would cut it."""
        text = self.text(what)
        if not text or "\0" in text:
            raise self.fail(f"{what} is {text!r}, expected a text without NUL")
        return text

    def text(self, what: str) -> str:
        length = self.count(f"the length of {what}", least=1)
        raw = self.data[self.at : self.at + length]
        self.at += length
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8") from None

    def value(self, key: str) -> tuple[Any, tuple[int, ...]]:
        """A value and its kind, see `GgufFile`."""
        kind = self.scalar("<I", f"the value type of {key!r}")
        if kind == STRING:
            return self.text(f"the text of {key!r}"), (kind,)
        if kind == ARRAY:
            inner = self.scalar("<I", f"the array type of {key!r}")
            return self.array(inner, key), (kind, inner)
        if kind not in SCALARS:
            raise self.fail(f"the value type {kind} of {key!r} is unknown")
        value = self.scalar(SCALARS[kind], f"the value of {key!r}")
        return bool(value) if kind == BOOL else value, (kind,)

    def array(self, kind: int, key: str) -> list[Any]:
        if kind in SCALARS:
            count = self.count(f"the array {key!r}", least=struct.calcsize(SCALARS[kind]))
            code = f"<{count}{SCALARS[kind][1]}"
            values = list(struct.unpack_from(code, self.data, self.at))
            self.at += struct.calcsize(code)
            return [bool(v) for v in values] if kind == BOOL else values
        if kind == STRING:
            return [self.text(f"an entry of {key!r}") for _ in range(self.count(f"the array {key!r}", least=8))]
        raise self.fail(f"the array {key!r} holds values of the unknown type {kind}")


def read_gguf(path: Path) -> GgufFile:
    """Parse a GGUF header and hold every tensor's place against the file's size; weights are not read.

    Raises:
        InputError: the file is absent, is not GGUF version 2 or 3, or any count, length, type, shape or offset
            does not fit it.
    """
    if not path.is_file():
        raise InputError(f"expected a GGUF file at {path}, found nothing there")
    with path.open("rb") as f:
        if f.read(4) != b"GGUF":
            raise InputError(f"{path} is not a GGUF file: it does not begin with 'GGUF'; fetch or write it again")
        with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(_Cursor(path, data))


def _parse(cursor: _Cursor) -> GgufFile:
    cursor.at = 4
    version = cursor.scalar("<I", "the version")
    if version not in (2, 3):
        raise cursor.fail(f"its version is {version}, expected 2 or 3")
    tensor_count = cursor.count("the tensor count", least=24)
    field_count = cursor.count("the metadata count", least=13)
    fields: dict[str, Any] = {}
    kinds: dict[str, tuple[int, ...]] = {}
    for _ in range(field_count):
        key = cursor.name("a metadata key")
        if key in fields:
            raise cursor.fail(f"the metadata key {key!r} stands twice")
        fields[key], kinds[key] = cursor.value(key)
    infos = [_tensor_info(cursor) for _ in range(tensor_count)]
    alignment = fields.get("general.alignment", 32)
    if kinds.get("general.alignment", (UINT32,)) != (UINT32,) or alignment < 1 or alignment & (alignment - 1):
        raise cursor.fail(f"its alignment is {alignment!r}, expected a power of two as uint32")
    begin = -(-cursor.at // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    end = begin
    # In the order of the file: engines refuse tensors that lie in another.
    for name, shape, type_id, offset in infos:
        tensor = GgufTensor(name, shape, type_id, begin + offset, _tensor_bytes(cursor, name, shape, type_id))
        if name in tensors:
            raise cursor.fail(f"the tensor {name!r} stands twice")
        if offset % alignment or tensor.start < end:
            raise cursor.fail(f"the tensor {name!r} begins at {tensor.start}, inside another or unaligned")
        if tensor.start - end >= alignment:
            raise cursor.fail(f"bytes {end:,} to {tensor.start:,} before the tensor {name!r} belong to none")
        end = tensor.start + tensor.size
        if end > cursor.size:
            raise cursor.fail(f"the tensor {name!r} ends at byte {end:,}, the file at {cursor.size:,}")
        tensors[name] = tensor
    return GgufFile(path=cursor.path, version=version, fields=fields, kinds=kinds, tensors=tensors)


def _tensor_info(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.name("a tensor name")
    if len(name.encode()) >= NAME_BYTES:
        raise cursor.fail(f"the tensor name {name!r} has more than {NAME_BYTES - 1} bytes")
    dimensions = cursor.scalar("<I", f"the shape of {name!r}")
    if not 1 <= dimensions <= 4:
        raise cursor.fail(f"the tensor {name!r} has {dimensions} dimensions, expected 1 to 4")
    shape = tuple(cursor.scalar("<Q", f"the shape of {name!r}") for _ in range(dimensions))
    type_id = cursor.scalar("<I", f"the type of {name!r}")
    return name, shape, type_id, cursor.scalar("<Q", f"the offset of {name!r}")


def _tensor_bytes(cursor: _Cursor, name: str, shape: tuple[int, ...], type_id: int) -> int:
    if type_id not in TENSOR_TYPES:
        raise cursor.fail(f"the tensor {name!r} has the unknown type {type_id}")
    kind, block, width = TENSOR_TYPES[type_id]
    if 0 in shape or shape[0] % block:
        raise cursor.fail(f"the tensor {name!r} of shape {shape} does not fit {kind}, whose rows are blocks of {block}")
    return prod(shape) // block * width
