"""The export stage on tiny models: whole folders, proof, resume, broken exports, other folders and processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_builders import save_byte_level, save_llama

from edgedistill.core.artifact import list_files, load_artifact
from edgedistill.core.errors import InputError, StageError
from edgedistill.core.files import write_jsonl
from edgedistill.core.recipe import Recipe
from edgedistill.core.recipe_tables import Export
from edgedistill.core.records import Message, TeacherRecord
from edgedistill.core.runfolder import SilentReporter, StageContext
from edgedistill.export import companions, onnx_graph, stage
from edgedistill.gate.inputs import read_parity
from edgedistill.gate.proof import proof_table

COMPANIONS = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"}
GGUF = ["gguf-f16", "gguf-q8_0", "gguf-q4_0"]
ONNX = ["onnx-fp32", "onnx-int8", "onnx-int4"]


def context_of(
    run: Path,
    *,
    variants: list[str],
    teacher: tuple[str, ...] = (),
    calibrate: bool = False,
    max_bytes: int | None = None,
) -> StageContext:
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "threads": 1,
            "data": {"generator": "home-commands", "gold": 1},
            "teacher": {"model": "unused", "adapt": {}},
            "student": {"cut": {"layers": 1}},
            "export": {
                "variants": variants,
                "release": [],
                "teacher_variants": teacher,
                "parity_texts": 4,
                "calibrate": calibrate,
                "max_bytes": max_bytes,
            },
        }
    )
    return StageContext(recipe=recipe, run=run, stage="export", report=SilentReporter(), figures={})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to export: teacher, records and a student with a cut vocabulary. Copy it, do not write into it."""
    run = tmp_path_factory.mktemp("run")
    teacher, student = run / "05-teacher", run / "20-train" / "student"
    save_byte_level(teacher)
    save_llama(teacher, rows=1200, num_hidden_layers=3, seed=1)
    save_byte_level(student, keep=600)
    save_llama(student, rows=601)
    records = [
        TeacherRecord(
            id=f"{i}",
            prompt_id=f"{i}",
            teacher="t",
            messages=(Message(role="user", content=f"turn the light in room {i} to {7 * i} percent"),),
            answer=json.dumps({"device": "light", "value": 7 * i}),
            prompt_ids=(1,),
            answer_ids=(2,),
        ).model_dump(mode="json")
        for i in range(8)
    ]
    write_jsonl(run / "10-synth" / "records-000.jsonl", records)
    return run


