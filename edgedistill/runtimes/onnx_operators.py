"""The operators of a decoder whose attributes must fit their tensors: quantized matrices and tables, attention, norms.

Operators: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

from edgedistill.core.errors import InputError, shortened

FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
# onnxruntime has these in ONNX's own domain, ONNX does not.
OWN_OPERATORS = frozenset({"SimplifiedLayerNormalization"})
# Which input says how large the result is.
SIZED_BY = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1}
MOST_ELEMENTS = 2**31
MOST_HEADS = 2**16
PAST_KEY, PAST_VALUE, LENGTHS, TOTAL, COS, SIN = 3, 4, 5, 6, 7, 8


def check_operators(model: onnx.ModelProto, file: Path) -> None:
    """Hold the operators that engines fuse against the shapes and types of what they read.

    Raises:
        InputError: an attribute is absent, of another type or range, or does not fit a tensor.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    checks = {"MatMulNBits": _matrix, "GatherBlockQuantized": _table, "GroupQueryAttention": _attention}
    functions = {function.name for function in model.functions}
    for node in model.graph.node:
        if node.domain in ("", "ai.onnx") and node.op_type not in OWN_OPERATORS | functions:
            if not onnx.defs.has(node.op_type):
                raise _wrong(file, node, "an operator of ONNX", node.op_type)
            _check_size(node, tensors, model.graph, file)
        if check := checks.get(node.op_type):
            check(node, tensors, file)
    _check_norms(model.graph, tensors, file)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Values of the node's attributes by name; of whole numbers and floats only."""
    kinds = onnx.AttributeProto
    return {a.name: a.i if a.type == kinds.INT else a.f for a in node.attribute if a.type in (kinds.INT, kinds.FLOAT)}


