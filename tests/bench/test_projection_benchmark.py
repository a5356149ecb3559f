"""benchmarks/projection.py: on a tiny table, on none, and what it keeps."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from scripts_outside import ROOT, script

SCRIPT = ROOT / "benchmarks" / "projection.py"
RESULT = ROOT / "benchmarks" / "results" / "projection.json"
COLUMNS = [
    *("device", "engine", "backend", "model", "quant", "weights_mib", "prefill_tokens", "decode_tokens"),
    *("prefill_tokens_per_s", "decode_tokens_per_s"),
]
MODELS = {"qwen2.5-1.5b": 1.55, "qwen3-1.7b": 1.72, "phi-3.5-mini": 3.72, "phi-4-mini": 3.84}


def table(path: Path, *, models: int = 4, odd: float = 1.0) -> Path:
    """Two devices whose speed is bandwidth over bytes read, one model on one of them off by `odd`, and an odd board."""
    rows = [["board", "RKLLM", "npu", "TinyLlama", "w8a8", "1043", "", "", "", "24.4"]]
    for device, bandwidth in (("one", 20.0), ("two", 45.0)):
        for model, billions in list(MODELS.items())[:models]:
            for quant, bits in (("q4_0", 4.5), ("q8_0", 8.5)):
                speed = bandwidth / (billions * bits / 8)
                rows.append(
                    [device, "llama.cpp (llama.rn)", "cpu", model, quant, str(billions * bits / 8 * 953.7),
                     "256", "64", str(9 * speed), str(speed * (odd if (device, model) == ("one", "phi-4-mini") else 1))]
                )  # fmt: skip
    with path.open("w", encoding="utf-8", newline="") as f:
        csv.writer(f).writerows([COLUMNS, *rows])
    return path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, env=environment
    )


def test_the_last_line_is_one_json_object(tmp_path: Path) -> None:
    before = RESULT.read_bytes()
    done = run(table(tmp_path / "devices.csv"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    # Two devices, four models in turn the anchor, three others held out, two quants.
    assert (found["n"], found["cells"]) == (2 * 4 * 3 * 2, 16)
    assert found["median_abs_pct_error"] < 10 and 0.8 <= found["band_coverage"] <= 1
    assert found["refused"] == ["board, RKLLM npu, w8a8: no second cell to predict it from"]
    assert set(found["by_device"]) == {"one", "two"} and set(found["by_engine"]) == {"llama.cpp"}
    assert found["all_other_cells"]["n"] == 16 and found["bytes_only"]["n"] == found["n"] == found["prefill"]["n"]
    assert RESULT.read_bytes() == before, "a run on another table overwrote the kept figures"


def test_a_held_out_cell_moves_neither_its_prediction_nor_its_band(tmp_path: Path) -> None:
    """With one cell twice as fast, only its own error and what it anchors change."""
    benchmark = script("benchmarks/projection.py")

    def rows(name: str, odd: float) -> dict[tuple[str, ...], dict[str, float]]:
        cells = [c for c in benchmark.read_cells(table(tmp_path / name, odd=odd)) if c.engine == "llama.cpp"]
        return {(r["device"], r["anchor"], r["model"], r["quant"]): r for r in benchmark.one_anchor(cells)}

    plain, moved = rows("a.csv", 1.0), rows("b.csv", 2.0)
    held = [key for key in plain if key[0] == "one" and key[2] == "phi-4-mini"]
    assert len(held) == 6
    for key in held:
        assert moved[key]["half_width_pct"] == pytest.approx(plain[key]["half_width_pct"])
        assert 1 + moved[key]["error_pct"] / 100 == pytest.approx((1 + plain[key]["error_pct"] / 100) / 2)
    others = [key for key in plain if key[0] == "one" and "phi-4-mini" not in key]
    assert len(others) == 12
    for key in others:
        assert moved[key]["error_pct"] == pytest.approx(plain[key]["error_pct"])


def test_an_absent_or_useless_table_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("device,soc\nx,y\n")
    for path, sentence in (
        (tmp_path / "absent.csv", "found none; give its path as the argument"),
        (tmp_path / "empty.csv", "expected a table of speeds, found a row without a proper 'decode_tokens_per_s'"),
        (table(tmp_path / "single.csv", models=1), "expected a device with two models of one quant, found none"),
    ):
        done = run(path)
        assert (done.returncode, done.stdout) == (2, "")
        assert sentence in done.stderr and done.stderr.count("\n") == 1


def test_the_kept_figures_say_where_they_come_from_and_reach_the_goal() -> None:
    kept = json.loads(RESULT.read_text(encoding="utf-8"))
    environment = kept["environment"]
    assert environment["commit"] and environment["host_id"] and environment["date"] and environment["hardware"]["cpu"]
    assert (kept["n"], kept["cells"], len(kept["refused"])) == (930, 161, 7)
    assert kept["median_abs_pct_error"] <= 12 and kept["band_coverage"] >= 0.85 and kept["level"] == 0.9


def test_the_readme_says_what_was_kept() -> None:
    kept = json.loads(RESULT.read_text(encoding="utf-8"))
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert (
        f"median error {kept['median_abs_pct_error']:.1f} %, 90th percentile {kept['p90_abs_pct_error']:.0f} %" in text
    )
    assert f"band (±{kept['band_half_width_pct']:.0f} %) holds {100 * kept['band_coverage']:.0f} % of them" in text
    worst = min(found["band_coverage"] for found in kept["by_device"].values())
    assert f"on the phone least like the others {100 * worst:.0f} %" in text
    assert f"median error is {kept['model_unseen_anywhere']['median_abs_pct_error']:.1f} %" in text
    assert f"and {kept['bytes_only']['median_abs_pct_error']:.1f} % where only the bytes are known" in text
