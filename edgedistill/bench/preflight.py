"""What this host does besides measuring, before and while it measures: a bad state is a warning that every row carries.

Nothing here stops a run: whoever reads a row decides, with the warnings before them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from edgedistill.bench.energy import open_meter
from edgedistill.bench.limits import usable_cores

MOST_STEAL = 0.03  # of all CPU time: a neighbour on the same machine
MOST_LOAD = 0.5  # runnable processes besides ours, as a share of the cores
MOST_CELSIUS = 85.0
ROOT = Path("/")


def preflight(*, cores: Sequence[int], needed_bytes: int = 0, root: Path = ROOT) -> dict[str, Any]:
    """State of the host, and `warnings` about what makes its timings doubtful.

    `needed_bytes` is what the biggest model's files take; `root` is where the kernel's files are (tests have others).
    """
    states = {core: governor for core in cores if (governor := _governor(root, core))}
    load = os.getloadavg()[0]
    free = psutil.virtual_memory().available
    found = {
        "affinity": usable_cores(),
        "cores": sorted(cores),
        "quota_cores": quota_cores(root),
        "governors": sorted(set(states.values())) or None,
        "celsius": hottest(root),
        "steal_share_since_boot": _share(cpu_times(root)),
        "load_average_1m": round(load, 2),
        "free_bytes": free,
        "energy": energy_state(root),
    }
    warnings = []
    if load > MOST_LOAD * len(found["affinity"]):
        warnings.append(f"the load average is {load:.2f} before anything is measured: something else is running")
    if found["quota_cores"] is not None and found["quota_cores"] < len(cores):
        warnings.append(f"a quota of {found['quota_cores']:g} cores holds {len(cores)} threads back")
    if any(state in ("powersave", "ondemand", "conservative") for state in states.values()):
        warnings.append(f"the frequency governor is {', '.join(sorted(set(states.values())))}, not performance")
    if found["celsius"] is not None and found["celsius"] > MOST_CELSIUS:
        warnings.append(f"the processor is at {found['celsius']:.0f} °C: it may throttle")
    if needed_bytes and free < needed_bytes:
        warnings.append(f"{free} bytes of memory are free, the biggest model's files take {needed_bytes}")
    return found | {"warnings": warnings}


def quota_cores(root: Path = ROOT) -> float | None:
    """Cores that a CPU quota grants this process (cgroup v2's cpu.max, v1's cfs_quota); None without one."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, own = line.split(":", 2)
        inside = own.lstrip("/")
        if not controllers:
            folder = root / "sys/fs/cgroup" / inside
            quota, _, period = _text(folder / "cpu.max").partition(" ")
        elif "cpu" in controllers.split(","):
            folder = root / "sys/fs/cgroup/cpu" / inside
            if not folder.is_dir():  # inside a container the mount shows the own group as its root
                folder = root / "sys/fs/cgroup/cpu"
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        else:
            continue
        if quota.isdigit() and period.isdigit() and int(period):
            return int(quota) / int(period)
    return None


def cpu_times(root: Path = ROOT) -> tuple[int, int]:
    """(stolen, all) CPU time since boot in ticks; zeros where the kernel does not say (proc(5), /proc/stat)."""
    first = next(iter(_lines(root / "proc/stat")), "")
    ticks = [int(value) for value in first.split()[1:9]]
    return (ticks[7], sum(ticks)) if first.startswith("cpu ") and len(ticks) == 8 else (0, 0)


def steal_share(before: tuple[int, int], after: tuple[int, int]) -> float:
    """Share of CPU time between two `cpu_times` that a hypervisor gave to others."""
    return _share((after[0] - before[0], after[1] - before[1]))


def hottest(root: Path = ROOT) -> float | None:
    """The hottest thermal zone in degrees Celsius; None where there is none."""
    found = []
    for path in sorted((root / "sys/class/thermal").glob("thermal_zone*/temp")):
        with contextlib.suppress(ValueError):
            found.append(int(_text(path)) / 1000)
    return max(found, default=None)


def energy_state(root: Path = ROOT) -> str:
    """The energy counter that a CPU run can use, or the reason why there is none."""
    meter = open_meter("cpu", powercap=str(root / "sys/class/powercap"))
    return meter if isinstance(meter, str) else meter.source


def _governor(root: Path, core: int) -> str:
    return _text(root / f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor")


def _share(times: tuple[int, int]) -> float:
    return round(times[0] / times[1], 4) if times[1] > 0 else 0.0


def _text(path: Path) -> str:
    return "\n".join(_lines(path)).strip()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
