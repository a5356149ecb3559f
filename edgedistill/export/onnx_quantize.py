"""Rewrite a float decoder graph with block-quantized matrices; embedding and head share one 8-bit table."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.external_data_helper import set_external_data

from edgedistill.quant.blocks import BLOCK, Blocks
from edgedistill.quant.codes import CodeSet
from edgedistill.quant.plan import HEAD

# Tensors below this stay in the protobuf; a page each in the data file would cost more than they hold.
EXTERNAL_BYTES = 1024
# A cache line, so that kernels may read mapped weights with aligned vector loads.
ALIGNMENT = 64
_ZERO_POINT = {4: 8, 8: 128}


def quantize_graph(*, source: Path, out: Path, accuracy_level: int, codes: CodeSet) -> None:
    """Write `source` (a float `model.onnx`) to `out` with `MatMulNBits` and `GatherBlockQuantized` weights.

    Every constant matrix gets its codes of `codes`. A tied embedding reads the head's; a matrix whose width is no
    multiple of the block stays float.
    `accuracy_level` 4 lets kernels round activations to int8, 1 forbids it.
    Operators: onnxruntime's `com.microsoft` domain, version 1.
    """
    model = onnx.load_model(str(source))
    graph = model.graph
    weights = {i.name: i for i in graph.initializer if i.data_type == onnx.TensorProto.FLOAT and len(i.dims) == 2}
    outputs = {o.name for o in graph.output}
    transposed = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Transpose" and n.input[0] in weights}
    tables = {transposed.get(n.input[0], n.input[0]) for n in graph.node if n.op_type == "Gather"}
    encoded: dict[str, Blocks] = {}
    nodes = []
    for node in graph.node:
        name = transposed.get(node.input[0], node.input[0]) if node.op_type == "Gather" else ""
        if node.op_type == "MatMul" and node.input[1] in weights:
            name = node.input[1]
            wide = node.output[0] in outputs or name in tables
            rows = numpy_helper.to_array(weights[name]).T
        elif name in weights:
            wide = True
            rows = numpy_helper.to_array(weights[name])
            rows = rows.T if node.input[0] in transposed else rows
        else:
            nodes.append(node)
            continue
        if rows.shape[1] % BLOCK:
            nodes.append(node)
            continue
        if name not in encoded:
            encoded[name] = codes.blocks(HEAD if wide else name, rows)
        blocks = encoded[name]
        matmul = node.op_type == "MatMul"
        nodes.append(_matmul(node, name, blocks, accuracy_level) if matmul else _gather(node, name, blocks))
    used = {name for node in nodes for name in node.input}
    kept = [n for n in nodes if n.op_type != "Transpose" or n.output[0] in used]
    used = {name for node in kept for name in node.input}
    tensors = [i for i in graph.initializer if i.name in used]
    for name, blocks in encoded.items():
        tensors += [t for t in _initializers(name, blocks) if t.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(tensors)
    _save(model, out)


def _matmul(node: onnx.NodeProto, name: str, blocks: Blocks, accuracy_level: int) -> onnx.NodeProto:
    rows, count, _ = blocks.codes.shape
    return helper.make_node(
        "MatMulNBits",
        [node.input[0], f"{name}_codes", f"{name}_scales"],
        list(node.output),
        name=f"{node.name}_Q{blocks.grid.bits}",
        domain="com.microsoft",
        K=count * BLOCK,
        N=rows,
        bits=blocks.grid.bits,
        block_size=BLOCK,
        accuracy_level=accuracy_level,
    )


def _gather(node: onnx.NodeProto, name: str, blocks: Blocks) -> onnx.NodeProto:
    return helper.make_node(
        "GatherBlockQuantized",
        [f"{name}_table", node.input[1], f"{name}_scales"],
        list(node.output),
        name=f"{node.name}_Q{blocks.grid.bits}",
        domain="com.microsoft",
        bits=blocks.grid.bits,
        block_size=BLOCK,
        gather_axis=0,
        quantize_axis=1,
    )


def _initializers(name: str, blocks: Blocks) -> list[onnx.TensorProto]:
    codes = pack_codes(blocks)
    return [
        numpy_helper.from_array(codes, f"{name}_codes"),
        numpy_helper.from_array(codes.reshape(len(codes), -1), f"{name}_table"),
        numpy_helper.from_array(blocks.scales.astype(np.float32), f"{name}_scales"),
    ]


def _save(model: onnx.ModelProto, out: Path) -> None:
    """Write the protobuf and one data file in which tensors of equal bytes share their place.

    `GatherBlockQuantized` wants a matrix where `MatMulNBits` wants `[rows, blocks, bytes]`. A Reshape between them
    would be folded into a second copy in memory at load time; two tensors over the same bytes of the file are not.
    """
    places: dict[bytes, tuple[int, int]] = {}
    data = f"{out.name}.data"
    with (out.parent / data).open("wb") as f:
        for tensor in model.graph.initializer:
            if len(tensor.raw_data) < EXTERNAL_BYTES:
                continue
            key = hashlib.sha256(tensor.raw_data).digest()
            if key not in places:
                f.write(b"\0" * (-f.tell() % ALIGNMENT))
                places[key] = (f.tell(), len(tensor.raw_data))
                f.write(tensor.raw_data)
            offset, length = places[key]
            set_external_data(tensor, location=data, offset=offset, length=length)
            tensor.ClearField("raw_data")
    out.write_bytes(model.SerializeToString(deterministic=True))


def pack_codes(blocks: Blocks) -> NDArray[np.uint8]:
    """Codes as `MatMulNBits` stores them: `[rows, blocks, bytes]`, unsigned, two 4-bit codes a byte, low half first."""
    stored = (blocks.codes.astype(np.int16) + _ZERO_POINT[blocks.grid.bits]).astype(np.uint8)
    return stored if blocks.grid.bits == 8 else stored[..., 0::2] | (stored[..., 1::2] << 4)
