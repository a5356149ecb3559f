"""Phones through a stand-in for adb: dialogues as phones have them, and each fault as one sentence."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from adb_phone import LISTED, SERIAL, SPEEDS, THERMAL, Phone, order, phone_target

from edgedistill.bench import runner_adb
from edgedistill.bench.phone import core_mask, memory_of
from edgedistill.bench.phone_bench import read_rows, speeds_of
from edgedistill.bench.runner import open_runner
from edgedistill.core.errors import EdgeDistillError, InputError, MissingError, StageError
from edgedistill.core.files import sha256_file

LIMITS = {"memory_bytes": 0, "timeout_s": 60.0}


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Phone:
    folder = tmp_path / "adb"
    (folder / "phone-bin").mkdir(parents=True)
    (folder / "storage").mkdir()
    adb = folder / "adb"
    adb.write_text(f"#!{sys.executable}\n" + Path(__file__).with_name("fake_adb.py").read_text())
    adb.chmod(0o755)
    (folder / "meminfo").write_text("MemTotal:       11534336 kB\nMemFree: 1 kB\n")
    for core, khz in SPEEDS.items():
        place = folder / "cpu" / f"cpu{core}" / "cpufreq"
        place.mkdir(parents=True)
        (place / "cpuinfo_max_freq").write_text(f"{khz}\n")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    found = Phone(folder, lambda **connection: phone_target(folder, connection))
    found.scenario()
    found.heat()
    found.engine()
    found.command("cmd", "#!/bin/sh\nexit 0\n")
    # Cores of the phone are not this host's: the mask is kept, the command run.
    found.command("taskset", f'#!/bin/sh\necho "$1" >> {folder}/masks\nshift\nexec "$@"\n')
    found.command(
        "getprop",
        "#!/bin/sh\ncase $1 in\nro.soc.model) echo SM8550;;\nro.product.model) echo SM-S911B;;\n"
        "ro.product.cpu.abi) echo arm64-v8a;;\nro.build.version.release) echo 14;;\nesac\n",
    )
    return found


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(1000))
    return path


def test_llama_bench_runs_on_the_big_cores_and_its_rows_are_ours(phone: Phone, model: Path) -> None:
    with open_runner(phone.target()) as runner:
        cores = runner.cores(threads=0)
        assert cores == [3, 4, 5, 6, 7] and runner.cores(threads=2) == [6, 7]
        result = runner.run(order(model, cores, "prompts", "shape"), **LIMITS)
    prompts, shape = result["rows"]
    assert prompts == {"workload": "prompts", "invalid": runner_adb.NO_PROMPTS, "absent": True}
    assert "invalid" not in shape
    assert shape["samples"] == {
        "prefill_tokens_per_s": [16 / 1.0, 16 / 1.5, 16 / 2.0],
        "decode_tokens_per_s": [8 / 1.0, 8 / 1.5, 8 / 2.0],
    }
    runs = [dict(zip(r[::2], r[1::2], strict=True)) for r in map(json.loads, (phone.folder / "runs").open())]
    assert [(r["-p"], r["-n"], r["-d"]) for r in runs] == [("16", "0", "0"), ("0", "8", "16")]
    assert {(r["-t"], r["-b"], r["-ub"], r["-r"], r["-ngl"]) for r in runs} == {("5", "32", "32", "3", "0")}
    assert set((phone.folder / "masks").read_text().split()) == {"f8"}
    settings = result["settings"]
    assert settings["prefill_samples_ns"] == [10**9, 15 * 10**8, 2 * 10**9]
    assert settings["build_commit"] == "a8bad3842" and settings["fixed_performance"] is True
    assert settings["heat"]["before"] == {"thermal_status": 0, "battery_c": 31.2}
    device = result["environment"]["device"]
    assert device["hardware"] == {
        "cpu": "SM8550", "model": "SM-S911B", "arch": "arm64-v8a", "cores": 8, "memory_gib": 11.0, "system": "Android",
    }  # fmt: skip
    assert device["versions"] == {"android": "14"} and SERIAL not in json.dumps(result)


def test_a_model_is_pushed_once_and_verified(phone: Phone, model: Path) -> None:
    for _ in range(2):
        with open_runner(phone.target()) as runner:
            for _ in range(2):
                assert "invalid" not in runner.run(order(model, [7], "shape"), **LIMITS)["rows"][0]
    assert [words[2] for words in phone.calls() if len(words) > 2].count("push") == 1
    assert [p.name for p in (phone.storage / "objects").iterdir()] == [sha256_file(model)]
    assert not (phone.storage / "lock").exists()


def test_memory_is_the_engine_s_high_water_mark(phone: Phone, model: Path) -> None:
    phone.engine(seconds=1.0)
    with open_runner(phone.target()) as runner:
        result = runner.run(order(model, [7], "memory"), **LIMITS)
        small = runner.run(order(model, [7], "memory"), memory_bytes=1000, timeout_s=60.0)
    samples = result["rows"][0]["samples"]
    assert set(samples) == {"peak_rss_bytes", "peak_anon_bytes", "peak_file_bytes"}
    assert 4e6 < samples["peak_rss_bytes"][0] < 60e6
    assert result["settings"]["memory_source"] == "/proc/PID/status"
    assert result["settings"]["memory_workload"] == "llama-bench -p 16 -n 8"
    assert small["rows"][0]["fits"] is False and small["settings"]["memory_limit_missing"] == runner_adb.NO_LIMIT


def test_memory_falls_back_on_dumpsys() -> None:
    text = "  TOTAL PSS:    68231    TOTAL RSS:   151544    TOTAL SWAP PSS: 100\nTOTAL RSS: 99 \nexit 0\n"
    assert memory_of(text) == ({"peak_rss_bytes": [151544 * 1024.0]}, "dumpsys meminfo", 0)
    text = "VmHWM:\t  900 kB\nRssAnon:\t 5 kB\nVmHWM:\t 950 kB\nRssAnon:\t 4 kB\nexit 137\n"
    samples, source, code = memory_of(text)
    assert samples == {"peak_rss_bytes": [950 * 1024.0], "peak_anon_bytes": [5 * 1024.0]}
    assert (source, code) == ("/proc/PID/status", 137) and memory_of("")[2] == -1


@pytest.mark.parametrize(
    ("devices", "connection", "sentence"),
    [
        ("List of devices attached\n\n", {}, "expected a phone, adb finds none; connect one with USB debugging on"),
        (
            f"List of devices attached\n{SERIAL}\toffline\n",
            {},
            "adb says it is offline; plug it in again, or restart it",
        ),
        (
            f"List of devices attached\n{SERIAL}\tunauthorized\n",
            {},
            "is unauthorized; accept this computer's key on its",
        ),
        (
            f"* daemon started successfully\nList of devices attached\n{SERIAL}\tno permissions (user in plugdev)\n",
            {},
            "adb says it is no permissions (user in plugdev); give this user access to the USB device",
        ),
        (
            f"List of devices attached\n{SERIAL}\tdevice\nemulator-5554\tdevice\n",
            {},
            f"expected one phone, adb finds 2 ({SERIAL}, emulator-5554); name one in connection.serial",
        ),
        (LISTED, {"serial": "other"}, f"expected the phone other, adb finds {SERIAL}; connect it"),
    ],
)
def test_a_phone_that_is_not_ready_is_one_sentence(
    phone: Phone, devices: str, connection: dict[str, Any], sentence: str
) -> None:
    phone.scenario(devices)
    with pytest.raises(MissingError) as error, open_runner(phone.target(**connection)):
        pass
    assert sentence in str(error.value) and "\n" not in str(error.value) and error.value.exit_code == 5


def test_the_named_one_of_two_phones_is_used(phone: Phone, model: Path) -> None:
    phone.scenario(f"List of devices attached\nemulator-5554\tdevice\n{SERIAL}\tdevice\n")
    with open_runner(phone.target(serial=SERIAL)) as runner:
        assert "invalid" not in runner.run(order(model, [7], "shape"), **LIMITS)["rows"][0]
    assert {words[1] for words in phone.calls()[1:]} == {SERIAL}


def test_no_adb_is_one_sentence(phone: Phone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match="expected Android's `adb` on PATH, found none; install the platform tools"):
        open_runner(phone.target()).__enter__()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"push": "No space left on device"}, "No space left on device; make room in "),
        ({"corrupt": True}, "expected model.gguf to arrive on phone R5CW30ABCDE with SHA-256 "),
        ({"gone": ["push"]}, f"the phone {SERIAL} is gone (adb: device '{SERIAL}' not found); plug it in again"),
    ],
)
def test_a_fault_in_a_block_is_an_invalid_row(phone: Phone, model: Path, fault: dict[str, Any], reason: str) -> None:
    with open_runner(phone.target()) as runner:
        phone.scenario(**fault)
        result = runner.run(order(model, [7], "shape", "memory"), **LIMITS)
        assert [row["workload"] for row in result["rows"]] == ["shape", "memory"]
        assert all(reason in row["invalid"] and "\n" not in row["invalid"] for row in result["rows"])
        assert not list((phone.storage / "objects").iterdir())
        phone.scenario()
        assert "invalid" not in runner.run(order(model, [7], "shape"), **LIMITS)["rows"][0], "the sweep did not go on"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("kill", "llama-bench was killed on the phone R5CW30ABCDE, as Android does when memory runs out"),
        ("fail", "llama-bench failed on the phone R5CW30ABCDE with exit code 1; it said: main: error: failed to load"),
        ("threads", "expected 1 threads, llama-bench had 99"),
        ("zero", "expected 3 speeds above 0, llama-bench gave [0.0, 0.0, 0.0]"),
    ],
)
def test_an_engine_that_fails_is_an_invalid_row(phone: Phone, model: Path, fault: str, reason: str) -> None:
    phone.engine(fault=fault)
    with open_runner(phone.target()) as runner:
        rows = runner.run(order(model, [7], "shape", "memory"), **LIMITS)["rows"]
    assert rows[0]["invalid"].startswith(reason) and "absent" not in rows[0]
    assert ("invalid" in rows[1]) == (fault in ("kill", "fail"))


def test_an_engine_that_takes_too_long_is_ended_on_the_phone(phone: Phone, model: Path) -> None:
    phone.engine(seconds=30.0)
    with open_runner(phone.target()) as runner:
        (row,) = runner.run(order(model, [7], "shape"), memory_bytes=0, timeout_s=1.0)["rows"]
    assert row["invalid"] == f"llama-bench gave no result on the phone {SERIAL} within 1 s"


def test_other_engines_are_absent_not_failed(phone: Phone, model: Path) -> None:
    with open_runner(phone.target()) as runner:
        (row,) = runner.run(order(model, [7], "shape", engine="torch"), **LIMITS)["rows"]
    assert row["invalid"] == "a phone is measured with llama-bench, which does not run torch models"
    assert row["absent"] is True


def test_a_hot_phone_is_waited_for_and_then_given_up(
    phone: Phone, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_adb, "STEP_S", 0.05)
    phone.heat(status=2)
    with open_runner(phone.target(cooldown_s=0.2)) as runner:
        (row,) = runner.run(order(model, [7], "shape"), **LIMITS)["rows"]
        expected = "stayed too hot for 0.2 s: Android's thermal status was 2 (moderate); let it cool down"
        assert row["invalid"] == f"the phone {SERIAL} {expected}"
        assert not (phone.folder / "runs").exists(), "it was measured hot"
        phone.heat(tenths=405)
        (row,) = runner.run(order(model, [7], "shape"), **LIMITS)["rows"]
        assert "the battery was at 40.5 °C, the target allows 40 °C" in row["invalid"]
        (phone.folder / "asked").unlink()
        phone.heat(status=1, later=THERMAL.format(status=0))
        runner.connection = runner.connection.model_copy(update={"cooldown_s": 30.0})
        assert "invalid" not in runner.run(order(model, [7], "shape"), **LIMITS)["rows"][0]


def test_a_phone_that_throttles_meanwhile_makes_the_row_invalid(phone: Phone, model: Path) -> None:
    phone.heat(later=THERMAL.format(status=3))
    with open_runner(phone.target()) as runner:
        (row,) = runner.run(order(model, [7], "shape"), **LIMITS)["rows"]
    assert row["invalid"] == "throttled: Android's thermal status was 3 (severe) after the block"


def test_fixed_performance_is_let_go_also_on_failure(phone: Phone) -> None:
    with pytest.raises(ZeroDivisionError), open_runner(phone.target()):
        assert [s.rpartition(" ")[2] for s in phone.said("set-fixed-performance-mode-enabled")] == ["true"]
        raise ZeroDivisionError
    assert [s.rpartition(" ")[2] for s in phone.said("set-fixed-performance-mode-enabled")] == ["true", "false"]
    assert not (phone.storage / "lock").exists()


def test_a_phone_without_fixed_performance_says_so_in_its_rows(phone: Phone, model: Path) -> None:
    phone.command(
        "cmd",
        "#!/bin/sh\necho 'Failed to set FIXED_PERFORMANCE mode' >&2\n"
        "echo 'This is likely because FIXED_PERFORMANCE mode is not supported on this device.' >&2\nexit 255\n",
    )
    with open_runner(phone.target()) as runner:
        result = runner.run(order(model, [7], "shape"), **LIMITS)
    assert "invalid" not in result["rows"][0] and result["settings"]["fixed_performance"] is False
    assert result["settings"]["fixed_performance_missing"] == (
        f"the phone {SERIAL} has no fixed-performance mode (Failed to set FIXED_PERFORMANCE mode)"
    )


def test_an_engine_file_is_pushed_and_made_to_run(phone: Phone, model: Path, tmp_path: Path) -> None:
    built = Path(shutil.copy(phone.engine(), tmp_path / "llama-bench"))
    built.chmod(0o644)
    with open_runner(phone.target(engine=None, engine_file=str(built))) as runner:
        assert runner.engine == f"{phone.storage}/objects/{sha256_file(built)}"
        assert "invalid" not in runner.run(order(model, [7], "shape"), **LIMITS)["rows"][0]
    with pytest.raises(InputError, match=r"expected connection\.engine_file to be llama-bench built for the phone"):
        open_runner(phone.target(engine=None, engine_file=str(tmp_path / "none"))).__enter__()


@pytest.mark.parametrize(
    ("connection", "error", "sentence"),
    [
        (
            {"engine": "/nowhere/llama-bench"},
            MissingError,
            "expected llama-bench with --n-depth as /nowhere/llama-bench",
        ),
        ({"engine": "llama-bench"}, InputError, "engine: found 'llama-bench'"),
        ({"serial": "-x; reboot"}, InputError, "serial: found '-x; reboot'"),
        ({"engine": None}, InputError, "expected either engine (a path on the phone) or engine_file (a file to push)"),
        ({"engines": "x"}, InputError, "engines: unknown name; did you mean 'engine'?"),
    ],
)
def test_a_connection_table_is_checked(
    phone: Phone, connection: dict[str, Any], error: type[EdgeDistillError], sentence: str
) -> None:
    with pytest.raises(error) as found, open_runner(phone.target(**connection)):
        pass
    assert sentence in str(found.value)


def test_an_old_llama_bench_is_refused(phone: Phone) -> None:
    phone.engine(depth="-x")
    with pytest.raises(MissingError, match="expected llama-bench with --n-depth"), open_runner(phone.target()):
        pass


def test_masks_and_rows() -> None:
    assert core_mask([4, 5, 6, 7]) == "f0" and core_mask([0]) == "1"
    with pytest.raises(StageError, match="expected JSON rows from llama-bench, found none"):
        read_rows("| model | size |\n")
    with pytest.raises(StageError, match=r"expected llama-bench's row of 16 \+ 0 tokens at depth 0, found none"):
        speeds_of([], prompt=16, generate=8, threads=1, repetitions=1)
