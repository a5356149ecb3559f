"""What is proven, and against what: a model on disk, its structure checked before any engine sees it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import onnx

from edgedistill.core.artifact import Artifact, load_artifact
from edgedistill.core.errors import InputError
from edgedistill.core.files import read_json
from edgedistill.core.runfolder import command_that_makes
from edgedistill.export.onnx_check import check_onnx
from edgedistill.export.onnx_run import entry_of
from edgedistill.export.parity_text import TextReference
from edgedistill.runtimes import chat
from edgedistill.runtimes.gguf_file import TENSOR_TYPES, read_gguf
from edgedistill.runtimes.sources import check_folder

LEAST_COPY_BYTES = 4096  # equal constants below this are no waste worth a word
SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json", "genai_config.json")
FREE_TEXT = ("chat_template", "added_tokens_decoder", "response_template")  # may well begin with a slash


@dataclass(frozen=True)
class Subject:
    """A model on disk: `engine` opens `path`; `folder` and `entry` are where it lies.

    `precision` is the key of its bounds, None for float weights of a Hugging Face folder.
    """

    given: str
    engine: str
    path: Path
    folder: Path
    entry: str
    precision: str | None
    artifact: Artifact | None = None


def check_there(*given: Path) -> None:
    """Say that a model is absent before the files of another are hashed, which takes its time.

    Raises:
        InputError: nothing is there.
    """
    for one in given:
        if not one.exists():
            raise InputError(_no_model(one))


def open_subject(given: Path, *, rehash: bool = True) -> Subject:
    """Find out what lies at `given` and check its structure: a GGUF file, an artifact's, genai's or HF's folder.

    `rehash` False lets a file differ from the hash in artifact.json.

    Raises:
        InputError: it is none of these, or damaged, or a file is not as artifact.json lists it.
    """
    folder = given if given.is_dir() else given.parent
    artifact, files = None, sorted(given.glob("*.gguf")) if given.is_dir() else []
    if (folder / "artifact.json").is_file() and (given.is_dir() or given.suffix == ".gguf"):
        artifact = load_artifact(folder, rehash=True) if rehash else _unhashed(folder)
        if given.is_file() and artifact.entry != given.name:
            artifact = None
    entry = given.name if given.is_file() else artifact.entry if artifact else files[0].name if len(files) == 1 else ""
    if entry.endswith(".gguf"):
        file = read_gguf(folder / entry)
        if not file.tensors:
            raise InputError(f"{folder / entry} is a GGUF file without tensors; expected a model's weights")
        precision = _precision(artifact) or _by_bits(_gguf_bits(folder / entry))
        return Subject(str(given), "llamacpp", folder / entry, folder, entry, precision, artifact)
    if given.is_dir() and (folder / "genai_config.json").is_file():
        file = entry_of(folder)
        check_onnx(file)
        precision = _precision(artifact) or _by_bits(_onnx_bits(file))
        return Subject(str(given), "onnx", folder, folder, file.name, precision, artifact)
    if given.is_dir() and (folder / "config.json").is_file():
        check_folder(folder)
        return Subject(str(given), "hf", folder, folder, "", None)
    raise InputError(_no_model(given))


def _no_model(given: Path) -> str:
    found = "nothing" if not given.exists() else "none of them"
    command = None if given.exists() else command_that_makes(given)
    advice = f"run `{command}` first" if command else "give the model's own file or folder"
    return (
        "expected a .gguf file or a folder with one, an ONNX folder with genai_config.json, or a Hugging Face folder, "
        f"found {found} at {given}; {advice}"
    )


def _unhashed(folder: Path) -> Artifact:
    from edgedistill.core.config import validate

    return validate(Artifact, read_json(folder / "artifact.json"), source=str(folder / "artifact.json"))


def _precision(artifact: Artifact | None) -> str | None:
    from edgedistill.export.parity import BOUNDS

    name = artifact.variant.rpartition("-")[2] if artifact else ""
    return name if name in BOUNDS else None


def _by_bits(bits: int) -> str:
    """Bounds are known for three precisions: a type in between has those of the coarser, six bits those of eight."""
    return "f16" if bits >= 16 else "q8_0" if bits >= 6 else "q4_0"


def _gguf_bits(path: Path) -> int:
    """Bits of the type that most weights in matrices have."""
    from edgedistill.export.tensors import code_bits

    weights: Counter[int] = Counter()
    for tensor in read_gguf(path).tensors.values():
        weights[tensor.type_id] += prod(tensor.shape) if len(tensor.shape) > 1 else 0
    return code_bits(TENSOR_TYPES[weights.most_common(1)[0][0]][0])


def _onnx_bits(file: Path) -> int:
    """Bits of most multiplied matrices' weights; 16 for a graph of floats."""
    weights: Counter[int] = Counter()
    graph = onnx.load_model(str(file), load_external_data=False).graph
    sizes = {tensor.name: prod(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            found = {a.name: a.i for a in node.attribute}
            weights[found.get("bits", 4)] += found.get("K", 0) * found.get("N", 0)
        elif node.op_type == "MatMul":
            weights[16] += sizes.get(node.input[1], 0)
    return weights.most_common(1)[0][0] if weights else 16


def text_reference(subject: Subject) -> TextReference:
    """How `subject` says that text is read and ended.

    A bare GGUF has its tokenizer rebuilt, and ends where its metadata say, not where llama.cpp guesses by text.

    Raises:
        InputError: it has no tokenizer, or none that can be rebuilt.
    """
    if subject.engine == "hf" or (subject.folder / "tokenizer.json").is_file():
        tokenizer = chat.load_tokenizer(subject.folder)
    else:
        from edgedistill.runtimes.gguf_tokenizer import build_tokenizer

        tokenizer = build_tokenizer(read_gguf(subject.path))
    return TextReference(subject.folder, tokenizer, _ends(subject))


def _ends(subject: Subject) -> frozenset[int]:
    if subject.engine == "hf" or (subject.folder / "generation_config.json").is_file():
        return frozenset(chat.end_ids(subject.folder))
    if subject.engine == "onnx":
        found = read_json(subject.folder / "genai_config.json")["model"]["eos_token_id"]
        return frozenset(found if isinstance(found, list) else [found])
    fields = read_gguf(subject.path).fields
    ids = (fields.get(f"tokenizer.ggml.{role}_token_id") for role in ("eos", "eot", "eom"))
    return frozenset(i for i in ids if i is not None)


def file_failures(subject: Subject) -> list[str]:
    """What keeps a checked artifact from being whole and alone: a clause each.

    Links and paths that leave the folder, files and bytes that nothing refers to, matrices stored twice.
    """
    failures = [*_leaving(subject)]
    if subject.artifact is not None:
        listed = {entry.path for entry in subject.artifact.files} | {"artifact.json"}
        found = {p.relative_to(subject.folder).as_posix() for p in subject.folder.rglob("*") if p.is_file()}
        failures += [f"{name} is not listed in artifact.json" for name in sorted(found - listed)]
    seen: dict[bytes, str] = {}
    for name, place, data in _matrices(subject):
        first = seen.setdefault(hashlib.sha256(data).digest() + place.encode(), name)
        if first != name:
            failures.append(f"{name} holds the same {len(data):,} bytes as {first}")
    if subject.engine == "llamacpp":
        failures += _gaps(subject.path)
    return failures


def _leaving(subject: Subject) -> Iterator[str]:
    if subject.engine == "llamacpp" and subject.artifact is None:
        paths = [subject.path]
    else:
        paths = sorted(subject.folder.rglob("*"))
        for name in SETTINGS:
            if (subject.folder / name).is_file():
                for key, value in _strings(read_json(subject.folder / name)):
                    if len(value) > 1 and Path(value).is_absolute() and " " not in value:
                        yield f"{name} names the path {value!r} in {key}"
    for path in paths:
        if path.is_symlink() and not path.resolve().is_relative_to(subject.folder.resolve()):
            yield f"{path.relative_to(subject.folder)} is a link out of the folder"


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            if name not in FREE_TEXT:
                yield from _strings(inner, str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, key)


def _matrices(subject: Subject) -> Iterator[tuple[str, str, bytes]]:
    """Name, type and shape, and bytes of each stored tensor of some size; bytes that two tensors share come once."""
    if subject.engine == "llamacpp":
        with subject.path.open("rb") as f:
            for tensor in read_gguf(subject.path).tensors.values():
                if len(tensor.shape) > 1 and tensor.size >= LEAST_COPY_BYTES:
                    f.seek(tensor.start)
                    yield tensor.name, f"{tensor.type_id}", f.read(tensor.size)
        return
    places = set()
    for tensor in onnx.load_model(str(subject.folder / subject.entry), load_external_data=False).graph.initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if len(tensor.dims) < 2 or not entries or int(entries.get("length", 0)) < LEAST_COPY_BYTES:
            continue
        place = (entries["location"], entries.get("offset", "0"))
        if place not in places:
            places.add(place)
            with (subject.folder / entries["location"]).open("rb") as f:
                f.seek(int(place[1]))
                yield tensor.name, "", f.read(int(entries["length"]))


def _gaps(path: Path) -> Iterator[str]:
    """Stretches of a GGUF that belong to no tensor, longer than its alignment explains."""
    file = read_gguf(path)
    alignment = int(file.fields.get("general.alignment", 32))
    ordered = sorted(file.tensors.values(), key=lambda tensor: tensor.start)
    ends = [tensor.start + tensor.size for tensor in ordered]
    starts = [*(tensor.start for tensor in ordered[1:]), path.stat().st_size]
    for end, start in zip(ends, starts, strict=True):
        if start - end >= alignment:
            yield f"{path.name}: bytes {end:,} to {start:,} belong to no tensor"
