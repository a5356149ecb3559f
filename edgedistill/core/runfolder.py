"""The run folder: where each stage writes, when it is done, and why it is not."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from edgedistill.core.artifact import Manifest, content_digest, damaged_file, list_files
from edgedistill.core.config import validate
from edgedistill.core.errors import EdgeDistillError, InputError
from edgedistill.core.files import clear_temporaries, digest_of, read_json, remove, write_json
from edgedistill.core.host import environment, now
from edgedistill.core.recipe import Recipe

FOLDERS: dict[str, str] = {
    "data": "00-data",
    "teacher": "05-teacher",
    "synth": "10-synth",
    "train": "20-train",
    "export": "30-export",
    "eval": "40-eval",
    "bench": "50-bench",
    "gate": "60-gate",
}
LOCK_FILE = "recipe.lock.json"
# The command that runs up to a stage; the first two have none of their own.
COMMANDS = dict.fromkeys(FOLDERS, "synth") | {"train": "train", "export": "export", "eval": "eval", "bench": "bench"}
COMMANDS["gate"] = "run"
# Logs of speed and progress, and pages to look at: kept and listed, but no later stage depends on them.
VOLATILE = frozenset({"metrics.jsonl", "data.html"})
NOT_OUTPUT = frozenset({"manifest.json", "failed.json", "started.json"})


class Reporter(Protocol):
    """How a stage tells what it does; the command line prints it on stderr, tests collect it."""

    def note(self, message: str) -> None:
        """One line worth keeping on the screen."""

    def progress(self, done: float, total: float, unit: str, **figures: object) -> None:
        """Work done so far of the stage's present part; `figures` are shown beside it (tok_s, loss, …)."""


class SilentReporter:
    """Drops everything; the default of library use."""

    def note(self, message: str) -> None:
        pass

    def progress(self, done: float, total: float, unit: str, **figures: object) -> None:
        pass


