"""A CUDA device of this host: each engine told to use it, alone on it, its state read around each block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from edgedistill.bench import block
from edgedistill.bench.nvml import Gpu, open_gpu_device, why_slowed
from edgedistill.bench.runner import connection_of
from edgedistill.bench.runner_local import LocalRunner
from edgedistill.core.errors import EdgeDistillError
from edgedistill.core.files import digest_of
from edgedistill.core.host import hardware
from edgedistill.core.model import Noun
from edgedistill.core.target import Target

DEVICE = "cuda"


class GpuConnection(Noun):
    """`[connection]` of a target with `runner = "gpu"`: which device, in PCI order."""

    device: Annotated[int, Field(ge=0)] = 0


@dataclass
class GpuRunner:
    """A device nobody else may use meanwhile; `local` runs the blocks."""

    local: LocalRunner
    gpu: Gpu
    environment: dict[str, Any]

    def cores(self, *, threads: int) -> list[int]:
        """Cores of the host that feed the device."""
        return self.local.cores(threads=threads)

    def run(self, job: Mapping[str, Any], *, memory_bytes: int, timeout_s: float) -> dict[str, Any]:
        """One block on the device; company on it, a slowdown or another device than asked makes its rows invalid."""
        try:
            result = self._run(job, memory_bytes=memory_bytes, timeout_s=timeout_s)
        except EdgeDistillError as e:
            result = block.all_invalid(job, str(e))
        return result | {"environment": self.environment}

    def _run(self, job: Mapping[str, Any], *, memory_bytes: int, timeout_s: float) -> dict[str, Any]:
        if company := self.gpu.processes():
            return block.all_invalid(job, _company(company, "before"))
        before = self.gpu.read()
        # Numbered as NVML does, and nothing but this device to be seen.
        seen = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": before["uuid"] or ""}
        order = {**job, "backend": DEVICE, "options": {**job["options"], "device": DEVICE}, "environment": seen}
        result = self.local.run(order, memory_bytes=memory_bytes, timeout_s=timeout_s)
        # The worker is gone, so whoever is on the device now came while it was measured.
        company, after = self.gpu.processes(), self.gpu.read()
        got = str(result["settings"].get("backend", "cpu"))
        reason = None
        if company:
            reason = _company(company, "after")
        elif slow := why_slowed(before) or why_slowed(after):
            reason = f"throttled: {slow}"
        elif not got.startswith(DEVICE):
            reason = f"expected the device {DEVICE}, the engine has {got}"
        if reason:
            result["rows"] = [{"workload": row["workload"], "invalid": reason} | row for row in result["rows"]]
        known = ("used_bytes", "power_w", "temperature_c", "slowdown_bits")
        result["settings"]["gpu"] = {
            "before": {name: before[name] for name in known},
            "after": {name: after[name] for name in known},
            "block_energy_mj": None if before["energy_mj"] is None else after["energy_mj"] - before["energy_mj"],
        }
        return result


@contextmanager
def open_gpu(target: Target) -> Iterator[GpuRunner]:
    """Find the device.

    Raises:
        InputError: the target's `[connection]` is not what it should be.
        MissingError: there is no such device.
    """
    connection = connection_of(target, GpuConnection)
    with open_gpu_device(connection.device) as gpu:
        found = gpu.read()
        identity = {"gpu": found["name"], "gpu_memory_bytes": found["memory_bytes"], **hardware()}
        device = {"id": digest_of(identity)[:12], "hardware": identity, "versions": {"driver": found["driver"]}}
        yield GpuRunner(LocalRunner(target), gpu, {"device": device})


def _company(processes: list[int], when: str) -> str:
    listed = ", ".join(map(str, processes))
    return f"the device was shared with another process (pid {listed}) {when} the block; end it and measure again"
