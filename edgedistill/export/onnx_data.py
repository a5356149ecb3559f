"""The data file of an ONNX model, written matrix after matrix from where its weights lie.

Format: https://github.com/onnx/onnx/blob/main/docs/ExternalData.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx.external_data_helper import set_external_data

from edgedistill.export.onnx_graph import Matrix
from edgedistill.export.onnx_quantize import CHUNK, Group, pack_codes
from edgedistill.quant.codes import CodeSet

# Tensors below this stay in the protobuf; a page each in the data file would cost more than they hold.
EXTERNAL_BYTES = 1024
# A cache line, so that kernels may read mapped weights with aligned vector loads.
ALIGNMENT = 64
Place = tuple[int, int]


def write_model(
    model: onnx.ModelProto, out: Path, *, matrices: Mapping[str, Matrix], groups: Sequence[Group], codes: CodeSet | None
) -> None:
    """Write `model` to `out`, and the data of its large initializers to one file beside it.

    Read and written are `matrices` that are left in the graph as float32, `groups` of them as their `codes`, and
    tensors that `model` holds. `GatherBlockQuantized` wants a matrix where `MatMulNBits` wants `[rows, blocks, bytes]`:
    both lie over the same bytes of the file. A Reshape between them would be folded into a second copy at load time.

    Raises:
        InputError: a weight to be encoded is not finite.
    """
    data = f"{out.name}_data"  # as transformers.js names it
    places: dict[str, Place] = {}
    held: dict[bytes, Place] = {}
    with (out.parent / data).open("wb") as f:
        for tensor in model.graph.initializer:
            if tensor.name in matrices:
                places[tensor.name] = _append(f, _floats(matrices[tensor.name]))
            elif len(tensor.raw_data) >= EXTERNAL_BYTES:
                digest = hashlib.sha256(tensor.raw_data).digest()
                if digest not in held:
                    held[digest] = _append(f, [tensor.raw_data])
                places[tensor.name] = held[digest]
        for group in groups:
            scales: list[np.ndarray] = []
            place = _append(f, _codes(group, codes, scales=scales)) if codes is not None else (0, 0)
            places |= {f"{group.name}_codes": place, f"{group.name}_table": place}
            places[f"{group.name}_scales"] = _append(f, scales)
    for tensor in model.graph.initializer:
        if tensor.name in places:
            offset, length = places[tensor.name]
            tensor.raw_data = b""  # set_external_data wants the field to be there
            set_external_data(tensor, location=data, offset=offset, length=length)
            tensor.ClearField("raw_data")
    out.write_bytes(model.SerializeToString(deterministic=True))


def _append(f: BinaryIO, pieces: Iterable[Any]) -> Place:
    """Write `pieces` of bytes one after the other; where they begin, and how many bytes they are."""
    f.write(b"\0" * (-f.tell() % ALIGNMENT))
    begin = f.tell()
    for piece in pieces:
        f.write(piece)
    return begin, f.tell() - begin


def _floats(matrix: Matrix) -> Iterator[np.ndarray]:
    """float32 rows, or their transpose, some at a time."""
    columns = matrix.parts[0].source.shape[1]
    if not matrix.transposed:
        step = max(1, CHUNK // columns)
        for part in matrix.parts:
            for begin in range(part.begin, part.end, step):
                yield part.source.read(begin, min(begin + step, part.end)).astype(np.float32, copy=False)
        return
    parts = [part.source.read(part.begin, part.end).astype(np.float32, copy=False) for part in matrix.parts]
    step = max(1, CHUNK // sum(len(part) for part in parts))
    for begin in range(0, columns, step):
        yield np.ascontiguousarray(np.concatenate([part[:, begin : begin + step] for part in parts]).T)


def _codes(group: Group, codes: CodeSet, *, scales: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Packed codes, some rows at a time; the scales of these rows are noted in `scales`."""
    for blocks in group.blocks(codes):
        scales.append(blocks.scales.astype(np.float32))
        yield np.ascontiguousarray(pack_codes(blocks))
