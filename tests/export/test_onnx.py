"""ONNX folders of a tiny random Llama: equal to torch, whole, deterministic, self-contained."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from transformers import AutoModelForCausalLM

from edgedistill.core.errors import InputError, MissingError, StageError
from edgedistill.core.files import read_json
from edgedistill.export import onnx_graph
from edgedistill.export.onnx import export_onnx
from edgedistill.export.onnx_check import check_onnx
from edgedistill.export.onnx_graph import build_graph, telling_line
from edgedistill.export.onnx_quantize import pack_codes
from edgedistill.export.weights import stored_tensors
from edgedistill.quant.blocks import decode_blocks, encode_blocks
from edgedistill.quant.codes import CodeSet
from edgedistill.quant.plan import EMBEDDING, Plan
from edgedistill.quant.search import search_blocks
from edgedistill.runtimes.chat import encode, load_tokenizer

IDS = [1, 30, 45, 200, 7, 99, 310, 64, 2, 17]


@pytest.fixture(scope="module")
def graph(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The builder's graph of the model, without its matrices."""
    out = tmp_path_factory.mktemp("graph") / "graph"
    build_graph(model=tiny_llama, out=out, threads=1)
    return out


@pytest.fixture(scope="module")
def folders(tiny_llama: Path, graph: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The three precisions, made from one graph."""
    root = tmp_path_factory.mktemp("onnx")
    made = {name: root / f"onnx-{name}" for name in ("fp32", "int8", "int4")}
    for name, out in made.items():
        codes = None if name == "fp32" else code_set(name)
        export_onnx(model=tiny_llama, out=out, threads=1, graph=graph, codes=codes)
    return made


def onnx_logits(file: Path, ids: list[int]) -> np.ndarray:
    """`[tokens, vocab]` from an empty cache, through onnxruntime alone."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    feeds = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), dtype=np.int64)}
    for slot in session.get_inputs():
        if slot.name.startswith("past_key_values"):
            feeds[slot.name] = np.zeros((1, slot.shape[1], 0, 16), dtype=np.float32)
    return session.run(["logits"], feeds)[0][0]


def torch_logits(folder: Path, *, plan: Plan | None = None) -> np.ndarray:
    """`[tokens, vocab]` of the model, its matrices rounded to the grids of `plan`."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for name, weight in model.named_parameters():
        grid = None if plan is None else plan.grid(name, tuple(weight.shape))
        if grid is not None:
            blocks = encode_blocks(weight.detach().numpy(), grid=grid)
            weight.data = torch.from_numpy(decode_blocks(blocks))
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0].numpy()


def code_set(name: str) -> CodeSet:
    return CodeSet(Plan(f"Q{name[3:]}_0", "Q8_0"))


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_fp32_gives_torchs_logits(folders: dict[str, Path], tiny_llama: Path) -> None:
    assert np.abs(onnx_logits(folders["fp32"] / "model.onnx", IDS) - torch_logits(tiny_llama)).max() < 1e-3


V_PROJ, DOWN_PROJ = "model.layers.1.self_attn.v_proj.weight", "model.layers.0.mlp.down_proj.weight"


@pytest.mark.parametrize(
    "plan",
    [
        Plan("Q4_0", "Q8_0"),
        Plan("Q8_0", "Q8_0"),
        Plan("Q4_0", "Q8_0", {V_PROJ: "Q8_0", DOWN_PROJ: "Q8_0"}),
        Plan("Q8_0", "Q8_0", {EMBEDDING: "Q4_0"}),
    ],
)
def test_kernels_read_the_codes_as_the_plans_grids_mean_them(
    plan: Plan, graph: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    out, codes = tmp_path / "onnx", CodeSet(plan)
    facts = export_onnx(model=tiny_llama, out=out, threads=1, graph=graph, codes=codes, accuracy_level=1)
    assert facts.fallback_tensors == 0
    assert np.abs(onnx_logits(out / "model.onnx", IDS) - torch_logits(tiny_llama, plan=plan)).max() < 1e-3


def test_a_stack_of_two_grids_is_a_node_for_each(graph: Path, tiny_llama: Path, tmp_path: Path) -> None:
    codes = CodeSet(Plan("Q4_0", "Q8_0", {V_PROJ: "Q8_0"}))
    export_onnx(model=tiny_llama, out=tmp_path / "onnx", threads=1, graph=graph, codes=codes)
    nodes = onnx.load_model(str(tmp_path / "onnx" / "model.onnx"), load_external_data=False).graph.node
    (joined,) = [n for n in nodes if n.op_type == "Concat" and "qkv_proj" in n.name]
    parts = [n for n in nodes if n.op_type == "MatMulNBits" and n.output[0] in joined.input]
    found = [{a.name: a.i for a in n.attribute} for n in parts]
    assert [(a["bits"], a["N"]) for a in found] == [(4, 96), (8, 32)]


def test_importances_reach_the_matrix_of_their_name(graph: Path, tiny_llama: Path, tmp_path: Path) -> None:
    weights = stored_tensors(tiny_llama)[DOWN_PROJ].read()
    importance = np.linspace(0.01, 4, weights.shape[1]) ** 2
    plan = Plan("Q4_0", "Q8_0")
    codes = CodeSet(plan, importances={DOWN_PROJ: importance})
    export_onnx(model=tiny_llama, out=tmp_path / "onnx", threads=1, graph=graph, codes=codes)
    held = {i.name: numpy_helper.to_array(i) for i in onnx.load(tmp_path / "onnx" / "model.onnx").graph.initializer}
    found = held["model.layers.0.mlp.down_proj.MatMul.weight_codes"]
    assert np.array_equal(found, pack_codes(search_blocks(weights, grid="Q4_0", importance=importance)))
    assert not np.array_equal(found, pack_codes(encode_blocks(weights, grid="Q4_0")))


@pytest.mark.parametrize("grid", ["Q5_0", "IQ4_NL", "Q6_K"])
def test_a_grid_that_onnx_has_not_is_refused(grid: str, graph: Path, tiny_llama: Path, tmp_path: Path) -> None:
    codes = CodeSet(Plan("Q4_0", "Q8_0", {DOWN_PROJ: grid}))
    with pytest.raises(InputError, match=rf"expected grid Q4_0 or Q8_0.* for 'model\.layers\.0\.mlp.*, found {grid}"):
        export_onnx(model=tiny_llama, out=tmp_path / "onnx", threads=1, graph=graph, codes=codes)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_int8_activations_cost_little(folders: dict[str, Path], tiny_llama: Path, precision: str) -> None:
    ours = onnx_logits(folders[precision] / "model.onnx", IDS)
    grid = torch_logits(tiny_llama, plan=code_set(precision).plan)
    assert np.abs(ours - grid).mean() < 0.03 * np.abs(grid).mean()


def test_embedding_and_head_share_their_bytes(folders: dict[str, Path]) -> None:
    facts = check_onnx(folders["int8"])
    assert facts.fallback_tensors == 0
    assert facts.parameters == check_onnx(folders["fp32"]).parameters
    assert 9.0 <= facts.bits_per_weight < 9.2
    assert check_onnx(folders["fp32"]).bits_per_weight == 32


def test_a_folder_is_complete_and_loads_elsewhere_in_a_fresh_process(
    folders: dict[str, Path], tiny_llama: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(folders["fp32"], moved)
    names = {p.name for p in moved.iterdir()}
    assert names == {
        "model.onnx", "model.onnx_data", "genai_config.json", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja",
    }  # fmt: skip
    assert json.loads((moved / "tokenizer_config.json").read_text())["chat_template"].startswith("{% for m in")
    assert (moved / "tokenizer.json").read_bytes() == (tiny_llama / "tokenizer.json").read_bytes()
    script = (
        "import sys, json, onnxruntime_genai as og\n"
        "model = og.Model(sys.argv[1]); params = og.GeneratorParams(model); params.set_search_options(max_length=20)\n"
        "g = og.Generator(model, params); g.append_tokens(json.loads(sys.argv[2]))\n"
        "while not g.is_done(): g.generate_next_token()\n"
        "print(json.dumps([int(t) for t in g.get_sequence(0)]))\n"
    )
    prompt = [1, 30, 45, 200]
    done = subprocess.run(
        [sys.executable, "-c", script, str(moved), json.dumps(prompt)], capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    wanted = model.generate(torch.tensor([prompt]), max_length=20, do_sample=False)[0].tolist()
    found = json.loads(done.stdout)
    assert found == wanted[: len(found)] and len(found) >= len(wanted) - 1


def test_no_token_of_a_chat_is_the_padding(folders: dict[str, Path]) -> None:
    """onnxruntime-genai leaves every pad id of a prompt out."""
    tokenizer = load_tokenizer(folders["int8"])
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    used = encode(tokenizer, tokenizer.apply_chat_template(chat, tokenize=False))
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in used
    assert read_json(folders["int8"] / "genai_config.json")["model"]["pad_token_id"] not in used


def test_the_same_model_gives_the_same_bytes(folders: dict[str, Path], tiny_llama: Path, tmp_path: Path) -> None:
    export_onnx(model=tiny_llama, out=tmp_path / "a" / "other", threads=2, codes=CodeSet(Plan("Q4_0", "Q8_0")))
    assert digests(tmp_path / "a" / "other") == digests(folders["int4"])
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["other"]
    for path in folders["fp32"].iterdir():
        assert str(tiny_llama.parent).encode() not in path.read_bytes()


def test_no_commit_of_a_checkout_around_the_package_is_stamped_in(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        model = onnx.load_model(str(folder / "model.onnx"), load_external_data=False)
        assert model.producer_version == version("onnxruntime-genai")


def test_an_old_folder_is_replaced_whole(
    folders: dict[str, Path], graph: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    out = tmp_path / "onnx-int8"
    out.mkdir()
    (out / "model.onnx_data.old").write_bytes(b"stale")
    export_onnx(model=tiny_llama, out=out, threads=1, graph=graph, codes=CodeSet(Plan("Q8_0", "Q8_0")))
    assert digests(out) == digests(folders["int8"])


def test_a_model_the_builder_refuses_fails_in_one_sentence(tiny_llama: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_llama, model)
    config = json.loads((model / "config.json").read_text())
    config |= {"architectures": ["BertForMaskedLM"], "model_type": "bert"}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(StageError, match=r"the ONNX model builder ended with status 1 on .*: NotImplementedError"):
        export_onnx(model=model, out=tmp_path / "out" / "onnx-fp32", threads=1)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_builder_that_is_not_installed_is_missing(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_graph, "_BUILDER", "onnxruntime_genai_absent.builder")
    with pytest.raises(MissingError, match="needs a package that is absent"):
        export_onnx(model=tiny_llama, out=tmp_path / "onnx-fp32", threads=1)


def test_a_weight_that_is_not_a_number_is_refused_by_name(graph: Path, tiny_llama: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    model = tmp_path / "model"
    shutil.copytree(tiny_llama, model)
    tensors = load_file(model / "model.safetensors")
    tensors[V_PROJ][3, 5] = np.nan
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(InputError, match=r"'model\.layers\.1\.self_attn\.v_proj\.weight' cannot be encoded: expected"):
        export_onnx(model=model, out=tmp_path / "out", threads=1, graph=graph, codes=code_set("int4"))
    assert not (tmp_path / "out").exists()


def test_the_telling_line_names_the_error() -> None:
    assert (
        telling_line("Reading layer 1\nTraceback:\n  x = 1\nValueError: bad width\nhint: none\n")
        == "ValueError: bad width"
    )
    assert telling_line("killed\n") == "killed"
    assert telling_line("") == "it printed nothing"
