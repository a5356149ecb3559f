"""Hostile ONNX folders, made from a sound one: graphs, external data and genai settings that lie."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

Damage = Callable[[Path], None]
HUGE = (2**31, 2**40, 2**62, 2**63 - 1)


def graph(change: Callable[[onnx.ModelProto], Any]) -> Damage:
    def damage(folder: Path) -> None:
        model = onnx.load_model(str(folder / "model.onnx"), load_external_data=False)
        change(model)
        (folder / "model.onnx").write_bytes(model.SerializeToString())

    return damage


def config(*place: str, value: Any = None, name: str = "genai_config.json", drop: bool = False) -> Damage:
    """Set, or with `drop` remove, the value at a place of a JSON file."""

    def damage(folder: Path) -> None:
        found = json.loads((folder / name).read_text())
        inner = found
        for key in place[:-1]:
            inner = inner.setdefault(key, {})
        if drop:
            del inner[place[-1]]
        else:
            inner[place[-1]] = value
        (folder / name).write_text(json.dumps(found))

    return damage


def node(model: onnx.ModelProto, kind: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.op_type == kind)


def attribute(kind: str, name: str, value: Any) -> Damage:
    """Give the first node of a kind another attribute; None removes it."""

    def change(model: onnx.ModelProto) -> None:
        found = node(model, kind)
        kept = [a for a in found.attribute if a.name != name]
        del found.attribute[:]
        found.attribute.extend(kept + ([] if value is None else [helper.make_attribute(name, value)]))

    return graph(change)


def reads(kind: str, at: int, name: str) -> Damage:
    return graph(lambda m: node(m, kind).input.__setitem__(at, name))


def external(model: onnx.ModelProto) -> TensorProto:
    sizes = {t.name: int({e.key: e.value for e in t.external_data}.get("length", 0)) for t in model.graph.initializer}
    return next(t for t in model.graph.initializer if t.name == max(sizes, key=sizes.__getitem__))


def entry(key: str, value: str | None) -> Damage:
    def change(model: onnx.ModelProto) -> None:
        tensor = external(model)
        kept = [(e.key, e.value) for e in tensor.external_data if e.key != key]
        del tensor.external_data[:]
        for k, v in kept + ([] if value is None else [(key, value)]):
            tensor.external_data.add(key=k, value=v)

    return graph(change)


def linked(target: str) -> Damage:
    """The data file is a link that leaves the folder."""

    def damage(folder: Path) -> None:
        outside = folder.parent / f"{folder.name}-outside.data"
        os.replace(folder / "model.onnx_data", outside)
        os.symlink(outside if target == "absolute" else f"../{outside.name}", folder / "model.onnx_data")

    return damage


def looped(model: onnx.ModelProto) -> None:
    first, last = node(model, "MatMulNBits"), model.graph.node[-1]
    first.input[0] = last.output[0]


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field."""
    size, length = len(payload), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + payload


def deep(folder: Path) -> None:
    """If in If in If, far deeper than a parser follows; bytes appended to a message are merged into it."""
    inner = b""
    for _ in range(2000):
        branch = field(1, b"then_branch") + field(6, inner)
        inner = field(1, field(4, b"If") + field(5, branch))
    with (folder / "model.onnx").open("ab") as f:
        f.write(field(7, inner))


def weight(name: str, **changes: Any) -> Damage:
    def change(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.name.endswith(name))
        for key, value in changes.items():
            if key == "dims":
                del tensor.dims[:]
                tensor.dims.extend(value)
            else:
                setattr(tensor, key, value)

    return graph(change)


