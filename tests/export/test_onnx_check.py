"""Damaged ONNX folders are named in one sentence, before an engine sees them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from edgedistill.core.errors import InputError
from edgedistill.export.onnx import export_onnx
from edgedistill.export.onnx_check import check_onnx
from edgedistill.quant.codes import CodeSet
from edgedistill.quant.plan import Plan


@pytest.fixture(scope="module")
def sound(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("check") / "onnx-int4"
    export_onnx(model=tiny_llama, out=out, threads=1, codes=CodeSet(Plan("Q4_0", "Q8_0")))
    return out


def edit_graph(folder: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load_model(str(folder / "model.onnx"), load_external_data=False)
    change(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"] |= changes
    (folder / "genai_config.json").write_text(json.dumps(config))


def external(model: onnx.ModelProto, key: str, value: str) -> None:
    tensor = max(
        model.graph.initializer, key=lambda t: int(dict((e.key, e.value) for e in t.external_data).get("length", 0))
    )
    for entry in tensor.external_data:
        if entry.key == key:
            entry.value = value


def node_of(model: onnx.ModelProto, kind: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.op_type == kind)


def set_attribute(node: onnx.NodeProto, name: str, value: int) -> None:
    next(a for a in node.attribute if a.name == name).i = value


def truncate(path: Path, keep: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no model": (lambda f: (f / "model.onnx").unlink(), "expected an ONNX model at"),
    "empty model": (lambda f: (f / "model.onnx").write_bytes(b""), "to hold 1 to"),
    "half a model": (lambda f: truncate(f / "model.onnx", 0.5), "is not a readable ONNX model"),
    "text as model": (lambda f: (f / "model.onnx").write_text("not protobuf"), "is not a readable ONNX model"),
    "no data": (lambda f: (f / "model.onnx_data").unlink(), "expected the external data of"),
    "half the data": (lambda f: truncate(f / "model.onnx_data", 0.5), "ends at byte"),
    "longer data": (
        lambda f: (f / "model.onnx_data").write_bytes((f / "model.onnx_data").read_bytes() + bytes(70000)),
        "belong to no tensor",
    ),
    "stale data": (lambda f: (f / "model.onnx.data").write_bytes(b"x"), "belongs to no tensor of model.onnx"),
    "data outside": (
        lambda f: edit_graph(f, lambda m: external(m, "location", "../../etc/passwd")),
        "expected a path inside",
    ),
    "offset beyond": (lambda f: edit_graph(f, lambda m: external(m, "offset", "99999999")), "reaches to"),
    "negative offset": (lambda f: edit_graph(f, lambda m: external(m, "offset", "-5")), "expected two whole numbers"),
    "length short": (lambda f: edit_graph(f, lambda m: external(m, "length", "12")), "its external data has 12"),
    "overlap": (lambda f: edit_graph(f, lambda m: external(m, "offset", "64")), "lies over the one before it"),
    "unknown input": (
        lambda f: edit_graph(f, lambda m: node_of(m, "MatMulNBits").input.__setitem__(0, "nothing")),
        "reads 'nothing', which nothing before it makes",
    ),
    "lost output": (
        lambda f: edit_graph(f, lambda m: setattr(m.graph.output[0], "name", "gone")),
        "no node makes the output 'gone'",
    ),
    "wrong width": (
        lambda f: edit_graph(f, lambda m: set_attribute(node_of(m, "MatMulNBits"), "N", 1 << 20)),
        "needs [1048576, ",
    ),
    "wrong bits": (
        lambda f: edit_graph(f, lambda m: set_attribute(node_of(m, "MatMulNBits"), "bits", 3)),
        "block_size 32, bits 3",
    ),
    "config damaged": (lambda f: truncate(f / "genai_config.json", 0.5), "is not valid JSON"),
    "config empty": (lambda f: (f / "genai_config.json").write_text("{}"), "expected the settings of a decoder"),
    "config vocabulary": (lambda f: edit_config(f, vocab_size=999), "expected vocab_size 384"),
    "config eos": (lambda f: edit_config(f, eos_token_id=[2, 384]), "expected eos_token_id within 0 to 383"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(sound: Path, tmp_path: Path, name: str) -> None:
    damage, message = DAMAGE[name]
    folder = tmp_path / "broken"
    shutil.copytree(sound, folder)
    damage(folder)
    with pytest.raises(InputError) as caught:
        check_onnx(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value).strip()


def test_a_sound_folder_passes(sound: Path) -> None:
    assert check_onnx(sound) == check_onnx(sound / "model.onnx")
    assert check_onnx(sound).fallback_tensors == 0
