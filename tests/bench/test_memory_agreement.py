"""VmHWM, which our memory figures are, against the control group's own peak, for memory whose size is known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bench_cgroup import require_memory_group

from edgedistill.bench.cgroup import MemoryGroup, memory_group

MIB = 2**20
# A child that joins the group, resets its peak, takes known memory, and says what the kernel counts of it.
CHILD = """
import json, mmap, sys
from edgedistill.bench.limits import apply_limits
from edgedistill.bench.process_memory import memory_now, reset_peak
order = json.loads(sys.argv[1])
apply_limits(cores=None, cgroup=order["group"])
page = b"x" * 4096
before_group = int(open(order["usage"]).read())
reset_peak()
before = memory_now()
taken = mmap.mmap(-1, order["anonymous"])
for place in range(0, order["anonymous"], 4096):
    taken[place] = 1
mapped = None
if order["file"]:
    with open(order["file"], "rb") as f:
        mapped = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
    total = sum(mapped[place] for place in range(0, len(mapped), 4096))
after = memory_now()
print(json.dumps({"before": before, "after": after, "before_group": before_group}))
"""


def measure(group: MemoryGroup, *, anonymous: int, file: Path | None) -> tuple[int, int, dict[str, int]]:
    """(what VmHWM rose by, what the group's peak rose by, memory before)."""
    usage = group.folder / ("memory.usage_in_bytes" if group.version == 1 else "memory.current")
    order = {
        "group": group.job_entry(), "usage": str(usage), "anonymous": anonymous, "file": str(file) if file else None,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(order)], capture_output=True, text=True, check=True, timeout=120
    )
    found = json.loads(done.stdout)
    peak = group.peak_bytes()
    if peak is None:
        pytest.skip("this kernel keeps no peak of a control group (memory.peak is of Linux 5.19)")
    return found["after"]["peak_rss_bytes"] - found["before"]["rss_bytes"], peak - found["before_group"], found["after"]


def agree(ours: int, theirs: int) -> bool:
    return abs(ours - theirs) <= max(0.02 * theirs, MIB)


def evict(path: Path) -> None:
    """Drop a file's pages from the page cache, so that the group that reads it next is charged for them."""
    with path.open("rb") as f:
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.parametrize("size", [24 * MIB, 200 * MIB])
def test_a_known_allocation_is_what_both_counted(size: int) -> None:
    require_memory_group()
    with memory_group(1024 * MIB) as group:
        assert isinstance(group, MemoryGroup)
        ours, theirs, _ = measure(group, anonymous=size, file=None)
    assert agree(ours, size) and agree(ours, theirs), (ours, theirs, size)


def test_a_known_mapped_file_is_what_both_counted(tmp_path: Path) -> None:
    require_memory_group()
    path = tmp_path / "weights.bin"
    path.write_bytes(os.urandom(MIB) * 96)
    evict(path)
    with memory_group(1024 * MIB) as group:
        assert isinstance(group, MemoryGroup)
        ours, theirs, after = measure(group, anonymous=32 * MIB, file=path)
    assert agree(ours, 128 * MIB), ours
    assert after["file_bytes"] >= 96 * MIB
    assert agree(ours, theirs), (ours, theirs)
