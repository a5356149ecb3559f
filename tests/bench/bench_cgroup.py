"""Whether a memory limit can be tested here."""

from __future__ import annotations

import pytest

from edgedistill.bench.cgroup import memory_group


def require_memory_group() -> None:
    """Skip with the kernel's reason where no memory group can be made."""
    with memory_group(64 * 2**20) as group:
        if isinstance(group, str):
            pytest.skip(group)
