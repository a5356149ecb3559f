"""FileEntry, Manifest, Artifact: what a folder holds, where it came from, and the proof it carries."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from edgedistill.core.errors import InputError
from edgedistill.core.files import digest_of, inside, read_json, sha256_file
from edgedistill.core.model import Noun


class FileEntry(Noun):
    """A file of a folder: its path relative to that folder, size in bytes and hex SHA-256."""

    path: str
    size: int
    sha256: str


class Manifest(Noun):
    """Written last in a stage's folder; its existence with the wanted key means the stage is done.

    `further` is how much there is beyond what the key asks for, of a stage whose results can be added to.
    """

    schema_version: Literal[1] = 1
    stage: str
    key: str
    further: int = 0
    stage_version: int
    parameters: dict[str, Any]
    inputs: dict[str, str]
    files: tuple[FileEntry, ...]
    output_digest: str
    seconds: float
    finished: str
    environment: dict[str, Any]
    figures: dict[str, Any] = Field(default_factory=dict)


class Artifact(Noun):
    """`artifact.json` of a variant folder: what it is, its files, real bits per weight, and its parity proof.

    One of mixed precision has how many matrices are on each of its `grids`, and the `max_bytes` that they were chosen
    for, if they were for bytes.
    """

    schema_version: Literal[1] = 1
    variant: str
    format: Literal["gguf", "onnx"]
    entry: str
    parameters: int
    bits_per_weight: float
    fallback_tensors: int = 0
    grids: dict[str, int] = Field(default_factory=dict)
    max_bytes: int | None = None
    files: tuple[FileEntry, ...]
    source_digest: str
    parity: dict[str, Any] = Field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        """Bytes of every listed file (all that ships, artifact.json itself aside)."""
        return sum(entry.size for entry in self.files)


def list_files(folder: Path, *, skip: frozenset[str] = frozenset()) -> tuple[FileEntry, ...]:
    """Entries of every regular file below `folder`, sorted by path; names in `skip` and dot-files are left out."""
    entries = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and not hidden and relative.as_posix() not in skip:
            entries.append(FileEntry(path=relative.as_posix(), size=path.stat().st_size, sha256=sha256_file(path)))
    return tuple(entries)


def damaged_file(folder: Path, files: tuple[FileEntry, ...], *, rehash: bool = False) -> str | None:
    """The first listed file that is absent, of another size or (with `rehash`) of another hash; None if all stand."""
    for entry in files:
        path = inside(folder, entry.path)
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != entry.size:
            return f"{path} has {path.stat().st_size} bytes, its manifest says {entry.size}"
        if rehash and sha256_file(path) != entry.sha256:
            return f"{path} does not have the SHA-256 its manifest says"
    return None


def load_artifact(folder: Path, *, rehash: bool = True) -> Artifact:
    """Read and check `artifact.json` of a variant folder.

    Raises:
        InputError: it is absent, malformed, or a file differs from what it lists.
    """
    from edgedistill.core.config import validate

    artifact = validate(Artifact, read_json(folder / "artifact.json"), source=str(folder / "artifact.json"))
    if damage := damaged_file(folder, artifact.files, rehash=rehash):
        raise InputError(f"expected the artifact in {folder} as it was exported; {damage}; export it again")
    return artifact


def content_digest(files: tuple[FileEntry, ...], *, volatile: frozenset[str] = frozenset()) -> str:
    """Digest of names and hashes; files whose last name is in `volatile` (timings) do not count."""
    return digest_of([[f.path, f.sha256] for f in files if f.path.rsplit("/", 1)[-1] not in volatile])
