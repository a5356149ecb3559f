"""The registry of runners, the choice of cores, and this host as a target."""

from __future__ import annotations

import importlib
import re
import tomllib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, get_args

import pytest

from edgedistill.bench import block
from edgedistill.bench.limits import usable_cores
from edgedistill.bench.runner import RUNNERS, connection_of, fastest_cores, last_line, open_runner
from edgedistill.core.errors import InputError
from edgedistill.core.target import Target


def target(runner: str, **fields: Any) -> Target:
    given = {"id": "here", "title": "a test's target", "device_class": "sbc", "runner": runner} | fields
    return Target.model_validate(given)


def test_every_runner_but_a_projection_is_there() -> None:
    known = set(get_args(Target.model_fields["runner"].annotation))
    assert set(RUNNERS) == known - {"projected"} and len(known) == 6
    for place in RUNNERS.values():
        module, _, function = place.partition(":")
        assert callable(getattr(importlib.import_module(f"edgedistill.bench.{module}"), function))
    with pytest.raises(InputError, match="expected a target that can be measured, found here with runner 'projected'"):
        open_runner(target("projected"))


@pytest.mark.parametrize(
    ("runner", "evidence"),
    [("local", "measured"), ("ssh", "measured"), ("constrained", "constrained"), ("projected", "projected")],
)
def test_the_runner_is_the_evidence(runner: str, evidence: str) -> None:
    assert target(runner).evidence == evidence


@pytest.mark.parametrize(
    ("speeds", "wanted", "expected"),
    [
        ({0: 0, 1: 0, 2: 0}, 0, [0, 1, 2]),
        ({0: 1800, 1: 1800, 2: 2400, 3: 2400, 4: 3000}, 0, [2, 3, 4]),
        ({0: 1800, 1: 1800, 2: 2400, 3: 2400, 4: 3000}, 1, [4]),
        ({0: 3000, 1: 1800, 2: 2400, 3: 2400}, 2, [0, 3]),
        ({0: 1800, 1: 1800, 2: 2400}, 3, [0, 1, 2]),
    ],
)
def test_the_fastest_cores_are_chosen(speeds: dict[int, int], wanted: int, expected: list[int]) -> None:
    assert fastest_cores(speeds, wanted=wanted, target="t") == expected


def test_too_many_cores_are_refused() -> None:
    with pytest.raises(InputError, match=r"target t wants 3 cores, its device has 2; lower limits\.cores"):
        fastest_cores({0: 1, 1: 1}, wanted=3, target="t")
    with open_runner(target("constrained", limits={"cores": 4096})) as runner, pytest.raises(InputError) as error:
        runner.cores(threads=0)
    assert str(error.value).startswith("target here wants 4096 cores, this host lets ")


def test_this_host_runs_blocks_within_the_target_s_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(block, "run_block", lambda job, **limits: asked.append((job, limits)) or {})
    opened = open_runner(target("constrained", limits={"cores": 1, "memory_bytes": 5}))
    assert isinstance(opened, AbstractContextManager)
    with opened as runner:
        assert runner.cores(threads=0) == runner.cores(threads=7) == usable_cores()[-1:]
        runner.run({"a": 1}, memory_bytes=5, timeout_s=2)
    assert asked == [({"a": 1}, {"memory_bytes": 5, "timeout_s": 2})]


def test_the_last_line_is_the_one_that_says_something() -> None:
    assert last_line("a\n b \n\n") == "b" and last_line("\n") == ""


def test_runners_import_no_other_machine_s_library(tmp_path: Path) -> None:
    """Opening a target reaches for its own tools only: a module of runners is light."""
    import subprocess
    import sys

    modules = ", ".join(f"edgedistill.bench.{place.partition(':')[0]}" for place in RUNNERS.values())
    code = f"import sys, {modules}; print([m for m in ('torch', 'pynvml', 'llama_cpp', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_readme_s_targets_are_valid() -> None:
    from edgedistill.bench.runner_adb import AdbConnection
    from edgedistill.bench.ssh_client import SshConnection

    text = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    shown = [tomllib.loads(block) for block in re.findall(r"^```\n(schema_version.*?)^```", text, re.DOTALL | re.M)]
    models = {"ssh": SshConnection, "adb": AdbConnection}
    assert [fields["runner"] for fields in shown] == list(models)
    for fields in shown:
        found = Target.model_validate(fields)
        connection_of(found, models[found.runner])
        rest = text.partition(f'id = "{found.id}"')[2].partition("```")[0]
        for name in models[found.runner].model_fields:
            assert name in rest, f"the README does not name {name}"
