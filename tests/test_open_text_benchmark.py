"""The open-text benchmark on a tiny model: what is learnt, chosen and judged on, equal seconds, and what it keeps."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scripts_outside import script

from edgedistill.core.files import read_jsonl, write_jsonl
from edgedistill.core.stats import Interval

WORDS = ["turn", "on", "the", "light", "in", "kitchen", "set", "fan", "to", "42", "percent", "fox", "<unk>", ",", "."]
TINY = [
    "--layers", "1", "--hidden", "32", "--ffn", "64", "--heads", "4", "--kv-heads", "2", "--vocab", "384", "--windows",
    "6", "--epochs", "1", "--lrs", "1e-3", "1e-2", "--characters", "400", "--seeds", "2", "--threads", "1",
]  # fmt: skip


@pytest.fixture
def open_text(tmp_path: Path) -> ModuleType:
    """The benchmark on ten validation and three test articles of its own."""
    module = script("benchmarks/open_text.py")
    module.DATA, module.RESULT = tmp_path / "data", tmp_path / "open_text.json"
    rng = random.Random(0)
    for name, split, count in (("wikitext2", "train", 10), ("wikitext2", "test", 3), ("wikitext2_raw", "test", 3)):
        texts = [f"{name} {split} {i} = {' '.join(rng.choices(WORDS, k=1200))}" for i in range(count)]
        write_jsonl(module.DATA / name / f"{split}.jsonl", [{"title": "", "text": text} for text in texts])
    return module


def test_no_test_article_is_learnt_from_or_chosen_on(open_text: ModuleType) -> None:
    texts = open_text.read_texts(judge="test", characters=50)
    assert [text[:17] for text in texts.train] == [f"wikitext2 train {i}" for i in range(8)]
    assert [text[:17] for text in texts.valid] == [f"wikitext2 train {i}" for i in (8, 9)]
    assert {name: len(found) for name, found in texts.judged.items()} == {"wikitext2": 3, "wikitext2_raw": 3}
    assert all(" test " in text and len(text) == 50 for found in texts.judged.values() for text in found)
    on_valid = open_text.read_texts(judge="valid", characters=0)
    assert on_valid.judged == {"valid": texts.valid} and on_valid.train == texts.train


def test_a_control_in_seconds_takes_as_many_steps_as_they_pay_for(open_text: ModuleType) -> None:
    assert open_text.steps_within(25.0, of=100, taking=10.0) == 250
    assert open_text.steps_within(10.01, of=100, taking=10.0) == 101  # rounded up, for the control
    assert open_text.steps_within(8.0, of=100, taking=10.0) == 100
    assert open_text.best_lr([{"lr": 1e-3, "best_loss": 3.0}, {"lr": 2e-3, "best_loss": 2.5}]) == 2e-3


def test_figures_say_lower_only_where_the_interval_excludes_zero(open_text: ModuleType) -> None:
    rng = np.random.default_rng(0)
    control = rng.normal(2.0, 0.2, (3, 40))
    scores = {"untrained": [[4.0] * 40], "distilled": (control - 0.1).tolist(), "equal-steps": control.tolist(),
              "in-full": (control - rng.normal(0.1, 0.05, (3, 40))).tolist()}  # fmt: skip
    found = open_text.figures(scores)
    lower, even = found["distilled_minus"]["equal-steps"], found["distilled_minus"]["in-full"]
    assert (found["articles"], found["seeds"], found["bits_per_byte"]["untrained"]) == (40, 3, 4.0)
    assert lower["estimate"] == pytest.approx(-0.1) and lower["says"] == "lower, interval excludes zero"
    assert even["low"] < 0 < even["high"] and even["says"] == "no difference shown, interval holds zero"
    assert open_text.said(Interval(0.2, 0.1, 0.3)) == "higher, interval excludes zero"


def test_every_arm_is_trained_once_and_judged_on_what_is_asked(
    open_text: ModuleType, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    work = tmp_path / "work"
    command = [*TINY, "--teacher", str(tiny_llama), "--work", str(work), "--controls", "equal-steps,amortised,in-full"]
    assert open_text.main(command) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["kept"] is False and not open_text.RESULT.exists()
    for name in open_text.TESTS:
        told = found[name]
        assert (told["articles"], told["seeds"]) == (3, 2)
        assert set(told["bits_per_byte"]) == {"teacher", "untrained", "distilled", *open_text.CONTROLS}
        assert set(told["distilled_minus"]) == set(open_text.CONTROLS)
    compute = found["compute"]
    assert compute["distilled"]["steps"] == compute["equal-steps"]["steps"] == 3
    assert compute["in-full"]["charged_seconds"] > compute["amortised"]["charged_seconds"]
    assert compute["in-full"]["charged_seconds"] > compute["distilled"]["seconds"]
    assert compute["in-full"]["steps"] >= compute["amortised"]["steps"] >= 3
    taught = {row["arm"]: row["kl"] > 0 for row in read_jsonl(work / "runs" / "metrics.jsonl") if "kl" in row}
    assert all(learns == arm.startswith("distilled") for arm, learns in taught.items()) and len(taught) == 10

    monkeypatch.setattr(open_text, "train_arm", None)  # what is trained is not trained again
    assert open_text.main([*command, "--judge", "valid"]) == 0
    assert set(json.loads(capsys.readouterr().out.splitlines()[-1])) == {"schema_version", "kept", "valid", "compute"}
    with pytest.raises(SystemExit, match=r"found windows 5, not 6; kd_weight 0.9, not 0.5; name another --work"):
        open_text.main([*command, "--windows", "5", "--kd-weight", "0.9"])


def test_only_a_whole_comparison_on_the_test_split_is_kept(
    open_text: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(open_text, "measure", lambda texts, **_: {"figures": {"wikitext2": 1}, "runs": {}})
    for less in (["--judge", "valid"], ["--seeds", "2"], ["--windows", "5"], ["--lrs", "1e-3"],
                 ["--controls", "equal-steps"]):  # fmt: skip
        assert open_text.main(less) == 0 and not open_text.RESULT.exists()
        assert json.loads(capsys.readouterr().out) == {"schema_version": 1, "kept": False, "wikitext2": 1}
    assert open_text.main(["--seeds", "4"]) == 0 and json.loads(capsys.readouterr().out)["kept"] is True
    kept = json.loads(open_text.RESULT.read_text())
    assert kept["settings"]["lrs"] == [1e-3, 2e-3] and kept["settings"]["seeds"] == 4
    assert kept["environment"]["host_id"] and kept["figures"] == {"wikitext2": 1}


def test_the_cache_holds_what_the_teacher_says_of_each_token_of_the_text(
    open_text: ModuleType, tiny_llama: Path, tmp_path: Path
) -> None:
    from contextlib import closing

    from edgedistill.core.runfolder import SilentReporter
    from edgedistill.runtimes.base import log_softmax, open_session
    from edgedistill.runtimes.logit_cache import CacheIdentity, open_cache

    identity = CacheIdentity("t", "", "tiny")
    texts = open_text.read_texts(judge="valid", characters=0).train
    records = open_text.text_records(texts, teacher=tiny_llama, count=34, identity=identity)
    how = {
        "teacher": tiny_llama,
        "folder": tmp_path / "c",
        "identity": identity,
        "threads": 1,
        "report": SilentReporter(),
    }
    seconds = open_text.captured(records, **how)
    files = sorted((tmp_path / "c").glob("*.safetensors"))
    before = [file.stat().st_mtime_ns for file in files]
    assert len(files) == 2 and open_text.captured(records, **how) == seconds > 0  # 32 windows a file, each once
    assert [file.stat().st_mtime_ns for file in files] == before
    record = records[33]
    row = open_cache(files).row(prompt_ids=record.prompt_ids, answer_ids=record.answer_ids, record=record.id)
    with closing(open_session("hf", tiny_llama, threads=1, context=256)) as session:
        exact = log_softmax(session.logits([*record.prompt_ids, *record.answer_ids]))
    assert len(record.prompt_ids) == 1 and len(row.ids) == len(record.answer_ids) == 255
    for place in (0, 100, 254):
        kept = row.ids[place][row.ids[place] >= 0]
        assert row.logprobs[place][: len(kept)] == pytest.approx(exact[place, kept], abs=0.06)
        assert kept[0] == exact[place].argmax()


def test_bad_input_is_one_sentence(open_text: ModuleType, tiny_llama: Path, tmp_path: Path) -> None:
    command = [*TINY, "--teacher", str(tiny_llama), "--work", str(tmp_path / "work")]
    with pytest.raises(SystemExit, match="expected controls of equal-steps, amortised, in-full, found gold"):
        open_text.main([*command, "--controls", "gold"])
    with pytest.raises(SystemExit, match="expected at least one seed, found 0"):
        open_text.main([*command, "--seeds", "0"])
    with pytest.raises(SystemExit, match=r"expected 9000 windows of 256 tokens in 8 texts, found \d+; ask for fewer"):
        open_text.main([*command, "--windows", "9000"])
    open_text.DATA = tmp_path / "nowhere"
    with pytest.raises(SystemExit, match=r"expected WikiText-2 in .*nowhere/wikitext2/train.jsonl, found none"):
        open_text.main(command)
    assert not (tmp_path / "work").exists()
