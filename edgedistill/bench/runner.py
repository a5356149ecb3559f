"""How a target is reached: one Protocol for its blocks, and the runners by name, resolved on use."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from edgedistill.core.config import validate
from edgedistill.core.errors import InputError
from edgedistill.core.model import Noun
from edgedistill.core.target import Target, require_device

RUNNERS = {
    "local": "runner_local:open_local",
    "constrained": "runner_local:open_local",
    "ssh": "runner_ssh:open_ssh",
    "adb": "runner_adb:open_adb",
    "gpu": "runner_gpu:open_gpu",
}
Connection = TypeVar("Connection", bound=Noun)


class Runner(Protocol):
    """A target that was found and is held for this sweep; leaving its context gives everything back.

    `environment` is what its rows say besides the host: `device`, its identity, hardware and versions, or nothing.
    """

    environment: Mapping[str, Any]

    def cores(self, *, threads: int) -> list[int]:
        """Numbers of the cores a worker is pinned to there, `threads` of them where the target names no count.

        Raises:
            InputError: there are not so many.
        """

    def run(self, job: Mapping[str, Any], *, memory_bytes: int, timeout_s: float) -> dict[str, Any]:
        """One block in a fresh process there, as `block.run_block`; a fault becomes invalid rows, not an exception.

        The result has the runner's `environment`, where there is one.
        """


def open_runner(target: Target) -> AbstractContextManager[Runner]:
    """The runner that `target` names, to be entered once for a sweep.

    Raises:
        InputError: such targets are not measured.
        MissingError: on entering: the device, or what reaches it, is not there.
    """
    require_device(target)
    module, _, function = RUNNERS[target.runner].partition(":")
    return getattr(importlib.import_module(f"edgedistill.bench.{module}"), function)(target)


def connection_of(target: Target, model: type[Connection]) -> Connection:
    """The target's `[connection]` table as its runner wants it.

    Raises:
        InputError: every error of the table.
    """
    return validate(model, target.connection, source=f"[connection] of target {target.id}")


def fastest_cores(speeds: Mapping[int, int], *, wanted: int, target: str) -> list[int]:
    """The `wanted` fastest cores; without a count, all but those of the slowest kind, where there are several kinds.

    `speeds`: core number to its highest frequency, 0 where the kernel does not say. Little cores finish last and hold
    the others up, so they are left out unless asked for.

    Raises:
        InputError: there are not so many.
    """
    if wanted > len(speeds):
        raise InputError(f"target {target} wants {wanted} cores, its device has {len(speeds)}; lower limits.cores")
    ordered = sorted(speeds, key=lambda core: (speeds[core], core))
    if not wanted:
        slowest, fastest = speeds[ordered[0]], speeds[ordered[-1]]
        ordered = [core for core in ordered if speeds[core] > slowest or slowest == fastest]
    return sorted(ordered[-wanted:])


def last_line(text: str) -> str:
    """The last line that says something, or nothing."""
    lines: Sequence[str] = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
