"""The command line from outside: help, exit codes, one-sentence errors, JSON on stdout, and a second run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgedistill.cli.main import app

COMMANDS = [
    *("doctor", "plan", "run", "synth", "train", "export", "eval", "bench", "verify", "diagnose", "gate"),
    *("report", "status", "compare", "quantize", "targets"),
]
EDGEDISTILL = Path(sys.executable).parent / "edgedistill"
TESTS = Path(__file__).resolve().parents[1]


def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [EDGEDISTILL, *arguments], capture_output=True, text=True, timeout=60, env=os.environ | environment
    )


def test_help_names_every_command() -> None:
    text = CliRunner().invoke(app, ["--help"]).output
    listed = [line.split()[0] for line in text.partition("Commands:")[2].splitlines() if line.startswith("  ")]
    assert listed[: len(COMMANDS)] == COMMANDS
    assert "…" not in text and "..." not in text.partition("Commands:")[2], "a summary is cut off"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_and_says_what_its_options_do(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    options = [line.strip() for line in result.output.splitlines() if line.strip().startswith("--")]
    assert all(len(line.split("  ")) > 1 for line in options)


def test_version_is_the_package_s() -> None:
    assert call("--version").stdout == f"edgedistill {version('edgedistill')}\n"


def test_help_is_quick() -> None:
    best = 9.0
    for _ in range(5):
        began = time.perf_counter()
        assert call("--help").returncode == 0
        best = min(best, time.perf_counter() - began)
    assert best < 0.3


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["nope"], 2, "No such command 'nope'"),
        (["run"], 2, "Missing argument 'RECIPE'"),
        (["run", "quickstrat"], 2, "expected a recipe file or name, found 'quickstrat'; did you mean 'quickstart'?"),
        (["run", "quickstart", "--set", "budget.size.metric='artifact_byte'"], 2, "did you mean 'artifact_bytes'?"),
        (["run", "quickstart", "--set", "budget.latency.target='lokal-cpu'"], 2, "did you mean 'local-cpu'?"),
        (["run", "quickstart", "--set", "train.lr=fast"], 2, "expected a TOML value, found 'fast'"),
        (["run", "quickstart", "--set", "train.lr"], 2, "expected --set NAME=VALUE"),
        (["targets", "show", "lokal-cpu"], 2, "did you mean 'local-cpu'?"),
        (
            ["compare", "quickstart"],
            2,
            "comparison.json, found none; run `edgedistill run quickstart` first, to the end",
        ),
        (["gate", "quickstart"], 2, "data is todo (never run); run `edgedistill run quickstart` first"),
        (
            ["gate", "quickstart", "--runs-dir", "a b", "--set", "budget.size.max='1 KB'"],
            *(2, "run `edgedistill run quickstart --set 'budget.size.max='\"'\"'1 KB'\"'\"'' --runs-dir 'a b'` first"),
        ),
        (["run", "quickstart", "--runs-dir", "/dev/null"], 4, "Not a directory; make room or give access"),
        (["report", "quickstart"], 2, "gate needs what comes before it done, found: data is todo (never run); run"),
        (["status", "runs/quickstart"], 2, "found none there; run `edgedistill run quickstart` first"),
        (["synth", "quickstart", "--json"], 2, "Invalid value for --json: expected --sample N or --dry-run with it"),
        (["plan", "phi4-mini"], 2, "as the recipe names it, found none; copy the shipped recipe beside your own files"),
        (["gate", "a/quickstart"], 2, "run `edgedistill run quickstart --runs-dir a` first"),
        (["bench", "none.gguf"], 2, "expected a recipe, a run's folder or a model at none.gguf, found none there"),
        (["gate", "runs/nope"], 2, "at runs/nope, found none there; correct the path, or run its recipe first"),
    ],
)
def test_an_error_is_one_sentence_and_an_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert sentence in done.stderr.partition("edgedistill: ")[2]
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir()), "a refused command wrote something"
    traced = call(*arguments, "--debug")
    assert "Traceback" in traced.stderr and traced.returncode == code


def test_a_recipe_that_stops_early_has_a_plan_and_is_refused_as_a_whole(tmp_path: Path) -> None:
    """The retention benchmark's, which stops at eval, beside data of its own."""
    shutil.copy(TESTS.parent / "benchmarks" / "retention.toml", tmp_path)
    for split in ("gold", "valid", "heldout"):
        (tmp_path / f"{split}.jsonl").write_text("")
    where = (str(tmp_path / "retention.toml"), "--set", 'task.labels=["a", "b"]', "--runs-dir", str(tmp_path / "runs"))
    shown = call("plan", *where)
    assert (shown.returncode, shown.stderr) == (0, "")
    states = [line.split()[:2] for line in shown.stdout.splitlines()[1:]]
    assert states[:6] == [[stage, "todo"] for stage in ("data", "teacher", "synth", "train", "export", "eval")]
    assert states[6:] == [["bench", "blocked"], ["gate", "blocked"]]
    sentence = "expected export.variants to measure, found none; name some, or run only `edgedistill eval "
    refused = call("run", *where)
    assert (refused.returncode, refused.stdout) == (2, "")
    for text in (shown.stdout, refused.stderr):
        assert sentence in text and f"--runs-dir {tmp_path / 'runs'}` (or export, train, synth)\n" in text
    assert not (tmp_path / "runs").exists()