def bomb(kind: str, *shape: int) -> Damage:
    """A node that asks for a tensor far larger than the file."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(helper.make_tensor("huge", TensorProto.INT64, [len(shape)], shape))
        inputs = {"Expand": ["model.layers.0.input_layernorm.weight", "huge"], "ConstantOfShape": ["huge"],
                  "Tile": ["model.layers.0.input_layernorm.weight", "huge"]}[kind]  # fmt: skip
        model.graph.node.insert(0, helper.make_node(kind, inputs, ["boom"], name="boom"))
        model.graph.node.insert(1, helper.make_node("ReduceSum", ["boom"], ["drop"], name="drop", keepdims=0))
        model.graph.output.append(helper.make_tensor_value_info("drop", TensorProto.FLOAT, []))

    return graph(change)


def past(model: onnx.ModelProto) -> Any:
    return next(i for i in model.graph.input if i.name == "past_key_values.0.key").type.tensor_type


def graphs() -> Iterator[tuple[str, Damage]]:
    """Lies in the protobuf: names, shapes, types, order, attributes of the fused operators."""
    yield "cycle", graph(looped)
    yield "nodes backwards", graph(lambda m: m.graph.node.sort(key=lambda n: n.name, reverse=True))
    yield "node of itself", graph(lambda m: node(m, "Sigmoid").input.__setitem__(0, node(m, "Sigmoid").output[0]))
    yield "nested graphs", deep
    yield "output made twice", graph(lambda m: m.graph.node[-1].output.__setitem__(0, m.graph.node[-2].output[0]))
    yield "output name of an input", graph(lambda m: m.graph.node[0].output.__setitem__(0, "input_ids"))
    yield "initializer twice", graph(lambda m: m.graph.initializer.append(m.graph.initializer[0]))
    yield "input twice", graph(lambda m: m.graph.input.append(m.graph.input[0]))
    yield "output twice", graph(lambda m: m.graph.output.append(m.graph.output[0]))
    yield "no inputs", graph(lambda m: m.graph.ClearField("input"))
    yield "no nodes", graph(lambda m: m.graph.ClearField("node"))
    yield "no outputs", graph(lambda m: m.graph.ClearField("output"))
    yield "no initializers", graph(lambda m: m.graph.ClearField("initializer"))
    yield "no opset", graph(lambda m: m.ClearField("opset_import"))
    yield "opset 10000", graph(lambda m: setattr(m.opset_import[0], "version", 10_000))
    yield "opset -1", graph(lambda m: setattr(m.opset_import[0], "version", -1))
    yield "IR 99", graph(lambda m: setattr(m, "ir_version", 99))
    yield "unknown operator", graph(lambda m: setattr(node(m, "Sigmoid"), "op_type", "Sigmoidal"))
    yield "unknown domain", graph(lambda m: setattr(node(m, "Sigmoid"), "domain", "evil.example"))
    yield "operator of Python", graph(lambda m: setattr(node(m, "Sigmoid"), "op_type", "PyOp"))
    yield "a function that calls itself", graph(lambda m: m.functions.append(helper.make_function(
        "com.microsoft", "Loop", ["x"], ["y"], [helper.make_node("Loop", ["x"], ["y"], domain="com.microsoft")],
        [helper.make_opsetid("com.microsoft", 1)])))  # fmt: skip
    yield "training data", graph(lambda m: m.training_info.add())
    yield "NUL in a name", graph(lambda m: setattr(m.graph.initializer[0], "name", "a\0b"))
    yield "negative dimension", weight("weight_codes", dims=[-1, 2, 32])
    yield "dimension zero", weight("weight_codes", dims=[0, 2, 32])
    for n in HUGE:
        yield f"dimension {n}", weight("weight_codes", dims=[n, 2, 32])
        yield f"rows {n} and {n}", weight("input_layernorm.weight", dims=[n, n])
    yield "product that wraps", weight("input_layernorm.weight", dims=[2**32, 2**32, 64])
    yield "many dimensions", weight("input_layernorm.weight", dims=[64] + [1] * 5000)
    yield "flat scales", weight("weight_scales", dims=[768])
    yield "turned scales", weight("weight_scales", dims=[2, 384])
    yield "turned codes", weight("qkv_proj.MatMul.weight_codes", dims=[16, 2, 128])
    yield "codes as int8", weight("weight_codes", data_type=TensorProto.INT8)
    yield "scales as int32", weight("weight_scales", data_type=TensorProto.INT32)
    yield "norm as int32", weight("input_layernorm.weight", data_type=TensorProto.INT32)
    yield "type 999", weight("weight_codes", data_type=999)
    yield "type 0", weight("input_layernorm.weight", data_type=0)
    yield "texts as weights", weight("input_layernorm.weight", data_type=TensorProto.STRING)
    yield "short raw data", weight("input_layernorm.weight", raw_data=b"1234")
    yield "float_data short", graph(lambda m: (m.graph.initializer[0].ClearField("raw_data"),
                                               m.graph.initializer[0].float_data.extend([1.0] * 3)))  # fmt: skip
    yield "no data at all", graph(lambda m: m.graph.initializer[0].ClearField("raw_data"))
    yield "NaN norm", weight("input_layernorm.weight", raw_data=b"\0\0\xc0\x7f" * 64)
    yield "norm too long", weight("input_layernorm.weight", dims=[128], raw_data=bytes(512))
    yield "norm too short", weight("input_layernorm.weight", dims=[32], raw_data=bytes(128))
    yield "rotation table short", weight("cos_cache", dims=[1, 8], raw_data=bytes(32), data_location=0)
    yield "rotation table narrow", weight("cos_cache", dims=[1024, 4])
    yield "rotation table wide", weight("cos_cache", dims=[256, 16])
    for name in ("K", "N", "block_size", "bits"):
        for value in (0, -1, 1, 3, 7, 2**31, 2**62):
            if not (name == "bits" and value == 2**62):
                yield f"MatMulNBits {name} {value}", attribute("MatMulNBits", name, value)
        yield f"MatMulNBits without {name}", attribute("MatMulNBits", name, None)
        yield f"MatMulNBits {name} as text", attribute("MatMulNBits", name, "64")
    yield "MatMulNBits block_size 48", attribute("MatMulNBits", "block_size", 48)
    yield "accuracy_level 99", attribute("MatMulNBits", "accuracy_level", 99)
    for name, values in {
        "num_heads": (0, -1, 3, 5, 64, 2**31, 2**62), "kv_num_heads": (0, -1, 3, 4, 64, 2**62),
        "local_window_size": (-7, 2**62), "do_rotary": (0, 7), "rotary_interleaved": (1,),
    }.items():  # fmt: skip
        for value in values:
            yield f"attention {name} {value}", attribute("GroupQueryAttention", name, value)
        yield f"attention without {name}", attribute("GroupQueryAttention", name, None)
    yield "attention scale NaN", attribute("GroupQueryAttention", "scale", float("nan"))
    yield "attention softcap NaN", attribute("GroupQueryAttention", "softcap", float("nan"))
    for at, what in ((0, "queries"), (3, "past keys"), (5, "lengths"), (6, "total"), (7, "cos"), (8, "sin")):
        yield f"attention without {what}", reads("GroupQueryAttention", at, "")
        yield (
            f"attention with a norm for {what}",
            reads("GroupQueryAttention", at, "model.layers.0.input_layernorm.weight"),
        )
    yield "attention without outputs", graph(lambda m: node(m, "GroupQueryAttention").ClearField("output"))
    yield "attention without inputs", graph(lambda m: node(m, "GroupQueryAttention").ClearField("input"))
    yield "attention with one input", graph(lambda m: node(m, "GroupQueryAttention").input.__delitem__(slice(1, None)))
    for name, value in (("bits", 0), ("bits", 3), ("block_size", 0), ("block_size", 17), ("gather_axis", 9),
                        ("gather_axis", -9), ("quantize_axis", 5), ("quantize_axis", 0)):  # fmt: skip
        yield f"table {name} {value}", attribute("GatherBlockQuantized", name, value)
    yield "table without ids", reads("GatherBlockQuantized", 1, "")
    yield "table with its scales as ids", reads("GatherBlockQuantized", 1, "lm_head.MatMul.weight_scales")
    yield "table without scales", reads("GatherBlockQuantized", 2, "")
    yield "matrix without scales", reads("MatMulNBits", 2, "")
    yield "matrix with a norm as codes", reads("MatMulNBits", 1, "model.layers.0.input_layernorm.weight")
    yield "norm axis 9", attribute("SimplifiedLayerNormalization", "axis", 9)
    yield "norm epsilon NaN", attribute("SimplifiedLayerNormalization", "epsilon", float("nan"))
    yield "past of float64", graph(lambda m: setattr(past(m), "elem_type", TensorProto.DOUBLE))
    yield "past of type 99", graph(lambda m: setattr(past(m), "elem_type", 99))
    yield "past without shape", graph(lambda m: past(m).ClearField("shape"))
    yield "past of rank 1", graph(lambda m: past(m).shape.dim.__delitem__(slice(1, None)))
    yield "past of 2^62 heads", graph(lambda m: setattr(past(m).shape.dim[1], "dim_value", 2**62))
    yield "past of no heads", graph(lambda m: setattr(past(m).shape.dim[1], "dim_value", 0))
    yield "past of negative heads", graph(lambda m: setattr(past(m).shape.dim[1], "dim_value", -2))
    yield "ids of float", graph(lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 1))
    yield "logits of width 7", graph(lambda m: setattr(m.graph.output[0].type.tensor_type.shape.dim[2], "dim_value", 7))
    yield "logits without shape", graph(lambda m: m.graph.output[0].type.tensor_type.ClearField("shape"))
    yield "a sequence as input", graph(lambda m: m.graph.input[0].type.sequence_type.SetInParent())
    for shape in ((2**40,), (2**62, 2**62), (2**31, 64)):
        yield f"expand to {shape}", bomb("Expand", *shape[:1], 64)
        yield f"constant of {shape}", bomb("ConstantOfShape", *shape)
    yield "tile", bomb("Tile", 2**40)


def places() -> Iterator[tuple[str, Damage]]:
    """External data that lies elsewhere, beyond, over another, or nowhere."""
    for location in ("/etc/passwd", "../model.onnx_data", "..\\x", "a/../../x", "", ".", "model.onnx", "a\0b", "no"):
        yield f"data at {location!r}", entry("location", location)
    for value in ("-1", "1e9", str(2**63), str(2**64), "0x40", "", "NaN", "١", " 0", str(10**400)):
        yield f"offset {value[:30]!r}", entry("offset", value)
        yield f"length {value[:30]!r}", entry("length", value)
    yield "no location", entry("location", None)
    yield "no length", entry("length", None)
    yield "link out, absolute", linked("absolute")
    yield "link out, relative", linked("relative")
    yield "data a folder", lambda f: ((f / "model.onnx_data").unlink(), (f / "model.onnx_data").mkdir())
    yield "data a pipe", lambda f: ((f / "model.onnx_data").unlink(), os.mkfifo(f / "model.onnx_data"))
    yield "data absent", lambda f: (f / "model.onnx_data").unlink()
    yield "data empty", lambda f: (f / "model.onnx_data").write_bytes(b"")
    yield "model a folder", lambda f: ((f / "model.onnx").unlink(), (f / "model.onnx").mkdir())
    yield "model a link to itself", lambda f: ((f / "model.onnx").unlink(), os.symlink("model.onnx", f / "model.onnx"))
    yield "stale data", lambda f: (f / "model.onnx_data.old").write_bytes(b"x")


def settings() -> Iterator[tuple[str, Damage]]:
    """genai_config.json and the tokenizer beside it."""
    m, d = ("model",), ("model", "decoder")
    yield "filename outside", config(*d, "filename", value="../model.onnx")
    yield "filename absolute", config(*d, "filename", value="/etc/passwd")
    yield "filename of another", config(*d, "filename", value="genai_config.json")
    yield "filename a number", config(*d, "filename", value=3)
    yield "filename null", config(*d, "filename", value=None)
    yield "a library to load", config(*d, "session_options", "custom_ops_library", value="/tmp/evil.so")
    yield "a profile to write", config(*d, "session_options", "enable_profiling", value="../../profile")
    yield "a graph to write", config(*d, "session_options", "optimized_model_filepath", value="/tmp/x")
    yield "entries of a session", config(*d, "session_options", "config_entries", value={"ep.context_enable": "1"})
    yield "provider with a library", config(*d, "session_options", "provider_options", value=[{"evil": {"path": "/x"}}])
    yield "options a list", config(*d, "session_options", value=[])
    yield "threads negative", config(*d, "session_options", "intra_op_num_threads", value=-5)
    yield "a vision model beside", config(*m, "vision", "filename", value="../evil.onnx")
    yield "an encoder beside", config(*m, "encoder", "filename", value="/tmp/evil.onnx")
    yield "a pipeline", config(*d, "pipeline", value=[{"a": {"filename": "../evil.onnx"}}])
    for key in ("head_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers"):
        for value in (0, -1, 2**31, 2**62, "4", 1.5, None, True, 10**400):
            yield f"{key} {str(value)[:20]}", config(*d, key, value=value)
        yield f"without {key}", config(*d, key, drop=True)
    for key in ("vocab_size", "context_length", "eos_token_id", "bos_token_id", "pad_token_id"):
        for value in (-7, 2**31, 2**62, "2", 1.5, None, [], [2, "x"], {}):
            yield f"{key} {value}", config(*m, key, value=value)
    yield "type unknown", config(*m, "type", value="unheard")
    yield "type a number", config(*m, "type", value=3)
    yield "type of speech", config(*m, "type", value="whisper")
    yield "type of pictures", config(*m, "type", value="phi3v")
    for key in ("past_key_names", "past_value_names", "input_ids", "attention_mask"):
        for value in ("nothing", "%s%s%s%n", "%d%d%d", "%100000000d", "past_key_values.0.key", 3, "", None):
            yield f"input {key} {value!r}", config(*d, "inputs", key, value=value)
    for key in ("logits", "present_key_names", "present_value_names"):
        for value in ("nothing", "%s%n", 3):
            yield f"output {key} {value!r}", config(*d, "outputs", key, value=value)
    for key, value in (("max_length", 2**31), ("max_length", -1), ("max_length", 2**62), ("max_length", "a"),
                       ("num_beams", 10**9), ("num_beams", 0), ("num_return_sequences", 0), ("batch_size", 10**9),
                       ("min_length", -3), ("temperature", "hot"), ("unheard", 1)):  # fmt: skip
        yield f"search {key} {value}", config("search", key, value=value)
    yield "search a list", config("search", value=[])
    yield "model a list", config("model", value=[])
    yield "unheard of section", config("evil", value={"a": 1})
    yield "nested deeper than a parser goes", lambda f: (f / "genai_config.json").write_text("[" * 100_000)
    yield "NaN as number", lambda f: (f / "genai_config.json").write_text('{"model": NaN}')
    yield "not UTF-8", lambda f: (f / "genai_config.json").write_bytes(b'{"model": "\xff"}')
    yield "config a folder", lambda f: ((f / "genai_config.json").unlink(), (f / "genai_config.json").mkdir())
    yield "keys twice", lambda f: (f / "genai_config.json").write_text(
        (f / "genai_config.json").read_text().replace('"model": {', '"model": {"decoder": 1,', 1))  # fmt: skip


def random_damage(folder: Path, *, count: int, seed: int) -> Iterator[tuple[str, Damage]]:
    """Bit flips, cuts and repeats in the three files that engines read."""
    draw = random.Random(seed)
    for number in range(count):
        name = ("model.onnx", "model.onnx", "genai_config.json", "model.onnx_data")[number % 4]
        size = (folder / name).stat().st_size
        way, at, length = draw.randrange(3), draw.randrange(size), draw.randint(1, 64)
        places = [(draw.randrange(size), draw.randrange(8)) for _ in range(draw.randint(1, 5))]

        def damage(f: Path, name=name, way=way, at=at, length=length, places=places) -> None:
            raw = bytearray((f / name).read_bytes())
            if way == 0:
                raw = raw[:at]
            elif way == 1:
                raw[at : at + length] = raw[at : at + length] * 2
            else:
                for place, bit in places:
                    raw[place] ^= 1 << bit
            (f / name).write_bytes(raw)

        yield f"random {number}", damage