@pytest.fixture(scope="module")
def graph(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the ONNX model builder makes of the student."""
    out = tmp_path_factory.mktemp("graph") / "graph"
    onnx_graph.build_graph(model=trained / "20-train" / "student", out=out, threads=1)
    return out


@pytest.fixture
def with_graph(trained: Path, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A trained run whose ONNX graph is built already."""

    def build_graph(*, model: Path, out: Path, threads: int) -> None:
        shutil.copytree(graph, out, dirs_exist_ok=True)

    monkeypatch.setattr(onnx_graph, "build_graph", build_graph)
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def run_folder(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_every_variant_is_whole_proven_and_lean(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    context = context_of(run, variants=[*GGUF, *ONNX], teacher=("gguf-q4_0", "gguf-q8_0"))
    stage.run(context)
    names = {path.name for path in context.folder.iterdir()}
    assert names == {*GGUF, *ONNX, "teacher-q4_0", "teacher-q8_0"} == context.figures.keys()
    figures: dict[str, Any] = {}
    for name in names:
        folder = context.folder / name
        artifact = load_artifact(folder)
        listed = {entry.path for entry in artifact.files}
        assert COMPANIONS | {artifact.entry} <= listed == {e.path for e in list_files(folder)} - {"artifact.json"}
        text = artifact.parity["text"]
        differing = [text[f"{what}_differing"] for what in ("tokenizer", "engine", "decoding")]
        assert text["strings"] >= 380 and text["chat_template"] and differing == [0, 0, 0]
        assert artifact.parity["fresh"]["positions"] > artifact.parity["cached"]["positions"] > 50
        assert b"\n" not in (folder / "tokenizer.json").read_bytes()
        assert str(tmp_path).encode() not in b"".join((folder / path).read_bytes() for path in listed)
        figures[name] = artifact
    parameters = {name: artifact.parameters for name, artifact in figures.items() if not name.startswith("teacher")}
    assert len(set(parameters.values())) == 1, parameters
    bits = {name: artifact.bits_per_weight for name, artifact in figures.items()}
    assert bits["gguf-q4_0"] < bits["gguf-q8_0"] < bits["gguf-f16"] < bits["onnx-fp32"]
    assert bits["onnx-int4"] < bits["onnx-int8"] < bits["onnx-fp32"]
    assert figures["gguf-q8_0"].parity["fresh"]["kld_nats"] > figures["gguf-f16"].parity["fresh"]["kld_nats"]
    assert figures["gguf-q4_0"].source_digest == figures["onnx-int4"].source_digest
    assert figures["gguf-q4_0"].source_digest != figures["teacher-q4_0"].source_digest


def test_k_quants_are_calibrated_on_held_in_records_and_refused_where_they_are_none(
    run_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(StageError, match=r"a file called Q4_K_M would hold 0% of its weights so"):
        stage.run(context_of(run_folder, variants=["gguf-q4_k_m"]))
    shutil.rmtree(run_folder / "30-export")
    student = run_folder / "20-train" / "student"
    save_llama(student, rows=601, hidden_size=256, intermediate_size=512, num_hidden_layers=1)
    context = context_of(run_folder, variants=["gguf-q4_k_m", "gguf-iq4_xs"])
    stage.run(context)
    artifact = load_artifact(context.folder / "gguf-q4_k_m")
    assert artifact.fallback_tensors == 0 and 4.5 < artifact.bits_per_weight < 7
    assert artifact.parity["fresh"]["kld_nats"] < 0.8
    assert {path.name for path in context.folder.iterdir()} == {"gguf-q4_k_m", "gguf-iq4_xs"}


def test_calibrated_codes_come_closer_in_both_formats(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = context_of(run_folder, variants=["gguf-q4_0"])
    stage.run(plain)
    before = load_artifact(plain.folder / "gguf-q4_0").parity["fresh"]["kld_nats"]
    shutil.rmtree(plain.folder)
    context = context_of(run_folder, variants=["gguf-q4_0", "onnx-int4"], calibrate=True)
    stage.run(context)
    found = {name: load_artifact(context.folder / name).parity["fresh"]["kld_nats"] for name in context.figures}
    assert max(found.values()) < 0.7 * before
    assert {path.name for path in context.folder.iterdir()} == {"gguf-q4_0", "onnx-int4"}
    # all stands: nothing is calibrated again
    monkeypatch.setattr(stage, "_calibrated", lambda *_, **__: pytest.fail("calibrated again"))
    stage.run(context_of(run_folder, variants=["gguf-q4_0", "onnx-int4"], calibrate=True))


def test_codes_that_training_ended_on_are_not_chosen_anew(tmp_path: Path) -> None:
    recipe = context_of(tmp_path, variants=["gguf-q4_0"], calibrate=True).recipe.model_dump()
    recipe["train"]["qat"] = {"grid": "q4_0"}
    with pytest.raises(ValueError, match=r"expected either export\.calibrate or \[train\.qat\]"):
        Recipe.model_validate(recipe)


def test_interrupted_stage_goes_on_and_ends_in_the_same_bytes(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = context_of(run_folder, variants=[*GGUF, *ONNX])
    stage.run(whole)
    before = {entry.path: entry.sha256 for entry in list_files(whole.folder)}
    # killed in the middle of one variant, with another one damaged and what a killed writer leaves
    shutil.rmtree(whole.folder / "gguf-q4_0")
    shutil.rmtree(whole.folder / "onnx-int4")
    damaged = whole.folder / "gguf-q8_0" / "model.gguf"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    kept = (whole.folder / "gguf-f16" / "model.gguf").stat().st_mtime_ns
    (run_folder / "20-train" / "student" / "manifest.json").write_text('{"finished": "another day"}')
    again = context_of(run_folder, variants=[*GGUF, *ONNX])
    stage.run(again)
    assert {entry.path: entry.sha256 for entry in list_files(again.folder)} == before
    assert (again.folder / "gguf-f16" / "model.gguf").stat().st_mtime_ns == kept
    assert again.figures == whole.figures


def faults() -> dict[str, tuple[str, Any, str]]:
    """Ways to break an export: what is patched, with what, and the words that must name it."""
    from edgedistill.export import gguf, vocabulary

    rotate, read, shape, special = (
        gguf.to_neighbour_rotation, gguf.read_vocabulary, gguf.read_shape, vocabulary._special_ids
    )  # fmt: skip

    def zeroed(data: np.ndarray, *, heads: int) -> np.ndarray:
        return rotate(data * 0, heads=heads)

    def changed(**entries: Any) -> Any:
        return lambda **arguments: type(found := read(**arguments))(**{**vars(found), **entries})

    def shifted(**arguments: Any) -> Any:
        found = read(**arguments)
        return type(found)(**{**vars(found), "tokens": (*found.tokens[:9], *found.tokens[10:], found.tokens[9])})

    def theta(model: Path) -> Any:
        found = shape(model)
        return replace(found, rope=replace(found.rope, theta=100.0))

    gpt2 = vocabulary.PreTokenizer(model="gpt2", pre="gpt-2", add_space_prefix=False)
    return {
        "rotation": ("gguf.to_neighbour_rotation", lambda data, heads: data, "KLD to the student in one pass"),
        "zeroed": ("gguf.to_neighbour_rotation", zeroed, "KLD to the student through the KV cache"),
        "theta": ("gguf.read_shape", theta, "KLD to the student"),
        "template": (
            "gguf.read_vocabulary",
            changed(chat_template="{{ messages[0].content }}"),
            "the chat template of llama.cpp",
        ),
        "no-template": ("gguf.read_vocabulary", changed(chat_template=None), "the chat template of llama.cpp"),
        "pre": ("gguf.read_vocabulary", changed(kind=gpt2), "llama.cpp tokenizes"),
        "bos": ("gguf.read_vocabulary", changed(add_bos=True), "llama.cpp tokenizes"),
        "shifted": ("gguf.read_vocabulary", shifted, "llama.cpp has"),
        "eos": ("vocabulary._special_ids", lambda **a: {**special(**a), "eos": 40}, "tokens of plain text"),
    }


@pytest.mark.parametrize(
    "fault", ["rotation", "zeroed", "theta", "template", "no-template", "pre", "bos", "shifted", "eos"]
)
def test_broken_export_fails_and_leaves_nothing(fault: str, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, broken, words = faults()[fault]
    monkeypatch.setattr(f"edgedistill.export.{place}", broken)
    context = context_of(run_folder, variants=["gguf-q4_0"])
    with pytest.raises(StageError, match="gguf-q4_0 is not equal to its source") as caught:
        stage.run(context)
    assert words in str(caught.value), caught.value
    assert not (context.folder / "gguf-q4_0").exists()


def onnx_faults() -> dict[str, tuple[Any, str]]:
    """Ways to spoil a built ONNX folder, and the words that must name it."""

    def settings(name: str, change: Any) -> Any:
        def apply(folder: Path) -> None:
            found = json.loads((folder / name).read_text())
            change(found)
            (folder / name).write_text(json.dumps(found))

        return apply

    def stale(folder: Path) -> None:
        data = bytearray((folder / "model.onnx_data").read_bytes())
        data[: len(data) // 2] = bytes(len(data) // 2)
        (folder / "model.onnx_data").write_bytes(data)

    def shifted(found: dict[str, Any]) -> None:
        vocab = found["model"]["vocab"]
        a, b = sorted(vocab, key=vocab.get)[40:42]
        vocab[a], vocab[b] = vocab[b], vocab[a]

    return {
        "stale-data": (stale, "KLD to the student"),
        "eos": (
            settings("genai_config.json", lambda c: c["model"].update(eos_token_id=1)),
            "generation does not end at",
        ),
        "plain-end": (
            settings("genai_config.json", lambda c: c["model"].update(eos_token_id=[2, 50])),
            "of plain text",
        ),
        "template": (settings("tokenizer_config.json", lambda c: c.update(chat_template="x")), "renders otherwise"),
        "vocabulary": (settings("tokenizer.json", shifted), "tokenizer.json beside it has 2 other tokens"),
        "digits": (
            settings("tokenizer.json", lambda c: c.update(pre_tokenizer=c["pre_tokenizer"]["pretokenizers"][-1])),
            "onnxruntime-genai tokenizes",
        ),
    }


@pytest.mark.parametrize("fault", ["stale-data", "eos", "plain-end", "template", "vocabulary", "digits"])
def test_broken_onnx_fails_and_leaves_nothing(fault: str, with_graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil, words = onnx_faults()[fault]
    whole = companions.write_companions

    def spoiled(*, model: Path, folder: Path, entry: str) -> None:
        whole(model=model, folder=folder, entry=entry)
        spoil(folder)

    monkeypatch.setattr(companions, "write_companions", spoiled)
    context = context_of(with_graph, variants=["onnx-int8"])
    with pytest.raises(StageError, match="onnx-int8 is not equal to its source") as caught:
        stage.run(context)
    assert words in str(caught.value), caught.value
    assert not (context.folder / "onnx-int8").exists()


def test_prompts_that_end_with_what_ends_answers_are_noted(run_folder: Path) -> None:
    student = run_folder / "20-train" / "student"
    ended = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
    assert "ends prompts with <|im_end|>, which also ends answers" in (
        stage._ended_prompt(student, override=ended) or ""
    )
    assert stage._ended_prompt(student, override=None) is None


def test_weights_that_are_not_finite_are_refused_before_anything_is_made(run_folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    path = run_folder / "20-train" / "student" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][3] = np.nan
    save_file(tensors, path, metadata={"format": "pt"})
    context = context_of(run_folder, variants=["onnx-fp32"])
    with pytest.raises(InputError, match=r"expected finite weights in .*found NaN .* in 'model\.norm\.weight', row 3"):
        stage.run(context)
    assert not context.folder.exists() or not any(context.folder.iterdir())


def test_without_records_it_says_what_to_run(run_folder: Path) -> None:
    shutil.rmtree(run_folder / "10-synth")
    with pytest.raises(StageError, match=r"expected the teacher's records in .*, found none; run synth first"):
        stage.run(context_of(run_folder, variants=["gguf-q4_0"]))


@pytest.mark.parametrize("variant", ["gguf-q4_0", "onnx-int4"])
def test_moved_folder_loads_alone_in_a_fresh_process(variant: str, with_graph: Path, tmp_path: Path) -> None:
    context = context_of(with_graph, variants=[variant])
    stage.run(context)
    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    shutil.move(context.folder / variant, moved)
    shutil.rmtree(with_graph)
    code = (
        "import sys, json; from pathlib import Path; from contextlib import closing\n"
        "from edgedistill.core.artifact import load_artifact\n"
        "from edgedistill.runtimes import chat; from edgedistill.runtimes.base import open_session\n"
        "folder = Path(sys.argv[1]); artifact = load_artifact(folder); tokenizer = chat.load_tokenizer(folder)\n"
        "from edgedistill.core.records import Message\n"
        "text = chat.render(tokenizer, [Message(role='user', content='hi')], template=chat.template_of(tokenizer))\n"
        "engine, path = ('llamacpp', folder / artifact.entry) if artifact.format == 'gguf' else ('onnx', folder)\n"
        "with closing(open_session(engine, path, threads=1, context=64)) as session:\n"
        "    ids = chat.encode(tokenizer, text); ends = frozenset(chat.end_ids(folder))\n"
        "    answer = session.generate([ids], max_new_tokens=4, eos_ids=ends)[0]\n"
        "print(json.dumps([text, len(answer.ids)]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(moved)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    text, count = json.loads(done.stdout)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n" and 1 <= count <= 4


def mixed(run: Path, variants: list[str], max_bytes: int) -> StageContext:
    context = context_of(run, variants=variants, max_bytes=max_bytes)
    stage.run(context)
    return context


def test_a_gguf_keeps_its_bytes_and_says_its_grids(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = context_of(run_folder, variants=["gguf-q8_0"])
    stage.run(plain)
    budget = load_artifact(plain.folder / "gguf-q8_0").total_bytes - 20_000
    context = mixed(run_folder, ["gguf-mixed"], budget)
    artifact = load_artifact(context.folder / "gguf-mixed", rehash=True)
    assert artifact.variant == "gguf-mixed" and 0.9 * budget < artifact.total_bytes <= artifact.max_bytes == budget
    assert sum(artifact.grids.values()) == 1 + 2 * 7 and len(artifact.grids) > 1
    table = proof_table(read_parity(run_folder))
    shown = {name: cells[table["variants"].index("gguf-mixed")] for name, cells in table["rows"]}
    assert shown["matrices on each grid"] == ", ".join(f"{count} {grid}" for grid, count in artifact.grids.items())
    assert shown["bytes they were chosen for"] != "–"
    monkeypatch.setattr(stage, "_records", lambda *_, **__: pytest.fail("chosen again"))
    assert stage._mixed(context, threads=1) is None  # all stands


def test_bytes_that_no_grids_keep_are_refused(run_folder: Path) -> None:
    with pytest.raises(InputError, match=r"expected at least \d[\d,]* bytes, .* found a budget of 1,000"):
        mixed(run_folder, ["gguf-mixed"], 1_000)


def test_both_formats_have_one_plan(with_graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = mixed(with_graph, ["gguf-mixed", "onnx-mixed"], 330_000)
    artifacts = [load_artifact(context.folder / name) for name in ("gguf-mixed", "onnx-mixed")]
    assert artifacts[0].grids == artifacts[1].grids and artifacts[0].grids.keys() <= {"Q4_0", "Q8_0"}
    assert all(artifact.total_bytes <= 330_000 for artifact in artifacts)
    # one of the two is gone: both are chosen and written again
    shutil.rmtree(context.folder / "onnx-mixed")
    assert stage._finished(context.folder / "gguf-mixed") is not None
    chosen: list[Any] = []
    monkeypatch.setattr(stage, "_records", lambda *_, **__: chosen.append(1) or [])
    with pytest.raises(InputError, match="expected"):
        stage._mixed(context, threads=1)
    assert chosen and not (context.folder / "gguf-mixed").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": ["gguf-mixed"]}, r'expected max_bytes, such as "60 MB", for the variant gguf-mixed, found none'),
        ({"variants": ["gguf-q4_0"], "max_bytes": "60 MB"}, "expected gguf-mixed or onnx-mixed in variants"),
        ({"variants": ["gguf-mixed"], "max_bytes": 0}, r"max_bytes\s+Value error, expected at least one byte"),
    ],
)
def test_a_mixed_variant_and_its_bytes_belong_together(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Export.model_validate({"release": [], **changes})
    assert Export(variants=("gguf-mixed",), release=("gguf-mixed",), max_bytes="60 MB").most_bytes == 60_000_000
