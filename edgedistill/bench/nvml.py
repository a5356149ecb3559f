"""NVIDIA devices of this host, through NVML (`nvidia-ml-py`) or, without that module, through `nvidia-smi`.

API: https://docs.nvidia.com/deploy/nvml-api/; fields: `nvidia-smi --help-query-gpu`. Both number devices by PCI bus.
"""

from __future__ import annotations

import contextlib
import importlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from edgedistill.bench.runner import last_line
from edgedistill.core.errors import MissingError

# Clock event reasons that slow a device down although there is work (nvml.h).
SLOWDOWNS = {
    0x8: "a hardware slowdown",
    0x20: "a thermal slowdown by software",
    0x40: "a thermal slowdown by hardware",
    0x80: "a power brake",
}
FIELDS = {
    "name": "name",
    "uuid": "uuid",
    "driver": "driver_version",
    "memory_bytes": "memory.total",
    "used_bytes": "memory.used",
    "power_w": "power.draw",
    "temperature_c": "temperature.gpu",
    "slowdown_bits": "clocks_throttle_reasons.active",
}
QUERY_S = 60.0


class Gpu(Protocol):
    """One device."""

    def read(self) -> dict[str, Any]:
        """Name, uuid, driver and the present memory, power, energy, temperature and slowdowns; null what is unknown."""

    def processes(self) -> list[int]:
        """Ids of the processes that have a context on the device now."""


@contextmanager
def open_gpu_device(index: int) -> Iterator[Gpu]:
    """Device `index` in PCI order.

    Raises:
        MissingError: there is no driver, or no such device.
    """
    try:
        module = importlib.import_module("pynvml")
    except ImportError:
        yield SmiGpu(index)
        return
    try:
        module.nvmlInit()
    except module.NVMLError as e:
        raise MissingError(f"expected an NVIDIA device, NVML says: {e}; choose another target") from None
    try:
        count = module.nvmlDeviceGetCount()
        if index >= count:
            raise MissingError(f"expected an NVIDIA device {index}, found {count} of them; choose another target")
        yield NvmlGpu(module, module.nvmlDeviceGetHandleByIndex(index))
    finally:
        with contextlib.suppress(module.NVMLError):
            module.nvmlShutdown()


class NvmlGpu:
    """A device through NVML's Python module; what a device does not support is null."""

    def __init__(self, module: Any, handle: Any) -> None:
        self.nvml, self.handle = module, handle

    def read(self) -> dict[str, Any]:
        nvml = self.nvml
        memory = self._ask(nvml.nvmlDeviceGetMemoryInfo)
        power = self._ask(nvml.nvmlDeviceGetPowerUsage)
        return {
            "name": _text(self._ask(nvml.nvmlDeviceGetName)),
            "uuid": _text(self._ask(nvml.nvmlDeviceGetUUID)),
            "driver": _text(nvml.nvmlSystemGetDriverVersion()),
            "memory_bytes": memory.total if memory else None,
            "used_bytes": memory.used if memory else None,
            "power_w": None if power is None else power / 1000,
            "energy_mj": self._ask(nvml.nvmlDeviceGetTotalEnergyConsumption),
            "temperature_c": self._ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
            "slowdown_bits": self._ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons),
        }

    def processes(self) -> list[int]:
        nvml = self.nvml
        kinds = (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses)
        return sorted({process.pid for kind in kinds for process in self._ask(kind) or []})

    def _ask(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(self.handle, *arguments)
        except self.nvml.NVMLError:
            return None


class SmiGpu:
    """A device through `nvidia-smi`, which does not tell the energy."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.read()

    def read(self) -> dict[str, Any]:
        found = _smi(f"--id={self.index}", f"--query-gpu={','.join(FIELDS.values())}")
        values = [value.strip() for value in (found[0] if found else "").split(",")]
        if len(values) != len(FIELDS):
            raise MissingError(f"expected an NVIDIA device {self.index}, nvidia-smi says: {' '.join(found)}")
        read: dict[str, Any] = dict(zip(FIELDS, values, strict=True))
        for name in ("memory_bytes", "used_bytes"):
            mib = _number(read[name])
            read[name] = None if mib is None else int(mib * 2**20)
        for name in ("power_w", "temperature_c"):
            read[name] = _number(read[name])
        try:
            read["slowdown_bits"] = int(read["slowdown_bits"], 16)
        except ValueError:
            read["slowdown_bits"] = None
        return read | {"energy_mj": None}

    def processes(self) -> list[int]:
        lines = _smi(f"--id={self.index}", "--query-compute-apps=pid")
        return sorted({int(line) for line in lines if line.strip().isdigit()})


def why_slowed(state: dict[str, Any]) -> str | None:
    """What slows the device down although there is work; None if nothing does."""
    bits = state["slowdown_bits"] or 0
    found = [name for bit, name in SLOWDOWNS.items() if bits & bit]
    return f"the device reports {' and '.join(found)}" if found else None


def _smi(*words: str) -> list[str]:
    try:
        done = subprocess.run(
            ("nvidia-smi", *words, "--format=csv,noheader,nounits"), capture_output=True, text=True, timeout=QUERY_S
        )
    except FileNotFoundError:
        raise MissingError(
            "expected an NVIDIA device, found neither nvidia-ml-py nor nvidia-smi; pip install 'edgedistill[gpu]' on a "
            "host that has one"
        ) from None
    except subprocess.TimeoutExpired:
        raise MissingError(f"expected an NVIDIA device, nvidia-smi gave no answer within {QUERY_S:g} s") from None
    if done.returncode != 0:
        said = last_line(done.stderr) or last_line(done.stdout)
        raise MissingError(f"expected an NVIDIA device, nvidia-smi says: {said}; choose another target")
    return done.stdout.strip().splitlines()


def _text(value: Any) -> str | None:
    return value.decode() if isinstance(value, bytes) else value


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
