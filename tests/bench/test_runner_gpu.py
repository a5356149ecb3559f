"""The gpu runner with a stand-in for NVML's module and for `nvidia-smi`: company, slowdowns, absent devices."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgedistill.bench import block
from edgedistill.bench.runner import open_runner
from edgedistill.core.errors import InputError, MissingError
from edgedistill.core.target import Target

Job = Callable[..., dict[str, Any]]
LIMITS = {"memory_bytes": 0, "timeout_s": 120.0}
GIB = 2**30


class FakeNvml:
    """The functions of `pynvml` that are used; every list is read from the front, its last value stays."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def __init__(self, *, count: int = 1, start: str = "", **answers: list[Any]) -> None:
        self.count, self.start, self.open = count, start, 0
        self.answers = {"pids": [[]], "bits": [0x1], "energy": [1000, 4500], "power": [70500]} | answers

    def _next(self, name: str) -> Any:
        values = self.answers[name]
        value = values.pop(0) if len(values) > 1 else values[0]
        if isinstance(value, Exception):
            raise value
        return value

    def nvmlInit(self) -> None:
        if self.start:
            raise self.NVMLError(self.start)
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def __getattr__(self, name: str) -> Callable[..., Any]:
        values = {
            "nvmlDeviceGetCount": lambda: self.count,
            "nvmlDeviceGetHandleByIndex": lambda index: f"handle {index}",
            "nvmlSystemGetDriverVersion": lambda: "580.1",
            "nvmlDeviceGetName": lambda handle: b"NVIDIA Test",
            "nvmlDeviceGetUUID": lambda handle: "GPU-1234",
            "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=8 * GIB, used=GIB, free=7 * GIB),
            "nvmlDeviceGetPowerUsage": lambda handle: self._next("power"),
            "nvmlDeviceGetTotalEnergyConsumption": lambda handle: self._next("energy"),
            "nvmlDeviceGetTemperature": lambda handle, sensor: 50 + sensor,
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda handle: self._next("bits"),
            "nvmlDeviceGetComputeRunningProcesses": lambda handle: [SimpleNamespace(pid=p) for p in self._next("pids")],
            "nvmlDeviceGetGraphicsRunningProcesses": lambda handle: [],
        }
        if name not in values:
            raise AttributeError(name)
        return values[name]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeNvml]:
    def install(**answers: Any) -> FakeNvml:
        fake = FakeNvml(**answers)
        monkeypatch.setitem(sys.modules, "pynvml", fake)
        return fake

    return install


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Blocks that run on whatever device the job names."""
    asked: list[dict[str, Any]] = []

    def run(job: dict[str, Any], **limits: Any) -> dict[str, Any]:
        asked.append(job)
        device = "cpu" if job["engine"] == "liar" else job["options"]["device"]
        rows = [{"workload": name, "samples": {}} for name in job["workloads"]]
        return {"engine": job["engine"], "settings": {"backend": device}, "rows": rows}

    monkeypatch.setattr(block, "run_block", run)
    return asked


def target(**connection: Any) -> Target:
    return Target.model_validate(
        {"id": "gpu", "title": "a CUDA device", "device_class": "gpu", "runner": "gpu", "connection": connection}
    )


def order(engine: str = "torch") -> dict[str, Any]:
    return {"engine": engine, "options": {"interface": 1}, "workloads": ["prompts", "shape"]}


def test_engines_are_sent_to_the_device_and_its_state_is_kept(
    nvml: Callable[..., FakeNvml], jobs: list[dict[str, Any]]
) -> None:
    fake = nvml(energy=[500, 1000, 4500])
    with open_runner(target()) as runner:
        assert fake.open == 1
        result = runner.run(order(), **LIMITS)
    assert fake.open == 0
    assert all("invalid" not in row for row in result["rows"])
    assert jobs[0]["options"] == {"interface": 1, "device": "cuda"}
    assert jobs[0]["environment"] == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "GPU-1234"}
    device = result["environment"]["device"]
    assert device["hardware"]["gpu"] == "NVIDIA Test" and device["hardware"]["gpu_memory_bytes"] == 8 * GIB
    assert device["versions"] == {"driver": "580.1"} and "GPU-1234" not in str(result)
    state = {"used_bytes": GIB, "power_w": 70.5, "temperature_c": 50, "slowdown_bits": 1}
    assert result["settings"]["gpu"] == {"before": state, "after": state, "block_energy_mj": 3500}


@pytest.mark.parametrize(
    ("answers", "reason", "ran"),
    [
        ({"pids": [[4711]]}, "the device was shared with another process (pid 4711) before the block; end it", False),
        ({"pids": [[], [8, 9]]}, "the device was shared with another process (pid 8, 9) after the block; end it", True),
        (
            {"bits": [0, 0, 0x48]},
            "throttled: the device reports a hardware slowdown and a thermal slowdown by ha",
            True,
        ),
        ({"bits": [0, 0x20, 0]}, "throttled: the device reports a thermal slowdown by software", True),
    ],
)
def test_company_and_slowdowns_make_rows_invalid(
    nvml: Callable[..., FakeNvml], jobs: list[dict[str, Any]], answers: dict[str, Any], reason: str, ran: bool
) -> None:
    nvml(**answers)
    with open_runner(target()) as runner:
        rows = runner.run(order(), **LIMITS)["rows"]
    assert [row["workload"] for row in rows] == ["prompts", "shape"]
    assert all(row["invalid"].startswith(reason) for row in rows)
    assert bool(jobs) is ran


def test_an_engine_on_another_device_is_an_invalid_row(
    nvml: Callable[..., FakeNvml], jobs: list[dict[str, Any]]
) -> None:
    nvml()
    with open_runner(target()) as runner:
        rows = runner.run(order("liar"), **LIMITS)["rows"]
    assert {row["invalid"] for row in rows} == {"expected the device cuda, the engine has cpu"}


def test_what_a_device_does_not_tell_is_null(nvml: Callable[..., FakeNvml], jobs: list[dict[str, Any]]) -> None:
    refused = FakeNvml.NVMLError("Not Supported")
    nvml(energy=[refused], power=[refused], bits=[refused])
    with open_runner(target()) as runner:
        result = runner.run(order(), **LIMITS)
    assert "invalid" not in result["rows"][0]
    assert result["settings"]["gpu"]["block_energy_mj"] is None
    assert result["settings"]["gpu"]["before"]["power_w"] is None


def test_engines_without_cuda_say_so(nvml: Callable[..., FakeNvml], job: Job, tiny_gguf: Path) -> None:
    """Real workers: this llama.cpp is built for the CPU."""
    from llama_cpp import llama_cpp

    if b"CUDA" in llama_cpp.llama_print_system_info():
        pytest.skip("this llama-cpp-python has CUDA")
    nvml()
    with open_runner(target()) as runner:
        (row,) = runner.run(job("llamacpp", tiny_gguf), **LIMITS)["rows"]
    assert row["invalid"].startswith("RuntimeError: this llama-cpp-python is built without CUDA; build it with CMAKE_")


@pytest.mark.parametrize(
    ("answers", "connection", "sentence"),
    [
        ({"start": "Driver Not Loaded"}, {}, "expected an NVIDIA device, NVML says: Driver Not Loaded; choose another"),
        ({"count": 0}, {}, "expected an NVIDIA device 0, found 0 of them; choose another target"),
        ({"count": 1}, {"device": 3}, "expected an NVIDIA device 3, found 1 of them; choose another target"),
    ],
)
def test_no_device_is_one_sentence(
    nvml: Callable[..., FakeNvml], answers: dict[str, Any], connection: dict[str, Any], sentence: str
) -> None:
    nvml(**answers)
    with pytest.raises(MissingError) as error, open_runner(target(**connection)):
        pass
    assert str(error.value).startswith(sentence) and error.value.exit_code == 5


def test_a_connection_table_is_checked() -> None:
    with pytest.raises(InputError, match="device: found 'first'"), open_runner(target(device="first")):
        pass


SMI = """#!/bin/sh
case "$*" in
*--query-gpu=*) echo "{line}"; exit {code};;
*--query-compute-apps=pid*) {apps}true;;
esac
"""
LINE = "NVIDIA Test, GPU-1234, 580.1, 8192, 1024, 70.50, 50, 0x0000000000000001"


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.setitem(sys.modules, "pynvml", None)

    def install(line: str = LINE, *, apps: str = "", code: int = 0) -> None:
        (tmp_path / "nvidia-smi").write_text(SMI.format(line=line, apps=apps, code=code))
        (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return install


def test_nvidia_smi_serves_without_the_module(smi: Callable[..., None], jobs: list[dict[str, Any]]) -> None:
    smi()
    with open_runner(target()) as runner:
        result = runner.run(order(), **LIMITS)
        smi(apps="echo 77;")
        assert "(pid 77) before the block" in runner.run(order(), **LIMITS)["rows"][0]["invalid"]
    state = {"used_bytes": GIB, "power_w": 70.5, "temperature_c": 50.0, "slowdown_bits": 1}
    assert result["settings"]["gpu"] == {"before": state, "after": state, "block_energy_mj": None}
    assert len(jobs) == 1


@pytest.mark.parametrize(
    ("line", "code", "sentence"),
    [
        ("No devices were found", 6, "expected an NVIDIA device, nvidia-smi says: No devices were found; choose"),
        ("odd", 0, "expected an NVIDIA device 0, nvidia-smi says: odd"),
    ],
)
def test_nvidia_smi_without_a_device(smi: Callable[..., None], line: str, code: int, sentence: str) -> None:
    smi(line, code=code)
    with pytest.raises(MissingError) as error, open_runner(target()):
        pass
    assert str(error.value).startswith(sentence)


def test_neither_module_nor_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match="found neither nvidia-ml-py nor nvidia-smi"), open_runner(target()):
        pass
