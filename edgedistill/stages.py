"""The eight stages: the code of each, what of the recipe and the host it depends on, and the outputs it reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgedistill.core.corpus import HUB, SPLITS
from edgedistill.core.errors import InputError
from edgedistill.core.files import sha256_file
from edgedistill.core.host import host_id, now
from edgedistill.core.recipe import Recipe, shipped_recipes
from edgedistill.core.target import measured_target

LABELLED = ("data/gold.jsonl", "data/prompts.jsonl", "teacher")
Parameters = Callable[[Recipe], dict[str, Any]]


@dataclass(frozen=True)
class Stage:
    """One stage: its code, what of the recipe and the host it depends on, and the outputs it reads.

    `inputs` names stages, or of one a file (`data/heldout.jsonl`) or a folder (`train/student/`). Raise `version` when
    the same inputs lead to another output, so that old results are recomputed.
    """

    name: str
    version: int
    entry: str
    parameters: Parameters
    inputs: tuple[str, ...] = ()

    @property
    def sources(self) -> set[str]:
        """Names of the stages that `inputs` are of."""
        return {name.partition("/")[0] for name in self.inputs}


def _data(recipe: Recipe) -> dict[str, Any]:
    sources = {name: recipe.data.sources(name) for name in SPLITS}
    # A data set of a hub is known by its reference; name a revision to hold it still.
    hashes = {n: [f if f.startswith(HUB) else _file_hash(f) for f in files] for n, files in sources.items() if files}
    task = recipe.task.model_dump(mode="json", exclude={"chat_template", "max_new_tokens"})
    return {"data": recipe.data.model_dump(mode="json") | hashes, "task": task, "seed": recipe.seed}


def _teacher(recipe: Recipe) -> dict[str, Any]:
    if recipe.teacher.is_api:  # its folder holds the student's tokenizer
        student, api = _model(str(recipe.student.model)), recipe.teacher.identity()
        return {"api": api, "student": student, "task": _task(recipe, "chat_template")}
    teacher = recipe.teacher.model_dump(mode="json", include={"adapt"}) | {"model": _model(recipe.teacher.model)}
    if recipe.teacher.adapt is None:
        return {"teacher": teacher, "task": _task(recipe, "chat_template")}
    task = _task(recipe, "kind", "labels", "answer", "chat_template", "max_new_tokens")
    how = {"dtype": recipe.train.dtype, "batch_size": recipe.synth.batch_size}
    return {"teacher": teacher, "task": task, "seed": recipe.seed} | how


def _synth(recipe: Recipe) -> dict[str, Any]:
    synth = recipe.synth.model_dump(mode="json")
    task = recipe.task.model_dump(mode="json", exclude={"system"})
    if recipe.teacher.is_api:
        judge = recipe.synth.judge
        scored = judge.model_dump(mode="json", include={"threshold", "rubric"}) if judge else {}
        scored |= {"teacher": judge.teacher.answering()} if judge else {}
        names = ("label_gold", "shard_size", "reasoning", "shorten")
        synth = {name: synth[name] for name in names} | {"judge": scored}
        return {"synth": synth, "api": recipe.teacher.answering(), "task": task}
    return {"synth": synth, "engine": recipe.teacher.engine, "dtype": recipe.train.dtype, "task": task}


def _train(recipe: Recipe) -> dict[str, Any]:
    student = recipe.student.model_dump(mode="json")
    if recipe.student.model is not None:
        student["model"] = _model(recipe.student.model)
    # How often a checkpoint is written and who follows changes no result; further seeds join those that are there.
    left_out = {"checkpoint_every_s": True, "trackers": True, "arms": {"seeds"}}
    train = recipe.train.model_dump(mode="json", exclude=left_out)
    for further in train["further_teachers"]:
        further["model"] = _model(further["model"])
    here = {"host": host_id(), "threads": recipe.threads} if recipe.student.is_timed else {}
    return {"student": student, "train": train, "task": _task(recipe, "chat_template"), "seed": recipe.seed} | here


def _export(recipe: Recipe) -> dict[str, Any]:
    # Which variants ship is the gate's question.
    export = recipe.export.model_dump(mode="json", exclude={"release"})
    return {"export": export, "task": _task(recipe, "chat_template"), "name": recipe.name}


def _eval(recipe: Recipe) -> dict[str, Any]:
    text = recipe.eval.text
    evaluation = recipe.eval.model_dump(mode="json") | {"text": _file_hash(text) if text else None}
    return {"eval": evaluation, "task": _task(recipe, "kind", "labels", "answer", "chat_template", "max_new_tokens")}


def _bench(recipe: Recipe) -> dict[str, Any]:
    return {
        # Further blocks are added to those that are there.
        "bench": recipe.bench.model_dump(mode="json", exclude={"further_blocks"}),
        "targets": {name: measured_target(name).model_dump(mode="json") for name in recipe.bench.targets},
        "host": host_id(),
        "threads": recipe.threads,
        "task": _task(recipe, "chat_template", "max_new_tokens"),
    }


def _gate(recipe: Recipe) -> dict[str, Any]:
    budgets = {name: budget.model_dump(mode="json") for name, budget in recipe.budget.items()}
    today, baseline = now()[:10], recipe.gate.baseline
    # A baseline that is not there is the gate's error to judge, not the plan's.
    stored = sha256_file(Path(baseline)) if baseline and Path(baseline).is_file() else None
    waivers = {name: budget.waiver for name, budget in recipe.budget.items() if budget.waiver}
    return {
        "budget": budgets,
        "gate": recipe.gate.model_dump(mode="json") | {"baseline": stored},
        "expired": [name for name, waiver in waivers.items() if waiver.expires.isoformat() < today],
        # When the looks are taken follows from how many blocks come first.
        "blocks": recipe.bench.blocks if recipe.gate.settle_blocks else None,
        "release": list(recipe.export.release),
        "targets": list(recipe.bench.targets),
        "name": recipe.name,
    }


def _task(recipe: Recipe, *names: str) -> dict[str, Any]:
    return recipe.task.model_dump(mode="json", include=set(names))


def _file_hash(path: str) -> str:
    if not Path(path).is_file():
        shipped = Path(path).parent in {recipe.parent for recipe in shipped_recipes().values()}
        advice = "copy the shipped recipe beside your own files" if shipped else "put it there, or name another"
        raise InputError(f"expected a file at {path}, as the recipe names it, found none; {advice}")
    return sha256_file(Path(path))


def _model(reference: str) -> Any:
    """The reference; of local files also name, size and time of change: weights are too big to hash for each plan."""
    path = Path(reference).expanduser()
    if reference.startswith("pypi:") or not path.exists():
        return reference
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return [reference, *([p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files)]


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("data", 5, "edgedistill.synth.stage:run_data", _data),
        Stage("teacher", 2, "edgedistill.train.stage:run_teacher", _teacher, ("data/gold.jsonl", "data/valid.jsonl")),
        Stage("synth", 5, "edgedistill.synth.stage:run_synth", _synth, LABELLED),
        Stage("train", 6, "edgedistill.train.stage:run", _train, ("data/gold.jsonl", "teacher", "synth")),
        Stage("export", 2, "edgedistill.export.stage:run", _export, ("teacher", "synth", "train/student/")),
        Stage("eval", 2, "edgedistill.evals.stage:run", _eval, ("data/heldout.jsonl", "teacher", "train", "export")),
        Stage("bench", 3, "edgedistill.bench.stage:run", _bench, (*LABELLED, "export")),
        Stage(
            "gate",
            4,
            "edgedistill.gate.stage:run",
            _gate,
            ("data", "teacher", "synth", "train", "export", "eval", "bench"),
        ),
    )
}
