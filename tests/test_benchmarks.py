"""The scripts of benchmarks/ and what they keep."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from scripts_outside import ROOT, script

RESULT = ROOT / "benchmarks" / "results" / "quickstart.json"


@pytest.fixture
def quickstart() -> ModuleType:
    return script("benchmarks/quickstart.py")


def test_a_run_s_figures_are_kept_whole(quickstart: ModuleType, tmp_path: Path) -> None:
    change = dict.fromkeys(quickstart.HEADLINE, 1.5)
    rows = [{"model": "a", "target": "t", "release": True, **change}, {"model": "b", "target": "t", "release": False}]
    for folder, stage, seconds in (("20-train", "train", 1.25), ("50-bench", "bench", 2.0), ("60-gate", "gate", 0.5)):
        (tmp_path / folder).mkdir()
        manifest = {"stage": stage, "seconds": seconds, "finished": f"{stage} day", "environment": {"commit": stage}}
        (tmp_path / folder / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "60-gate" / "verdict.json").write_text('{"outcome": "fail"}')
    (tmp_path / "60-gate" / "comparison.json").write_text(json.dumps({"run": "other", "rows": rows}))
    kept = quickstart.collect(tmp_path)
    assert kept["seconds"] == {"train": 1.25, "bench": 2.0, "gate": 0.5}
    assert (kept["measured"], kept["environment"]) == ("bench day", {"commit": "bench"})
    assert kept["comparison"]["rows"] == rows and kept["recipe"] == "other"
    headline = quickstart.headline(kept)
    assert headline == {"verdict": "fail", "seconds": 3.8, "release": [{"model": "a", "target": "t", **change}]}


def test_an_unfinished_run_is_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "benchmarks" / "quickstart.py", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.strip().endswith("run the recipe to its end first") and done.stderr.count("\n") == 1


def test_the_kept_figures_say_where_they_come_from() -> None:
    kept = json.loads(RESULT.read_text(encoding="utf-8"))
    environment = kept["environment"]
    assert environment["commit"] and environment["host_id"] and environment["hardware"]["cpu"] and kept["measured"]
    assert {row["model"] for row in kept["comparison"]["rows"]} >= {"teacher", "teacher-q4_0", "student", "control"}
    assert all(row["evidence"] in ("measured", "constrained") for row in kept["comparison"]["rows"] if row["target"])
