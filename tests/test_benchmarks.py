"""The scripts of benchmarks/ and what they keep."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from scripts_outside import ROOT, script

NOISE = ROOT / "benchmarks" / "results" / "gate_noise.json"
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


@pytest.fixture(scope="module")
def power() -> ModuleType:
    return script("benchmarks/gate_power.py")


def quiet_rounds(spread: float) -> list[tuple[list[float], list[float]]]:
    rng = random.Random(0)
    return [tuple([1 + rng.gauss(0, spread)] * 3 for _ in range(2)) for _ in range(20)]


def test_the_simulation_counts_what_the_gate_says(power: ModuleType) -> None:
    found = power.simulated(quiet_rounds(0.003), runs=4)
    assert {name: told["fail"] for name, told in found.items()} == {
        "aa": 0, "slow_10pct": 4, "slow_3pct": 0, "aa_at_its_limit": 0,
    }  # fmt: skip
    assert found["aa"] | {"runs": 4, "pass": 4, "mean_blocks": 6.0} == found["aa"]
    told = power.summary({"simulated": found})
    assert (told["aa_false_fail"], told["detect_10pct"], told["false_fail_3pct"]) == (0.0, 1.0, 0.0)
    assert sum(1 - confidence for _, confidence in told["looks"]) == pytest.approx(0.05, abs=1e-3)


def test_real_verdicts_measure_further_blocks_only_where_those_before_do_not_decide(
    power: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[tuple[int, float]] = []

    def measured_round(model: Path, *, pair: int, slowdown: float = 0.0) -> tuple[list[float], list[float]]:
        measured.append((pair, slowdown))
        noise = random.Random(pair).gauss(0, 0.002)
        return [1.0] * 3, [(1 + slowdown + (0.0526 if slowdown == 0 else 0) + noise)] * 3  # at the limit if not slowed

    monkeypatch.setattr(power, "measured_round", measured_round)
    found = power.real(Path("m.gguf"), runs={"aa": 1, "slow_10pct": 2, "slow_3pct": 0})
    assert set(found) == {"aa", "slow_10pct"} and found["slow_10pct"]["fail"] == 2
    assert [pair for pair, slowdown in measured if slowdown] == [*range(6), *range(6)]
    undecided = [pair for pair, slowdown in measured if not slowdown]
    assert undecided == list(range(len(undecided))) and len(undecided) in {look.blocks for look in power.LOOKS[1:]}


def test_noise_that_hides_a_slowdown_is_told_as_such(power: ModuleType) -> None:
    (check,) = {power.verdict_of(quiet_rounds(0.2) + quiet_rounds(0.2), limit=0.95).outcome}
    assert check == "inconclusive"


def test_a_drawn_round_is_a_recorded_one_with_the_slowdown_on_one_side(power: ModuleType) -> None:
    rounds = [([1.0, 2.0], [4.0])]
    drawn = [power.drawn_round(rounds, random.Random(seed), slowdown=0.1) for seed in range(40)]
    assert {tuple(sorted(before)) for before, _ in drawn} == {(1.0, 1.0), (1.0, 2.0), (2.0, 2.0), (4.0,)}
    assert {round(value, 6) for _, after in drawn for value in after} == {1.1, 2.2, 4.4}


def test_the_injected_slowdown_is_real() -> None:
    slowed = script("benchmarks/slowed_worker.py").slowed

    def step() -> int:
        end = time.perf_counter_ns() + 2_000_000
        while time.perf_counter_ns() < end:
            pass
        return 7

    def took(engine: SimpleNamespace) -> float:
        began = time.perf_counter()
        assert engine.step() == 7
        return time.perf_counter() - began

    engine = slowed(SimpleNamespace(step=step), 0.5)
    assert 0.003 <= min(took(engine) for _ in range(10)) < 0.0036


def test_recorded_noise_says_where_it_comes_from() -> None:
    kept = json.loads(NOISE.read_text(encoding="utf-8"))
    assert kept["environment"]["commit"] and kept["environment"]["host_id"] and kept["environment"]["date"]
    assert len(kept["rounds"]) >= 40 and all(len(both) == 2 and min(map(min, both)) > 0 for both in kept["rounds"])


def test_export_cost_s_headline_is_of_pairs_of_a_round() -> None:
    cost = script("benchmarks/export_cost.py")
    files = {"model.onnx": 3, "model.onnx_data": 4, "tokenizer.json": 100}

    def row(seconds: float, peak: float) -> dict[str, object]:
        return {"wall_s": seconds, "cpu_s": 1.0, "peak_bytes": peak * 1e6, "files": files}

    rounds = [
        {"gguf": row(1, 200), "converter": row(10, 400), "onnx4": row(6, 500), "builder4": row(12, 1000)},
        {"gguf": row(9, 200), "converter": row(30, 400), "onnx4": row(9, 700), "builder4": row(90, 1000)},
        {"gguf": row(2, 300), "converter": row(10, 400), "onnx4": row(8, 600), "builder4": row(10, 1000)},
    ]
    assert cost.headline(rounds) == {
        "gguf_time_ratio": 0.2, "gguf_mem_ratio": 0.5, "onnx4_s": 8, "onnx4_peak_mb": 600.0, "onnx4_bytes": 7,
        "onnx4_time_ratio": 0.5, "onnx4_mem_ratio": 0.6, "builder4_bytes": 7,
    }  # fmt: skip
    assert set(cost.headline([{"onnx8": row(1, 2)}])) == {"onnx8_s", "onnx8_peak_mb", "onnx8_bytes"}


def test_export_cost_adds_the_memory_of_a_process_and_its_children(tmp_path: Path) -> None:
    cost = script("benchmarks/export_cost.py")
    hold = "import sys, time; held = b'x' * 60_000_000; time.sleep(1)"
    both = f"import subprocess, sys; held = b'x' * 40_000_000; subprocess.run([sys.executable, '-c', {hold!r}])"
    write = f"import pathlib, sys; pathlib.Path(sys.argv[1], 'model.onnx').write_bytes(bytes(5)); {both}"
    found = cost.measured([sys.executable, "-c", write, "OUT"], threads=1)
    assert 100e6 < found["peak_bytes"] < 180e6 and found["wall_s"] > 1 and found["files"] == {"model.onnx": 5}
    with pytest.raises(SystemExit, match=r"(?s)failed: .*ZeroDivisionError"):
        cost.measured([sys.executable, "-c", "1 / 0"], threads=1)


def test_corpus_checks_measures_what_it_planted() -> None:
    checks = script("benchmarks/corpus_checks.py")
    planted = checks.corpus(600, seed=5)
    assert len(planted.training) == 600 and (len(planted.copies), len(planted.leaks)) == (30, 6)
    found = checks.measured(600, seed=5)
    assert found["dup_recall"] >= 0.9 and found["dup_precision"] == 1.0
    assert found["contamination_recall"] == 1.0 and found["contamination_precision"] >= 0.8
    worst = checks.summary([found, found | {"seconds": 99.0, "dup_recall": 0.5}])
    assert (worst["seconds"], worst["dup_recall"], worst["rows"]) == (99.0, 0.5, 600)
