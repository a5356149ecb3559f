"""Files that are whole or absent: atomic writes, hashes, JSONL and paths that cannot leave their folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from edgedistill.core.errors import InputError, shortened


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in 1 MiB pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while piece := f.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, no NaN; equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(value: Any) -> str:
    return sha256_bytes(canonical_json(value).encode())


def fsync_dir(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is fsynced and renamed over `path`, on failure removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.fchmod(fd, 0o644)
    os.close(fd)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as f:
            os.fsync(f.fileno())
        temporary.replace(path)
        fsync_dir(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> int:
    """Write one canonical JSON object a line, atomically; returns the number of rows."""
    count = 0
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as f:
        for row in rows:
            f.write(canonical_json(row) + "\n")
            count += 1
    return count


def read_json(path: Path, *, unique: bool = False, finite: bool = False) -> Any:
    """Parse a JSON file.

    With `unique` no key may stand twice in one object, of which parsers take either; with `finite` there is no NaN.

    Raises:
        InputError: the file is absent, not UTF-8, not JSON, or deeper or longer in digits than a parser goes; the
            message names the place.
    """
    try:
        return json.loads(
            path.read_text(encoding="utf-8"),
            object_pairs_hook=once_each if unique else None,
            parse_constant=_no_number if finite else None,
        )
    except FileNotFoundError:
        raise InputError(f"expected a JSON file at {path}, found nothing there") from None
    except IsADirectoryError:
        raise InputError(f"expected a JSON file at {path}, found a folder") from None
    except (ValueError, RecursionError) as e:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise InputError(f"{path} is not valid JSON ({shortened(e)}); restore or delete it and run again") from None


def read_json_object(path: Path, *, finite: bool = False) -> dict[str, Any]:
    """Parse a JSON file that holds one object; raises as `read_json` does."""
    value = read_json(path, finite=finite)
    if not isinstance(value, dict):
        raise InputError(f"expected a JSON object in {path}, found {type(value).__name__}; restore it and run again")
    return value


def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An `object_pairs_hook` of `json` that raises ValueError where a key stands twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"a key of {', '.join(name for name, _ in pairs)} stands twice")
    return found


def _no_number(text: str) -> None:
    raise ValueError(f"expected finite numbers, found {text}")


def read_jsonl(path: Path) -> list[Any]:
    """Parse a JSONL file; every line must be one JSON object.

    Raises:
        InputError: the file is absent or a line is damaged; the message names the line.
    """
    return list(iter_jsonl(path))


def iter_jsonl(path: Path) -> Iterator[Any]:
    """The objects of a JSONL file one by one, for files that memory should not hold; raises as `read_jsonl` does."""
    if not path.is_file():
        raise InputError(f"expected a JSONL file at {path}, found nothing there")
    with path.open("rb") as f:
        for number, line in enumerate(f, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as e:
                said = shortened(e)
                raise InputError(
                    f"{path} line {number}: expected one JSON object, found damaged text ({said})"
                ) from None
            if not isinstance(row, dict):
                raise InputError(f"{path} line {number}: expected a JSON object, found {type(row).__name__}")
            yield row


def inside(folder: Path, relative: str) -> Path:
    """Join `relative` to `folder`, refusing names that would leave it.

    Raises:
        InputError: `relative` is absolute, empty, has `..` or a backslash, or resolves (through links) outside.
    """
    pure = PurePosixPath(relative)
    long = any(len(part.encode(errors="replace")) > 255 for part in pure.parts)
    if not relative or long or pure.is_absolute() or ".." in pure.parts or "\\" in relative or "\0" in relative:
        raise InputError(f"expected a path inside {folder}, found {shortened(repr(relative))}")
    joined = folder / pure
    try:
        within = joined.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # links that go round, names longer than a file system takes
        within = False
    if not within:
        raise InputError(f"expected a path inside {folder}, found {shortened(repr(relative))}, which points outside it")
    return joined


def remove(path: Path) -> None:
    """Remove whatever stands at `path`, a folder with all that is in it; nothing if nothing does."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def clear_temporaries(folder: Path) -> None:
    """Remove what killed writers left behind (`.NAME.*.tmp`), at any depth."""
    for left in folder.rglob(".*.tmp"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it replaces `path` whole, on failure it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    temporary.chmod(0o755)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as f:
                    os.fsync(f.fileno())
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
        fsync_dir(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def cache_dir() -> Path:
    """Where downloads are kept between runs: `$EDGEDISTILL_CACHE`, else `$XDG_CACHE_HOME/edgedistill`."""
    if override := os.environ.get("EDGEDISTILL_CACHE"):
        return Path(override)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgedistill"
