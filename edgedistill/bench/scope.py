"""A memory limit through systemd, where it runs the host: the worker starts in a transient scope of its own.

Manual: https://www.freedesktop.org/software/systemd/man/systemd-run.html. systemd owns the control groups then, and a
group made behind its back may be taken away; elsewhere `cgroup` makes one itself.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgedistill.bench.cgroup import PREFIX, MemoryGroup, memory_group

BOOTED = Path("/run/systemd/system")  # sd_booted(3)
PROBE_S = 20.0
_numbers = itertools.count()


@dataclass(frozen=True)
class MemoryScope:
    """A scope with a memory limit, made when a command is run with `prefix` before it; swap is not allowed."""

    unit: str
    limit: int

    @property
    def prefix(self) -> tuple[str, ...]:
        limits = (f"MemoryMax={self.limit}", "MemorySwapMax=0", "MemoryAccounting=yes")
        properties = [f"--property={limit}" for limit in limits]
        return ("systemd-run", *_manager(), "--scope", "--quiet", f"--unit={self.unit}", *properties, "--")

    def job_entry(self) -> dict[str, str]:
        """Nothing to join: the worker is in the scope already, and reads the limit of its own group."""
        return {}

    def limit_bytes(self) -> int:
        return self.limit

    def swap_limited(self) -> bool:
        """The scope asks for no swap (`MemorySwapMax=0`)."""
        return True

    def peak_bytes(self) -> int | None:
        """Unknown: the group is gone as soon as the worker is."""
        return None

    def kills(self) -> int:
        """1 if systemd says that the scope ended because of its memory limit."""
        show = ("systemctl", *_manager(), "show", "--property=Result", "--value", self.unit)
        try:
            done = subprocess.run(show, capture_output=True, text=True, timeout=PROBE_S)
        except (OSError, subprocess.SubprocessError):
            return 0
        return int(done.stdout.strip() == "oom-kill")

    def forget(self) -> None:
        """Have systemd drop what it keeps of a scope that failed."""
        if shutil.which("systemctl"):
            forget = ("systemctl", *_manager(), "reset-failed", self.unit)
            subprocess.run(forget, capture_output=True, timeout=PROBE_S)


@contextmanager
def memory_limit(limit_bytes: int) -> Iterator[MemoryScope | MemoryGroup | str]:
    """A systemd scope, else a control group of ours (v2, then v1); where neither can be had, the reason why not."""
    scope = _scope(limit_bytes)
    if isinstance(scope, MemoryScope):
        try:
            yield scope
        finally:
            scope.forget()
        return
    with memory_group(limit_bytes) as group:
        yield f"{scope}; {group}" if isinstance(group, str) and scope else group


def _scope(limit_bytes: int) -> MemoryScope | str:
    """A scope that was proven to be possible; empty where systemd does not run, the reason where it refuses."""
    if not BOOTED.is_dir():
        return ""
    if shutil.which("systemd-run") is None:
        return "systemd runs this host, systemd-run is not on PATH"
    probe = MemoryScope(f"{PREFIX}{os.getpid()}-{next(_numbers)}.scope", limit_bytes)
    try:
        done = subprocess.run((*probe.prefix, "true"), capture_output=True, text=True, timeout=PROBE_S)
    except (OSError, subprocess.SubprocessError) as e:
        return f"systemd-run makes no scope ({e})"
    if done.returncode != 0:
        return f"systemd-run makes no scope ({' '.join(done.stderr.split()) or f'exit code {done.returncode}'})"
    return MemoryScope(f"{PREFIX}{os.getpid()}-{next(_numbers)}.scope", limit_bytes)


def _manager() -> tuple[str, ...]:
    """Whoever is not root has only a manager of their own."""
    return () if os.geteuid() == 0 else ("--user",)
