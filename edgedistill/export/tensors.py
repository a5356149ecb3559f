"""An artifact's weights under the names and in the layout of the Hugging Face model they are meant to be.

llama.cpp keeps query and key rows in the order that it rotates them in; Gemma's norms are stored with the one that the
model adds to them; ONNX graphs fuse query, key and value, and keep matrices transposed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx

from edgedistill.export.onnx_run import array_of
from edgedistill.export.weights import StoredTensor
from edgedistill.quant.plan import EMBEDDING, HEAD
from edgedistill.runtimes.gguf_file import TENSOR_TYPES, GgufTensor, read_gguf
from edgedistill.runtimes.gguf_import import half_split
from edgedistill.runtimes.llama_trace import neighbour_rotation

OWN_HEAD = "output.weight"  # llama.cpp's; absent where the embedding serves as head
NORM = "model.norm.weight"
_ONNX_NODE = re.compile(r"/model/layers\.(\d+)/(attn|mlp)/(\w+)/(?:MatMul|Add)\w*")
QUANTIZED_BITS = re.compile(r"(?:IQ|TQ|Q)(\d)")


@dataclass(frozen=True)
class Part:
    """Weights that an artifact holds for the tensor `source`: `values` float32 in that tensor's layout and shape.

    A head of its own beside a tied model's embedding has the source `HEAD`, which that model does not store.

    `kind` is how they are stored (F32, F16, Q4_0, int4, …), `bits` of a weight's code without its block's scale,
    `block` how many share one; `inputs` says what its kernel rounds activations to. `half_order` are the values if
    their rows lay as transformers has them, where the artifact's engine wants another order. `start` is the first row
    of the source that they stand for, where the artifact has in pieces what the model has in one.
    """

    name: str
    source: str
    values: np.ndarray
    kind: str
    bits: int
    block: int
    inputs: str
    half_order: np.ndarray | None = None
    start: int = 0


def gguf_parts(path: Path, *, stored: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> Iterator[Part]:
    """Every tensor of a GGUF file that the model's tensors `stored` name, in their order.

    Quantized values are decoded by the `gguf` package.
    """
    file = read_gguf(path)
    architecture = file.fields.get("general.architecture")
    kind = next((k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), None)
    if kind is None:
        return
    names = gguf.get_tensor_name_map(kind, int(file.fields.get(f"{architecture}.block_count", 0)))
    swapped, added = neighbour_rotation(path), norm_addend(config)
    for source in stored:
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if name is None or name not in file.tensors:
            continue
        tensor = file.tensors[name]
        values = _gguf_values(path, tensor)
        half = values if swapped and re.search(r"\.attn_[qk]\.", name) else None
        if half is not None:
            heads = config["num_attention_heads"] if ".attn_q." in name else key_heads(config)
            values = half_split(values, head_dim=len(values) // heads)
        if is_norm(source):
            values = values - np.float32(added)
        type_name, block, _ = TENSOR_TYPES[tensor.type_id]
        yield Part(name, source, values, type_name, code_bits(type_name), block, _gguf_inputs(type_name), half)
    if HEAD not in stored and OWN_HEAD in file.tensors:
        tensor = file.tensors[OWN_HEAD]
        type_name, block, _ = TENSOR_TYPES[tensor.type_id]
        values = _gguf_values(path, tensor)
        yield Part(OWN_HEAD, HEAD, values, type_name, code_bits(type_name), block, _gguf_inputs(type_name))


def onnx_parts(file: Path, *, stored: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> Iterator[Part]:
    """Every weight of a genai graph that stands for one of the model's tensors `stored`, in the graph's order."""
    graph = onnx.load_model(str(file), load_external_data=False).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    turned = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Transpose"}
    added, seen = norm_addend(config), set[tuple[str, int]]()
    for node in graph.node:
        found = _onnx_sources(node, stored, config)
        if not found:
            continue
        codes = [name for name in (turned.get(i, i) for i in node.input) if name in tensors]
        if not codes:
            continue
        values, kind, bits, block, inputs = _onnx_values(node, codes, tensors, file, turned)
        at = 0
        for source, start, rows in found:
            part = values[at : at + rows] if len(found) > 1 else values
            at += rows
            if (source, start) not in seen:
                seen.add((source, start))
                name = f"{codes[0]} rows {at - rows} to {at - 1}" if len(found) > 1 else codes[0]
                shift = added if is_norm(source) else 0
                yield Part(name, source, part - np.float32(shift), kind, bits, block, inputs, start=start)


def norm_addend(config: Mapping[str, Any]) -> int:
    """Gemma multiplies by 1 + weight; both formats store the sum."""
    return int(str(config.get("model_type", "")).startswith("gemma"))


def is_norm(source: str) -> bool:
    return source.endswith("norm.weight")


def key_heads(config: Mapping[str, Any]) -> int:
    """Heads of keys and values; as many as of queries where config.json says nothing."""
    return config.get("num_key_value_heads") or config["num_attention_heads"]


def code_bits(kind: str) -> int:
    """Bits of a ggml type's codes; of a float type, as many as its rounding is worth."""
    if matched := QUANTIZED_BITS.match(kind):
        return int(matched[1])
    return {"F32": 32, "F64": 32, "F16": 16, "BF16": 9, "MXFP4": 4, "NVFP4": 4}.get(kind, 32)


def _gguf_inputs(kind: str) -> str:
    """What llama.cpp's CPU kernels turn the other factor into: the type's `vec_dot_type`."""
    if kind in ("F16", "BF16"):
        return "half"
    return "int8" if QUANTIZED_BITS.match(kind) else "float"


