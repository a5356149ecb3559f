"""`edgedistill bench` from outside: a run's rows, a model from elsewhere, llama-bench's files in and out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edgedistill import plan
from edgedistill.cli import bench, entries
from edgedistill.cli.main import app
from edgedistill.core.errors import InputError
from edgedistill.core.files import write_json, write_jsonl
from edgedistill.core.measurement import Measurement
from edgedistill.core.recipe import find_recipe, load_recipe
from edgedistill.core.runfolder import FOLDERS


def row(target: str = "local-cpu", workload: str = "shape", pair: int = 0, **changed: Any) -> Measurement:
    fields = {
        "model": "gguf-q4_0", "engine": "llamacpp", "target": target, "workload": workload, "pair": pair,
        "evidence": "measured", "valid": True, "started": "2026-01-02T03:04:05+00:00",
        "samples": {"decode_tokens_per_s": [100.0 + pair, 120.0 + pair], "tpot_ms": [8.0, 9.0] * 40},
        "settings": {"prefill_tokens": 64, "decode_tokens": 32, "threads": 1},
    }  # fmt: skip
    return Measurement.model_validate(fields | changed)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose bench is done: three rounds on one target, one on another."""
    recipe = load_recipe(find_recipe("quickstart"))
    write_json(tmp_path / plan.LOCK_FILE, recipe.model_dump(mode="json"))
    for target, pairs in (("local-cpu", 3), ("mobile-class", 1)):
        folder = tmp_path / FOLDERS["bench"] / target / "gguf-q4_0"
        write_jsonl(folder / "shape.jsonl", [row(target, pair=i).model_dump(mode="json") for i in range(pairs)])
    monkeypatch.setattr(plan, "execute", lambda *arguments, **named: [])
    return tmp_path


def call(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["bench", *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def test_a_run_shows_the_rows_of_a_target(run: Path) -> None:
    rows = json.loads(call(str(run), "--target", "local-cpu", "--json"))
    assert [Measurement.model_validate(found).pair for found in rows] == [0, 1, 2]
    assert len(json.loads(call(str(run), "--json"))) == 4
    table = call(str(run), "--target", "local-cpu").splitlines()
    assert table[0].split() == list(bench.HEADER)
    speeds = next(line.split() for line in table if "decode_tokens_per_s" in line)
    assert speeds == ["gguf-q4_0", "local-cpu", "shape", "decode_tokens_per_s", "111", "tokens/s", "–", "6", "3"]
    times = next(line.split() for line in table if "tpot_ms" in line)
    assert times[4:] == ["8.5", "ms", "9", "ms", "240", "3"]
    with pytest.raises(InputError, match=r"expected a target of the run .* did you mean 'mobile-class'"):
        call(str(run), "--target", "mobile-clas")


def test_speeds_go_to_llama_bench_and_come_back(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "speeds.jsonl"
    call(str(run), "--target", "local-cpu", "--llama-bench-out", str(out))
    tests = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(test["n_gen"], test["n_depth"], test["samples_ts"]) for test in tests] == [
        (31, 64, [100.0, 120.0]), (31, 64, [101.0, 121.0]), (31, 64, [102.0, 122.0]),
    ]  # fmt: skip
    back = json.loads(call("--import", str(out), "--json"))
    assert [found["samples"]["decode_tokens_per_s"] for found in back] == [test["samples_ts"] for test in tests]
    assert "shape (64, 32)" in call("--import", str(out))


def test_what_is_not_measured_and_every_warning_is_said() -> None:
    rows = [
        row(workload="depth-2048-64", samples={}, not_measured="the context is short"),
        row(valid=False, invalid_reason="it broke", environment={"preflight": {"warnings": ["busy"]}}),
        row(pair=1, environment={"preflight": {"warnings": ["busy"]}}, settings={"warnings": ["stolen"]}),
    ]
    said = bench.rows_table(rows).splitlines()
    assert said[-4:] == [
        "invalid: gguf-q4_0, local-cpu, shape: it broke",
        "warning: busy",
        "warning: stolen",
        "not measured: gguf-q4_0, local-cpu, depth-2048-64: the context is short",
    ]
    assert said[1].split()[-2:] == ["80", "1"]


def test_a_model_from_elsewhere_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def measure(path: Path, **named: Any) -> list[Measurement]:
        asked.update(path=path, targets=named["targets"], blocks=named["blocks"])
        return [row()]

    monkeypatch.setattr(entries, "measure_foreign", measure)
    (tmp_path / "any.gguf").write_bytes(b"GGUF")
    assert len(json.loads(call(str(tmp_path / "any.gguf"), "--blocks", "2", "--json"))) == 1
    assert asked == {"path": tmp_path / "any.gguf", "targets": ("local-cpu",), "blocks": 2}


def test_one_thing_is_named(tmp_path: Path) -> None:
    for arguments in ((), ("x.gguf", "--import", "y.json")):
        with pytest.raises(InputError, match="expected a model, a run or a recipe to measure, or --import FILE"):
            call(*arguments)
    with pytest.raises(InputError, match=r"expected a \.gguf or \.onnx file, or a folder with"):
        call(str(tmp_path))


def test_where_and_on_what_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "any.gguf").write_bytes(b"no GGUF at all")
    with pytest.raises(InputError, match=r"--llama-bench-out: expected a file to write, found the folder"):
        call(str(tmp_path / "any.gguf"), "--llama-bench-out", str(tmp_path))
    with pytest.raises(InputError, match="expected a target, found 'lokal-cpu'; did you mean 'local-cpu'"):
        call(str(tmp_path / "any.gguf"), "--target", "lokal-cpu")
