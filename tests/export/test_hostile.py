"""Hostile and damaged files: one sentence and exit 2 before any engine sees them, or sound; never a dead process."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import hostile_folders
import hostile_gguf
import hostile_onnx
import pytest

from edgedistill.cli.main import main
from edgedistill.core.errors import InputError
from edgedistill.core.records import Message
from edgedistill.export.companions import write_companions
from edgedistill.export.gguf import export_gguf_f16
from edgedistill.export.onnx import export_onnx
from edgedistill.quant.codes import CodeSet
from edgedistill.quant.plan import Plan
from edgedistill.runtimes import chat, template
from edgedistill.runtimes.base import open_session
from edgedistill.runtimes.gguf_file import read_gguf
from edgedistill.runtimes.gguf_model import check_gguf
from edgedistill.runtimes.onnx_file import check_genai_folder
from edgedistill.runtimes.sources import check_folder, resolve_model

CHILD = Path(__file__).with_name("hostile_child.py")
LONGEST = 400
RANDOM = 60  # cases of each kind with damage at random places
EVERY = 12  # of the refused, one in so many also goes through the command line and the other entries


@dataclass(frozen=True)
class Case:
    name: str
    path: Path


@dataclass(frozen=True)
class Kind:
    """What one kind of file goes through: its check, the engine behind it, and the cases."""

    engine: str
    check: Callable[[Path], object]
    cases: tuple[Case, ...]


def sentence(case: Case, action: Callable[[], object]) -> str | None:
    """The refusal, held against what every refusal must be; None where the file is taken."""
    try:
        action()
    except InputError as e:
        said = str(e)
        assert "\n" not in said and len(said.replace(str(case.path), "")) < LONGEST, (case.name, said)
        assert case.path.name in said or said.startswith("the chat template cannot render"), (case.name, said)
        return said
    return None


def made(base: Path, root: Path, damages: Iterator[tuple[str, Callable[[Path], object]]]) -> tuple[Case, ...]:
    """The sound folder, and a copy of it for each damage."""
    cases = [Case("sound", base)]
    for number, (name, damage) in enumerate(damages):
        folder = Path(shutil.copytree(base, root / f"{number:04d}"))
        damage(folder)
        cases.append(Case(name, folder))
    return tuple(cases)


@pytest.fixture(scope="module")
def gguf(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Kind:
    root, cases = tmp_path_factory.mktemp("gguf"), []

    def add(name: str, raw: bytes) -> None:
        path = root / f"{len(cases):04d}.gguf"
        path.write_bytes(raw)
        cases.append(Case(name, path))

    sound = hostile_gguf.Parts.read(tiny_gguf)
    assert sound.blob() == tiny_gguf.read_bytes()
    add("sound", sound.blob())
    for group in (hostile_gguf.structural, hostile_gguf.models, hostile_gguf.vocabularies):
        for name, change in group():
            parts = copy.deepcopy(sound)
            change(parts)
            add(name, parts.blob())
    begin = min(tensor.start for tensor in read_gguf(tiny_gguf).tensors.values())
    for name, raw in hostile_gguf.random_damage(tiny_gguf.read_bytes(), begin=begin, count=RANDOM, seed=7):
        add(name, raw)
    return Kind("llamacpp", check_gguf, tuple(cases))


@pytest.fixture(scope="module")
def onnx(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Kind:
    root = tmp_path_factory.mktemp("onnx")
    export_onnx(model=tiny_llama, out=root / "sound", threads=1, codes=CodeSet(Plan("Q4_0", "Q8_0")))

    def damages() -> Iterator[tuple[str, Callable[[Path], object]]]:
        yield from hostile_onnx.graphs()
        yield from hostile_onnx.places()
        yield from hostile_onnx.settings()
        yield from hostile_onnx.random_damage(root / "sound", count=RANDOM, seed=7)

    return Kind("onnx", check_genai_folder, made(root / "sound", root, damages()))


@pytest.fixture(scope="module")
def weights(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Kind:
    random = hostile_folders.random_damage(tiny_llama, names=("model.safetensors",), count=RANDOM // 2, seed=7)
    cases = made(tiny_llama, tmp_path_factory.mktemp("weights"), iter([*hostile_folders.safetensors(), *random]))
    return Kind("hf", check_folder, cases)


@pytest.fixture(scope="module")
def texts(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Kind:
    names = ("tokenizer.json", "config.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
    random = hostile_folders.random_damage(tiny_llama, names=names, count=RANDOM, seed=7)
    damages = [*hostile_folders.settings(), *hostile_folders.tokenizers(), *random]
    return Kind("hf", check_folder, made(tiny_llama, tmp_path_factory.mktemp("texts"), iter(damages)))


LEAST = {"gguf": (100, 280), "onnx": (80, 250), "weights": (60, 100), "texts": (60, 100)}  # cases, refused by the check


@pytest.fixture(scope="module", params=LEAST)
def kind(request: pytest.FixtureRequest) -> tuple[str, Kind, dict[str, str]]:
    """A kind's name, its cases, and the refusals of its check by case."""
    found: Kind = request.getfixturevalue(request.param)
    said = {case.name: sentence(case, lambda c=case: found.check(c.path)) for case in found.cases}
    assert len(said) == len(found.cases), "two cases of one name"
    return request.param, found, {name: text for name, text in said.items() if text}


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine may be reached: neither a worker, nor a library's own loader."""

    def reached(*_: object, **__: object) -> None:
        pytest.fail("an engine was given a file that its check refuses")

    import llama_cpp.llama_cpp
    import onnxruntime_genai
    import transformers

    monkeypatch.setattr("edgedistill.bench.block.run_block", reached)
    monkeypatch.setattr("edgedistill.bench.block.subprocess.run", reached)
    monkeypatch.setattr(llama_cpp.llama_cpp, "llama_model_load_from_file", reached)
    monkeypatch.setattr(onnxruntime_genai, "Config", reached)
    monkeypatch.setattr(onnxruntime_genai, "Model", reached)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", reached)
    monkeypatch.setattr("edgedistill.export.onnx_graph.subprocess.run", reached)


