"""Limits a worker puts on itself before anything heavy, read back from the kernel. Standard library only."""

from __future__ import annotations

import os
import sys

PR_SET_PDEATHSIG, SIGKILL = 1, 9


def apply_limits(*, cores: list[int] | None, cgroup: dict[str, str] | None) -> dict[str, object]:
    """Pin to `cores` and join the memory `cgroup` (`procs` and `limit` files); return what the kernel then says.

    An empty `cgroup` means the one this process is in already. `memory_limit_bytes` is null where there is no limit.
    Memory that the interpreter took before joining stays in its old group.

    Raises:
        OSError: the kernel refuses; the parent makes an invalid row of it.
    """
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    limit = None
    if cgroup is not None:
        if "procs" in cgroup:
            with open(cgroup["procs"], "w") as f:
                f.write(str(os.getpid()))
        with open(cgroup.get("limit") or own_limit_file()) as f:
            text = f.read().strip()
        limit = int(text) if text.isdigit() else None
    return {"cores": usable_cores(), "memory_limit_bytes": limit}


def own_limit_file() -> str:
    """The file with the memory limit of the group this process is in, version 1 first: a host that has it uses it.

    Raises:
        OSError: there is none.
    """
    with open("/proc/self/cgroup") as f:
        lines = [line.rstrip("\n").split(":", 2) for line in f]
    places = [f"/sys/fs/cgroup/memory{own}/memory.limit_in_bytes" for _, kind, own in lines if "memory" in kind]
    places += [f"/sys/fs/cgroup{own}/memory.max" for _, kind, own in lines if not kind]
    for place in places:
        if os.path.exists(place):
            return place
    raise OSError(f"expected this process's memory limit in {' or '.join(places)}, found neither")


def usable_cores() -> list[int]:
    """Numbers of the cores the kernel lets this process run on; all of them where it has no affinity."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent is gone, so that an orphan does not disturb the next run."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL)
