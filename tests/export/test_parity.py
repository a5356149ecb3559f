"""The proof's arithmetic against a plain reference, its bounds, and what engines are known not to follow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_builders import save_byte_level, save_llama, save_sentencepiece
from tokenizers import Regex, normalizers, pre_tokenizers

from edgedistill.core.errors import StageError
from edgedistill.export import parity
from edgedistill.export.companions import write_companions
from edgedistill.export.gguf import export_gguf_f16
from edgedistill.export.onnx import export_onnx
from edgedistill.export.parity_text import GENAI_SPM_LIMIT, check_text
from edgedistill.export.pretokenizer import NFC_LIMIT, PREFIX_LIMIT, QWEN2_SPLIT
from edgedistill.export.probes import probe_strings
from edgedistill.export.tally import FEW


class Canned:
    """A session that answers with given logits."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows, self.vocab, self.at = rows, rows.shape[1], 0

    def reset(self) -> None:
        self.at = 0

    def feed(self, ids: list[int]) -> np.ndarray:
        self.at += len(ids)
        return self.rows[self.at - 1]

    def logits(self, ids: list[int]) -> np.ndarray:
        return self.rows[: len(ids)]

    def close(self) -> None:
        pass


def compared(monkeypatch: pytest.MonkeyPatch, student: np.ndarray, artifact: np.ndarray) -> Any:
    monkeypatch.setattr(parity, "open_session", lambda *_, **__: Canned(artifact))
    predictions = [parity.Prediction(list(range(len(student))), student)]
    return parity.compare_logits(folder=Path("x"), entry="model.gguf", predictions=predictions, threads=1)


def test_divergence_is_the_textbooks(monkeypatch: pytest.MonkeyPatch) -> None:
    source = np.random.default_rng(0)
    student = source.normal(size=(30, 17)).astype(np.float32) * 3
    artifact = student + source.normal(size=student.shape).astype(np.float32)
    fresh, cached = compared(monkeypatch, student, artifact)
    p, q = (
        np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum(1, keepdims=True) for x in (student, artifact)
    )
    kld = (p * np.log(p / q)).sum(1)
    assert (fresh.positions, cached.positions) == (30, 15)
    assert fresh.kld_nats == pytest.approx(kld.mean()) and cached.kld_nats == pytest.approx(kld[15:].mean())
    same = student.argmax(1) == artifact.argmax(1)
    ordered = np.sort(p, axis=1)
    sure = ordered[:, -1] >= np.e * ordered[:, -2]
    assert fresh.top1_ratio == same.mean() and fresh.sure_positions == sure.sum() > FEW
    assert fresh.sure_top1_ratio == (same & sure).sum() / sure.sum()
    equal, _ = compared(monkeypatch, student, student)
    assert (equal.kld_nats, equal.top1_ratio, equal.sure_top1_ratio) == (0, 1, 1)
    flat, _ = compared(monkeypatch, student * 0, artifact)
    assert flat.sure_positions == 0 and flat.sure_top1_ratio is None


def test_nan_and_another_vocabulary_are_no_pass(monkeypatch: pytest.MonkeyPatch, tiny_llama: Path) -> None:
    student = np.eye(10, dtype=np.float32) * 5
    broken = student.copy()
    broken[7, 3] = np.nan
    monkeypatch.setattr(parity, "open_session", lambda *_, **__: Canned(broken))
    monkeypatch.setattr(parity, "check_text", lambda **_: ({}, []))
    arguments: dict[str, Any] = {
        "folder": Path("x"), "entry": "m.gguf", "variant": "gguf-q4_0", "precision": "q4_0", "threads": 1, "probes": 1,
        "reference": tiny_llama, "predictions": [parity.Prediction(list(range(10)), student)],
    }  # fmt: skip
    with pytest.raises(
        StageError, match=r"gguf-q4_0 is not equal to its source .*: KLD to the student in one pass is nan"
    ):
        parity.check_parity(**arguments)
    with pytest.raises(StageError, match="has logits for 10 tokens, its source for 9"):
        compared(monkeypatch, student[:, :9], student)
    with pytest.raises(StageError, match="expected held-in texts of at least two tokens"):
        parity.predict(model=tiny_llama, texts=[[1]], threads=1)


