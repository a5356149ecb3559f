"""llama-bench's files in and out: hand-written tests in its own field names, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgedistill.bench.llama_bench import DEFAULTS, read_llama_bench, tests_of, write_llama_bench
from edgedistill.core.errors import InputError
from edgedistill.core.measurement import Measurement
from edgedistill.core.metric import Metric

tests_of.__test__ = False  # type: ignore[attr-defined]  # its name is no test's
# As llama-bench's README shows them, shortened to one build.
COMMON = {
    "build_commit": "8cf427ff", "build_number": 5163, "cpu_info": "AMD Ryzen 7 7800X3D 8-Core Processor",
    "gpu_info": "", "backends": "CPU", "model_filename": "models/Qwen2.5-7B-Instruct-Q4_K_M.gguf",
    "model_type": "qwen2 7B Q4_K - Medium", "model_size": 4677120000, "model_n_params": 7615616512, "n_batch": 2048,
    "n_ubatch": 512, "n_threads": 8, "cpu_mask": "0x0", "cpu_strict": False, "poll": 50, "type_k": "f16",
    "type_v": "f16", "n_gpu_layers": 99, "split_mode": "layer", "main_gpu": 0, "no_kv_offload": False,
    "flash_attn": -1, "tensor_split": "0.00", "embeddings": False, "n_depth": 0,
}  # fmt: skip
PREFILL = COMMON | {
    "n_prompt": 512, "n_gen": 0, "test_time": "2025-04-24T11:58:50Z", "avg_ns": 72135640, "stddev_ns": 1453752,
    "avg_ts": 7100.002165, "stddev_ts": 140.341520, "samples_ns": [74601900, 71632900, 71745200, 71952700, 70745500],
    "samples_ts": [6863.1, 7147.55, 7136.37, 7115.79, 7237.21],
}  # fmt: skip
DECODE = COMMON | {
    "n_prompt": 0, "n_gen": 127, "n_depth": 512, "test_time": "2025-04-24T11:58:51Z", "avg_ns": 1076767880,
    "stddev_ns": 9449585, "avg_ts": 118.881588, "stddev_ts": 1.041811, "samples_ns": [1075361300, 1065089400],
    "samples_ts": [119.03, 120.178],
}  # fmt: skip


def put(path: Path, tests: list[dict[str, Any]]) -> Path:
    lines = path.suffix == ".jsonl"
    path.write_text("\n".join(map(json.dumps, tests)) if lines else json.dumps(tests, indent=2))
    return path


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_its_tests_become_rows_and_go_back_as_they_came(tmp_path: Path, name: str) -> None:
    prefill, decode, again = read_llama_bench(put(tmp_path / name, [PREFILL, DECODE, DECODE]), target="box")
    assert prefill.samples == {Metric.PREFILL_TOKENS_PER_S: PREFILL["samples_ts"]}
    assert decode.samples == {Metric.DECODE_TOKENS_PER_S: DECODE["samples_ts"]}
    assert (prefill.model, prefill.engine, prefill.target) == ("Qwen2.5-7B-Instruct-Q4_K_M", "llamacpp", "box")
    # 127 steps behind 512 tokens are our shape of 512 and 128.
    assert {row.workload for row in (prefill, decode, again)} == {"shape-512-128"}
    assert (decode.settings["prefill_tokens"], decode.settings["decode_tokens"]) == (512, 128)
    assert (prefill.pair, decode.pair, again.pair) == (0, 0, 1)
    assert (decode.settings["threads"], decode.settings["batch"], decode.started) == (8, 512, DECODE["test_time"])
    assert decode.environment["hardware"]["cpu"] == COMMON["cpu_info"] and "host_id" not in decode.environment
    out = tmp_path / f"out-{name}"
    assert write_llama_bench(out, [prefill, decode, again]) == 3
    assert [row.model_dump() for row in read_llama_bench(out, target="box")] == [
        row.model_dump() for row in (prefill, decode, again)
    ]
    text = out.read_text()
    found = [json.loads(line) for line in text.splitlines()] if out.suffix == ".jsonl" else json.loads(text)
    assert found == [PREFILL, DECODE, DECODE]


def row(**changed: Any) -> Measurement:
    fields = {
        "model": "tiny", "engine": "llamacpp", "target": "local-cpu", "workload": "shape", "pair": 0,
        "evidence": "measured", "valid": True, "started": "2026-01-02T03:04:05+00:00",
        "samples": {"prefill_tokens_per_s": [500.0, 250.0], "decode_tokens_per_s": [100.0], "tpot_ms": [1.0]},
        "settings": {"threads": 2, "batch": 128, "prefill_tokens": 100, "decode_tokens": 33, "flash_attention": "auto",
                     "cache_dtype": "f16", "repack": True},
        "environment": {"hardware": {"cpu": "A CPU"}},
    }  # fmt: skip
    return Measurement.model_validate(fields | changed)


def test_our_row_is_two_tests_in_its_units() -> None:
    prefill, decode = tests_of(row())
    assert prefill.keys() == decode.keys() == DEFAULTS.keys()
    assert (prefill["n_prompt"], prefill["n_gen"], prefill["n_depth"]) == (100, 0, 0)
    assert (decode["n_prompt"], decode["n_gen"], decode["n_depth"]) == (0, 32, 100)
    assert prefill["samples_ns"] == [200_000_000, 400_000_000] and prefill["avg_ns"] == 300_000_000
    assert prefill["avg_ts"] == 375.0 and prefill["stddev_ts"] == pytest.approx(176.7767)
    assert decode["samples_ns"] == [320_000_000] and decode["stddev_ts"] == 0
    assert (decode["n_threads"], decode["n_ubatch"], decode["cpu_info"]) == (2, 128, "A CPU")
    assert decode["test_time"] == "2026-01-02T03:04:05Z" and decode["flash_attn"] == -1


def test_what_has_no_speed_of_its_own_is_left_out(tmp_path: Path) -> None:
    assert tests_of(row(valid=False, invalid_reason="broken")) == []
    assert tests_of(row(samples={"peak_rss_bytes": [1.0]})) == []
    with pytest.raises(InputError, match="expected rows with prefill or decode speeds to write"):
        write_llama_bench(tmp_path / "none.json", [row(samples={})])
    (mixed,) = read_llama_bench(put(tmp_path / "pg.json", [PREFILL | {"n_gen": 128}]))
    assert mixed.not_measured == "llama-bench timed prefill and decode as one" and mixed.samples == {}
    (broken,) = read_llama_bench(put(tmp_path / "zero.json", [PREFILL | {"samples_ts": [0.0]}]))
    assert not broken.valid and broken.invalid_reason == "a speed of 0.0, which no measurement gives"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is neither JSON nor JSON lines"),
        ("[]", "expected llama-bench's tests in"),
        ("[1]", "expected llama-bench's tests in"),
        ('[{"n_prompt": 1}]', "test 1: expected llama-bench's model_filename, n_gen, n_threads, test_time, avg_ts"),
    ],
)
def test_a_file_that_is_not_its_own_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_llama_bench(tmp_path / "x.json")
    with pytest.raises(InputError, match="expected a llama-bench file at"):
        read_llama_bench(tmp_path / "absent.json")
