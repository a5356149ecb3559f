"""A phone as the stand-in for adb shows it: what it says, its engine, and jobs for it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgedistill.core.target import Target

SERIAL = "R5CW30ABCDE"
LISTED = f"List of devices attached\n{SERIAL}\tdevice\n\n"
SPEEDS = {0: 2016000, 1: 2016000, 2: 2016000, 3: 2803200, 4: 2803200, 5: 2803200, 6: 2803200, 7: 3187200}
THERMAL = """IsStatusOverride: false
ThermalEventListeners:
	callbacks: 2
Thermal Status: {status}
Cached temperatures:
	Temperature{{mValue=36.1, mType=3, mName=SKIN, mStatus=0}}
HAL Ready: true
"""
BATTERY = """Current Battery Service state:
  AC powered: false
  USB powered: true
  level: 87
  voltage: 4211
  temperature: {tenths}
  technology: Li-ion
"""
# A row as llama-bench writes it with -o jsonl, some settings left out.
ENGINE = """#!{python}
import json, os, signal, sys
if sys.argv[1:] == ["--help"]:
    print("usage: llama-bench [options]\\n  -m, --model\\n  {depth}  (default: 0)")
    sys.exit()
a = dict(zip(sys.argv[1::2], sys.argv[2::2]))
fault = {fault!r}
if fault == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if fault == "fail":
    sys.exit("main: error: failed to load model")
p, n, d, r = (int(a[k]) for k in ("-p", "-n", "-d", "-r"))
threads = 99 if fault == "threads" else int(a["-t"])
print("warning: asserts enabled, performance may be affected")
for p, n in [(p, 0)] * (p > 0) + [(0, n)] * (n > 0):
    samples = [0.0 if fault == "zero" else (p or n) / (1.0 + 0.5 * i) for i in range(r)]
    row = dict(build_commit="a8bad3842", build_number=6123, cpu_info="", gpu_info="", backends="CPU",
        model_filename=a["-m"], model_type="llama ?B F32", model_size=1, n_batch=int(a["-b"]), n_ubatch=int(a["-ub"]),
        n_threads=threads, cpu_mask="0x0", type_k="f16", type_v="f16", n_gpu_layers=int(a["-ngl"]), flash_attn=False,
        use_mmap=True, n_prompt=p, n_gen=n, n_depth=d, test_time="2026-01-05T10:00:00Z", avg_ns=1, stddev_ns=0,
        avg_ts=1.0, stddev_ts=0.0, samples_ts=samples,
        samples_ns=[int(1e9 * (p or n) / s) if s else 0 for s in samples])
    print(json.dumps(row))
open({log!r}, "a").write(json.dumps(sys.argv[1:]) + "\\n")
import time; time.sleep({seconds})
"""


@dataclass
class Phone:
    """`set` changes what the phone says, `calls` are what adb was asked for."""

    folder: Path
    target: Callable[..., Target]

    @property
    def storage(self) -> Path:
        return self.folder / "storage" / "edgedistill"

    def scenario(self, devices: str = LISTED, **fault: Any) -> None:
        (self.folder / "phone.json").write_text(json.dumps({"devices": devices, "fault": fault}))

    def command(self, name: str, text: str) -> Path:
        path = self.folder / "phone-bin" / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def heat(self, status: int = 0, tenths: int = 312, *, later: str = "") -> None:
        """`later`: what the thermal service says from its second answer on."""
        thermal = THERMAL.format(status=status)
        count = self.folder / "asked"
        second = f'if [ -f {count} ]; then cat <<"E"\n{later}E\nexit; fi\n' if later else ""
        self.command(
            "dumpsys",
            f'#!/bin/sh\ncase $1 in\nthermalservice)\n{second}touch {count}\ncat <<"E"\n{thermal}E\n;;\n'
            f'battery) cat <<"E"\n{BATTERY.format(tenths=tenths)}E\n;;\n'
            'meminfo) echo "  TOTAL PSS:    68231    TOTAL RSS:   151544    TOTAL SWAP PSS:      100";;\nesac\n',
        )

    def engine(self, *, fault: str = "", depth: str = "-d, --n-depth <n>", seconds: float = 0.0) -> Path:
        log = str(self.folder / "runs")
        text = ENGINE.format(python=sys.executable, fault=fault, depth=depth, log=log, seconds=seconds)
        return self.command("llama-bench", text)

    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]

    def said(self, part: str) -> list[str]:
        return [words[-1] for words in self.calls() if part in words[-1]]


def phone_target(folder: Path, connection: dict[str, Any]) -> Target:
    reached = {"engine": str(folder / "phone-bin" / "llama-bench"), "cooldown_s": 0.0} | connection
    return Target.model_validate(
        {
            "id": "phone", "title": "a fake phone", "device_class": "phone", "runner": "adb",
            "connection": {name: value for name, value in reached.items() if value is not None},
        }
    )  # fmt: skip


def order(model: Path, cores: list[int], *workloads: str, engine: str = "llamacpp") -> dict[str, Any]:
    shape = {"ids": list(range(16)), "decode": 9, "warmup": 1, "repetitions": 3}
    return {
        "engine": engine, "model": str(model), "options": {}, "workloads": list(workloads), "threads": len(cores),
        "cores": cores, "context": 64, "batch": 32, "prompts": [[1]], "shape": shape,
    }  # fmt: skip
