"""Files that a command will write, looked at before it spends its minutes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgedistill.core.errors import InputError


def require_no_folders(outputs: Mapping[str, Path | None]) -> None:
    """Hold the files to write, option → path, against the disk.

    Raises:
        InputError: one of them is a folder.
    """
    for name, path in outputs.items():
        if path is not None and path.is_dir():
            option = {"summary": "github-summary"}.get(name, name)
            raise InputError(f"--{option}: expected a file to write, found the folder {path}; name a file in it")
