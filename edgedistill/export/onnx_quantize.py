"""Rewrite a float decoder graph for block-quantized matrices; embedding and head share one table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from edgedistill.core.errors import InputError
from edgedistill.export.onnx_graph import Matrix, Part, Rows
from edgedistill.quant.blocks import Blocks
from edgedistill.quant.codes import CodeSet
from edgedistill.quant.grids import BLOCK, Grid, grid_named
from edgedistill.quant.plan import Plan

ONNX_GRIDS = ("Q4_0", "Q8_0")
_ZERO_POINT = {4: 8, 8: 128}
# Weights encoded at once: what the encoder needs besides stays in some tens of megabytes.
CHUNK = 1 << 20


@dataclass(frozen=True)
class Group:
    """Parts of a matrix, one under the other, on one grid; `name` is what its tensors' names begin with."""

    name: str
    grid: Grid
    parts: tuple[Part, ...]

    @property
    def rows(self) -> int:
        return sum(part.end - part.begin for part in self.parts)

    @property
    def columns(self) -> int:
        return self.parts[0].source.shape[1]

    def blocks(self, codes: CodeSet) -> Iterator[Blocks]:
        """Its codes, some rows at a time.

        Raises:
            InputError: a weight is not finite.
        """
        step = max(1, CHUNK // self.columns)
        for part in self.parts:
            for begin in range(part.begin, part.end, step):
                rows = part.source.read(begin, min(begin + step, part.end))
                try:
                    yield codes.blocks(part.source.name, rows)
                except ValueError as e:
                    raise InputError(f"{part.source.path}: {part.source.name!r} cannot be encoded: {e}") from None

    def tensors(self) -> dict[str, onnx.TensorProto]:
        """Its initializers without their data: codes for `MatMulNBits`, the same as a table to gather from, scales."""
        count, width = self.columns // BLOCK, BLOCK * self.grid.bits // 8
        kinds = {
            "codes": (onnx.TensorProto.UINT8, (self.rows, count, width)),
            "table": (onnx.TensorProto.UINT8, (self.rows, count * width)),
            "scales": (onnx.TensorProto.FLOAT, (self.rows, count)),
        }
        return {
            kind: onnx.TensorProto(name=f"{self.name}_{kind}", data_type=dtype, dims=dims)
            for kind, (dtype, dims) in kinds.items()
        }


def encode_all(tensors: Iterable[Rows], *, codes: CodeSet) -> None:
    """Let `codes` hold those of every matrix among `tensors` that its plan has a grid for.

    Raises:
        InputError: a weight is not finite.
    """
    for tensor in tensors:
        name = codes.plan.grid(tensor.name, tensor.shape)
        if name is not None:
            group = Group(tensor.name, grid_named(name), (Part(tensor, 0, tensor.shape[0]),))
            for _ in group.blocks(codes):
                pass


def quantize_graph(
    graph: onnx.GraphProto, *, matrices: Mapping[str, Matrix], plan: Plan, accuracy_level: int
) -> list[Group]:
    """Put `MatMulNBits` and `GatherBlockQuantized` where `graph` multiplies by or looks up in `matrices`.

    The initializers that they read are added without data; those that nothing reads any more go. A matrix whose width
    is no multiple of the block stays float; one stacked from parts on different grids becomes a node for each grid
    and a Concat.
    `accuracy_level` 4 lets kernels round activations to int8, 1 forbids it.
    Operators: onnxruntime's `com.microsoft` domain, version 1.

    Raises:
        InputError: the plan puts a matrix on a grid that these operators do not have.
    """
    views = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Transpose" and n.input[0] in matrices}
    groups: dict[str, list[Group]] = {}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        name = _weights_of(node, matrices=matrices, views=views)
        if name is not None and name not in groups:
            groups[name] = _groups(name, matrices[name], plan=plan)
        found = groups.get(name or "", [])
        if node.op_type == "MatMul" and found:
            nodes += _matmuls(node, found, accuracy_level)
        elif node.op_type == "Gather" and len(found) == 1:
            nodes.append(_gather(node, found[0]))
        else:
            nodes.append(node)
    used = {name for node in nodes for name in node.input}
    nodes = [n for n in nodes if n.output[0] not in views or n.output[0] in used]
    used = {name for node in nodes for name in node.input}
    kept = [i for i in graph.initializer if i.name in used]
    made = [group for found in groups.values() for group in found]
    kept += [tensor for group in made for tensor in group.tensors().values() if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    return made


def _weights_of(node: onnx.NodeProto, *, matrices: Mapping[str, Matrix], views: Mapping[str, str]) -> str | None:
    """The matrix whose rows `node` multiplies by or looks up."""
    if node.op_type == "MatMul" and node.input[1] in matrices and matrices[node.input[1]].transposed:
        return node.input[1]
    if node.op_type == "Gather":
        name = views.get(node.input[0], node.input[0])
        if name in matrices and matrices[name].transposed == (node.input[0] in views):
            return name
    return None


def _groups(name: str, matrix: Matrix, *, plan: Plan) -> list[Group]:
    def grid(part: Part) -> str | None:
        return plan.grid(part.source.name, part.source.shape)

    stretches = [(found, tuple(parts)) for found, parts in groupby(matrix.parts, key=grid)]
    if any(found is None for found, _ in stretches):
        return []
    groups = []
    for number, (found, parts) in enumerate(stretches):
        held, meant = grid_named(found or ""), plan.meant(parts[0].source.name)
        if meant not in ONNX_GRIDS:
            raise InputError(
                f"expected grid {' or '.join(ONNX_GRIDS)}, which ONNX's operators have, for {parts[0].source.name!r}, "
                f"found {meant}; let the plan of an ONNX variant name one of them"
            )
        groups.append(Group(f"{name}_{number}" if len(stretches) > 1 else name, held, parts))
    return groups


def _matmuls(node: onnx.NodeProto, groups: list[Group], accuracy_level: int) -> list[onnx.NodeProto]:
    if len(groups) == 1:
        return [_matmul(node, groups[0], accuracy_level, output=node.output[0])]
    outputs = [f"{node.output[0]}_{number}" for number in range(len(groups))]
    made = [_matmul(node, group, accuracy_level, output=o) for group, o in zip(groups, outputs, strict=True)]
    return [*made, helper.make_node("Concat", outputs, list(node.output), name=f"{node.name}_Concat", axis=-1)]


def _matmul(node: onnx.NodeProto, group: Group, accuracy_level: int, *, output: str) -> onnx.NodeProto:
    return helper.make_node(
        "MatMulNBits",
        [node.input[0], f"{group.name}_codes", f"{group.name}_scales"],
        [output],
        name=f"{node.name}_Q{group.grid.bits}" if output == node.output[0] else f"{output}_Q{group.grid.bits}",
        domain="com.microsoft",
        K=group.columns,
        N=group.rows,
        bits=group.grid.bits,
        block_size=BLOCK,
        accuracy_level=accuracy_level,
    )


def _gather(node: onnx.NodeProto, group: Group) -> onnx.NodeProto:
    return helper.make_node(
        "GatherBlockQuantized",
        [f"{group.name}_table", node.input[1], f"{group.name}_scales"],
        list(node.output),
        name=f"{node.name}_Q{group.grid.bits}",
        domain="com.microsoft",
        bits=group.grid.bits,
        block_size=BLOCK,
        gather_axis=0,
        quantize_axis=1,
    )


def pack_codes(blocks: Blocks) -> NDArray[np.uint8]:
    """Codes as `MatMulNBits` stores them: `[rows, blocks, bytes]`, unsigned, two 4-bit codes a byte, low half first."""
    stored = (blocks.codes.astype(np.int16) + _ZERO_POINT[blocks.grid.bits]).astype(np.uint8)
    return stored if blocks.grid.bits == 8 else stored[..., 0::2] | (stored[..., 1::2] << 4)
