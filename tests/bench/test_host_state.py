"""Preflight, energy counters and bandwidth: what the host says, from files made for the purpose and from this one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from edgedistill.bench import preflight as module
from edgedistill.bench.bandwidth import read_bandwidth
from edgedistill.bench.energy import EnergyMeter, open_meter
from edgedistill.bench.limits import usable_cores
from edgedistill.bench.preflight import cpu_times, hottest, preflight, quota_cores, steal_share


def put(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_good_host_has_no_warning_and_every_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    root = put(
        tmp_path,
        {
            "proc/stat": "cpu  10 0 20 60 0 0 5 5 0 0\ncpu0 1 1\n",
            "sys/devices/system/cpu/cpu3/cpufreq/scaling_governor": "performance\n",
            "sys/class/thermal/thermal_zone0/temp": "41000\n",
            "sys/class/thermal/thermal_zone1/temp": "52500\n",
            "proc/self/cgroup": "0::/app\n",
            "sys/fs/cgroup/app/cpu.max": "max 100000\n",
        },
    )
    state = preflight(cores=[3], root=root)
    assert state["warnings"] == []
    assert (state["governors"], state["celsius"], state["quota_cores"]) == (["performance"], 52.5, None)
    assert state["steal_share_since_boot"] == 0.05 and state["affinity"] == usable_cores()
    assert state["energy"].startswith("no energy counter: this kernel has no ")


def test_each_bad_state_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "getloadavg", lambda: (99.5, 0.0, 0.0))
    root = put(
        tmp_path,
        {
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
            "sys/class/thermal/thermal_zone0/temp": "91000\n",
            "proc/self/cgroup": "4:cpu,cpuacct:/box\n",
            "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "150000\n",
            "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
        },
    )
    warnings = preflight(cores=[0, 1], needed_bytes=2**60, root=root)["warnings"]
    beginnings = ("the load average is 99.50", "a quota of 1.5 cores holds 2", "the frequency governor is powersave",
                  "the processor is at 91 °C")  # fmt: skip
    assert len(warnings) == 5
    assert all(text.startswith(begin) for text, begin in zip(warnings, beginnings, strict=False))
    assert warnings[4].endswith(f"of memory are free, the biggest model's files take {2**60}")


def test_a_quota_is_read_from_either_version(tmp_path: Path) -> None:
    two = put(tmp_path / "two", {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"})
    one = put(
        tmp_path / "one",
        {
            "proc/self/cgroup": "5:cpuset:/\n1:cpu:/gone\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
    )
    assert (quota_cores(two), quota_cores(one), quota_cores(tmp_path / "none")) == (0.5, None, None)
    assert cpu_times(tmp_path) == (0, 0) and hottest(tmp_path) is None
    assert steal_share((5, 100), (9, 200)) == 0.04 and steal_share((0, 0), (0, 0)) == 0


def rapl(root: Path, package: int, value: int) -> None:
    put(
        root,
        {
            f"intel-rapl:{package}/name": f"package-{package}\n",
            f"intel-rapl:{package}/energy_uj": f"{value}\n",
            f"intel-rapl:{package}/max_energy_range_uj": "1000000\n",
        },
    )


def test_rapl_adds_packages_and_survives_a_wrap(tmp_path: Path) -> None:
    rapl(tmp_path, 0, 900_000)
    rapl(tmp_path, 1, 0)
    put(tmp_path, {"intel-rapl:0:0/name": "core\n", "intel-rapl:0:0/energy_uj": "7\n", "dtpm/name": "dtpm\n"})
    put(tmp_path, {"intel-rapl:2/name": "psys\n", "intel-rapl:2/energy_uj": "5\n"})
    meter = open_meter("cpu", powercap=str(tmp_path))
    assert isinstance(meter, EnergyMeter) and meter.source == "RAPL package"
    rapl(tmp_path, 0, 100_000)
    rapl(tmp_path, 1, 300_000)
    assert meter.joules() == pytest.approx(0.2 + 0.3)
    rapl(tmp_path, 1, 400_000)
    assert meter.joules() == pytest.approx(0.6)


def test_a_counter_that_is_not_there_or_not_readable_is_a_reason(tmp_path: Path) -> None:
    assert open_meter("cpu", powercap=str(tmp_path)) == f"no energy counter: no package domain in {tmp_path}"
    put(tmp_path, {"intel-rapl:0/name": "package-0\n", "intel-rapl:0/max_energy_range_uj": "1\n"})
    reason = open_meter("cpu", powercap=str(tmp_path))
    assert isinstance(reason, str) and reason.startswith("no energy counter: No such file or directory (")
    reason = open_meter("cuda", nvml="libno-such-nvml.so")
    assert isinstance(reason, str) and reason.startswith("no energy counter: libno-such-nvml.so")


NVML = """
static unsigned long long reads = 0;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { *d = (void *)(unsigned long)(i + 1); return 0; }
int nvmlDeviceGetTotalEnergyConsumption(void *d, unsigned long long *mj) {
  *mj = 1000 * (unsigned long)d + 250 * (reads++ / 2); return 0; }
"""


def test_nvml_adds_its_devices(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler to build a stand-in for NVML with")
    (tmp_path / "nvml.c").write_text(NVML)
    library = tmp_path / "libnvml.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "nvml.c")], check=True)
    meter = open_meter("cuda", nvml=str(library))
    assert isinstance(meter, EnergyMeter) and meter.source == "NVML device"
    # Reads so far: one of each to see that they work, one of each at the start; both devices gain 250 mJ a pair.
    assert meter.joules() == pytest.approx(0.5, abs=0.26)
    first = meter.joules()
    assert meter.joules() - first == pytest.approx(0.5)


def test_bandwidth_is_a_plausible_number_of_bytes_a_second() -> None:
    core = usable_cores()[-1:]
    samples = read_bandwidth(core, total_bytes=64 << 20)
    assert len(samples) == 5 and all(1e8 < sample < 1e12 for sample in samples)
    with pytest.raises(OSError, match="the read bandwidth could not be measured"):
        read_bandwidth([4096], total_bytes=1 << 20)
