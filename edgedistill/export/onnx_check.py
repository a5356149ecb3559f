"""Structural check of an ONNX folder, before any engine maps its bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from edgedistill.core.errors import InputError
from edgedistill.core.files import inside, read_json

# A protobuf message cannot be larger; weights beyond it must be external data.
MAX_PROTOBUF_BYTES = 2**31 - 1
# onnx aligns large tensors to 64 KiB (Windows' mapping granularity); a longer gap is bytes that no tensor uses.
MAX_PADDING_BYTES = 65536
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
# Which input of a block-quantized operator holds the codes; scales and zero points follow at 2 and 3.
_CODES_INPUT = {"MatMulNBits": 1, "GatherBlockQuantized": 0}
_ROTATION_TABLES = ("cos_cache", "sin_cache")
_PACKED_BITS = {onnx.TensorProto.INT4: 4, onnx.TensorProto.UINT4: 4, onnx.TensorProto.FLOAT4E2M1: 4}


@dataclass(frozen=True)
class OnnxFacts:
    """What a graph holds: weights, the bits each takes (scales and all), matrices left float beside quantized ones.

    Codes that two operators share count once; constants and rotation tables count not at all.
    """

    parameters: int
    bits_per_weight: float
    fallback_tensors: int


def check_onnx(path: Path) -> OnnxFacts:
    """Check a `model.onnx` (or the folder that holds it) without loading it into an engine.

    Looked at: the protobuf parses; every external tensor lies in a file of the folder, within its bytes, as long as its
    shape says, and over no other tensor's bytes unless exactly those; no data file has bytes that no tensor uses; every
    node input is made before it is used; block-quantized matrices have the shapes that their attributes say;
    `genai_config.json` fits the graph.

    Raises:
        InputError: one of these does not hold; the message says which.
    """
    file = path / "model.onnx" if path.is_dir() else path
    model = _parse(file)
    _check_tensors(model, file)
    _check_names(model.graph, file)
    _check_block_quantized(model.graph, file)
    if (file.parent / "genai_config.json").is_file():
        _check_genai_config(model.graph, file)
    return _facts(model.graph)


def _parse(file: Path) -> onnx.ModelProto:
    if not file.is_file():
        raise InputError(f"expected an ONNX model at {file}, found nothing there")
    size = file.stat().st_size
    if not 0 < size <= MAX_PROTOBUF_BYTES:
        raise InputError(f"expected {file} to hold 1 to {MAX_PROTOBUF_BYTES} bytes, found {size}; export it again")
    try:
        model = onnx.load_model(str(file), load_external_data=False)
    except (DecodeError, ValueError, RecursionError) as e:
        raise InputError(f"{file} is not a readable ONNX model ({e}); export it again") from None
    if not model.graph.node or not model.graph.output:
        raise InputError(f"expected a graph with nodes and outputs in {file}, found none; export it again")
    return model


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
        elif tensor.HasField("raw_data") and len(tensor.raw_data) != size:
            raise InputError(
                f"{file}: tensor {tensor.name!r} of shape {list(tensor.dims)} needs {size} bytes, "
                f"found {len(tensor.raw_data)}; export it again"
            )
    for location, used in ranges.items():
        _check_ranges(sorted(used), inside(file.parent, location))
    known = {file.name, *ranges}
    stale = sorted(p.name for p in file.parent.glob(f"{file.name}*") if p.name not in known)
    if stale:
        raise InputError(f"{file.parent / stale[0]} belongs to no tensor of {file.name}; delete it or export again")


def _external(tensor: onnx.TensorProto, file: Path) -> tuple[str, int, int]:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, offset, length = entries.get("location", ""), entries.get("offset", "0"), entries.get("length", "")
    if not (offset.isascii() and offset.isdigit() and length.isascii() and length.isdigit()):
        raise InputError(
            f"{file}: external tensor {tensor.name!r} has offset {offset!r} and length {length!r}, "
            "expected two whole numbers; export it again"
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


def _check_names(graph: onnx.GraphProto, file: Path) -> None:
    known = {""} | {i.name for i in graph.initializer} | {i.name for i in graph.input}
    for node in graph.node:
        for name in node.input:
            if name not in known:
                raise InputError(f"{file}: node {node.name!r} reads {name!r}, which nothing before it makes")
        known.update(node.output)
    for output in graph.output:
        if output.name not in known:
            raise InputError(f"{file}: no node makes the output {output.name!r}; export it again")


def _check_block_quantized(graph: onnx.GraphProto, file: Path) -> None:
    shapes = {i.name: list(i.dims) for i in graph.initializer}
    for node in graph.node:
        if node.op_type != "MatMulNBits":
            continue
        found: dict[str, Any] = {a.name: a.i for a in node.attribute}
        k, n, block, bits = (int(found.get(name, 0)) for name in ("K", "N", "block_size", "bits"))
        if min(k, n) < 1 or block < 16 or bits not in (2, 4, 8):
            raise InputError(f"{file}: node {node.name!r} has K {k}, N {n}, block_size {block}, bits {bits}")
        blocks = -(-k // block)
        wanted = [[n, blocks, block * bits // 8], [n, blocks], [n, -(-blocks * bits // 8)]]
        for name, shape in zip(node.input[1:4], wanted, strict=False):
            if name and name in shapes and math.prod(shapes[name]) != math.prod(shape):
                raise InputError(f"{file}: {name!r} has shape {shapes[name]}, node {node.name!r} needs {shape}")


def _check_genai_config(graph: onnx.GraphProto, file: Path) -> None:
    place = file.parent / "genai_config.json"
    config = read_json(place)
    try:
        model = config["model"]
        decoder = model["decoder"]
        name, layers, vocabulary = decoder["filename"], decoder["num_hidden_layers"], model["vocab_size"]
        key, logits = decoder["inputs"]["past_key_names"], decoder["outputs"]["logits"]
        ends = model["eos_token_id"]
    except (KeyError, TypeError) as e:
        raise InputError(f"{place}: expected the settings of a decoder, {e} is missing; export it again") from None
    if name != file.name:
        raise InputError(f"{place}: expected filename {file.name!r}, found {name!r}; export it again")
    inputs = {i.name for i in graph.input}
    cached = sum(1 for i in range(len(inputs)) if key % i in inputs)
    if cached != layers:
        raise InputError(f"{place}: expected {cached} layers as the graph has, found {layers}; export it again")
    widths = {o.name: o.type.tensor_type.shape.dim[-1].dim_value for o in graph.output if o.type.tensor_type.shape.dim}
    if widths.get(logits) != vocabulary:
        raise InputError(f"{place}: expected vocab_size {widths.get(logits)} as the graph has, found {vocabulary}")
    for token in ends if isinstance(ends, list) else [ends]:
        if not isinstance(token, int) or not 0 <= token < vocabulary:
            raise InputError(f"{place}: expected eos_token_id within 0 to {vocabulary - 1}, found {token!r}")


def _facts(graph: onnx.GraphProto) -> OnnxFacts:
    code_bits: dict[str, int] = {}
    companions: set[str] = set()
    for node in graph.node:
        if node.op_type in _CODES_INPUT:
            place = _CODES_INPUT[node.op_type]
            code_bits[node.input[place]] = next((a.i for a in node.attribute if a.name == "bits"), 4)
            companions.update(node.input[2:])
    seen: set[tuple[str, str]] = set()
    parameters = stored_bits = fallback = 0
    for tensor in graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        where = (entries["location"], entries.get("offset", "0")) if entries else ("", tensor.name)
        name, is_float = tensor.name, tensor.data_type in _FLOATS
        if name.startswith(_ROTATION_TABLES) or not (is_float or name in code_bits or name in companions):
            continue
        shared = where in seen
        seen.add(where)
        bits = math.prod(tensor.dims) * 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        stored_bits += 0 if shared else bits
        if name in code_bits:
            parameters += 0 if shared else bits // code_bits[name]
        elif name not in companions:
            parameters += math.prod(tensor.dims)
            fallback += bool(code_bits) and len(tensor.dims) == 2
    return OnnxFacts(parameters=parameters, bits_per_weight=stored_bits / max(parameters, 1), fallback_tensors=fallback)
