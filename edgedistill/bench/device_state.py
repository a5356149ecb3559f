"""How hot a Linux device is and what slows its cores, as the kernel says, and whether a block in between counts.

Standard library only: it is read on the board. https://docs.kernel.org/driver-api/thermal/sysfs-api.html,
https://docs.kernel.org/admin-guide/pm/cpufreq.html; bits of `vcgencmd get_throttled`:
https://www.raspberrypi.com/documentation/computers/os.html#get_throttled.
"""

from __future__ import annotations

import glob
import os
import subprocess

NOW_BITS = {0: "under-voltage", 1: "a capped frequency", 2: "throttling", 3: "the soft temperature limit"}
SINCE_BOOT = 16
# A governor set to the highest frequency still lets it read a little low.
NEAR_FULL = 0.95


def read_state(sys: str = "/sys") -> dict:
    """`temperatures_c` by zone, `cores` (kHz and governor), `cooling`, `throttled`, `throttle_count`.

    What the kernel does not offer is empty or null, never guessed.
    """
    zones = glob.glob(f"{sys}/class/thermal/thermal_zone*")
    temperatures = {}
    for zone in sorted(zones):
        celsius = _number(f"{zone}/temp")
        if celsius is not None:
            temperatures[f"{os.path.basename(zone).removeprefix('thermal_')}:{_text(zone + '/type')}"] = celsius / 1000
    cooling = {}
    for device in sorted(glob.glob(f"{sys}/class/thermal/cooling_device*")):
        kind = _text(f"{device}/type") or ""
        if "cpufreq" in kind or kind.lower() == "processor":
            cooling[f"{os.path.basename(device)}:{kind}"] = _number(f"{device}/cur_state") or 0
    cores = {}
    counts = []
    for folder in glob.glob(f"{sys}/devices/system/cpu/cpu[0-9]*"):
        number = os.path.basename(folder)[3:]
        if not number.isdigit():
            continue
        counts.append(_number(f"{folder}/thermal_throttle/core_throttle_count"))
        frequency = f"{folder}/cpufreq"
        if os.path.isdir(frequency):
            cores[number] = {
                "cur_khz": _number(f"{frequency}/scaling_cur_freq"),
                "limit_khz": _number(f"{frequency}/scaling_max_freq"),
                "max_khz": _number(f"{frequency}/cpuinfo_max_freq"),
                "governor": _text(f"{frequency}/scaling_governor"),
            }
    counts = [count for count in counts if count is not None]
    return {
        "temperatures_c": temperatures,
        "cooling": cooling,
        "cores": cores,
        "throttled": read_throttled(),
        "throttle_count": sum(counts) if counts else None,
    }


def read_throttled() -> int | None:
    """The bits of a Raspberry Pi's firmware, None where there is no `vcgencmd` or it does not answer."""
    try:
        said = subprocess.run(["vcgencmd", "get_throttled"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    try:
        return int(said.strip().removeprefix("throttled="), 16)
    except ValueError:
        return None


def why_unfit(before: dict, after: dict, *, cores: list[int], max_temperature_c: float) -> str | None:
    """Why what was measured between two states must not be used: too hot, or slowed down; None if it may be."""
    for when, state in (("before", before), ("after", after)):
        for zone, celsius in state["temperatures_c"].items():
            if celsius > max_temperature_c:
                allowed = f"the target allows {max_temperature_c:g} °C"
                return f"too hot: {zone} was at {celsius:g} °C {when} the block, {allowed}"
        if state["throttled"]:
            found = [name for bit, name in NOW_BITS.items() if state["throttled"] >> bit & 1]
            if found:
                return f"throttled: vcgencmd reports {' and '.join(found)} {when} the block"
        for device, level in state["cooling"].items():
            if level > 0:
                return f"throttled: the cooling device {device} was at level {level} {when} the block"
        for core in map(str, cores):
            if slow := _slowed(core, state["cores"].get(core), when):
                return slow
    new = (after["throttled"] or 0) & ~(before["throttled"] or 0)
    found = [name for bit, name in NOW_BITS.items() if new >> (bit + SINCE_BOOT) & 1]
    if found:
        return f"throttled: vcgencmd reports {' and '.join(found)} during the block"
    if None not in (before["throttle_count"], after["throttle_count"]):
        more = after["throttle_count"] - before["throttle_count"]
        if more > 0:
            return f"throttled: the cores were slowed down {more} times during the block"
    return None


def _slowed(core: str, found: dict | None, when: str) -> str | None:
    if not found or not found["max_khz"]:
        return None
    top = found["max_khz"]
    if found["limit_khz"] and found["limit_khz"] < top:
        return f"throttled: core {core} was limited to {found['limit_khz']} of {top} kHz {when} the block"
    # An idle core of any other governor is slow without being throttled.
    if found["governor"] == "performance" and found["cur_khz"] and found["cur_khz"] < NEAR_FULL * top:
        return f"throttled: core {core} ran at {found['cur_khz']} of {top} kHz {when} the block"
    return None


def _text(path: str) -> str | None:
    try:
        with open(path) as f:
            return f.read().strip()
    except (OSError, UnicodeDecodeError):
        return None


def _number(path: str) -> int | None:
    try:
        return int(_text(path) or "")
    except ValueError:
        return None
