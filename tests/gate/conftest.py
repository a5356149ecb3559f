"""A finished run as a folder, written from core nouns: tiny weights, real manifests, rows, answers, training log."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from gate_builders import MODELS, answers, measurements, quality

from edgedistill.core.artifact import Artifact, content_digest, list_files
from edgedistill.core.files import write_bytes, write_json, write_jsonl
from edgedistill.core.host import host_id
from edgedistill.core.recipe import Recipe
from edgedistill.core.runfolder import FOLDERS, SilentReporter, StageContext, run_stage

FOLDER_OF = {"teacher": ".", "untrained": "untrained", "control": "control", "student": "student"}
BUDGETS: dict[str, dict[str, Any]] = {
    "quality": {"metric": "exact_match_ratio", "min_ratio": 0.9},
    "size": {"metric": "artifact_bytes", "max_ratio": 0.1},
    "latency": {"metric": "response_ms", "target": "local-cpu", "max_ratio": 0.15},
    "mobile-memory": {"metric": "peak_rss_bytes", "target": "mobile-class", "max_ratio": 0.15},
}


def make_recipe(budgets: Mapping[str, Any] = BUDGETS, **changed: Any) -> Recipe:
    fields: dict[str, Any] = {
        "name": "synthetic",
        "data": {"generator": "home-commands"},
        "teacher": {"model": "m"},
        "student": {"cut": {"layers": [0]}},
        "budget": budgets,
    }
    return Recipe.model_validate(fields | changed)


@pytest.fixture
def recipe() -> Callable[..., Recipe]:
    return make_recipe


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to the bench whose rows were measured on this host. Copy it before changing it."""
    return write_run(tmp_path_factory.mktemp("run") / "synthetic")


def write_run(run: Path, *, scale: int = 1000) -> Path:
    """Write every stage's folder before the gate; sizes are those of `MODELS` over `scale`."""
    digests: dict[str, str] = {}
    roles = {"untrained": 24_000_000, "control": 24_000_000, "student": 24_000_000}

    def weights(folder: Path, parameters: int) -> None:
        write_bytes(folder / "model.safetensors", _safetensors(parameters // scale))
        write_json(folder / "config.json", {"model_type": "llama"})

    def teacher(context: StageContext) -> None:
        weights(context.folder, MODELS["teacher"][2])

    def train(context: StageContext) -> None:
        for name, parameters in roles.items():
            weights(context.folder / name, parameters)
        write_jsonl(context.folder / "metrics.jsonl", _training())
        context.figures.update({"trained_on": 2470, "validated_on": 130})

    def export(context: StageContext) -> None:
        for name, (form, size, parameters, *_) in MODELS.items():
            if form == "safetensors":
                continue
            folder = context.folder / name
            write_bytes(folder / f"model.{form}", b"\0" * (size // scale))
            write_bytes(folder / "tokenizer.json", b"{}")
            artifact = Artifact(
                variant=name,
                format=form,
                entry=f"model.{form}",
                parameters=parameters // scale,
                bits_per_weight=8 * size / parameters,
                files=list_files(folder),
                source_digest="s",
                parity={
                    "text": {"engine": form, "strings": 400, "engine_differing": 0, "end_ids": [2], "limits": []},
                    "fresh": {"positions": 800, "kld_nats": 0.011, "top1_ratio": 0.97},
                    "cached": {"positions": 400, "kld_nats": 0.012, "top1_ratio": 0.97},
                    "bounds": {"max_kld_nats": 1.0},
                },
            )
            write_json(folder / "artifact.json", artifact.model_dump(mode="json"))
            digests[name] = content_digest(artifact.files)

    def evaluate(context: StageContext) -> None:
        right = {name: facts[5] for name, facts in MODELS.items()} | {"untrained": 0, "control": 93, "student": 97}
        given = {
            name: answers(count, seed=i, scored=0 if name == "teacher" else 32)
            for i, (name, count) in enumerate(right.items())
        }
        for name, items in given.items():
            write_jsonl(context.folder / f"{name}.jsonl", [item.model_dump(mode="json") for item in items])
        qualities = {name: quality(name, items).model_dump(mode="json") for name, items in given.items()}
        write_json(context.folder / "summary.json", qualities)

    def bench(context: StageContext) -> None:
        rows: dict[Path, list[dict[str, Any]]] = {}
        for row in measurements():
            here = {"artifact_digest": digests[row.model], "environment": {"host_id": host_id()}}
            path = context.folder / row.target / row.model / f"{row.workload}.jsonl"
            rows.setdefault(path, []).append(row.model_copy(update=here).model_dump(mode="json"))
        for path, made in rows.items():
            write_jsonl(path, made)

    def data(context: StageContext) -> None:
        context.figures.update({"gold": 600, "valid": 150, "heldout": 300, "prompts": 2000})

    def synth(context: StageContext) -> None:
        context.figures.update({"asked": 2600, "kept": 2594, "rejected": {"truncated": 6}, "answer_tokens": 63_011})

    bodies = {"data": data, "teacher": teacher, "synth": synth, "train": train, "export": export, "eval": evaluate}
    for stage, body in (bodies | {"bench": bench}).items():
        context = StageContext(recipe=make_recipe(), run=run, stage=stage, report=SilentReporter(), figures={})
        manifest = run_stage(context=context, version=1, parameters={}, inputs={}, body=body)
        if stage == "teacher":
            digests["teacher"] = manifest.output_digest
    return run


def gate(run: Path, recipe: Recipe) -> tuple[Path, list[str]]:
    """Run the gate stage; its folder and what it noted."""
    from edgedistill.gate import stage

    notes: list[str] = []
    reporter = SilentReporter()
    reporter.note = notes.append  # type: ignore[method-assign]
    context = StageContext(recipe=recipe, run=run, stage="gate", report=reporter, figures={})
    run_stage(context=context, version=1, parameters={}, inputs={}, body=stage.run)
    return run / FOLDERS["gate"], notes


@pytest.fixture
def run_gate() -> Callable[[Path, Recipe], tuple[Path, list[str]]]:
    return gate


def _safetensors(parameters: int) -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [parameters], "data_offsets": [0, 4 * parameters]}}).encode()
    return len(header).to_bytes(8, "little") + header + b"\0" * (4 * parameters)


def _training() -> list[dict[str, Any]]:
    rng = random.Random(0)
    rows: list[dict[str, Any]] = []
    for arm, floor in (("student", 0.05), ("control", 0.09)):
        for step in range(1, 241):
            loss = 2.4 * math.exp(-step / 40) + floor + rng.uniform(0, 0.05)
            rows.append({"arm": arm, "step": step, "loss": loss, "ce": loss, "kl": 0.1, "lr": 1e-3, "tok_s": 600.0})
            if step % 60 == 0:
                rows.append({"arm": arm, "step": step, "valid_loss": loss + 0.03, "valid_ce": loss + 0.03})
    return rows
