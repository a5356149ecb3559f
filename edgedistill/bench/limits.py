"""Limits a worker puts on itself before anything heavy, read back from the kernel. Standard library only."""

from __future__ import annotations

import os
import sys

PR_SET_PDEATHSIG, SIGKILL = 1, 9


def apply_limits(*, cores: list[int] | None, cgroup: dict[str, str] | None) -> dict[str, object]:
    """Pin to `cores` and join the memory `cgroup` (`procs` and `limit` files); return what the kernel then says.

    `memory_limit_bytes` is null where no group was given. Memory that the interpreter took before joining stays in
    its old group.

    Raises:
        OSError: the kernel refuses; the parent makes an invalid row of it.
    """
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    limit = None
    if cgroup:
        with open(cgroup["procs"], "w") as f:
            f.write(str(os.getpid()))
        with open(cgroup["limit"]) as f:
            limit = int(f.read())
    return {"cores": usable_cores(), "memory_limit_bytes": limit}


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