def _gguf_values(path: Path, tensor: GgufTensor) -> np.ndarray:
    raw = np.memmap(path, np.uint8, "r", offset=tensor.start, shape=(tensor.size,))
    shape = tensor.shape[::-1]
    kind = gguf.GGMLQuantizationType(tensor.type_id)
    rows = raw.reshape(prod(shape[:-1]), -1)
    return gguf.quants.dequantize(rows, kind).astype(np.float32, copy=False).reshape(shape)


def _onnx_sources(
    node: onnx.NodeProto, stored: Mapping[str, StoredTensor], config: Mapping[str, Any]
) -> list[tuple[str, int, int]]:
    """The model's tensors that a node's weights stand for, first row and rows of each, in the order they are fused."""
    if node.op_type in ("Gather", "GatherBlockQuantized"):
        names = [EMBEDDING] if "embed_tokens" in node.name else []
    elif "LayerNorm" in node.name or node.op_type.endswith("LayerNormalization"):
        names = [_norm_source(node.input[2 if node.op_type.startswith("Skip") else 1])]
    elif node.name.startswith("/lm_head/MatMul"):
        return [(HEAD, 0, stored[HEAD if HEAD in stored else EMBEDDING].shape[0])]
    elif matched := _ONNX_NODE.fullmatch(node.name):
        layer, block, name = matched.groups()
        suffix = "bias" if "/Add" in node.name else "weight"
        root = f"model.layers.{layer}.{'self_attn' if block == 'attn' else 'mlp'}."
        if root + f"{name}.{suffix}" not in stored:
            return _pieces(root, name, suffix, stored=stored, config=config)
        names = [root + f"{name}.{suffix}"]
    else:
        return []
    return [(name, 0, stored[name].shape[0]) for name in names] if all(name in stored for name in names) else []


def _pieces(
    root: str, name: str, suffix: str, *, stored: Mapping[str, StoredTensor], config: Mapping[str, Any]
) -> list[tuple[str, int, int]]:
    """Where one of the graph and the model has fused what the other has in pieces."""
    if name == "qkv_proj":
        names = [f"{root}{part}_proj.{suffix}" for part in "qkv"]
        return [(n, 0, stored[n].shape[0]) for n in names] if all(n in stored for n in names) else []
    fused, sizes = f"{root}gate_up_proj.{suffix}", dict.fromkeys(("gate_proj", "up_proj"), config["intermediate_size"])
    if name in ("q_proj", "k_proj", "v_proj"):
        fused, heads = f"{root}qkv_proj.{suffix}", config["num_attention_heads"]
        width = config.get("head_dim") or config["hidden_size"] // heads
        sizes = {"q_proj": heads * width, "k_proj": key_heads(config) * width, "v_proj": key_heads(config) * width}
    if fused not in stored or name not in sizes:
        return []
    before = [*sizes][: [*sizes].index(name)]
    return [(fused, sum(sizes[n] for n in before), sizes[name])]


def _norm_source(weight: str) -> str:
    """The builder's name of a norm's weight as transformers' name."""
    if "final_norm" in weight:
        return NORM
    if matched := re.fullmatch(r"model\.layers\.(\d+)\.attn\.(\w_norm)\.\w+\.weight", weight):
        return f"model.layers.{matched[1]}.self_attn.{matched[2]}.weight"
    return weight


def _onnx_values(
    node: onnx.NodeProto,
    names: list[str],
    tensors: Mapping[str, onnx.TensorProto],
    file: Path,
    turned: Mapping[str, str],
) -> tuple[np.ndarray, str, int, int, str]:
    """A node's weights `[out, in]` in float32, their kind, bits, block, and what activations are rounded to."""
    first = array_of(tensors[names[0]], folder=file.parent)
    found = {a.name: a.i for a in node.attribute}
    if node.op_type not in ("MatMulNBits", "GatherBlockQuantized"):
        values = first.astype(np.float32)
        transposed = node.op_type == "MatMul" or any(i in turned for i in node.input)
        kind = "F16" if first.dtype == np.float16 else "F32"
        return values.T if transposed and values.ndim == 2 else values, kind, code_bits(kind), 1, "float"
    bits, block = found.get("bits", 4), found.get("block_size", 128)
    rows = first.shape[0]
    codes = unpacked(first.reshape(rows, -1).view(np.uint8), bits=bits)
    scales = array_of(tensors[names[1]], folder=file.parent).astype(np.float32).reshape(rows, -1)
    zeros = np.full_like(scales, 2 ** (bits - 1))
    if len(names) > 2 and names[2] in node.input:
        zero = array_of(tensors[names[2]], folder=file.parent)
        zero = zero if zero.dtype.kind == "f" else unpacked(zero.reshape(rows, -1).view(np.uint8), bits=bits)
        zeros = zero.reshape(rows, -1)[:, : scales.shape[1]].astype(np.float32)
    width = scales.shape[1] * block
    spread = (codes[:, :width].reshape(rows, -1, block) - zeros[..., None]) * scales[..., None]
    inputs = "int8" if found.get("accuracy_level") == 4 else "float"
    return spread.reshape(rows, -1)[:, : found.get("K", width)], f"int{bits}", bits, block, inputs


def unpacked(packed: np.ndarray, *, bits: int) -> np.ndarray:
    """Unsigned codes `[rows, columns]` as float32 out of bytes `[rows, bytes]` that hold them low bits first."""
    per = 8 // bits
    parts = [(packed >> (bits * i)) & (2**bits - 1) for i in range(per)]
    return np.stack(parts, axis=-1).reshape(len(packed), -1).astype(np.float32)