def _matrix(node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto], file: Path) -> None:
    found = attributes(node)
    k, n, block, bits = (found.get(name, 0) for name in ("K", "N", "block_size", "bits"))
    if min(k, n) < 1 or not _is_block(block) or bits not in (2, 4, 8):
        raise InputError(f"{file}: node {node.name!r} has K {k}, N {n}, block_size {block}, bits {bits}")
    _needs(node, (0, 1, 2), file)
    blocks = -(-k // block)
    wanted = [(n, blocks, block * bits // 8), (n, blocks), (n, -(-blocks * bits // 8))]
    for at, shape in enumerate(wanted, start=1):
        tensor = tensors.get(node.input[at]) if at < len(node.input) else None
        if tensor is None:
            continue
        exact = at == 1 and tuple(tensor.dims) != shape  # scales and zero points may lie flat
        if exact or math.prod(tensor.dims) != math.prod(shape):
            raise InputError(
                f"{file}: {tensor.name!r} has shape {list(tensor.dims)}, node {node.name!r} needs {list(shape)}"
            )
        if (at == 1 and tensor.data_type != onnx.TensorProto.UINT8) or (at == 2 and tensor.data_type not in FLOATS):
            raise _wrong(file, node, "codes as UINT8 and scales as floats", tensor.data_type)


def _table(node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto], file: Path) -> None:
    found = attributes(node)
    bits, block = found.get("bits", 4), found.get("block_size", 128)
    if not _is_block(block) or bits not in (2, 4, 8):
        raise _wrong(file, node, "bits of 2, 4 or 8 and blocks of 16 or more", f"{bits} and {block}")
    _needs(node, (0, 1, 2), file)
    data, scales = tensors.get(node.input[0]), tensors.get(node.input[2])
    if data is None or scales is None:
        return
    rank = len(data.dims)
    axis, gathered = found.get("quantize_axis", 1), found.get("gather_axis", 0)
    if not (-rank <= axis < rank and -rank <= gathered < rank) or len(scales.dims) != rank:
        raise _wrong(file, node, f"axes and scales of {rank} dimensions", f"{axis}, {gathered}, {list(scales.dims)}")
    wanted = list(data.dims)
    held = 8 // bits if data.data_type == onnx.TensorProto.UINT8 else 1
    wanted[axis] = -(-wanted[axis] * held // block)
    if list(scales.dims) != wanted or scales.data_type not in FLOATS:
        raise _wrong(file, node, f"float scales of {wanted}", list(scales.dims))


def _attention(node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto], file: Path) -> None:
    found = attributes(node)
    heads, keys = found.get("num_heads", 0), found.get("kv_num_heads", 0)
    if not (0 < keys <= heads <= MOST_HEADS) or heads % keys:
        raise _wrong(file, node, "num_heads that kv_num_heads divides", f"{heads} and {keys}")
    for name in ("scale", "softcap"):
        if not math.isfinite(found.get(name, 0.0)):
            raise _wrong(file, node, f"a finite {name}", found[name])
    if not -1 <= found.get("local_window_size", -1) < 2**31:
        raise _wrong(file, node, "local_window_size of -1 or a length", found["local_window_size"])
    _needs(node, (0, PAST_KEY, PAST_VALUE, LENGTHS, TOTAL), file)
    if len(node.output) < 3:
        raise _wrong(file, node, "outputs for attention, keys and values", len(node.output))
    turns = found.get("do_rotary", 0)
    if turns:
        _needs(node, (COS, SIN), file)
    shapes = [list(tensors[name].dims) for name in node.input[COS : SIN + 1] if name in tensors]
    if shapes and (len(shapes) < 2 or shapes[0] != shapes[1] or len(shapes[0]) != 2):
        raise _wrong(file, node, "two rotation tables of one shape", shapes)


def _check_norms(graph: onnx.GraphProto, tensors: dict[str, onnx.TensorProto], file: Path) -> None:
    """The norms along the residual stream have one width."""
    widths: dict[str, list[int]] = {}
    for node in graph.node:
        place = {"SimplifiedLayerNormalization": 1, "SkipSimplifiedLayerNormalization": 2}.get(node.op_type)
        if place is None:
            continue
        _needs(node, range(place + 1), file)
        found = attributes(node)
        if not math.isfinite(found.get("epsilon", 0.0)) or not -8 <= found.get("axis", -1) < 8:
            raise _wrong(file, node, "a finite epsilon and an axis", found)
        if scale := tensors.get(node.input[place]):
            widths[node.op_type] = [*widths.get(node.op_type, []), *scale.dims]
            if len(scale.dims) != 1 or scale.data_type not in FLOATS:
                raise _wrong(file, node, "a row of floats as scale", list(scale.dims))
    skips = set(widths.get("SkipSimplifiedLayerNormalization", ()))
    # Norms of queries and keys are as wide as a head; those with a skip carry the stream on.
    if len(skips) > 1:
        raise InputError(f"{file}: expected norms of one width, found {sorted(skips)}; export it again")
    first = widths.get("SimplifiedLayerNormalization", [])[:1]
    if skips and first and first[0] not in skips:
        raise InputError(f"{file}: expected a first norm of width {skips.pop()}, found {first[0]}; export it again")


def _check_size(node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto], graph: onnx.GraphProto, file: Path) -> None:
    """Results whose size stands in the file are not larger than any model's."""
    at = SIZED_BY.get(node.op_type)
    if at is None or at >= len(node.input):
        return
    tensor = tensors.get(node.input[at]) or _constant(node.input[at], graph)
    if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
        return
    sizes = onnx.numpy_helper.to_array(tensor).ravel().tolist()
    if math.prod(abs(size) for size in sizes) > MOST_ELEMENTS:
        raise _wrong(file, node, f"a result of at most {MOST_ELEMENTS} elements", sizes)


def _constant(name: str, graph: onnx.GraphProto) -> onnx.TensorProto | None:
    made = (node for node in graph.node if node.op_type == "Constant" and name in node.output)
    return next((a.t for node in made for a in node.attribute if a.name == "value" and a.HasField("t")), None)


def _needs(node: onnx.NodeProto, places: Sequence[int], file: Path) -> None:
    absent = [at for at in places if at >= len(node.input) or not node.input[at]]
    if absent:
        raise _wrong(file, node, f"input {absent[0]} of {node.op_type}", "none")


def _is_block(size: Any) -> bool:
    return type(size) is int and 16 <= size <= 2**20 and not size & (size - 1)


def _wrong(file: Path, node: onnx.NodeProto, expected: str, found: object) -> InputError:
    said = shortened(repr(found), most=60)
    return InputError(
        f"{file}: node {shortened(node.name, most=60)!r}: expected {expected}, found {said}; export it again"
    )