def test_plan_and_status_speak_json(tmp_path: Path) -> None:
    done = call("plan", "quickstart", "--runs-dir", str(tmp_path), "--json")
    steps = json.loads(done.stdout)
    assert [s["stage"] for s in steps] == ["data", "teacher", "synth", "train", "export", "eval", "bench", "gate"]
    assert {s["state"] for s in steps} == {"todo"}
    assert not list(tmp_path.iterdir()), "plan wrote something"
    state = json.loads(call("status", "quickstart", "--runs-dir", str(tmp_path), "--json").stdout)
    assert state["verdict"] is None and len(state["stages"]) == 8


def test_targets_are_listed_and_shown() -> None:
    listed = json.loads(call("targets", "--json").stdout)
    assert {"local-cpu", "mobile-class"} <= {t["id"] for t in listed}
    assert "constrained" in call("targets", "show", "mobile-class").stdout
    assert json.loads(call("targets", "show", "mobile-class", "--json").stdout)["runner"] == "constrained"


def test_doctor_finds_what_is_here_and_what_is_not(tmp_path: Path) -> None:
    findings = {f["what"]: f for f in json.loads(call("doctor", "--json", EDGEDISTILL_CACHE=str(tmp_path)).stdout)}
    assert findings["torch"]["level"] == "ok" and findings["python"]["level"] == "ok"
    assert findings["teacher"]["level"] == "note" and "downloads" in findings["teacher"]["advice"]
    assert {"cores", "memory", "disk", "cgroup", "compiler"} <= findings.keys()
    assert all(findings[what]["level"] in ("ok", "note") for what in ("ssh", "adb", "nvml")), "none is required"


def test_doctor_tells_what_reaches_devices(tmp_path: Path) -> None:
    def examine() -> dict[str, dict[str, str]]:
        modules = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
        done = call("doctor", "--json", PATH=str(tmp_path), PYTHONPATH=modules)
        return {finding["what"]: finding for finding in json.loads(done.stdout)}

    for name, text in (("ssh", "OpenSSH_9.9"), ("adb", "Android Debug Bridge version 1.0.41"), ("nvidia-smi", "GPU 0")):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {text} >&{1 + (name == 'ssh')}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "pynvml.py").write_text("raise ImportError('not for this test')\n")
    found = examine()
    assert found["ssh"]["found"] == "OpenSSH_9.9" and found["adb"]["found"].startswith("Android Debug Bridge")
    assert found["nvml"]["found"] == "nvidia-smi: GPU 0"
    for name in ("ssh", "adb", "nvidia-smi"):
        (tmp_path / name).unlink()
    found = examine()
    assert {found[what]["level"] for what in ("ssh", "adb", "nvml")} == {"note"}
    (tmp_path / "pynvml.py").write_text(
        "class NVMLError(Exception): pass\ndef nvmlInit(): raise NVMLError('Driver Not Loaded')\n"
    )
    found = examine()
    assert found["nvml"]["found"] == "nvidia-ml-py, but Driver Not Loaded" and found["nvml"]["level"] == "note"


def test_doctor_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["torch>=99", "no-such-package>=1"])
    result = CliRunner().invoke(app, ["doctor", "--json"])
    findings = {f["what"]: f for f in json.loads(result.stdout)}
    assert result.exit_code == 5
    assert findings["torch"]["advice"] == "expected >=99; pip install 'torch>=99'"
    assert findings["no-such-package"]["found"] == "not installed"


def test_a_closed_pipe_is_no_error() -> None:
    done = subprocess.run(f"{EDGEDISTILL} doctor | head -1", shell=True, capture_output=True, text=True)
    assert done.stderr == ""


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    """A run whose first stage hangs is interrupted as a terminal does it: the whole process group."""
    code = (
        "import pytest, signal, sys, test_plan; from edgedistill.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job ignores it
        "test_plan.use(pytest.MonkeyPatch(), data='hang')\n"
        f"sys.argv = ['edgedistill', 'run', 'quickstart', '--runs-dir', {str(tmp_path)!r}]\n"
        "main.main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(TESTS), str(TESTS.parent)))},
    )
    for _ in range(200):
        if (tmp_path / "quickstart" / "00-data" / "pid.txt").is_file():
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "edgedistill: interrupted; run the same command again to go on"
    assert "Traceback" not in errors
