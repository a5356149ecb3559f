"""What a student of an eighth of its teacher's bytes keeps of its accuracy, beside its controls, on real tasks.

Usage: python benchmarks/retention.py [--task snips|clinc150] [--seeds N] [--parts LIST] [--work DIR] [--judge valid]
                                      [--rows N] [--items N] [--set NAME=VALUE] [--threads N]
Writes benchmarks/results/retention.json, one row a task, where tasks that were not asked for stay as they were; the
last line printed is the same figures as one JSON object.

The run is the product's own: benchmarks/retention.toml through the stages data, teacher, synth, train, export and
eval, in DIR/TASK, with the values that TASKS has for the task. SmolLM2-135M-Instruct is adapted by LoRA on the train
split and labels the same utterances; a student cut from it learns its text and distributions, for CLINC150 also its
hidden states with the teacher beside it (distillation), its text alone (the control), or gold alone, for as many steps
each. All arms answer the official test split. `--judge valid` asks validation rows instead, which settings may be
chosen on; that, and a run of fewer rows or items or of other recipe values, is printed and not kept. Before anything
is learnt the product drops rows of gold that share text with what is asked, and test items that stand there twice.

A part that is done is not done again, and one that was stopped goes on; more seeds are added to those there. `--parts`
stops after the last part named. The time of each part is that of all goes at it.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import sys
import time
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from edgedistill import plan
from edgedistill.cli.progress import reporter
from edgedistill.core.arms import ArmsTable, arm_models, compare_arms
from edgedistill.core.errors import EdgeDistillError
from edgedistill.core.files import read_json, read_jsonl, write_json, write_jsonl
from edgedistill.core.records import EvalItem
from edgedistill.runtimes.safetensors_file import check_weights

RESULT = Path(__file__).with_name("results") / "retention.json"
RECIPE = Path(__file__).with_suffix(".toml")
DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
PARTS = ("data", "teacher", "synth", "train", "export", "eval")
CONFIDENCE, LEAST_RETENTION, MOST_BYTES_RATIO = 0.95, 0.97, 1 / 8
OUT_OF_SCOPE = "out of scope"


class Task(NamedTuple):
    """Rows of the train split to learn from (0: all), validation rows that are taken from it, and recipe values."""

    rows: int
    taken: int
    overrides: tuple[str, ...] = ()


TASKS = {
    # Seven classes: two fifths of an epoch are enough for the teacher, and five thousand rows for all.
    "snips": Task(5000, 700, ("teacher.adapt.epochs=0.4", "teacher.adapt.min_exact_match=0.9")),
    # 150 classes of 100 rows each: on validation rows the teacher's inside was worth what no number of steps was.
    "clinc150": Task(
        0,
        0,
        (
            "teacher.adapt.min_exact_match=0.8",
            "student.cut.layers=[0, 1, 2, 8, 16, 24, 28, 29]",
            "student.cut.ffn=352",
            "train.freeze_embeddings=true",
            "train.epochs=3",
            "train.batch_size=16",
            'train.teacher="online"',
            "train.match.hidden=1.0",
        ),
    ),
}


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    names = options.task.split(",")
    parts = options.parts.split(",")
    for found, known in ((names, TASKS), (parts, PARTS)):
        if unknown := sorted(set(found) - set(known)):
            sys.exit(f"expected some of {', '.join(known)}, found {', '.join(unknown)}")
    until = max(parts, key=PARTS.index)
    earlier = read_json(RESULT) if RESULT.is_file() else {}
    kept = {name: row for name, row in earlier.get("tasks", {}).items() if name in TASKS}
    measured = {}
    for name in names:
        try:
            run = _run(name, options, until=until)
        except EdgeDistillError as e:
            sys.exit(str(e))
        if until == PARTS[-1]:
            measured[name] = row(run, seconds=seconds_of(run.folder))
    whole = options.judge == "test" and not options.rows and not options.items and not options.set
    keep = whole and bool(measured)
    if keep:
        RESULT.parent.mkdir(exist_ok=True)
        write_json(RESULT, {"schema_version": 1, "tasks": kept | measured})
    print(json.dumps({"schema_version": 1, "kept": keep, "tasks": (kept if keep else {}) | measured}))
    return 0


def _run(name: str, options: argparse.Namespace, *, until: str) -> plan.Run:
    """The task's run, brought to the end of the part `until`.

    Raises:
        EdgeDistillError: a stage says what is wrong.
    """
    folder = options.work / (name if options.judge == "test" else f"{name}-{options.judge}")
    labels = prepare(name, folder, judge=options.judge, rows=options.rows, items=options.items)
    overrides = (
        f'name="{name}"', f"task.labels={json.dumps(labels)}", f"threads={options.threads}",
        f"train.arms.seeds={options.seeds}", *TASKS[name].overrides, *options.set,
    )  # fmt: skip
    run = plan.resolve(str(folder / RECIPE.name), overrides, runs_dir=folder)
    with reporter() as report:
        timed = Timed(run.folder / "seconds.jsonl", note=report.note)
        try:
            plan.execute(run, report, until=until, on_step=timed)
        finally:
            timed.stop()
    return run


class Timed:
    """Writes how long each go at a stage took, also of one that was stopped."""

    def __init__(self, path: Path, *, note: Any) -> None:
        self.path, self.note = path, note
        self.stage, self.began, self.anew = "", 0.0, False

    def __call__(self, step: plan.Step) -> None:
        self.stop()
        if step.state in ("todo", "stale", "partial"):
            self.anew = step.state != "partial"
        if step.state == "running":
            self.stage, self.began = step.stage, time.monotonic()

    def stop(self) -> None:
        if self.stage:
            row = {"stage": self.stage, "seconds": round(time.monotonic() - self.began, 1), "anew": self.anew}
            with self.path.open("a", encoding="utf-8") as f:
                f.write(json.dumps(row) + "\n")
            self.note(f"{self.stage}: {row['seconds']} s")
            self.stage = ""


def seconds_of(run: Path) -> dict[str, float]:
    """Seconds of all goes at what each stage has now; a go that began anew threw away what was there."""
    found: dict[str, float] = {}
    for row in read_jsonl(run / "seconds.jsonl"):
        before = 0.0 if row["anew"] else found.get(row["stage"], 0.0)
        found[row["stage"]] = round(before + row["seconds"], 1)
    return found


def prepare(name: str, folder: Path, *, judge: str = "test", rows: int = 0, items: int = 0) -> list[str]:
    """Write the task's splits and the recipe into `folder`; the labels' words in order.

    Rows to learn from are the train split's, drawn with one seed; validation rows are the official ones, or the last
    drawn of the train split where there are none. Half of them judge the teacher; the other half stands in for the test
    split if `judge` is valid.
    """
    task, source = TASKS[name], DATA / name
    if not (source / "train.jsonl").is_file():
        sys.exit(f"expected the data set {name} in {source}, found none; see the README there")
    splits = {split: _rows(source, split) for split in ("train", "valid", "test")}
    train = splits["train"]
    random.Random(0).shuffle(train)
    valid = splits["valid"]
    if task.taken:
        valid, train = train[: task.taken], train[task.taken :]
    random.Random(0).shuffle(valid)
    half = len(valid) // 2
    heldout = splits["test"] if judge == "test" else valid[half:]
    if items:
        heldout = sorted(heldout, key=lambda row: random.Random(row["text"]).random())[:items]
    folder.mkdir(parents=True, exist_ok=True)
    written = {"gold": train[: rows or task.rows or None], "valid": valid[: min(half, 300)], "heldout": heldout}
    for split, chosen in written.items():
        write_jsonl(folder / f"{split}.jsonl", chosen)
    shutil.copyfile(RECIPE, folder / RECIPE.name)
    return sorted({row["label"] for row in splits["train"]})


def label_words(intent: str) -> str:
    """The words of a class's name, which a language model knows more of than of `PlayMusic` or `freeze_account`."""
    if intent == "oos":
        return OUT_OF_SCOPE
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", intent).replace("_", " ").lower()


