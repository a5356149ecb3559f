"""Energy counters of this host: RAPL's packages for the CPU, NVML's devices for a GPU. Standard library only.

RAPL: https://www.kernel.org/doc/html/latest/power/powercap/powercap.html (top-level domains are whole packages; the
counter wraps at max_energy_range_uj). NVML: nvmlDeviceGetTotalEnergyConsumption, mJ since the driver was loaded.
"""

from __future__ import annotations

import ctypes
import os

POWERCAP = "/sys/class/powercap"
NVML = "libnvidia-ml.so.1"


class EnergyMeter:
    """Joules since it was opened, over all packages or devices of its kind; `source` names the counter."""

    def __init__(self, source: str, counters: list) -> None:
        self.source, self.counters = source, counters
        self.last = [read() for read, _ in counters]
        self.total = 0

    def joules(self) -> float:
        """Joules so far; called at least once in each wrap of the counter (minutes)."""
        for i, (read, wrap) in enumerate(self.counters):
            value = read()
            self.total += value - self.last[i] + (wrap if value < self.last[i] else 0)
            self.last[i] = value
        return self.total / 1e6


def open_meter(backend: str, *, powercap: str = POWERCAP, nvml: str = NVML) -> EnergyMeter | str:
    """The counter of what `backend` runs on, or the reason why there is none."""
    try:
        return _nvml(nvml) if backend == "cuda" else _rapl(powercap)
    except OSError as e:
        return f"no energy counter: {e.strerror or e}" + (f" ({e.filename})" if e.filename else "")


def _rapl(folder: str) -> EnergyMeter | str:
    if not os.path.isdir(folder):
        return f"no energy counter: this kernel has no {folder}"
    counters = []
    for name in sorted(os.listdir(folder)):
        # intel-rapl:0 is a package (AMD's too); intel-rapl:0:1 is a part of it and already counted.
        if name.startswith("intel-rapl:") and name.count(":") == 1:
            place = os.path.join(folder, name)
            if _text(os.path.join(place, "name")).startswith("package"):
                counters.append((_reader(os.path.join(place, "energy_uj")), int(_text(place + "/max_energy_range_uj"))))
    return EnergyMeter("RAPL package", counters) if counters else f"no energy counter: no package domain in {folder}"


def _reader(path: str):
    return lambda: int(_text(path))


def _text(path: str) -> str:
    with open(path) as f:
        return f.read().strip()


def _nvml(library: str) -> EnergyMeter | str:
    lib = ctypes.CDLL(library)
    if code := lib.nvmlInit_v2():
        return f"no energy counter: nvmlInit returned {code}"
    count = ctypes.c_uint()
    lib.nvmlDeviceGetCount_v2(ctypes.byref(count))
    counters = []
    for i in range(count.value):
        device, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
        lib.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(i), ctypes.byref(device))
        if code := lib.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(millijoules)):
            return f"no energy counter: NVML returned {code} for device {i}"
        counters.append((_nvml_reader(lib, device), 0))
    return EnergyMeter("NVML device", counters) if counters else "no energy counter: NVML knows no device"


def _nvml_reader(lib: ctypes.CDLL, device: ctypes.c_void_p):
    def read() -> int:
        value = ctypes.c_ulonglong()
        if code := lib.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(value)):
            raise OSError(code, "NVML lost the device")
        return value.value * 1000

    return read
