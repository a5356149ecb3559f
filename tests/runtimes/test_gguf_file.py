"""The GGUF reader: whole files parse, every kind of damage is one InputError, never a crash or a huge allocation."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from gguf import GGUFReader
from gguf.constants import GGML_QUANT_SIZES

from edgedistill.core.errors import InputError
from edgedistill.runtimes.gguf_file import TENSOR_TYPES, read_gguf
from edgedistill.runtimes.gguf_model import check_gguf


def test_type_table_is_ggufs():
    assert {k.value: (k.name, *v) for k, v in GGML_QUANT_SIZES.items()} == TENSOR_TYPES


def test_reads_what_gguf_py_reads(tiny_gguf: Path):
    ours, theirs = read_gguf(tiny_gguf), GGUFReader(tiny_gguf)
    assert {n: (t.start, t.size, t.shape) for n, t in ours.tensors.items()} == {
        t.name: (t.data_offset, t.n_bytes, tuple(t.shape.tolist())) for t in theirs.tensors
    }
    expected = {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert ours.fields == expected


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf(
    *, version: int = 3, fields: tuple[bytes, ...] = (), tensors: tuple[bytes, ...] = (), data: bytes = b""
) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(fields)) + b"".join(fields + tensors)
    return head + b"\0" * (-len(head) % 32) + data


def field(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, *, shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    places = struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    return text(name) + places


DATA = bytes(128)
DAMAGE = {
    "empty": (b"", "does not begin with 'GGUF'"),
    "magic": (b"GGML" + gguf()[4:], "does not begin with 'GGUF'"),
    "version": (gguf(version=9), "version is 9"),
    "cut": (gguf()[:14], "ends at byte 14 inside the tensor count"),
    "tensor count": (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "the tensor count, more than"),
    "field count": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "the metadata count, more than"),
    "key length": (gguf(fields=(struct.pack("<Q", 1 << 62) + bytes(32),)), "the length of a metadata key, more"),
    "value type": (gguf(fields=(field("a", 77, bytes(8)),)), "value type 77 of 'a'"),
    "array type": (gguf(fields=(field("a", 9, struct.pack("<IQ", 9, 1)),)), "unknown type 9"),
    "array count": (gguf(fields=(field("a", 9, struct.pack("<IQ", 4, 1 << 61)),)), "the array 'a', more than"),
    "not UTF-8": (gguf(fields=(field("a", 8, struct.pack("<Q", 1) + b"\xff"),)), "the text of 'a' is not UTF-8"),
    "key twice": (gguf(fields=(field("a", 7, b"\1"), field("a", 7, b"\1"))), "'a' stands twice"),
    "alignment": (gguf(fields=(field("general.alignment", 4, struct.pack("<I", 7)),)), "alignment is 7"),
    "dimensions": (gguf(tensors=(tensor("t", shape=(1,) * 5),), data=DATA), "5 dimensions"),
    "tensor type": (gguf(tensors=(tensor("t", kind=99),), data=DATA), "unknown type 99"),
    "blocks": (gguf(tensors=(tensor("t", shape=(31,), kind=8),), data=DATA), "does not fit Q8_0"),
    "no rows": (gguf(tensors=(tensor("t", shape=(32, 0)),), data=DATA), "of shape (32, 0)"),
    "beyond end": (gguf(tensors=(tensor("t"),), data=DATA[:96]), "ends at byte 192, the file at 160"),
    "huge shape": (gguf(tensors=(tensor("t", shape=(1 << 62, 1 << 62)),), data=DATA), "the tensor 't' ends at byte"),
    "unaligned": (gguf(tensors=(tensor("t", offset=4),), data=DATA + DATA), "unaligned"),
    "overlap": (gguf(tensors=(tensor("t"), tensor("u", offset=64)), data=DATA + DATA), "inside another"),
    "tensor twice": (gguf(tensors=(tensor("t"), tensor("t", offset=128)), data=DATA + DATA), "'t' stands twice"),
    "no tensors": (gguf(), "without tensors"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_each_damage_is_one_sentence(name: str, tmp_path: Path):
    raw, message = DAMAGE[name]
    path = tmp_path / "x.gguf"
    path.write_bytes(raw)
    with pytest.raises(InputError) as caught:
        check_gguf(path)
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_absent(tmp_path: Path):
    with pytest.raises(InputError, match="found nothing there"):
        check_gguf(tmp_path / "x.gguf")


def test_random_damage_never_crashes(tiny_gguf: Path, tmp_path: Path):
    whole, draw, path = tiny_gguf.read_bytes(), random.Random(1), tmp_path / "x.gguf"
    begin = min(t.start for t in read_gguf(tiny_gguf).tensors.values())
    refused = 0
    for _ in range(300):
        raw = bytearray(whole)
        if draw.random() < 0.3:
            raw = raw[: draw.randrange(len(raw))]
        else:
            for _ in range(draw.randint(1, 4)):
                raw[draw.randrange(begin)] = draw.randrange(256)
        path.write_bytes(raw)
        try:
            check_gguf(path)
        except InputError:
            refused += 1
    assert refused > 100