def row(run: plan.Run, *, seconds: dict[str, float]) -> dict[str, Any]:
    """The figures of a finished run: every arm with its interval, retention, size, time, settings and environment."""
    folder = run.folder / "40-eval"
    items = {
        name: [EvalItem.model_validate(row) for row in read_jsonl(folder / f"{name}.jsonl")]
        for name in ("teacher", *arm_models(path.stem for path in folder.glob("*.jsonl")))
    }
    parameters = {name: _parameters(run.folder / at) for name, at in
                  (("teacher", "05-teacher"), ("student", "20-train/student"))}  # fmt: skip
    ratio = parameters["student"] / parameters["teacher"]
    manifest = read_json(run.folder / "20-train" / "manifest.json")["figures"]
    found = {
        **figures(items),
        "parameters": parameters,
        "bytes_ratio": round(ratio, 4),
        "trained_on": {name: manifest.get(name) for name in ("trained_on", "gold_trained_on")},
        "steps": manifest["student"]["steps"],
        "goal": f"retention at least {LEAST_RETENTION} at a bytes_ratio of at most {MOST_BYTES_RATIO}, both in fp32",
        "seconds": seconds,
        "recipe": run.recipe.model_dump(mode="json", include={"student", "train", "synth", "teacher", "threads"}),
        "environment": read_json(folder / "manifest.json")["environment"],
    }
    in_scope = {name: [row for row in rows if row.answer != OUT_OF_SCOPE] for name, rows in items.items()}
    if len(in_scope["student"]) < len(items["student"]):
        found["in_scope"] = figures(in_scope)
    return found


