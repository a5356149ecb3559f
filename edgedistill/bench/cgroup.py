"""A memory limit for one worker, through the control groups of the kernel (v1 or v2).

The parent makes the group and reads what came of it; the worker joins by itself. Swap counts against the limit, so
that a model which does not fit fails instead of crawling.
Specification: https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/memory.html.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

PREFIX = "edgedistill-"
_numbers = itertools.count()


@dataclass(frozen=True)
class Files:
    """Names of a group's files in one version of control groups; `swap` takes `swap_value`, or the limit for None."""

    limit: str
    swap: str
    swap_value: str | None
    peak: str
    events: str


VERSIONS = {
    1: Files(
        limit="memory.limit_in_bytes",
        swap="memory.memsw.limit_in_bytes",
        swap_value=None,
        peak="memory.max_usage_in_bytes",
        events="memory.oom_control",
    ),
    2: Files(limit="memory.max", swap="memory.swap.max", swap_value="0", peak="memory.peak", events="memory.events"),
}


@dataclass(frozen=True)
class MemoryGroup:
    """A group with a memory limit, empty until a worker joins it."""

    folder: Path
    version: int
    prefix: tuple[str, ...] = ()

    def job_entry(self) -> dict[str, str]:
        """What the worker needs to join and to read its limit back."""
        return {"procs": str(self.folder / "cgroup.procs"), "limit": str(self.folder / VERSIONS[self.version].limit)}

    def limit_bytes(self) -> int:
        """The limit as the kernel has it: rounded down to whole pages."""
        return int((self.folder / VERSIONS[self.version].limit).read_text())

    def swap_limited(self) -> bool:
        """Whether nothing of this group can be swapped out beyond its limit."""
        if (self.folder / VERSIONS[self.version].swap).exists():
            return True
        return all(line.split()[1] == "0" for line in _lines("/proc/meminfo") if line.startswith("SwapTotal:"))

    def peak_bytes(self) -> int | None:
        """The kernel's high-water mark of the group, page cache of files it read first included."""
        with contextlib.suppress(OSError, ValueError):
            return int((self.folder / VERSIONS[self.version].peak).read_text())
        return None

    def kills(self) -> int:
        """How often the kernel killed in this group because of its limit."""
        with contextlib.suppress(OSError):
            for line in (self.folder / VERSIONS[self.version].events).read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
        return 0


@contextlib.contextmanager
def memory_group(limit_bytes: int) -> Iterator[MemoryGroup | str]:
    """A group limited to `limit_bytes`, removed afterwards; or, where none can be made, the reason why not."""
    group: MemoryGroup | str = "this kernel has no memory control group"
    for version, parent in _parents():
        group = _make(parent, version=version, limit_bytes=limit_bytes)
        if isinstance(group, MemoryGroup):
            break
    try:
        yield group
    finally:
        if isinstance(group, MemoryGroup):
            with contextlib.suppress(OSError):
                group.folder.rmdir()


def _make(parent: Path, *, version: int, limit_bytes: int) -> MemoryGroup | str:
    files = VERSIONS[version]
    _remove_left_over(parent)
    folder = parent / f"{PREFIX}{os.getpid()}-{next(_numbers)}"
    try:
        folder.mkdir()
    except OSError as e:
        return f"no control group can be made in {parent} ({e.strerror})"
    try:
        (folder / files.limit).write_text(str(limit_bytes))
        if (folder / files.swap).exists():
            (folder / files.swap).write_text(files.swap_value or str(limit_bytes))
    except OSError as e:
        folder.rmdir()
        return f"no memory limit can be set in {parent} ({e.strerror})"
    return MemoryGroup(folder, version)


def _parents() -> Iterator[tuple[int, Path]]:
    """Where this process may make a group, best first: below its own, and for v2 beside it.

    A v2 group that holds processes cannot hand its controllers down, so its parent is tried as well.
    """
    mounts = {}
    for line in _lines("/proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        root, point = before.split()[3:5]
        kind, _, options = after.split()[:3]
        if kind == "cgroup" and "memory" in options.split(","):
            mounts[1] = (root, point)
        elif kind == "cgroup2":
            mounts[2] = (root, point)
    for line in _lines("/proc/self/cgroup"):
        _, controllers, own = line.split(":", 2)
        version = 1 if "memory" in controllers.split(",") else 2 if not controllers else 0
        if version not in mounts:
            continue
        root, point = mounts[version]
        inside = PurePosixPath(own)
        relative = inside.relative_to(root) if inside.is_relative_to(root) else inside.relative_to("/")
        folder = Path(point) / relative
        yield version, folder
        if version == 2 and relative.parts:
            yield version, folder.parent


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _remove_left_over(parent: Path) -> None:
    """Remove the empty groups of processes that were killed before they could."""
    for folder in parent.glob(f"{PREFIX}*"):
        owner = folder.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            with contextlib.suppress(OSError):
                folder.rmdir()
