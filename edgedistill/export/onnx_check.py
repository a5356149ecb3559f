"""What an exported ONNX folder holds, counted after its structure was checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import onnx

from edgedistill.runtimes.genai_config import check_genai_config
from edgedistill.runtimes.onnx_file import check_onnx_file, check_stale

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
# Which input of a block-quantized operator holds the codes; scales and zero points follow at 2 and 3.
_CODES_INPUT = {"MatMulNBits": 1, "GatherBlockQuantized": 0}
_ROTATION_TABLES = ("cos_cache", "sin_cache")


@dataclass(frozen=True)
class OnnxFacts:
    """What a graph holds: weights, the bits each takes (scales and all), matrices left float beside quantized ones.

    Codes that two operators share count once; constants and rotation tables count not at all.
    """

    parameters: int
    bits_per_weight: float
    fallback_tensors: int


def check_onnx(path: Path) -> OnnxFacts:
    """Check a `model.onnx` (or the folder that holds it), and a genai_config.json beside it, without an engine.

    Raises:
        InputError: its structure is not sound; see `check_onnx_file`.
    """
    file = path / "model.onnx" if path.is_dir() else path
    model = check_onnx_file(file)
    check_stale(model, file)
    if (file.parent / "genai_config.json").exists():
        check_genai_config(model.graph, file)
    return _facts(model.graph)


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