def test_refused_files_never_reach_an_engine(
    kind: tuple[str, Kind, dict[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name, found, refused = kind
    least_cases, least_refused = LEAST[name]
    assert len(found.cases) >= least_cases and len(refused) >= least_refused, (len(found.cases), len(refused))
    forbid(monkeypatch)
    for case in (case for case in found.cases if case.name in refused):
        again = sentence(case, lambda c=case: open_session(found.engine, c.path, threads=1, context=32))
        assert again == refused[case.name], case.name
        if name in ("weights", "texts"):
            target = tmp_path / f"{case.path.name}.gguf"
            assert sentence(case, lambda c=case, t=target: export_gguf_f16(model=c.path, out=t)), case.name
            assert sentence(case, lambda c=case, t=target: export_onnx(
                model=c.path, out=t, threads=1)), case.name  # fmt: skip
        if name != "onnx":
            assert sentence(case, lambda c=case: resolve_model(str(c.path), cache=tmp_path / "cache")), case.name
    assert not [p for p in tmp_path.iterdir() if p.name != "cache"]


def test_bench_refuses_with_exit_2(
    kind: tuple[str, Kind, dict[str, str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, found, refused = kind
    forbid(monkeypatch)
    for case in [case for case in found.cases if case.name in refused][::EVERY]:
        monkeypatch.setattr(sys, "argv", ["edgedistill", "bench", str(case.path), "--blocks", "1"])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        assert (caught.value.code, out) == (2, ""), (case.name, err)
        assert err.startswith("edgedistill: ") and err.count("\n") == 1, (case.name, err)


def test_what_passes_loads_or_is_refused_by_its_engine(kind: tuple[str, Kind, dict[str, str]]) -> None:
    """In a child, so that a crash is the failure of the case and not of the tests."""
    name, found, refused = kind
    left = [case for case in found.cases if case.name not in refused]
    names = {str(case.path): case.name for case in left}
    todo, outcome = list(names), {}
    environment = os.environ | {"GGML_NO_BACKTRACE": "1", "OMP_NUM_THREADS": "1"}
    while todo:
        lines = "".join(f"{found.engine}\t{path}\n" for path in todo)
        done = subprocess.run(
            [sys.executable, str(CHILD)], input=lines, capture_output=True, text=True, env=environment, timeout=600
        )
        for line in done.stdout.splitlines():
            word, path, *rest = line.split(" ", 2)
            outcome[path] = rest[0] if word == "end" else "died"
        died = [path for path in todo if outcome.get(path) == "died"]
        assert done.returncode == 0, (names[died[0]] if died else "at its end", done.stderr[-2000:])
        todo = [path for path in todo if path not in outcome]
    words = Counter(said.split()[0] for said in outcome.values())
    assert len(outcome) == len(left) and words.keys() <= {"sound", "refused"}, words
    assert outcome[next(path for path, case in names.items() if case == "sound")] == "sound"
    long = {names[p]: said for p, said in outcome.items() if len(said.replace(p, "")) > LONGEST or "\\n" in said}
    assert not long, name


def test_hundreds_of_files_were_tried(gguf: Kind, onnx: Kind, weights: Kind, texts: Kind) -> None:
    assert sum(len(kind.cases) for kind in (gguf, onnx, weights, texts)) >= 1200


def test_tokenizers_and_templates_are_refused_wherever_they_are_read(
    texts: Kind, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Template, vocabulary and companions: each entry refuses in a sentence of its own, or reads what it needs."""
    monkeypatch.setattr(template, "SECONDS", 0.5)
    counts: Counter[str] = Counter()
    hostile = {f"template: {name}" for name in hostile_folders.TEMPLATES}
    for number, case in enumerate(texts.cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        entries = {
            "render": lambda c=case: rendered(c.path),
            "export": lambda c=case, f=folder: export_gguf_f16(model=c.path, out=f / "m.gguf"),
            "companions": lambda c=case, f=folder: write_companions(model=c.path, folder=f, entry="model.onnx"),
        }
        for entry, action in entries.items():
            if case.name in hostile and entry == "render":
                said = refusal(action)
                assert "chat template" in said and "\n" not in said, (case.name, said)
                counts["templates"] += 1
            elif sentence(case, action):
                counts[entry] += 1
    assert counts["templates"] == len(hostile) >= 30
    assert counts["export"] >= 200 and counts["companions"] >= 60, counts


def refusal(action: Callable[[], object]) -> str:
    try:
        action()
    except InputError as e:
        return str(e)
    return "taken"


def rendered(folder: Path) -> None:
    tokenizer = chat.load_tokenizer(folder)
    chat.render(tokenizer, [Message(role="user", content="hi")], template=chat.template_of(tokenizer))
