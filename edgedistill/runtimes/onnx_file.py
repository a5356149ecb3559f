"""ONNX graphs and their external data held against their own sizes and places, before any engine maps a byte.

Format: https://github.com/onnx/onnx/blob/main/docs/IR.md and ExternalData.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, Message

from edgedistill.core.errors import InputError, shortened
from edgedistill.core.files import inside
from edgedistill.runtimes.genai_config import check_genai_config, model_file
from edgedistill.runtimes.onnx_operators import check_operators

# A protobuf message cannot be larger; weights beyond it must be external data.
MAX_PROTOBUF_BYTES = 2**31 - 1
# onnx aligns large tensors to 64 KiB (Windows' mapping granularity); a longer gap is bytes that no tensor uses.
MAX_PADDING_BYTES = 65536
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
_PACKED_BITS = {onnx.TensorProto.INT4: 4, onnx.TensorProto.UINT4: 4, onnx.TensorProto.FLOAT4E2M1: 4}
_DIGITS = 19  # of an offset or a length in bytes


def check_onnx_file(file: Path) -> onnx.ModelProto:
    """Check an ONNX model without loading it into an engine; returned without its external data.

    Looked at: the protobuf parses; every external tensor lies in a file of the folder, within its bytes, as long as its
    shape says, and over no other tensor's bytes unless exactly those; no data file has bytes that no tensor uses; every
    node input is made before it is used, and once; fused operators have the shapes that their attributes say.

    Raises:
        InputError: one of these does not hold; the message says which.
    """
    model = _parse(file)
    _check_tensors(model, file)
    _check_names(model, file)
    check_operators(model, file)
    return model


def check_genai_folder(folder: Path) -> onnx.ModelProto:
    """Check a folder that onnxruntime-genai loads: its genai_config.json and the model that it names.

    Raises:
        InputError: as `check_onnx_file`, or the folder has no genai_config.json.
    """
    file = model_file(folder)
    model = check_onnx_file(file)
    check_stale(model, file)
    check_genai_config(model.graph, file)
    return model


def check_stale(model: onnx.ModelProto, file: Path) -> None:
    """Refuse a file named after the model that none of its tensors lies in: an earlier export's data."""
    places = {entry.value for tensor in all_tensors(model.graph) for entry in tensor.external_data}
    stale = sorted(p.name for p in file.parent.glob(f"{file.name}*") if p.name not in {file.name, *places})
    if stale:
        raise InputError(f"{file.parent / stale[0]} belongs to no tensor of {file.name}; delete it or export again")


def _parse(file: Path) -> onnx.ModelProto:
    if not file.is_file():
        raise InputError(f"expected an ONNX model at {file}, found nothing there")
    size = file.stat().st_size
    if not 0 < size <= MAX_PROTOBUF_BYTES:
        raise InputError(f"expected {file} to hold 1 to {MAX_PROTOBUF_BYTES} bytes, found {size}; export it again")
    try:
        model = onnx.ModelProto.FromString(file.read_bytes())
    except (DecodeError, ValueError, RecursionError) as e:
        raise InputError(f"{file} is not a readable ONNX model ({shortened(e)}); export it again") from None
    if not _is_text(model):
        raise InputError(f"{file} is not a readable ONNX model (a name in it is not UTF-8); export it again")
    if not model.graph.node or not model.graph.output:
        raise InputError(f"expected a graph with nodes and outputs in {file}, found none; export it again")
    versions = {entry.domain: entry.version for entry in model.opset_import}
    newest = onnx.defs.onnx_opset_version()
    if not 1 <= versions.get("", versions.get("ai.onnx", 0)) <= newest or len(versions) != len(model.opset_import):
        raise InputError(f"{file}: expected operators of version 1 to {newest}, found {versions}; export it again")
    if not 3 <= model.ir_version <= onnx.IR_VERSION:
        raise InputError(f"{file}: expected ir_version 3 to {onnx.IR_VERSION}, found {model.ir_version}")
    return model


def _is_text(message: Message) -> bool:
    """Whether every string of a message is UTF-8: what is not comes out of protobuf as bytes, without an error."""
    for field, value in message.ListFields():
        values = value if field.is_repeated else [value]
        if field.type == field.TYPE_STRING and not all(isinstance(text, str) for text in values):
            return False
        if field.type == field.TYPE_MESSAGE and not all(_is_text(inner) for inner in values):
            return False
    return True


def all_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a graph and of the graphs inside its nodes."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from attribute.tensors
            if attribute.HasField("t"):
                yield attribute.t
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from all_tensors(inner)


