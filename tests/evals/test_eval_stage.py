"""The eval stage on a tiny run: every model the same items, figures that mean what they say, and resuming."""

from __future__ import annotations

import shutil
from pathlib import Path

import eval_run
import pytest

from edgedistill.core.errors import InputError, StageError
from edgedistill.core.files import read_json, read_jsonl, write_jsonl
from edgedistill.core.records import EvalItem, Quality
from edgedistill.evals import stage

STUDENTS = {"student", "gguf-q8_0", "onnx-int8", "control", "untrained"}
MODELS = {"teacher", "teacher-q8_0", *STUDENTS}


@pytest.fixture(scope="module")
def run(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run evaluated once; do not write into it."""
    folder = eval_run.make_run(tmp_path_factory.mktemp("eval") / "run", untrained=tiny_llama)
    stage.run(eval_run.context(folder))
    return folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def rows(run: Path, model: str) -> list[EvalItem]:
    return [EvalItem.model_validate(row) for row in read_jsonl(run / "40-eval" / f"{model}.jsonl")]


def summary(run: Path) -> dict[str, Quality]:
    found = read_json(run / "40-eval" / "summary.json")
    return {name: Quality.model_validate(row) for name, row in found.items()}


def test_every_model_answers_every_item_in_order(run: Path) -> None:
    assert {path.stem for path in (run / "40-eval").glob("*.jsonl")} == MODELS == set(summary(run))
    for model in MODELS:
        assert [row.id for row in rows(run, model)] == [f"item-{i}" for i in range(8)]


def test_exact_match_and_retention_are_those_of_the_rows(run: Path) -> None:
    found = summary(run)
    assert found["teacher"].exact_match_ratio == 1 and "retention" not in found["teacher"].extra
    assert found["student"].exact_match_ratio == 5 / 8
    assert found["student"].extra["retention"]["estimate"] == 5 / 8
    assert found["student"].extra["retention"]["low"] < 5 / 8 < found["student"].extra["retention"]["high"]
    assert found["untrained"].exact_match_ratio == 0
    assert found["student"].exact_match_low < 5 / 8 < found["student"].exact_match_high
    for model in MODELS:
        assert found[model].exact_match_ratio == sum(row.correct for row in rows(run, model)) / 8


def test_artifacts_answer_as_the_model_they_are_made_of(run: Path) -> None:
    for model, source in (("gguf-q8_0", "student"), ("onnx-int8", "student"), ("teacher-q8_0", "teacher")):
        assert [r.output_ids for r in rows(run, model)][:5] == [r.output_ids for r in rows(run, source)][:5]


def test_divergence_is_held_against_the_float_model_of_the_same_ids(run: Path) -> None:
    found = summary(run)
    for model in ("gguf-q8_0", "onnx-int8", "teacher-q8_0"):
        assert found[model].reference == ("teacher" if model.startswith("teacher") else "student")
        assert 0 < found[model].kld_nats < 0.05 and found[model].top1_ratio > 0.9
        held = [row for row in rows(run, model) if row.kld_nats is not None]
        assert [row.id for row in held] == ["item-0", "item-2", "item-4", "item-6"]
        assert found[model].scored_tokens == sum(row.answer_tokens + 1 for row in held)
    for model in ("teacher", "student", "control", "untrained"):
        assert found[model].kld_nats is None and found[model].reference is None


def test_likelihood_tells_what_was_learned(run: Path) -> None:
    found = summary(run)
    nats = {model: found[model].extra["answer_nll_nats_per_token"] for model in MODELS}
    assert nats["teacher"] < 0.05 < nats["student"] < nats["untrained"]
    for model in MODELS:
        assert 2 < found[model].bits_per_byte < 60
    assert found["gguf-q8_0"].bits_per_byte == pytest.approx(found["student"].bits_per_byte, rel=0.02)


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(run: Path, copy: Path) -> None:
    folder = copy / "40-eval"
    for left in ("onnx-int8.jsonl", "summary.json", "scores/teacher.json"):
        (folder / left).unlink()
    before = (folder / "student.jsonl").stat().st_mtime_ns
    resumed = eval_run.context(copy)
    stage.run(resumed)
    asked = {note.partition(":")[0] for note in resumed.report.notes if ": asked in" in note}
    assert asked == {"teacher", "onnx-int8"}
    assert (folder / "student.jsonl").stat().st_mtime_ns == before
    for path in sorted((run / "40-eval").rglob("*.json*")):
        assert (copy / "40-eval" / path.relative_to(run / "40-eval")).read_bytes() == path.read_bytes(), path.name


def test_rows_of_other_items_are_asked_again(copy: Path) -> None:
    path = copy / "40-eval" / "control.jsonl"
    write_jsonl(path, read_jsonl(path)[:-1])
    resumed = eval_run.context(copy)
    stage.run(resumed)
    assert next(note for note in resumed.report.notes if "asked in" in note).startswith("control: asked in")
    assert len(rows(copy, "control")) == 8


def test_nothing_to_judge_on_is_an_input_error(copy: Path) -> None:
    path = copy / "00-data" / "heldout.jsonl"
    items = read_jsonl(path)
    write_jsonl(path, [items[0] | {"answer": None}])
    with pytest.raises(InputError, match="expected a right answer to every held-out item, found none to item-0"):
        stage.run(eval_run.context(copy))
    path.unlink()
    with pytest.raises(InputError, match=r"expected held-out items to judge the models on, found none"):
        stage.run(eval_run.context(copy))


def test_text_that_is_not_there_or_not_text_is_an_input_error(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected plain text at .*absent\.txt, as eval\.text says"):
        stage.run(eval_run.context(copy, eval={"text": str(tmp_path / "absent.txt")}))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 and more")
    with pytest.raises(InputError, match=r"latin\.txt: expected UTF-8 text, found other bytes"):
        stage.run(eval_run.context(copy, eval={"text": str(tmp_path / "latin.txt")}))


def test_an_artifact_of_another_vocabulary_cannot_be_held_against_the_student(copy: Path) -> None:
    shutil.rmtree(copy / "40-eval")
    from transformers import AutoModelForCausalLM

    for name in ("student", "untrained", "control"):
        model = AutoModelForCausalLM.from_pretrained(copy / "20-train" / name)
        model.resize_token_embeddings(400, mean_resizing=False)
        model.save_pretrained(copy / "20-train" / name)
    with pytest.raises(StageError, match="the model cannot be held against its reference"):
        stage.run(eval_run.context(copy))


def test_the_shipped_text_is_a_few_kilobytes_of_english() -> None:
    text = stage.ENGLISH.read_text(encoding="utf-8")
    assert 2000 < len(text.encode()) < stage.TEXT_BYTES and text.isascii()
