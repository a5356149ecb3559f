"""This host as a target: as it is (`local`), or held to few cores and little memory (`constrained`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from edgedistill.bench import block
from edgedistill.bench.limits import usable_cores
from edgedistill.core.errors import InputError
from edgedistill.core.target import Target


@dataclass(frozen=True)
class LocalRunner:
    """Blocks in worker processes of this host."""

    target: Target
    environment: Mapping[str, Any] = field(default_factory=dict)

    def cores(self, *, threads: int) -> list[int]:
        """As many as the target has, or as the recipe says; the last ones serve least else."""
        usable = usable_cores()
        wanted = self.target.limits.cores or threads or len(usable)
        if wanted > len(usable):
            where = f"target {self.target.id}" if self.target.limits.cores else "threads"
            raise InputError(
                f"{where} wants {wanted} cores, this host lets {len(usable)} be used; choose another target"
            )
        return usable[len(usable) - wanted :]

    def run(self, job: Mapping[str, Any], *, memory_bytes: int, timeout_s: float) -> dict[str, Any]:
        """One block; the row says which limits the worker read back, and why the memory limit was not applied."""
        return block.run_block(job, memory_bytes=memory_bytes, timeout_s=timeout_s)


@contextmanager
def open_local(target: Target) -> Iterator[LocalRunner]:
    """This host is always there."""
    yield LocalRunner(target)
