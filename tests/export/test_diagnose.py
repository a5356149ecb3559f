"""Diagnosis names each injected fault at its place, with its cause, and none on a sound artifact."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faults
import numpy as np
import pytest
from family_builders import FAMILIES
from typer.testing import CliRunner

from edgedistill.cli.main import app
from edgedistill.core.artifact import Artifact, list_files
from edgedistill.core.errors import InputError
from edgedistill.core.files import write_json
from edgedistill.core.runfolder import SilentReporter
from edgedistill.export.diagnose import diagnose
from edgedistill.export.gguf import to_neighbour_rotation
from edgedistill.export.tensors import unpacked
from edgedistill.export.weigh import relative, rounded
from edgedistill.runtimes.gguf_import import half_split

PROBES = 300
CASES = [
    *((precision, name) for precision in ("f16", "q4_0") for name in faults.GGUF_FAULTS),
    *((precision, name) for precision in ("fp32", "int4") for name in faults.ONNX_FAULTS),
]


def diagnosed(folder: Path, made: Callable[[str], Path]) -> dict[str, Any]:
    text = faults.save_text(made("model").parent / "text.txt")
    return diagnose(folder, against=made("model"), text=text, report=SilentReporter(), probes=PROBES)


@pytest.mark.parametrize("precision", ["f16", "q4_0", "fp32", "int4"])
def test_diagnose_finds_nothing_in_a_sound_artifact(precision: str, made: Callable[[str], Path]) -> None:
    found = diagnosed(made(f"model-{precision}"), made)
    assert found["sound"] and found["first"] is None, found["findings"]
    places = [stage["place"] for stage in found["stages"]]
    layers = [f"layer {k}'s {part}" for k in range(faults.LAYERS) for part in ("attention", "MLP")]
    assert places == ["embedding", *layers, "final norm", "logits", "KV cache"]
    # What precision explains is what is measured, not only above it.
    for stage in found["stages"][1:-1]:
        assert stage["error"] == pytest.approx(stage["explained"], rel=0.25, abs=2e-3), stage
    assert len({row["source"] for row in found["tensors"]}) == 2 + 9 * faults.LAYERS
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(("precision", "name"), CASES)
def test_diagnose_names_the_fault(precision: str, name: str, made: Callable[[str], Path], tmp_path: Path) -> None:
    kinds = faults.GGUF_FAULTS if precision in ("f16", "q4_0") else faults.ONNX_FAULTS
    inject, place, told = kinds[name]
    folder = Path(shutil.copytree(made(f"model-{precision}"), tmp_path / "artifact"))
    inject(folder, **({"later": made(f"later-{precision}")} if name.startswith("stale") else {}))
    found = diagnosed(folder, made)
    assert not found["sound"]
    assert found["first"]["place"] == place, found["findings"]
    assert told in found["first"]["sentence"]
    json.dumps(found, allow_nan=False)


def test_every_fault_of_the_list_is_injected_and_parts_that_follow_are_not_blamed(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    assert len(faults.GGUF_FAULTS.keys() | faults.ONNX_FAULTS.keys()) >= 8
    folder = Path(shutil.copytree(made("model-fp32"), tmp_path / "artifact"))
    faults.onnx_dropped_activation(folder)
    found = diagnosed(folder, made)
    (finding,) = found["findings"]
    assert finding["error"] > 0.2 > finding["explained"]
    after = [stage["parts"] for stage in found["stages"]]
    assert not any(after[:4]) and all(after[4:-1]) and not after[-1]


@pytest.mark.parametrize("name", FAMILIES)
def test_diagnose_finds_every_place_sound_in_every_family(
    name: str, family_folders: dict[str, Path], tmp_path: Path
) -> None:
    model, text = family_folders[name], faults.save_text(tmp_path / "text.txt")
    folder = faults.export_gguf(model, tmp_path / "gguf", precision="q4_0")
    found = diagnose(folder, against=model, text=text, report=SilentReporter(), probes=PROBES)
    assert found["sound"], found["findings"]
    layers = 2 if name.startswith(("llama", "smollm2", "qwen", "phi")) else 4
    assert len(found["stages"]) >= layers + 4  # llama.cpp names no middle of Phi's layers
    for stage in found["stages"][1:-1]:
        assert stage["error"] == pytest.approx(stage["explained"], rel=0.1, abs=2e-3), stage


def test_diagnose_tells_two_faults_in_the_order_of_the_model(made: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made("model-q4_0"), tmp_path / "artifact"))
    faults.gguf_zeroed(folder)
    faults.gguf_wrong_end(folder)
    found = diagnosed(folder / "model.gguf", made)
    assert [finding["place"] for finding in found["findings"]] == ["end ids", "layer 1's MLP"]


def test_diagnose_reads_an_artifact_whose_files_are_not_those_it_lists(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(made("model-f16"), tmp_path / "artifact"))
    artifact = Artifact(variant="gguf-f16", format="gguf", entry="model.gguf", parameters=1, bits_per_weight=16,
                        files=list_files(folder), source_digest="0")  # fmt: skip
    write_json(folder / "artifact.json", artifact.model_dump(mode="json"))
    faults.gguf_zeroed(folder)
    found = diagnosed(folder, made)
    assert "does not have the SHA-256" in found["notes"][0] and found["first"]["place"] == "layer 1's MLP"


def test_diagnose_on_the_command_line_shows_the_first_place_and_exits_1(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(made("model-q4_0"), tmp_path / "artifact"))
    faults.gguf_unpermuted(folder)
    arguments = ["diagnose", str(folder / "model.gguf"), "--against", str(made("model"))]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    last = result.stdout.splitlines()[-1]
    assert last.startswith("First parts at layer 1's attention: relative error ") and "half-rotation order" in last


def test_diagnose_wants_an_artifact_and_a_hugging_face_folder(made: Callable[[str], Path], tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"text": tmp_path / "t", "report": SilentReporter()}
    with pytest.raises(InputError, match="expected an artifact"):
        diagnose(made("model"), against=made("model"), **arguments)
    with pytest.raises(InputError, match="expected a Hugging Face folder"):
        diagnose(made("model-f16") / "model.gguf", against=made("model-f16") / "model.gguf", **arguments)
    with pytest.raises(InputError, match="found nothing at"):
        diagnose(tmp_path / "none.gguf", against=made("model"), **arguments)


def test_rotation_and_codes_are_undone_and_rounding_is_the_types() -> None:
    rows = np.arange(64 * 3, dtype=np.float32).reshape(64, 3)
    assert np.array_equal(half_split(to_neighbour_rotation(rows, heads=4), head_dim=len(rows) // 4), rows)
    assert unpacked(np.array([[0x21, 0xF0]], np.uint8), bits=4).tolist() == [[1, 2, 0, 15]]
    weights = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    half = rounded(weights, kind="F16", bits=16, block=1)
    assert np.array_equal(half, weights.astype(np.float16).astype(np.float32))
    errors = [relative(rounded(weights, kind=f"int{b}", bits=b, block=32), weights) for b in (8, 4, 2)]
    assert errors[0] < 0.01 < errors[1] < 0.12 < errors[2]
