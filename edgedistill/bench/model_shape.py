"""What a model's files say of its cost: context, vocabulary, and the bytes that decoding one token reads.

A decoded token reads every weight once, but of a table that is only looked up in (an untied embedding) one row, and of
a mixture's experts only those that take part. On top comes the KV cache of the positions before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from edgedistill.bench.onnx_folder import geometry, the_graph
from edgedistill.core.errors import InputError
from edgedistill.core.files import inside, read_json
from edgedistill.runtimes.gguf_file import GgufFile, read_gguf
from edgedistill.runtimes.safetensors_file import check_weights

FP32_BYTES = 4  # what the torch engine loads every weight and keeps its cache as
F16_BYTES = 2  # llama.cpp's cache
LOOKUPS = ("Gather", "GatherBlockQuantized")


@dataclass(frozen=True)
class ModelShape:
    """The longest context, the vocabulary's size, bytes of weights one token reads, bytes of cache per position."""

    context: int
    vocab: int
    weight_bytes: int
    cache_bytes: int

    def bytes_read(self, position: float) -> float:
        """Bytes that decoding the token at `position` reads."""
        return self.weight_bytes + self.cache_bytes * position


def shape_of(engine: str, path: Path) -> ModelShape:
    """Read the shape of a GGUF file, an ONNX or a Hugging Face folder as `engine` opens it; weights are not read.

    Raises:
        InputError: a file is damaged, or does not say what is needed.
    """
    read = {"llamacpp": _gguf, "onnxruntime-genai": _genai, "onnxruntime": _onnx, "torch": _hugging_face}
    try:
        return read[engine](path)
    except (KeyError, TypeError, ValueError, IndexError) as e:
        raise InputError(f"{path} does not say its shape: {type(e).__name__} {e}; export or fetch it again") from None


def _gguf(path: Path) -> ModelShape:
    file = read_gguf(path)
    kind = file.fields["general.architecture"]
    value = {k.removeprefix(f"{kind}."): v for k, v in file.fields.items() if k.startswith(f"{kind}.")}
    heads = _per_layer(value["attention.head_count"], value["block_count"])
    kv_heads = _per_layer(value.get("attention.head_count_kv", heads), value["block_count"])
    width = value["embedding_length"] // max(heads)
    key, mapped = value.get("attention.key_length", width), value.get("attention.value_length", width)
    share = value.get("expert_used_count", 0) / value["expert_count"] if value.get("expert_count") else 1.0
    tied = "output.weight" not in file.tensors
    weights = 0.0
    for name, tensor in file.tensors.items():
        if name == "token_embd.weight" and not tied:
            weights += tensor.size / tensor.shape[-1]
        else:
            weights += tensor.size * (share if "_exps." in name else 1.0)
    cache = F16_BYTES * (key + mapped) * sum(kv_heads)
    return ModelShape(value["context_length"], _vocabulary(file), round(weights), cache)


def _vocabulary(file: GgufFile) -> int:
    return file.tensors["token_embd.weight"].shape[-1]


def _per_layer(value: Any, layers: int) -> list[int]:
    return list(value) if isinstance(value, list) else [value] * layers


def _hugging_face(folder: Path) -> ModelShape:
    config = read_json(folder / "config.json")
    shapes = check_weights(folder)
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    experts = config.get("num_experts") or config.get("num_local_experts")
    share = config["num_experts_per_tok"] / experts if experts else 1.0
    tied = not any(name.endswith("lm_head.weight") for name in shapes)
    weights = 0.0
    for name, shape in shapes.items():
        size = FP32_BYTES * prod(shape)
        looked_up = name.endswith("embed_tokens.weight") and not tied
        weights += size / shape[0] if looked_up else size * (share if ".experts." in name else 1.0)
    cache = 2 * FP32_BYTES * width * config.get("num_key_value_heads", heads) * config["num_hidden_layers"]
    return ModelShape(config["max_position_embeddings"], config["vocab_size"], round(weights), cache)


def _genai(folder: Path) -> ModelShape:
    config = read_json(folder / "genai_config.json")["model"]["decoder"]
    return _decoder(inside(folder, config["filename"]), past=config["inputs"]["past_key_names"].replace("%d", "0"))


def _onnx(path: Path) -> ModelShape:
    return _decoder(Path(the_graph(str(path))), past="past_key_values.0.key")


def _decoder(path: Path, *, past: str) -> ModelShape:
    import onnx

    said = geometry(str(path))
    graph = onnx.load(str(path), load_external_data=False).graph
    rows: set[str] = set()
    whole: set[str] = set()
    for node in graph.node:
        (rows if node.op_type in LOOKUPS else whole).update(node.input)
    weights = 0.0
    for tensor in graph.initializer:
        size = prod(tensor.dims) * _item_bytes(tensor.data_type)
        weights += size if tensor.name in whole or tensor.name not in rows else size / max(tensor.dims[0], 1)
    kind = next((value for value in graph.input if value.name == past), None)
    if kind is None:
        raise InputError(f"expected a decoder with a KV cache, found {path} without the input {past}; export it so")
    item = _item_bytes(kind.type.tensor_type.elem_type)
    cache = 2 * item * said["width"] * said["kv_heads"] * said["layers"]
    return ModelShape(said["context"], said["vocab"], round(weights), round(cache))


def _item_bytes(kind: int) -> float:
    from onnx import TensorProto, helper

    if kind in (TensorProto.INT4, TensorProto.UINT4):
        return 0.5
    return helper.tensor_dtype_to_np_dtype(kind).itemsize
