"""Models that no run made: each format measured in its engine, and what is no model."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgedistill.bench import runner_local
from edgedistill.bench.foreign import foreign_subject, measure_foreign
from edgedistill.core.errors import InputError
from edgedistill.core.files import sha256_file
from edgedistill.core.runfolder import SilentReporter

ROWS = {"shape-64-64", "shape-512-128", "depth-2048-64", "memory"}


def test_a_gguf_from_elsewhere_is_measured_in_the_fixed_shapes(tiny_gguf: Path) -> None:
    rows = measure_foreign(tiny_gguf, targets=("local-cpu",), blocks=1, report=SilentReporter())
    by_name = {row.workload: row for row in rows}
    assert by_name.keys() == ROWS and len(rows) == 4
    assert [row.invalid_reason for row in rows] == [None] * 4
    short = by_name["shape-64-64"]
    assert short.engine == "llamacpp" and short.model == tiny_gguf.stem
    assert short.artifact_digest == sha256_file(tiny_gguf)
    assert len(short.samples["decode_tokens_per_s"]) == 3 and len(short.outputs[0]) == 64
    assert (short.settings["prefill_tokens"], short.settings["decode_tokens"]) == (64, 64)
    assert short.samples["load_ms"][0] > 0
    assert by_name["memory"].samples["peak_rss_bytes"][0] > by_name["memory"].samples["load_peak_bytes"][0] * 0.99
    assert by_name["depth-2048-64"].not_measured.startswith("the model's context of 512 tokens is shorter")


def test_folders_are_known_by_their_files(tiny_onnx: Path, tiny_llama: Path) -> None:
    onnx, torch = foreign_subject(tiny_onnx), foreign_subject(tiny_llama)
    assert (onnx.engine, torch.engine) == ("onnxruntime-genai", "torch")
    assert onnx.shape_ids == torch.shape_ids and len(onnx.shape_ids) == 64
    assert torch.slow and not onnx.slow and torch.digest != onnx.digest
    (row, *_) = measure_foreign(tiny_onnx, targets=("local-cpu",), blocks=1, report=SilentReporter())
    assert row.engine == "onnxruntime-genai"


def test_what_is_no_model_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no model")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(InputError, match=r"expected a \.gguf or \.onnx file, or a folder with genai_config"):
            foreign_subject(path)
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match="is not a whole GGUF file"):
        foreign_subject(tmp_path / "x.gguf")


def test_a_pre_tokenizer_that_llama_cpp_does_not_know_is_bad_input(tiny_gguf: Path, tmp_path: Path) -> None:
    raw, key = tiny_gguf.read_bytes(), b"tokenizer.ggml.pre"
    at = raw.index(key) + len(key) + 4 + 8  # past the value's type and length
    length = int.from_bytes(raw[at - 8 : at], "little")
    (tmp_path / "odd.gguf").write_bytes(raw[:at] + b"x" * length + raw[at + length :])
    with pytest.raises(InputError, match=rf"llama\.cpp cannot load .*odd\.gguf: .*{'x' * length}") as refused:
        foreign_subject(tmp_path / "odd.gguf")
    assert refused.value.exit_code == 2


def test_a_device_that_is_not_here_is_never_measured_as_this_host(tiny_gguf: Path) -> None:
    with pytest.raises(InputError, match="expected a target that can be measured, found raspberry-pi-5"):
        measure_foreign(tiny_gguf, targets=("local-cpu", "raspberry-pi-5"), blocks=1, report=SilentReporter())


def test_a_target_s_runner_measures_it(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_local, "usable_cores", lambda: [])
    with pytest.raises(InputError, match="target mobile-class wants 1 cores, this host lets 0 be used"):
        measure_foreign(tiny_gguf, targets=("mobile-class",), blocks=1, report=SilentReporter())
