"""What an Android phone says of itself: its make, its cores, how hot it is, what a process took. Text to values.

Services: https://source.android.com/docs/core/power/thermal-mitigation,
https://developer.android.com/games/optimize/adpf/fixed-performance-mode, https://developer.android.com/tools/dumpsys.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from edgedistill.bench.adb_client import AdbShell, value_of
from edgedistill.bench.remote import quote
from edgedistill.core.errors import MissingError

STATUSES = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
PROPERTIES = {
    "cpu": "ro.soc.model",
    "board": "ro.board.platform",
    "model": "ro.product.model",
    "arch": "ro.product.cpu.abi",
}
CORES = """for c in /sys/devices/system/cpu/cpu[0-9]*; do
  echo "${c##*/cpu} $(cat $c/cpufreq/cpuinfo_max_freq 2>/dev/null || echo 0)"
done"""
LOOKS_PER_S = 5
FIXED = "cmd power set-fixed-performance-mode-enabled"


def describe_phone(phone: AdbShell) -> dict[str, Any]:
    """`hardware`, `kernel`, `versions` and `speeds`: core number to its highest frequency in kHz, 0 if unknown.

    Raises:
        MissingError: it names no core.
    """
    found = {name: value_of(phone, f"getprop {key}") for name, key in PROPERTIES.items()}
    memory = re.search(r"MemTotal:\s+(\d+) kB", phone.run("cat /proc/meminfo").out)
    speeds = {}
    for line in phone.run(CORES).out.splitlines():
        number, _, khz = line.partition(" ")
        if number.isdigit():
            speeds[int(number)] = int(khz) if khz.strip().isdigit() else 0
    if not speeds:
        raise MissingError(f"expected the cores of the {phone.name} in /sys/devices/system/cpu, found none")
    return {
        "hardware": {
            "cpu": found["cpu"] or found["board"],
            "model": found["model"],
            "arch": found["arch"],
            "cores": len(speeds),
            "memory_gib": round(int(memory[1]) / 2**20, 1) if memory else None,
            "system": "Android",
        },
        "kernel": value_of(phone, "uname -r"),
        "versions": {"android": value_of(phone, "getprop ro.build.version.release")},
        "speeds": speeds,
    }


def core_mask(cores: list[int]) -> str:
    """What Android's `taskset` takes: the cores as bits in hexadecimal."""
    return f"{sum(1 << core for core in cores):x}"


def read_heat(phone: AdbShell) -> dict[str, float | int | None]:
    """`thermal_status` (0 none … 6 shutdown) and `battery_c`; null where the phone does not say."""
    text = phone.run("dumpsys thermalservice; dumpsys battery").out
    status = re.search(r"Thermal Status:\s*(\d+)", text)
    battery = re.search(r"^\s*temperature:\s*(-?\d+)", text, re.MULTILINE)
    return {
        "thermal_status": int(status[1]) if status else None,
        "battery_c": int(battery[1]) / 10 if battery else None,
    }


def why_hot(heat: dict[str, float | int | None], *, max_battery_c: float | None) -> str | None:
    """Why a phone is too hot to be measured: it slows itself down, or its battery is above `max_battery_c`."""
    status, battery = heat["thermal_status"], heat["battery_c"]
    if status:
        name = STATUSES[int(status)] if int(status) < len(STATUSES) else "unknown"
        return f"Android's thermal status was {status:g} ({name})"
    if max_battery_c is not None and battery is not None and battery > max_battery_c:
        return f"the battery was at {battery:g} °C, the target allows {max_battery_c:g} °C"
    return None


@contextlib.contextmanager
def fixed_performance(phone: AdbShell) -> Iterator[str]:
    """Hold the clocks at a level the phone can keep, and let go afterwards in any case; yields why not, or nothing."""
    try:
        done = phone.run(f"{FIXED} true")
        yield (
            "" if done.code == 0 else f"the {phone.name} has no fixed-performance mode ({_first(done.err or done.out)})"
        )
    finally:
        with contextlib.suppress(MissingError):
            phone.run(f"{FIXED} false")


def memory_script(command: str, *, mask: str, timeout_s: float) -> str:
    """Run a command and write what the kernel says of its memory five times a second, then how it ended.

    What takes longer than `timeout_s` is killed by the phone itself.
    """
    return f"""taskset {quote(mask)} {command} >/dev/null 2>&1 &
p=$!
left={max(1, int(timeout_s * LOOKS_PER_S))}
while [ $left -gt 0 ] && kill -0 $p 2>/dev/null; do
  left=$((left - 1))
  grep -E '^(VmHWM|RssAnon|RssFile):' /proc/$p/status 2>/dev/null || dumpsys meminfo $p | grep 'TOTAL RSS:'
  sleep {1 / LOOKS_PER_S:g}
done
[ $left -gt 0 ] || kill -9 $p
wait $p
echo "exit $?"
"""


def memory_of(text: str) -> tuple[dict[str, list[float]], str, int]:
    """Samples in bytes, where they come from, and the command's exit code, of what `memory_script` wrote."""
    kib: dict[str, int] = {}
    for name, value in re.findall(r"^(VmHWM|RssAnon|RssFile):\s*(\d+)", text, re.MULTILINE):
        kib[name] = max(kib.get(name, 0), int(value))
    names = {"VmHWM": "peak_rss_bytes", "RssAnon": "peak_anon_bytes", "RssFile": "peak_file_bytes"}
    source = "/proc/PID/status"
    if "VmHWM" not in kib:
        totals = [int(value) for value in re.findall(r"TOTAL RSS:\s*([0-9]+)", text)]
        kib, source = ({"VmHWM": max(totals)} if totals else {}), "dumpsys meminfo"
    ended = re.search(r"^exit (\d+)\s*$", text, re.MULTILINE)
    return {names[name]: [1024.0 * value] for name, value in kib.items()}, source, int(ended[1]) if ended else -1


def _first(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else "it gave no reason"