def test_probes_are_the_same_each_time_and_all_different() -> None:
    probes = probe_strings(count=3000, specials=("<|im_end|>",))
    assert probes == probe_strings(count=3000, specials=("<|im_end|>",)) != probe_strings(count=3000, seed=1)
    assert len(set(probes)) == 3000 and all(probes)
    assert sum("<|im_end|>" in text for text in probes) > 50
    few = probe_strings(count=50)
    assert len(set(few)) == 50 and len({text.isascii() for text in few}) == 2


def artifact_of(model: Path, folder: Path, *, form: str) -> str:
    if form == "gguf":
        folder.mkdir()
        export_gguf_f16(model=model, out=folder / "model.gguf")
    else:
        export_onnx(model=model, out=folder, threads=1)
    write_companions(model=model, folder=folder, entry=f"model.{form}")
    return f"model.{form}"


def test_what_engines_cannot_follow_is_said_and_left_out(tmp_path: Path) -> None:
    split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    save_byte_level(
        tmp_path / "nfc", pipeline=pre_tokenizers.Sequence([split, byte_level]), normalizer=normalizers.NFC()
    )
    save_llama(tmp_path / "nfc", rows=1200)
    save_sentencepiece(tmp_path / "first", scheme="first")
    save_llama(tmp_path / "first", rows=700)
    found = {}
    for name, form in (("nfc", "gguf"), ("first", "gguf"), ("first", "onnx")):
        folder = tmp_path / f"{name}-{form}"
        entry = artifact_of(tmp_path / name, folder, form=form)
        figures, failures = check_text(folder=folder, entry=entry, reference=tmp_path / name, probes=1000)
        assert failures == [], (name, form)
        found[folder.name] = (figures["limits"], figures["engine_differing"] > 0)
    assert found == {
        "nfc-gguf": ([NFC_LIMIT], False),
        "first-gguf": ([PREFIX_LIMIT], False),
        "first-onnx": ([GENAI_SPM_LIMIT], True),
    }


@pytest.mark.parametrize(
    ("name", "limits"), [("LlamaTokenizer", [PREFIX_LIMIT]), ("Qwen2Tokenizer", [NFC_LIMIT]), ("GPT2Tokenizer", [])]
)
def test_a_class_that_rebuilds_the_pipeline_is_followed(name: str, limits: list[str], tmp_path: Path) -> None:
    model = tmp_path / "model"
    save = save_sentencepiece if name.startswith("Llama") else save_byte_level
    save(model)
    save_llama(model, rows=1200)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": name}))
    entry = artifact_of(model, tmp_path / "out", form="gguf")
    figures, failures = check_text(folder=tmp_path / "out", entry=entry, reference=model, probes=1000)
    assert (failures, figures["limits"], figures["engine_differing"]) == ([], limits, 0)


def test_genai_obeys_the_spelled_out_tokenizer(tmp_path: Path) -> None:
    model, folder = tmp_path / "model", tmp_path / "onnx"
    save_byte_level(model)
    save_llama(model, rows=1200)
    entry = artifact_of(model, folder, form="onnx")
    figures, failures = check_text(folder=folder, entry=entry, reference=model, probes=3000)
    assert (figures["engine_differing"], figures["tokenizer_differing"], failures) == (0, 0, [])
    shutil.copyfile(model / "tokenizer.json", folder / "tokenizer.json")  # with its Digits step
    figures, failures = check_text(folder=folder, entry=entry, reference=model, probes=3000)
    assert figures["engine_differing"] > 100 and failures[0].startswith("onnxruntime-genai tokenizes")
