"""A board's heat and speed, read from a made-up /sys, and what makes a block in between unfit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from edgedistill.bench import device_state
from edgedistill.bench.device_state import read_state, read_throttled, why_unfit

FILES = {
    "class/thermal/thermal_zone0/type": "cpu-thermal",
    "class/thermal/thermal_zone0/temp": "51540",
    "class/thermal/thermal_zone1/type": "broken",
    "class/thermal/cooling_device0/type": "cpufreq-cpu0",
    "class/thermal/cooling_device0/cur_state": "0",
    "class/thermal/cooling_device1/type": "pwm-fan",
    "class/thermal/cooling_device1/cur_state": "3",
    "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1500000",
    "devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "2400000",
    "devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "2400000",
    "devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil",
    "devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "2",
    "devices/system/cpu/cpufreq/ignored": "1",
}


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    return read_state(str(tmp_path))


def test_what_the_kernel_says_is_read(state: dict[str, Any]) -> None:
    assert state == {
        "temperatures_c": {"zone0:cpu-thermal": 51.54},
        "cooling": {"cooling_device0:cpufreq-cpu0": 0},
        "cores": {"0": {"cur_khz": 1500000, "limit_khz": 2400000, "max_khz": 2400000, "governor": "schedutil"}},
        "throttled": None,
        "throttle_count": 2,
    }
    assert why_unfit(state, state, cores=[0, 1], max_temperature_c=80) is None


def test_a_host_without_sensors_says_so_by_nothing(tmp_path: Path) -> None:
    empty = read_state(str(tmp_path))
    assert (empty["temperatures_c"], empty["cores"], empty["throttle_count"]) == ({}, {}, None)
    assert why_unfit(empty, empty, cores=[0], max_temperature_c=80) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"temperatures_c": {"zone0:cpu": 80.5}}, "too hot: zone0:cpu was at 80.5 °C after the block, the target"),
        ({"cooling": {"cooling_device0:cpufreq-cpu0": 1}}, "throttled: the cooling device cooling_device0:"),
        ({"throttled": 0x5}, "throttled: vcgencmd reports under-voltage and throttling after the block"),
        ({"throttled": 0x60000}, "throttled: vcgencmd reports throttling during the block"),
        ({"throttle_count": 5}, "throttled: the cores were slowed down 3 times during the block"),
        ({"limit_khz": 1800000}, "throttled: core 0 was limited to 1800000 of 2400000 kHz after the block"),
        ({"governor": "performance"}, "throttled: core 0 ran at 1500000 of 2400000 kHz after the block"),
        ({"governor": "performance", "cur_khz": 2390000}, None),
    ],
)
def test_a_slowed_or_hot_board_makes_the_block_unfit(
    state: dict[str, Any], changes: dict[str, Any], reason: str | None
) -> None:
    before, after = copy.deepcopy(state), copy.deepcopy(state)
    before["throttled"] = 0x20000
    for name, value in changes.items():
        (after if name in after else after["cores"]["0"])[name] = value
    found = why_unfit(before, after, cores=[0], max_temperature_c=80)
    assert found == reason or (reason and found and found.startswith(reason))
    other = why_unfit(before, after, cores=[7], max_temperature_c=80)
    assert (other is None) == ("core 0" in (reason or "core 0")), "cores that do not take part were judged"


@pytest.mark.parametrize(("said", "bits"), [("throttled=0x50005", 0x50005), ("throttled=0x0", 0), ("error", None)])
def test_the_firmware_s_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, bits: int | None) -> None:
    (tmp_path / "vcgencmd").write_text(f'#!/bin/sh\n[ "$1" = get_throttled ] && echo {said}\n')
    (tmp_path / "vcgencmd").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert device_state.read_throttled() == bits
    (tmp_path / "vcgencmd").unlink()
    assert read_throttled() is None
