"""Plain onnxruntime: the tokens of transformers and genai, from graphs with and without position ids."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx_export import export_decoder

from edgedistill.bench.block import run_block
from edgedistill.bench.foreign import foreign_subject, measure_foreign
from edgedistill.bench.model_shape import shape_of
from edgedistill.core.errors import InputError
from edgedistill.core.runfolder import SilentReporter

Job = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def transformers_js(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as transformers.js has it: `onnx/model.onnx`, which asks for position ids, below config.json."""
    folder = tmp_path_factory.mktemp("plain") / "tiny-js"
    export_decoder(tiny_llama, folder / "onnx" / "model.onnx")
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(tiny_llama / name, folder / name)
    return folder


@pytest.fixture
def bare_graph(tiny_onnx: Path, tiny_llama: Path, tmp_path: Path) -> Path:
    """Our own graph, which asks for no position ids, without genai's configuration."""
    folder = tmp_path / "bare"
    shutil.copytree(tiny_onnx, folder, ignore=shutil.ignore_patterns("genai_config.json"))
    shutil.copy(tiny_llama / "config.json", folder / "config.json")
    return folder


@pytest.fixture(params=["with position ids", "without"])
def plain(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue("transformers_js" if request.param == "with position ids" else "bare_graph")


def test_it_answers_as_transformers_and_genai_do(
    job: Job, plain: Path, tiny_onnx: Path, torch_answers: list[list[int]]
) -> None:
    passes = ["prompts", "shape", "memory", "text", "reload"]
    texts = {"texts": ["kitchen light"], "prompts": [[1, 70, 80, 90, 100]]}
    result = run_block(job("onnxruntime", plain, workloads=["prompts", "shape"], expected=torch_answers))
    prompts, shape = result["rows"]
    assert (prompts["outputs"], result["engine"]) == (torch_answers, "onnxruntime")
    genai = run_block(job("onnxruntime-genai", tiny_onnx, workloads=["shape"]))["rows"][0]
    assert shape["outputs"] == genai["outputs"] and len(shape["outputs"][0]) == 8
    assert shape["samples"].keys() == genai["samples"].keys() - {"load_ms"}
    settings = result["settings"]
    assert (settings["threads"], settings["backend"], settings["cache_dtype"]) == (1, "cpu", "f32")
    rest = run_block(job("onnxruntime", plain, workloads=passes, reloads=2, **texts))["rows"]
    told = {row["workload"]: row.get("invalid") for row in rest}
    assert told.pop("text").startswith("the engine's tokenizer gives other ids")  # the text is not the prompt's
    assert set(told.values()) == {None} and len(told) == 4


def test_its_threads_are_counted(job: Job, transformers_js: Path) -> None:
    result = run_block(job("onnxruntime", transformers_js, threads=2))
    assert result["settings"]["threads"] == 2 and "invalid" not in result["rows"][0]


def test_a_graph_that_gives_nan_is_an_invalid_row(job: Job, transformers_js: Path, tmp_path: Path) -> None:
    folder = tmp_path / "nan"
    shutil.copytree(transformers_js, folder)
    model = onnx.load(str(folder / "onnx" / "model.onnx"))
    constant = onnx.helper.make_node("Constant", [], ["nothing"], value_float=float("nan"))
    for node in model.graph.node:
        node.output[:] = ["before" if name == "logits" else name for name in node.output]
    model.graph.node.extend([constant, onnx.helper.make_node("Add", ["before", "nothing"], ["logits"])])
    onnx.save(model, str(folder / "onnx" / "model.onnx"))
    (row,) = run_block(job("onnxruntime", folder, workloads=["prompts"]))["rows"]
    assert row["invalid"] == "the logits hold NaN or infinity"


def test_a_graph_that_asks_for_more_is_refused(job: Job, transformers_js: Path, tmp_path: Path) -> None:
    folder = tmp_path / "merged"
    shutil.copytree(transformers_js, folder)
    model = onnx.load(str(folder / "onnx" / "model.onnx"))
    model.graph.input.append(onnx.helper.make_tensor_value_info("use_cache_branch", onnx.TensorProto.BOOL, [1]))
    onnx.save(model, str(folder / "onnx" / "model.onnx"))
    (row,) = run_block(job("onnxruntime", folder))["rows"]
    assert "expected use_cache_branch to be of tensor(float), " in row["invalid"]
    model.graph.input[-1].type.tensor_type.elem_type = onnx.TensorProto.INT64
    onnx.save(model, str(folder / "onnx" / "model.onnx"))
    (row,) = run_block(job("onnxruntime", folder))["rows"]
    assert "onnx/model.onnx also asks for use_cache_branch" in row["invalid"]
    (row,) = run_block(job("onnxruntime", transformers_js, options={"device": "cuda"}))["rows"]
    assert row["invalid"].endswith("are run on the CPU only, not on cuda")


def test_its_shape_is_read_from_settings_and_graph(tiny_onnx: Path, transformers_js: Path, bare_graph: Path) -> None:
    genai = shape_of("onnxruntime-genai", tiny_onnx)
    assert shape_of("onnxruntime", bare_graph) == genai == shape_of("onnxruntime", bare_graph / "model.onnx")
    js = shape_of("onnxruntime", transformers_js)
    assert (js.context, js.vocab, js.cache_bytes) == (genai.context, genai.vocab, genai.cache_bytes)
    assert js.weight_bytes == pytest.approx(genai.weight_bytes, rel=0.3)


def test_a_folder_without_genai_s_configuration_runs_in_plain_onnxruntime(transformers_js: Path) -> None:
    notes: list[str] = []

    class Reporter(SilentReporter):
        def note(self, message: str) -> None:
            notes.append(message)

    rows = measure_foreign(transformers_js, targets=("local-cpu",), blocks=1, report=Reporter())
    assert {row.engine for row in rows} == {"onnxruntime"} and all(row.valid for row in rows)
    choice = {"engine": "onnxruntime", "because": "there is no genai_config.json"}
    assert all(row.settings["choice"] == choice for row in rows)
    assert "tiny-js runs in onnxruntime: there is no genai_config.json" in notes


def test_a_folder_that_genai_refuses_runs_in_plain_onnxruntime(tiny_onnx: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new-kind"
    shutil.copytree(tiny_onnx, folder)
    assert foreign_subject(folder).engine == "onnxruntime-genai" and not foreign_subject(folder).choice
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["type"] = "of-tomorrow"
    (folder / "genai_config.json").write_text(json.dumps(config))
    subject = foreign_subject(folder)
    assert subject.engine == "onnxruntime" and subject.shape == shape_of("onnxruntime-genai", tiny_onnx)
    assert subject.choice["because"].startswith("onnxruntime-genai refuses it: RuntimeError: ")
    assert "of-tomorrow" in subject.choice["because"]


def test_one_of_several_graphs_must_be_named(transformers_js: Path, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    shutil.copytree(transformers_js, folder)
    shutil.copy(folder / "onnx" / "model.onnx", folder / "onnx" / "model_q4.onnx")
    with pytest.raises(InputError, match=r"found onnx/model\.onnx, onnx/model_q4\.onnx; name the file"):
        foreign_subject(folder)
    subject = foreign_subject(folder / "onnx" / "model_q4.onnx")
    assert subject.engine == "onnxruntime" and subject.shape.vocab == 384
    assert subject.choice["because"] == "a graph was named, not a folder"
    (folder / "onnx" / "model_q4.onnx_data").write_bytes(b"x")
    assert foreign_subject(folder / "onnx" / "model_q4.onnx").digest != subject.digest
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"expected config\.json beside .*model_q4\.onnx"):
        foreign_subject(folder / "onnx" / "model_q4.onnx")


def test_a_graph_without_a_cache_is_one_sentence(transformers_js: Path, tmp_path: Path) -> None:
    folder = tmp_path / "no-cache"
    shutil.copytree(transformers_js, folder)
    model = onnx.load(str(folder / "onnx" / "model.onnx"))
    for value in model.graph.input:
        value.name = value.name.replace("past_key_values", "cache")
    for node in model.graph.node:
        node.input[:] = [name.replace("past_key_values", "cache") for name in node.input]
    onnx.save(model, str(folder / "onnx" / "model.onnx"))
    with pytest.raises(InputError, match=r"without the input past_key_values\.0\.key; export it so"):
        foreign_subject(folder)