@dataclass(frozen=True)
class StageContext:
    """What a stage gets: the recipe, the run's folder, its own folder, and a reporter.

    `figures` is filled by the stage with headline numbers for its manifest (JSON values). `launch` is how many
    processes train, or an accelerate configuration. `lent` are functions of other stages' packages, by name.
    """

    recipe: Recipe
    run: Path
    stage: str
    report: Reporter
    figures: dict[str, Any]
    launch: str | None = None
    lent: Mapping[str, Callable[..., Any]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.run / FOLDERS[self.stage]

    def folder_of(self, stage: str) -> Path:
        return self.run / FOLDERS[stage]


@dataclass(frozen=True)
class StageState:
    """`done`, `stale` (an input changed), `partial` (begun or failed with this key) or `todo`, and why."""

    state: Literal["done", "stale", "partial", "todo"]
    why: str


def check_launch(launch: str) -> None:
    """Hold what --launch was given against what it takes.

    Raises:
        InputError: it is neither a number of processes nor a file.
    """
    if not (launch.isdecimal() and int(launch) > 0) and not Path(launch).is_file():
        raise InputError(
            f"expected a number of processes or an accelerate configuration for --launch, found {launch!r}; give a "
            "number from 1, or the path of a file that `accelerate config` wrote"
        )


def command_that_makes(path: Path) -> str | None:
    """The command that makes what is to lie at a path of a run, None for a path that is in no run."""
    for run in path.parents:
        if (run / LOCK_FILE).is_file():
            top = path.relative_to(run).parts[0]
            command = next((COMMANDS[stage] for stage, folder in FOLDERS.items() if folder == top), "run")
            return shlex.join(("edgedistill", command, str(run)))
    return None


def read_manifest(folder: Path) -> Manifest | None:
    """The stage's manifest, None when there is none; a damaged one is an InputError."""
    path = folder / "manifest.json"
    if not path.is_file():
        return None
    return validate(Manifest, read_json(path), source=str(path))


def stage_key(*, stage: str, version: int, parameters: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    return digest_of({"stage": stage, "version": version, "parameters": parameters, "inputs": inputs})


def stage_state(
    *,
    folder: Path,
    stage: str,
    version: int,
    parameters: Mapping[str, Any],
    inputs: Mapping[str, str],
    further: int = 0,
    verify: bool = False,
) -> StageState:
    """Whether the stage's folder holds what these inputs lead to, and at least so much `further`.

    With `verify` every file is hashed again; else sizes are compared.
    """
    key = stage_key(stage=stage, version=version, parameters=parameters, inputs=inputs)
    try:
        manifest = read_manifest(folder)
    except InputError as e:
        return StageState("stale", str(e))
    if manifest is None:
        if _started_key(folder) == key:
            return StageState("partial", "begun and not finished")
        return StageState("todo", "never run" if _started_key(folder) is None else "begun with other inputs")
    if manifest.key != key:
        return StageState("stale", _what_changed(manifest, version=version, parameters=parameters, inputs=inputs))
    if damage := damaged_file(folder, manifest.files, rehash=verify):
        return StageState("stale", damage)
    if manifest.further < further:
        what = "seeds" if stage == "train" else "blocks"
        return StageState("partial", f"{manifest.further} of {further} further {what} are there")
    return StageState("done", f"{len(manifest.files)} files, {manifest.finished}")


def run_stage(
    *,
    context: StageContext,
    version: int,
    parameters: Mapping[str, Any],
    inputs: Mapping[str, str],
    body: Callable[[StageContext], None],
    further: int = 0,
) -> Manifest:
    """Run a stage's body and write its manifest last.

    What an earlier run with the same key left is kept (the body resumes from it, or adds to it where `further` asks for
    more); what another key left is removed.
    An error leaves `failed.json` with its sentence and no manifest.
    """
    folder = context.folder
    key = stage_key(stage=context.stage, version=version, parameters=parameters, inputs=inputs)
    resumes = _started_key(folder) == key and _is_short(folder, further)
    if not resumes:
        remove(folder)
    folder.mkdir(parents=True, exist_ok=True)
    clear_temporaries(folder)
    remove(folder / "failed.json")
    remove(folder / "manifest.json")
    if not resumes:
        write_json(folder / "started.json", {"key": key, "started": now()})
    began = time.monotonic()
    try:
        body(context)
    except (EdgeDistillError, OSError, MemoryError) as e:
        cause = str(e) or type(e).__name__
        with contextlib.suppress(OSError):  # a full disk must not hide the cause it made
            write_json(folder / "failed.json", {"stage": context.stage, "error": cause, "when": now()})
        raise
    files = list_files(folder, skip=NOT_OUTPUT)
    manifest = Manifest(
        stage=context.stage,
        key=key,
        further=further,
        stage_version=version,
        parameters=dict(parameters),
        inputs=dict(inputs),
        files=files,
        output_digest=content_digest(files, volatile=VOLATILE),
        seconds=round(time.monotonic() - began, 3),
        finished=now(),
        environment=environment(),
        figures=context.figures,
    )
    write_json(folder / "manifest.json", manifest.model_dump(mode="json"))
    return manifest


def _is_short(folder: Path, further: int) -> bool:
    """Whether the folder has no whole result yet, or one with less than `further` beyond what its key asks for."""
    if not (folder / "manifest.json").is_file():
        return True
    try:
        manifest = read_manifest(folder)
    except InputError:
        return False
    return manifest is not None and manifest.further < further and damaged_file(folder, manifest.files) is None


def _started_key(folder: Path) -> str | None:
    path = folder / "started.json"
    if not path.is_file():
        return None
    try:
        return str(read_json(path).get("key"))
    except (InputError, AttributeError):
        return None


def _what_changed(manifest: Manifest, *, version: int, parameters: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    if manifest.stage_version != version:
        return f"stage version {manifest.stage_version} → {version}"
    for name in sorted(inputs.keys() | manifest.inputs.keys()):
        if inputs.get(name) != manifest.inputs.get(name):
            return f"the output of {name} changed"
    before, after = _flat(manifest.parameters), _flat(dict(parameters))
    changed = [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]
    return "; ".join(f"{name}: {before.get(name)!r} → {after.get(name)!r}" for name in changed[:4])


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for name, inner in value.items() for k, v in _flat(inner, f"{prefix}.{name}".lstrip(".")).items()}
