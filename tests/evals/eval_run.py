"""A run folder small enough to evaluate in a test: tiny models that learned to answer, and their artifacts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgedistill.core.artifact import Artifact, list_files
from edgedistill.core.files import write_json, write_jsonl
from edgedistill.core.recipe import Recipe
from edgedistill.core.records import Message, Prompt
from edgedistill.core.runfolder import StageContext
from edgedistill.quant.codes import CodeSet
from edgedistill.quant.plan import Plan

ROOMS = ("kitchen", "bedroom", "hall", "attic", "cellar", "garage", "loft", "study")


class Collector:
    """Keeps what a stage reports."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def progress(self, done: float, total: float, unit: str, **figures: object) -> None:
        pass


def prompts() -> list[Prompt]:
    return [
        Prompt(
            id=f"item-{i}",
            messages=(Message(role="user", content=f"light in the {room}"),),
            answer=f'{{"room":"{room}","n":{i}}}',
            kind="light.on",
        )
        for i, room in enumerate(ROOMS)
    ]


def teach(source: Path, out: Path, *, items: list[Prompt], steps: int = 120) -> None:
    """Train the model in `source` to give the answers of `items`, and save it to `out`."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    rows, labels = [], []
    for item in items:
        messages = [{"role": m.role, "content": m.content} for m in item.messages]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        asked = tokenizer(text, add_special_tokens=False)["input_ids"]
        answer = [*tokenizer(item.answer, add_special_tokens=False)["input_ids"], 2]
        rows.append(asked + answer)
        labels.append([-100] * len(asked) + answer)
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    wanted = torch.tensor([row + [-100] * (width - len(row)) for row in labels])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        loss = model(ids, labels=wanted).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    shutil.copytree(source, out)
    model.save_pretrained(out)


def recipe(**changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "name": "tiny",
        "threads": 1,
        "task": {"answer": "json", "max_new_tokens": 32},
        "data": {},
        "teacher": {"model": "unused"},
        "student": {"model": "unused"},
        "eval": {"kld_items": 4},
    }
    return Recipe.model_validate(fields | changes)


def context(run: Path, **changes: Any) -> StageContext:
    made = StageContext(recipe=recipe(**changes), run=run, stage="eval", report=Collector(), figures={})
    made.folder.mkdir(parents=True, exist_ok=True)
    return made


def write_artifact(folder: Path, *, variant: str, entry: str) -> None:
    artifact = Artifact(
        variant=variant,
        format="gguf" if entry.endswith(".gguf") else "onnx",
        entry=entry,
        parameters=1,
        bits_per_weight=1.0,
        files=list_files(folder),
        source_digest="",
    )
    write_json(folder / "artifact.json", artifact.model_dump(mode="json"))


def make_run(run: Path, *, untrained: Path) -> Path:
    """The teacher knows every room, student and control five; artifacts of the student, and a GGUF of the teacher."""
    from edgedistill.export.gguf import export_gguf_f16
    from edgedistill.export.onnx import export_onnx
    from edgedistill.export.quantize import quantize_gguf

    items = prompts()
    write_jsonl(run / "00-data" / "heldout.jsonl", [item.model_dump(mode="json") for item in items])
    teacher, train, export = run / "05-teacher", run / "20-train", run / "30-export"
    train.mkdir(parents=True)
    teach(untrained, teacher, items=items)
    teach(untrained, train / "student", items=items[:5])
    shutil.copytree(train / "student", train / "control")
    shutil.copytree(untrained, train / "untrained")
    for variant, source in (("gguf-q8_0", train / "student"), ("teacher-q8_0", teacher)):
        (export / variant).mkdir(parents=True)
        half = run / "half.gguf"
        export_gguf_f16(model=source, out=half)
        quantize_gguf(source=half, out=export / variant / "model.gguf", scheme="Q8_0", threads=1)
        write_artifact(export / variant, variant=variant, entry="model.gguf")
    export_onnx(model=train / "student", out=export / "onnx-int8", threads=1, codes=CodeSet(Plan("Q8_0", "Q8_0")))
    write_artifact(export / "onnx-int8", variant="onnx-int8", entry="model.onnx")
    return run
