"""Sound artifacts of a tiny random model, and the ways in which converters break them, done to the files."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from export_builders import save_byte_level, save_llama

from edgedistill.core.files import read_json, write_json
from edgedistill.export.companions import write_companions
from edgedistill.export.gguf import export_gguf_codes, export_gguf_f16
from edgedistill.export.onnx import export_onnx
from edgedistill.quant.codes import CodeSet
from edgedistill.quant.plan import plan_of
from edgedistill.runtimes.gguf_file import read_gguf

LAYERS, HEADS, THETA = 3, 4, 10000.0
SIZES = {"num_hidden_layers": LAYERS, "initializer_range": 0.08}


def save_model(folder: Path) -> Path:
    save_byte_level(folder)
    return save_llama(folder, rows=1200, **SIZES)


def save_later(model: Path, folder: Path) -> Path:
    """The same model some steps of training on: every tensor a twentieth away."""
    import torch
    from transformers import AutoModelForCausalLM

    shutil.copytree(model, folder)
    later = AutoModelForCausalLM.from_pretrained(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for value in later.parameters():
            value.add_(0.05 * value.std() * torch.randn_like(value))
    later.save_pretrained(folder)
    return folder


def save_text(file: Path) -> Path:
    """Plain text of about 600 tokens."""
    file.write_text("".join(f"The light in room {n} is on, turn it off; then play {n * 7} songs. " for n in range(30)))
    return file


def export_gguf(model: Path, folder: Path, *, precision: str) -> Path:
    folder.mkdir(parents=True)
    if precision == "f16":
        export_gguf_f16(model=model, out=folder / "model.gguf")
    else:
        export_gguf_codes(model=model, out=folder / "model.gguf", codes=CodeSet(plan_of(precision)))
    write_companions(model=model, folder=folder, entry="model.gguf")
    return folder


def export_onnx_folder(model: Path, folder: Path, *, precision: str, graph: Path | None = None) -> Path:
    codes = None if precision == "fp32" else CodeSet(plan_of(precision))
    export_onnx(model=model, out=folder, threads=1, graph=graph, codes=codes)
    write_companions(model=model, folder=folder, entry="model.onnx")
    return folder


def gguf_wrong_end(folder: Path) -> None:
    _set_field(folder, "tokenizer.ggml.eos_token_id", "<I", 700)


def gguf_wrong_theta(folder: Path) -> None:
    _set_field(folder, "llama.rope.freq_base", "<f", 500000.0)


def gguf_no_template(folder: Path) -> None:
    _replace(folder / "model.gguf", b"tokenizer.chat_template", b"tokenizer.chat_templatX")


def gguf_unpermuted(folder: Path) -> None:
    """Rows of layer 1's keys as transformers has them; a row's bytes are its own in every type."""
    raw, start = _rows(folder, "blk.1.attn_k.weight")
    half = raw.reshape(2, -1, 2, raw.shape[1]).swapaxes(1, 2).reshape(raw.shape)
    _write(folder / "model.gguf", start, half.tobytes())


def gguf_zeroed(folder: Path) -> None:
    raw, start = _rows(folder, "blk.1.ffn_up.weight")
    _write(folder / "model.gguf", start, bytes(raw.size))


def gguf_shifted_vocabulary(folder: Path) -> None:
    """Every token an id higher, the last one first: the array has as many bytes as before."""
    file = folder / "model.gguf"
    tokens = read_gguf(file).fields["tokenizer.ggml.tokens"]
    packed = [struct.pack("<Q", len(t.encode())) + t.encode() for t in tokens]
    _replace(file, b"".join(packed), b"".join([packed[-1], *packed[:-1]]))


def gguf_stale(folder: Path, *, later: Path) -> None:
    shutil.copyfile(later / "model.gguf", folder / "model.gguf")


def onnx_wrong_end(folder: Path) -> None:
    config = read_json(folder / "genai_config.json")
    config["model"]["eos_token_id"] = 700
    write_json(folder / "genai_config.json", config)


def onnx_no_template(folder: Path) -> None:
    settings = read_json(folder / "tokenizer_config.json")
    del settings["chat_template"]
    write_json(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").unlink()


def onnx_dropped_activation(folder: Path) -> None:
    """Layer 1's gate goes into the product as it is."""
    model = onnx.load_model(str(folder / "model.onnx"), load_external_data=False)
    place = "/model/layers.1/mlp/"
    kept = [node for node in model.graph.node if not node.name.startswith(f"{place}act_fn")]
    for node in kept:
        if node.name == f"{place}Mul":
            node.input[0] = f"{place}gate_proj/MatMul/output_0"
    assert len(kept) == len(model.graph.node) - 2
    del model.graph.node[:]
    model.graph.node.extend(kept)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def onnx_other_activation(folder: Path) -> None:
    model = onnx.load_model(str(folder / "model.onnx"), load_external_data=False)
    (node,) = [n for n in model.graph.node if n.name == "/model/layers.1/mlp/act_fn/Sigmoid"]
    node.op_type = "Tanh"
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def onnx_zeroed(folder: Path) -> None:
    """Layer 1's up projection: its floats, or its 4-bit codes, which mean zero in the middle."""
    name = "model.layers.1.mlp.up_proj.MatMul.weight"
    places = _places(folder)
    coded = f"{name}_codes" in places
    offset, length = places[f"{name}_codes" if coded else name]
    _write(folder / "model.onnx_data", offset, bytes([0x88 if coded else 0]) * length)


