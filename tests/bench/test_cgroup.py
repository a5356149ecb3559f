"""Where memory groups are made, in both versions of the kernel's interface, and what is read back."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_cgroup import require_memory_group

from edgedistill.bench import cgroup
from edgedistill.bench.cgroup import PREFIX, MemoryGroup, memory_group

LIMIT = 64 * 2**20


@pytest.fixture
def v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A v2 mount below `tmp_path`, this process in /slice/app of it."""
    (tmp_path / "slice" / "app").mkdir(parents=True)
    lines = {
        "/proc/self/mountinfo": [f"30 24 0:26 / {tmp_path} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"],
        "/proc/self/cgroup": ["0::/slice/app"],
    }
    monkeypatch.setattr(cgroup, "_lines", lambda path: lines[path])
    return tmp_path


def test_a_group_is_made_limited_and_removed() -> None:
    require_memory_group()
    with memory_group(LIMIT) as group:
        assert isinstance(group, MemoryGroup)
        assert group.limit_bytes() == int(Path(group.job_entry()["limit"]).read_text()) == LIMIT
        assert group.kills() == 0 and group.peak_bytes() == 0
    assert not group.folder.exists()


def test_v2_groups_are_made_below_or_beside_ones_own(v2: Path) -> None:
    assert list(cgroup._parents()) == [(2, v2 / "slice" / "app"), (2, v2 / "slice")]
    with memory_group(LIMIT) as group:
        assert isinstance(group, MemoryGroup) and group.folder.parent == v2 / "slice" / "app"
        assert (group.folder / "memory.max").read_text() == str(LIMIT)
        (group.folder / "memory.peak").write_text("1234\n")
        (group.folder / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
        assert (group.peak_bytes(), group.kills()) == (1234, 2)


def test_a_refusal_is_a_reason(v2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **named: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with memory_group(LIMIT) as group:
        assert group == f"no control group can be made in {v2 / 'slice'} (Permission denied)"
    monkeypatch.setattr(cgroup, "_lines", lambda path: [])
    with memory_group(LIMIT) as group:
        assert group == "this kernel has no memory control group"


def test_groups_of_killed_processes_are_removed(v2: Path) -> None:
    own = v2 / "slice" / "app"
    gone, alive = own / f"{PREFIX}999999999-0", own / f"{PREFIX}1-0"
    gone.mkdir()
    alive.mkdir()
    with memory_group(LIMIT):
        assert not gone.exists() and alive.exists()
