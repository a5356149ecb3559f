"""The retention benchmark's parts that train nothing: splits, labels, figures, times, and what it keeps."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file
from scripts_outside import script

from edgedistill import plan
from edgedistill.core.files import read_jsonl, write_json, write_jsonl
from edgedistill.core.records import EvalItem

INTENTS = ("PlayMusic", "freeze_account", "oos")


@pytest.fixture
def retention(tmp_path: Path) -> ModuleType:
    """The benchmark on a small data set of its own."""
    module = script("benchmarks/retention.py")
    module.DATA, module.RESULT = tmp_path / "data", tmp_path / "retention.json"
    for task in ("snips", "clinc150"):
        for split, count in (("train", 900), ("test", 30), ("valid", 60 if task == "clinc150" else 0)):
            rows = [{"text": f"{split} {i}", "intent": INTENTS[i % 3], "slots": {}} for i in range(count)]
            if rows:
                write_jsonl(module.DATA / task / f"{split}.jsonl", rows)
    return module


def test_labels_are_words(retention: ModuleType) -> None:
    assert [retention.label_words(name) for name in INTENTS] == ["play music", "freeze account", "out of scope"]


def test_no_test_row_is_learnt_from_or_chosen_on(retention: ModuleType, tmp_path: Path) -> None:
    def texts(folder: Path) -> dict[str, list[str]]:
        return {
            split: [r["text"] for r in read_jsonl(folder / f"{split}.jsonl")] for split in ("gold", "valid", "heldout")
        }

    labels = retention.prepare("clinc150", tmp_path / "c")
    found = texts(tmp_path / "c")
    assert labels == ["freeze account", "out of scope", "play music"]
    assert (len(found["gold"]), len(found["valid"]), len(found["heldout"])) == (900, 30, 30)
    assert all(t.startswith("valid") for t in found["valid"]) and all(t.startswith("test") for t in found["heldout"])
    retention.prepare("clinc150", tmp_path / "v", judge="valid")
    chosen = texts(tmp_path / "v")
    assert chosen["gold"] == found["gold"] and chosen["valid"] == found["valid"]
    assert all(text.startswith("valid") for text in chosen["heldout"]) and not {*chosen["heldout"]} & {*chosen["valid"]}
    retention.prepare("snips", tmp_path / "s", rows=50, items=7)  # without official validation rows
    found = texts(tmp_path / "s")
    assert (len(found["gold"]), len(found["valid"]), len(found["heldout"])) == (50, 300, 7)
    assert not {*found["gold"]} & {*found["valid"]} and all(text.startswith("train") for text in found["valid"])
    retention.prepare("snips", tmp_path / "w", judge="valid")
    assert not {*texts(tmp_path / "w")["heldout"]} & ({*texts(tmp_path / "w")["gold"]} | {*found["valid"]})


def test_an_absent_data_set_is_one_sentence(retention: ModuleType, tmp_path: Path) -> None:
    retention.DATA = tmp_path / "nowhere"
    with pytest.raises(SystemExit, match=r"expected the data set snips in .*nowhere/snips, found none"):
        retention.prepare("snips", tmp_path / "s")
    with pytest.raises(SystemExit, match="expected some of snips, clinc150, found slurp"):
        retention.main(["--task", "slurp"])


@pytest.mark.parametrize("task", ["snips", "clinc150"])
def test_the_recipe_is_the_product_s_and_small_enough(retention: ModuleType, tmp_path: Path, task: str) -> None:
    labels = retention.prepare("snips", tmp_path / "s")
    overrides = (f"task.labels={json.dumps(labels)}", "train.arms.seeds=3", *retention.TASKS[task].overrides)
    recipe = plan.resolve(str(tmp_path / "s" / "retention.toml"), overrides, runs_dir=tmp_path).recipe
    assert recipe.train.arms.seeds == 3 and recipe.train.arms.gold and recipe.train.control is not None
    cut = recipe.student.cut
    hidden, keys = 576, 192
    layer = 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * cut.ffn + 2 * hidden
    parameters = len(cut.layers) * layer + cut.vocab * hidden + hidden
    assert parameters <= 134_515_008 / 8


def test_times_of_all_goes_at_the_same_work_add_up(retention: ModuleType, tmp_path: Path) -> None:
    notes: list[str] = []
    for states in (("stale", "running", "ran"), ("stale", "running"), ("partial", "running", "ran"), ("done",)):
        timed = retention.Timed(tmp_path / "seconds.jsonl", note=notes.append)
        for state in states:
            timed(SimpleNamespace(stage="train", state=state))
        timed.stop()
    rows = read_jsonl(tmp_path / "seconds.jsonl")
    write_jsonl(tmp_path / "seconds.jsonl", [row | {"seconds": 2.5} for row in rows])
    assert len(rows) == len(notes) == 3 and notes[0].startswith("train: ")
    assert retention.seconds_of(tmp_path) == {"train": 5.0}  # the first go's work was thrown away


def finished(folder: Path, right: dict[str, int]) -> plan.Run:
    """A run as the stages leave it; the last 10 of 40 items are out of scope."""
    for model, count in right.items():
        rows = [
            EvalItem(
                id=f"i{i}", answer="a" if i < 30 else "out of scope", output="", output_ids=(1,), finish="stop",
                correct=i < count,
            )
            for i in range(40)
        ]  # fmt: skip
        write_jsonl(folder / "40-eval" / f"{model}.jsonl", [row.model_dump(mode="json") for row in rows])
    for at, size in (("05-teacher", 160), ("20-train/student", 16)):
        (folder / at).mkdir(parents=True)
        save_file({"w": np.zeros(size, np.float32)}, folder / at / "model.safetensors")
    write_json(folder / "40-eval" / "manifest.json", {"environment": {"commit": "c"}})
    steps = {"trained_on": 9, "gold_trained_on": 10, "student": {"steps": 3}}
    write_json(folder / "20-train" / "manifest.json", {"figures": steps})
    return plan.Run(plan.resolve("quickstart").recipe, folder)


def test_a_row_has_every_arm_retention_and_where_it_was_measured(retention: ModuleType, tmp_path: Path) -> None:
    right = {
        "teacher": 40,
        "untrained": 0,
        "gold": 20,
        "control": 36,
        "student": 38,
        "student-s2": 36,
        "control-s2": 36,
    }
    found = retention.row(finished(tmp_path / "run", right), seconds={"train": 1.0})
    assert found["retention"] == 0.925 and found["retention_low"] < 0.925 < found["retention_high"]
    assert list(found["arms"]) == ["teacher", "untrained", "gold", "control", "student"]
    assert found["arms"]["student"]["seeds"] == found["seeds"] == 2 and found["arms"]["gold"]["accuracy"] == 0.5
    assert found["distillation_minus_control"] == 0.025 and found["says"].startswith("no difference shown")
    assert (found["items"], found["in_scope"]["items"], found["in_scope"]["retention"]) == (40, 30, 1.0)
    assert (found["parameters"], found["bytes_ratio"]) == ({"teacher": 160, "student": 16}, 0.1)
    assert found["environment"] == {"commit": "c"} and found["seconds"] == {"train": 1.0}


def test_only_whole_runs_are_kept_and_other_tasks_stay(
    retention: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, str]] = []

    def run(name: str, options: SimpleNamespace, *, until: str) -> plan.Run:
        asked.append((name, until))
        write_jsonl(tmp_path / "seconds.jsonl", [])
        return plan.Run(plan.resolve("quickstart").recipe, tmp_path)

    monkeypatch.setattr(retention, "_run", run)
    monkeypatch.setattr(retention, "row", lambda run, seconds: {"retention": 0.99})
    assert retention.main(["--task", "snips"]) == 0
    assert retention.main(["--task", "clinc150", "--rows", "5"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["kept"] is False and set(printed["tasks"]) == {"clinc150"}
    assert set(json.loads(retention.RESULT.read_text())["tasks"]) == {"snips"}
    assert retention.main(["--task", "clinc150"]) == 0
    assert set(json.loads(retention.RESULT.read_text())["tasks"]) == {"snips", "clinc150"}
    capsys.readouterr()
    retention.main(["--parts", "teacher,data"])
    assert json.loads(capsys.readouterr().out) == {"schema_version": 1, "kept": False, "tasks": {}}
    assert asked[-2:] == [("snips", "teacher"), ("clinc150", "teacher")]