def figures(items: dict[str, list[EvalItem]]) -> dict[str, Any]:
    """Retention and the table of arms of these answers."""
    table = compare_arms(items, confidence=CONFIDENCE)
    if table is None:
        sys.exit("expected answers of a student, found none; run every part")
    student = next(row for row in table.rows if row.arm == "student")
    low, high = student.of_teacher_interval or (None, None)
    return {
        "retention": _short(student.of_teacher),
        "retention_low": _short(low),
        "retention_high": _short(high),
        "items": table.items,
        "seeds": len(student.models),
        "arms": _arms(table),
        "distillation_minus_control": _short(table.difference),
        "distillation_minus_control_interval": [_short(end) for end in table.difference_interval or ()],
        "says": table.sentence,
    }


def _arms(table: ArmsTable) -> dict[str, dict[str, Any]]:
    return {
        row.arm: {
            "accuracy": _short(row.score),
            "low": _short(row.interval[0]),
            "high": _short(row.interval[1]),
            "seeds": len(row.models),
        }
        for row in table.rows
    }


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _parameters(folder: Path) -> int:
    return sum(prod(shape) for shape in check_weights(folder).values())


def _rows(source: Path, split: str) -> list[dict[str, str]]:
    path = source / f"{split}.jsonl"
    rows = read_jsonl(path) if path.is_file() else []
    return [{"text": row["text"], "label": label_words(row["intent"])} for row in rows]


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default=",".join(TASKS), help="which tasks, with commas")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each trained arm")
    parser.add_argument("--parts", default=",".join(PARTS), help="stop after the last of these stages")
    parser.add_argument("--work", type=Path, default=Path("runs") / "retention", help="where the runs are kept")
    parser.add_argument("--judge", choices=("test", "valid"), default="test", help="what the arms are asked")
    parser.add_argument("--rows", type=int, default=0, help="rows to learn from; 0: as many as the task has")
    parser.add_argument("--items", type=int, default=0, help="items to judge on; 0: all")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another recipe value")
    parser.add_argument("--threads", type=int, default=0, help="0: every core")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
