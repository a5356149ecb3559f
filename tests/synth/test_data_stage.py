"""The data stage: generated or read, without overlap, faults named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgedistill.core.config import validate
from edgedistill.core.errors import InputError
from edgedistill.core.files import read_json, read_jsonl
from edgedistill.core.recipe import Recipe
from edgedistill.core.runfolder import StageContext
from edgedistill.synth import stage
from edgedistill.synth.home import ANSWER_SCHEMA


class Notes:
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.done: list[tuple[float, float]] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def progress(self, done: float, total: float, unit: str, **figures: object) -> None:
        self.done.append((done, total))


def context(run: Path, data: dict[str, Any], **tables: Any) -> StageContext:
    student = {"cut": {"layers": 1}}
    raw = {"name": "t", "teacher": {"model": "x"}, "student": student, "data": data, **tables}
    return StageContext(validate(Recipe, raw, source="test"), run, "data", Notes(), {})


def lines(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def asked(path: Path) -> list[str]:
    return [row["messages"][-1]["content"] for row in read_jsonl(path)]


def test_the_generator_writes_four_splits_the_same_for_the_same_seed(tmp_path: Path) -> None:
    data = {"generator": "home-commands", "gold": 40, "valid": 20, "heldout": 20, "prompts": 60}
    task = {"answer": "json", "answer_schema": ANSWER_SCHEMA, "system": "be brief"}
    for name in ("one", "two"):
        made = context(tmp_path / name, data, task=task, seed=3)
        stage.run_data(made)
        assert made.figures == {"gold": 40, "valid": 20, "heldout": 20, "prompts": 60}
    files = sorted(p.name for p in (tmp_path / "one" / "00-data").iterdir())
    splits = ["gold.jsonl", "heldout.jsonl", "prompts.jsonl", "valid.jsonl"]
    assert files == ["checks.json", "data.html", *splits[:2], "left-out.jsonl", *splits[2:]]
    for name in [name for name in files if name != "data.html"]:  # which has the run's name
        assert (tmp_path / "one/00-data" / name).read_bytes() == (tmp_path / "two/00-data" / name).read_bytes()
    rows = read_jsonl(tmp_path / "one/00-data/gold.jsonl")
    assert all([m["role"] for m in row["messages"]] == ["system", "user"] and row["answer"] for row in rows)
    assert {"none.refuse", "light.on"} <= {row["kind"] for row in rows}
    assert all(row["answer"] is None for row in read_jsonl(tmp_path / "one/00-data/prompts.jsonl"))


def test_files_are_read_without_overlap_and_what_is_left_out_is_reported(tmp_path: Path) -> None:
    data = {
        "heldout": lines(tmp_path / "h.jsonl", {"prompt": "h", "answer": "1"}),
        "gold": lines(tmp_path / "g.jsonl", {"prompt": "g", "answer": "1"}, {"prompt": "h", "answer": "1"}),
        "prompts": lines(tmp_path / "p.jsonl", *({"prompt": t} for t in ("p", "", "p", "h", "g", "q"))),
    }
    made = context(tmp_path, data)
    stage.run_data(made)
    folder = tmp_path / "00-data"
    assert asked(folder / "gold.jsonl") == ["g"] and asked(folder / "prompts.jsonl") == ["p", "q"]
    assert asked(folder / "valid.jsonl") == []
    assert made.report.notes == [
        "gold: left out 1 of 2 rows (1 duplicate)",
        "prompts: left out 4 of 6 rows (3 duplicate, 1 empty)",
    ]
    left_out = [(row["place"].rpartition("/")[2], row["reason"], row["detail"].rpartition("/")[2])
                for row in read_jsonl(folder / "left-out.jsonl")]  # fmt: skip
    assert left_out == [
        ("p.jsonl line 2", "empty", ""),
        ("g.jsonl line 2", "duplicate", "h.jsonl line 1"),
        ("p.jsonl line 3", "duplicate", "p.jsonl line 1"),
        ("p.jsonl line 4", "duplicate", "h.jsonl line 1"),
        ("p.jsonl line 5", "duplicate", "g.jsonl line 1"),
    ]


def test_what_is_found_is_told_or_dropped_and_the_counts_add_up(tmp_path: Path) -> None:
    words = [f"word{i}" for i in range(40)]
    asked = " ".join(words[:20])
    heldout = [{"prompt": f"please {asked}", "answer": "1"}, {"prompt": "other", "answer": "2"}]
    prompts = [
        {"prompt": f"now say {asked}"},  # thirteen words and more of heldout
        {"prompt": " ".join(words[20:])},
        {"prompt": " ".join([*words[20:39], "else"])},  # nearly the one before
        {"prompt": "mail me at a.b@example.org", "kind": "mail"},
        {"prompt": ""},
        {"prompt": "other"},
        *({"prompt": f"{word} {word[::-1]} {i}", "kind": "mail"} for i, word in enumerate(words[:3])),
        {"prompt": "a lone one of its kind", "kind": "rare"},
    ]
    data = {"heldout": lines(tmp_path / "h.jsonl", *heldout), "prompts": lines(tmp_path / "p.jsonl", *prompts)}
    action = {"near_duplicates": "drop", "similarity": 0.8, "contamination": "drop", "personal": "drop"}
    dropped = context(tmp_path / "drop", data | {"checks": action, "balance": {"by": "kind"}})
    stage.run_data(dropped)
    report = read_json(tmp_path / "drop/00-data/checks.json")
    rows = report["rows"]
    assert rows["prompts"]["left_out"] == {
        "balance": 2, "contamination": 1, "duplicate": 1, "empty": 1, "near-duplicate": 1, "personal": 1,
    }  # fmt: skip
    for split, count in rows.items():
        kept = len(read_jsonl(tmp_path / f"drop/00-data/{split}.jsonl"))
        assert count["read"] == count["kept"] + sum(count["left_out"].values()) and count["kept"] == kept
    assert (rows["prompts"]["read"], rows["heldout"]["kept"]) == (10, 2)
    told = read_jsonl(tmp_path / "drop/00-data/left-out.jsonl")
    assert len(told) == sum(sum(count["left_out"].values()) for count in rows.values())
    details = {row["reason"]: row["detail"] for row in told}
    assert "h.jsonl line 1) has its words 'word0 word1" in details["contamination"]
    assert details["near-duplicate"].endswith("p.jsonl line 2") and details["personal"] == "email a.*@*******.***"
    assert report["duplicate"] == {"found": 1, "of_evaluation": 1}
    assert report["balance"]["before"] == {"mail": 3, "rare": 1, "–": 1}
    assert report["balance"]["after"] == {"mail": 1, "rare": 1, "–": 1}

    action = {"near_duplicates": "report", "contamination": "report", "personal": "report"}
    kept_all = context(tmp_path / "report", data | {"checks": action})
    stage.run_data(kept_all)
    assert kept_all.figures["prompts"] == 8
    said = "found and kept, as data.checks says: 1 contamination, 2 near-duplicate, 1 personal; see checks.json"
    assert kept_all.report.notes[-1] == said
    near = read_json(tmp_path / "report/00-data/checks.json")["near-duplicate"]
    assert (near["found"], near["of_evaluation"]) == (2, 1)


def test_gold_is_split_by_group_and_prompts_of_several_files_are_balanced_by_source(tmp_path: Path) -> None:
    gold = lines(tmp_path / "g.jsonl", *({"prompt": f"ask {i}", "answer": "x", "of": f"g{i % 40}"} for i in range(400)))
    one = lines(tmp_path / "a.jsonl", *({"prompt": f"first {i}"} for i in range(30)))
    two = lines(tmp_path / "b.jsonl", *({"prompt": f"second {i}", "of": "b"} for i in range(10)))
    data = {
        "gold": gold, "prompts": [one, two], "form": "prompt", "group": "of",
        "split": {"valid": 0.2, "heldout": 0.3}, "balance": {"by": "source", "target": {one: 0.5, "c": 0.5}},
    }  # fmt: skip
    with pytest.raises(
        InputError, match=r"data.balance.target: expected rows of c, found none; there are 30 of .*a.jsonl"
    ):
        stage.run_data(context(tmp_path / "x", data))
    made = context(tmp_path, data | {"balance": {"by": "source"}})
    stage.run_data(made)
    assert made.figures["prompts"] == 20
    assert made.figures["gold"] + made.figures["valid"] + made.figures["heldout"] == 400
    assert 0 < made.figures["valid"] < made.figures["gold"] and made.figures["heldout"] > 0


def test_a_gold_answer_that_breaks_the_schema_names_its_line(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "answer": '{"x":1}'}, {"prompt": "b", "answer": '{"x":"1"}'}]
    task = {"answer": "json", "answer_schema": {"properties": {"x": {"type": "integer"}}}}
    with pytest.raises(InputError, match=r"g.jsonl line 2: the answer is not what the task says \(schema: x: '1'"):
        stage.run_data(context(tmp_path, {"gold": lines(tmp_path / "g.jsonl", *rows)}, task=task))


def test_nothing_to_label_and_an_absent_file_are_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected data.gold or data.prompts for the teacher to label"):
        stage.run_data(context(tmp_path, {}))
    with pytest.raises(InputError, match=r"expected a file of prompts at .*no.jsonl, found nothing there"):
        stage.run_data(context(tmp_path, {"gold": str(tmp_path / "no.jsonl")}))


def test_prompts_that_are_all_left_out_are_said_with_the_reason(tmp_path: Path) -> None:
    heldout = lines(tmp_path / "heldout.jsonl", *({"prompt": f"q{i}", "answer": "a"} for i in range(3)))
    prompts = lines(tmp_path / "prompts.jsonl", *({"prompt": f"q{i}"} for i in range(3)))
    with pytest.raises(InputError, match=r"prompts for the teacher to label, found all of them left out \(duplicate\)"):
        stage.run_data(context(tmp_path / "run", {"heldout": heldout, "prompts": prompts}))


def test_leaks_in_a_real_data_set_are_real(shared_data: Path, tmp_path: Path) -> None:
    """Snips overlaps itself: what is called a repeat or a leak is one, by a comparison that shares no code."""
    splits = {"gold": ("train", 14000), "heldout": ("test", 700)}
    files, texts = {}, {}
    for split, (name, most) in splits.items():
        rows = [
            json.loads(line) for line in (shared_data / "snips" / f"{name}.jsonl").read_text().splitlines()[:most:3]
        ]
        files[split] = lines(tmp_path / f"{split}.jsonl", *rows)
        texts[split] = [row["text"] for row in rows]
    checks = {"near_duplicates": "drop", "contamination": "drop"}
    task = {"kind": "classification"}
    made = context(tmp_path, files | {"columns": {"label": "intent"}, "checks": checks}, task=task)
    stage.run_data(made)
    report = read_json(tmp_path / "00-data/checks.json")
    everything = [*texts["heldout"], *texts["gold"]]
    assert report["duplicate"]["found"] == len(everything) - len(set(everything))

    def plain(text: str) -> str:
        return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())

    tests = " | ".join(f" {plain(text)} " for text in texts["heldout"])
    left_out = read_jsonl(tmp_path / "00-data/left-out.jsonl")
    leaks = [row for row in left_out if row["reason"] == "contamination"]
    assert len(leaks) == report["contamination"]["found"] >= 5
    for row in leaks:
        words = row["detail"].partition("has its words ")[2].strip("'\"")
        assert f" {words} " in tests and f" {words} " in f" {plain(row['text'])} " and len(words.split()) >= 8
    near = [row for row in left_out if row["reason"] == "near-duplicate"]
    assert len(near) >= 10 and all(float(row["detail"].partition(" ")[0]) >= 0.8 for row in near)