def onnx_wrong_theta(folder: Path) -> None:
    places = _places(folder)
    for name, turn in (("cos_cache", np.cos), ("sin_cache", np.sin)):
        offset, length = places[name]
        half = 8  # head_dim 16
        rows = length // half // 4
        table = turn(np.arange(rows)[:, None] * 500000.0 ** (-np.arange(half) / half)).astype(np.float32)
        _write(folder / "model.onnx_data", offset, table.tobytes())


def onnx_shifted_vocabulary(folder: Path) -> None:
    parsed = read_json(folder / "tokenizer.json")
    count = len(parsed["model"]["vocab"])
    parsed["model"]["vocab"] = {token: (i + 1) % count for token, i in parsed["model"]["vocab"].items()}
    for entry in parsed["added_tokens"]:
        entry["id"] = (entry["id"] + 1) % count
    write_json(folder / "tokenizer.json", parsed)


def onnx_stale(folder: Path, *, later: Path) -> None:
    shutil.copyfile(later / "model.onnx_data", folder / "model.onnx_data")


GGUF_FAULTS: dict[str, tuple[Callable[..., None], str, str]] = {
    "wrong end": (gguf_wrong_end, "end ids", "(id 700)"),
    "lost template": (gguf_no_template, "chat template", "there is none"),
    "swapped rotation": (gguf_unpermuted, "layer 1's attention", "blk.1.attn_k.weight differs from "
                         "model.layers.1.self_attn.k_proj.weight as rows in half-rotation order"),
    "zeroed tensor": (gguf_zeroed, "layer 1's MLP", "blk.1.ffn_up.weight is all zeros"),
    "wrong theta": (gguf_wrong_theta, "layer 0's attention", "llama.rope.freq_base is 500,000"),
    "shifted vocabulary": (gguf_shifted_vocabulary, "tokens", "most tokens lie 1 higher"),
    "stale weights": (gguf_stale, "embedding", "another model or state of training"),
}  # fmt: skip
ONNX_FAULTS: dict[str, tuple[Callable[..., None], str, str]] = {
    "wrong end": (onnx_wrong_end, "end ids", "ids [700]"),
    "lost template": (onnx_no_template, "chat template", "there is none"),
    "dropped activation": (onnx_dropped_activation, "layer 1's MLP", "the graph has no activation"),
    "other activation": (onnx_other_activation, "layer 1's MLP", "has Tanh for an activation"),
    "zeroed tensor": (onnx_zeroed, "layer 1's MLP", "is all zeros, model.layers.1.mlp.up_proj.weight is not"),
    "wrong theta": (onnx_wrong_theta, "layer 0's attention", "turn by a base of 500,000"),
    "shifted vocabulary": (onnx_shifted_vocabulary, "tokens", "most tokens lie 1 higher"),
    "stale data": (onnx_stale, "embedding", "another model or state of training"),
}


def _set_field(folder: Path, key: str, code: str, value: float) -> None:
    """Overwrite a scalar behind its key and the four bytes of its type."""
    file = folder / "model.gguf"
    data = file.read_bytes()
    at = data.index(key.encode()) + len(key) + 4
    _write(file, at, struct.pack(code, value))


def _replace(file: Path, old: bytes, new: bytes) -> None:
    data = file.read_bytes()
    assert data.count(old) == 1 and len(old) == len(new)
    file.write_bytes(data.replace(old, new))


def _rows(folder: Path, name: str) -> tuple[np.ndarray, int]:
    file = folder / "model.gguf"
    tensor = read_gguf(file).tensors[name]
    data = np.frombuffer(file.read_bytes(), np.uint8, count=tensor.size, offset=tensor.start)
    return data.reshape(tensor.shape[1], -1), tensor.start


def _places(folder: Path) -> dict[str, tuple[int, int]]:
    model = onnx.load_model(str(folder / "model.onnx"), load_external_data=False)
    found = {}
    for tensor in model.graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries:
            found[tensor.name] = (int(entries.get("offset", 0)), int(entries["length"]))
    return found


def _write(file: Path, at: int, data: bytes) -> None:
    with file.open("r+b") as f:
        f.seek(at)
        f.write(data)