def _tensor_bytes(tensor: onnx.TensorProto, file: Path) -> int:
    """Bytes of the tensor's elements by its type and shape."""
    if any(d < 0 for d in tensor.dims):
        raise InputError(
            f"{file}: tensor {tensor.name!r} has a negative dimension {list(tensor.dims)}; export it again"
        )
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except (KeyError, TypeError):
        raise InputError(f"{file}: tensor {tensor.name!r} has the unknown type {tensor.data_type}") from None
    return math.ceil(math.prod(tensor.dims) * _PACKED_BITS.get(tensor.data_type, 8 * dtype.itemsize) / 8)


def _check_tensors(model: onnx.ModelProto, file: Path) -> None:
    ranges: dict[str, list[tuple[int, int, str]]] = {}
    for tensor in all_tensors(model.graph):
        size = _tensor_bytes(tensor, file)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            location, offset, length = _external(tensor, file)
            if length != size:
                raise InputError(
                    f"{file}: tensor {tensor.name!r} of shape {list(tensor.dims)} needs {size} bytes, "
                    f"its external data has {length}; export it again"
                )
            ranges.setdefault(location, []).append((offset, offset + length, tensor.name))
        elif not tensor.HasField("raw_data"):
            _check_typed(tensor, file)
        elif len(tensor.raw_data) != size:
            raise InputError(
                f"{file}: tensor {tensor.name!r} of shape {list(tensor.dims)} needs {size} bytes, "
                f"found {len(tensor.raw_data)}; export it again"
            )
    for location, used in ranges.items():
        _check_ranges(sorted(used), inside(file.parent, location))


def _check_typed(tensor: onnx.TensorProto, file: Path) -> None:
    """A tensor's values where they stand neither as bytes nor outside: as many as its shape says."""
    if tensor.data_type in _PACKED_BITS:
        return
    field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    pairs = 2 if tensor.data_type in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128) else 1
    if len(getattr(tensor, field)) != math.prod(tensor.dims) * pairs:
        raise InputError(
            f"{file}: tensor {tensor.name!r} of shape {list(tensor.dims)} has {len(getattr(tensor, field))} values; "
            "export it again"
        )


def _external(tensor: onnx.TensorProto, file: Path) -> tuple[str, int, int]:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, offset, length = entries.get("location", ""), entries.get("offset", "0"), entries.get("length", "")
    if not all(text.isascii() and text.isdigit() and len(text) <= _DIGITS for text in (offset, length)):
        raise InputError(
            f"{file}: external tensor {tensor.name!r} has offset {shortened(offset, most=30)!r} and length "
            f"{shortened(length, most=30)!r}, expected two whole numbers; export it again"
        )
    data = inside(file.parent, location)
    if not data.is_file():
        raise InputError(f"{file}: expected the external data of {tensor.name!r} at {data}, found nothing there")
    return location, int(offset), int(length)


def _check_ranges(used: list[tuple[int, int, str]], data: Path) -> None:
    size, begin, end = data.stat().st_size, 0, 0
    for start, stop, name in used:
        if (start, stop) == (begin, end):
            continue
        if stop > size:
            raise InputError(f"{data} ends at byte {size}, tensor {name!r} reaches to {stop}; export it again")
        if start < end:
            raise InputError(f"{data}: tensor {name!r} at byte {start} lies over the one before it; export it again")
        if start - end >= MAX_PADDING_BYTES:
            raise InputError(f"{data}: bytes {end} to {start} belong to no tensor; export it again")
        begin, end = start, stop
    if size - end >= MAX_PADDING_BYTES:
        raise InputError(f"{data}: bytes {end} to {size} belong to no tensor; export it again")


def _check_names(model: onnx.ModelProto, file: Path) -> None:
    graph = model.graph
    _check_once((i.name for i in graph.initializer), "initializer", file)
    _check_once((i.name for i in graph.input), "input", file)
    _check_once((i.name for i in graph.output), "output", file)
    domains = DOMAINS | {function.domain for function in model.functions}
    known = {""} | {i.name for i in graph.initializer} | {i.name for i in graph.input}
    for node in graph.node:
        if node.domain not in domains:
            raise InputError(f"{file}: node {node.name!r} is of the domain {node.domain!r}, which no engine here knows")
        for name in node.input:
            if name not in known:
                raise InputError(f"{file}: node {node.name!r} reads {name!r}, which nothing before it makes")
        if again := [name for name in node.output if name and name in known]:
            raise InputError(f"{file}: node {node.name!r} makes {again[0]!r}, which is there before it")
        known.update(node.output)
    for output in graph.output:
        if output.name not in known:
            raise InputError(f"{file}: no node makes the output {output.name!r}; export it again")


def _check_once(names: Iterable[str], what: str, file: Path) -> None:
    if again := [name for name, count in Counter(names).items() if count > 1 or "\0" in name]:
        raise InputError(f"{file}: the {what} {shortened(again[0])!r} stands twice or has a NUL; export it again")
