"""Target: a device class, with the provenance of every hardware figure and how it is reached."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from edgedistill.core.config import did_you_mean, load_toml, validate
from edgedistill.core.errors import InputError
from edgedistill.core.model import Noun
from edgedistill.core.recipe import Name


class Figure(Noun):
    """A hardware figure: its value, how it is known, where and when it was read."""

    value: float | str
    provenance: Literal["measured", "published", "derived", "unverified", "this-host"]
    url: str | None = None
    date: str | None = None
    note: str | None = None


class Limits(Noun):
    """What the constrained runner applies on this host; 0 means no limit."""

    cores: Annotated[int, Field(ge=0)] = 0
    memory_bytes: Annotated[int, Field(ge=0)] = 0


class Target(Noun):
    """One device class. `runner = "constrained"` measures this host within `limits`, never under a device's name.

    `connection` is what the runner needs to reach the device; each runner checks its own names.
    """

    schema_version: Literal[1] = 1
    id: Name
    title: str
    device_class: Literal["server-cpu", "desktop", "sbc", "phone", "mobile-class", "gpu"]
    runner: Literal["local", "constrained", "ssh", "adb", "gpu", "projected"]
    limits: Limits = Limits()
    connection: dict[str, str | int | float | bool] = Field(default_factory=dict)
    figures: dict[str, Figure] = Field(default_factory=dict)
    note: str = ""

    @property
    def evidence(self) -> Literal["measured", "constrained", "projected"]:
        return self.runner if self.runner in ("constrained", "projected") else "measured"


def target_folders() -> list[Path]:
    """Where targets are looked up: `./targets`, the source tree's, the installed package's."""
    package = Path(__file__).resolve().parents[1]
    return [Path("targets").resolve(), package.parent / "targets", package / "_targets"]


def all_targets() -> dict[str, Path]:
    """Target id → file; the first folder that has an id wins."""
    found: dict[str, Path] = {}
    for folder in target_folders():
        for path in sorted(folder.glob("*.toml")):
            found.setdefault(path.stem, path)
    return found


def load_target(reference: str) -> Target:
    """Read a target by id or TOML path.

    Raises:
        InputError: unknown id (with the nearest), or every error of the file.
    """
    if reference.endswith(".toml"):
        path = Path(reference)
    else:
        known = all_targets()
        if reference not in known:
            raise InputError(f"expected a target, found {reference!r}{did_you_mean(reference, known)}")
        path = known[reference]
    target = validate(Target, load_toml(path), source=str(path))
    if target.id != path.stem:
        raise InputError(f"{path}: expected id = {path.stem!r} as the file is named, found {target.id!r}")
    return target
