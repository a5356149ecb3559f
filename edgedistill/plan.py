"""The plan: which stages of a run are done or stale and why, and running those that are not done, in order."""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgedistill.core.artifact import Manifest, content_digest
from edgedistill.core.config import did_you_mean, validate_overridden
from edgedistill.core.errors import EdgeDistillError, InputError, StageError
from edgedistill.core.files import read_json, write_json
from edgedistill.core.needs import check_needs, lack_of
from edgedistill.core.recipe import Recipe, find_recipe, load_recipe
from edgedistill.core.runfolder import (
    COMMANDS,
    FOLDERS,
    LOCK_FILE,
    Reporter,
    StageState,
    read_manifest,
    stage_state,
)
from edgedistill.core.sequential import plan_looks
from edgedistill.stage_process import run_in_process
from edgedistill.stages import STAGES, Stage

RUNS = Path("runs")
SOURCE_FILE = "recipe.source.json"


@dataclass(frozen=True)
class Run:
    """A recipe, the folder its results lie in, and the TOML file it was read from (a run's folder only names it).

    `asked` are the command line's words for it.
    """

    recipe: Recipe
    folder: Path
    source: Path | None = None
    asked: tuple[str, ...] = ()

    def command(self, name: str = "run") -> str:
        """The command that runs it, in the words it was asked for: its folder need not be there yet."""
        return shlex.join(("edgedistill", name, *(self.asked or (str(self.folder),))))


@dataclass(frozen=True)
class Step:
    """A stage of a plan: its state and why; `seconds` is what it took, None when it is not done.

    A stage that cannot run, for what the recipe leaves out or the host lacks, is `blocked`, and so is what needs it;
    whoever asks for either is told the `refusal`.
    """

    stage: str
    state: str
    why: str
    folder: Path
    seconds: float | None = None
    refusal: EdgeDistillError | None = None


def resolve(reference: str, overrides: tuple[str, ...] = (), *, runs_dir: Path = RUNS) -> Run:
    """The run meant by a recipe's path, a shipped recipe's name, or the folder of an earlier run. Writes nothing.

    Raises:
        InputError: nothing of that name, or every error of the recipe.
    """
    folder = Path(reference)
    asked = (reference, *(word for one in overrides for word in ("--set", one)))
    if (folder / LOCK_FILE).is_file():
        data = read_json(folder / LOCK_FILE)
        recipe = validate_overridden(Recipe, data, overrides, source=str(folder / LOCK_FILE))
        return Run(recipe, folder, _source_of(folder), asked)
    if folder.is_dir():
        raise InputError(f"expected a run folder, found no {LOCK_FILE} in {folder}; name a recipe or a run's folder")
    path = find_recipe(reference)
    recipe = load_recipe(path, overrides)
    asked += () if runs_dir == RUNS else ("--runs-dir", str(runs_dir))
    return Run(recipe, runs_dir / recipe.name, path.resolve(), asked)


def needed(until: str | None) -> list[Stage]:
    """The stages that `until` needs, itself last; every stage for None.

    Raises:
        InputError: no such stage.
    """
    if until is None:
        return list(STAGES.values())
    if until not in STAGES:
        raise InputError(f"expected a stage, found {until!r}{did_you_mean(until, STAGES)}")
    wanted = {until}
    for stage in reversed(STAGES.values()):
        if stage.name in wanted:
            wanted |= stage.sources
    return [stage for stage in STAGES.values() if stage.name in wanted]


def plan(run: Run, *, until: str | None = None, verify: bool = False) -> list[Step]:
    """What is done, what is not and what cannot be, and why; a stage whose inputs are not done yet waits for them.

    Raises:
        InputError: a file or target that the recipe names is absent.
    """
    steps: list[Step] = []
    for stage in needed(until):
        done = {step.stage for step in steps if step.state == "done"}
        step = _step(run, stage, done=done, verify=verify)
        steps.append(step if step.state == "done" else _unless_blocked(run, stage, step, before=steps))
    return steps


def check(run: Run, steps: Sequence[Step]) -> None:
    """Hold the recipe against what every step that is not done will ask of it, so that none fails for that late.

    Raises:
        InputError: a split or model that a stage works on is not named, or not there.
    """
    for step in steps:
        if step.state != "done":
            check_needs(run.recipe, step.stage)


def execute(
    run: Run,
    report: Reporter,
    *,
    until: str | None = None,
    only: str | None = None,
    verify: bool = False,
    on_step: Callable[[Step], None] = lambda step: None,
    launch: str | None = None,
) -> list[Step]:
    """Run what is not done, in order, each stage in a process of its own; `on_step` is told before and after.

    A stage that runs is told with the state `running`, and again with `ran`. `launch` is how many processes train, or
    an accelerate configuration.

    Raises:
        InputError: another process works on this run, the recipe lacks what a stage that is not done works on, or
            `only` names a stage whose inputs are not done.
        MissingError: a stage that is not done needs a package that is not installed.
        StageError: a stage failed.
    """
    stages = [STAGES[only]] if only else needed(until)
    before = plan(run, until=only or until, verify=verify)
    held = before[-1:] if only else before
    check(run, held)  # what a late stage lacks is said before the first one begins
    for step in held:
        if step.refusal:
            raise step.refusal
    if only:
        _require_inputs(run, only, before[:-1])
    hashed = {step.stage for step in before if step.state == "done"}
    with _locked(run.folder) as lock:
        write_json(run.folder / LOCK_FILE, run.recipe.model_dump(mode="json"))
        if run.source:
            write_json(run.folder / SOURCE_FILE, {"path": str(run.source)})
        steps: list[Step] = []
        done = set(STAGES) if only else set[str]()
        for stage in stages:
            step = _step(run, stage, done=done, verify=verify and stage.name not in hashed)
            on_step(step)
            if step.state != "done":
                on_step(replace(step, state="running"))
                step = _run_step(run, stage, step, report=report, lock=lock, launch=launch)
                on_step(step)
            steps.append(step)
            done.add(stage.name)
        return steps


def settle(
    run: Run, report: Reporter, *, wanted: Callable[[], bool], on_run: Callable[[Run], None] = lambda run: None
) -> Run:
    """Judge, and while `wanted()` says so measure the blocks up to the next look and judge again; the run as it ends.

    Blocks that are there stay; the looks are those that `gate.settle_blocks` declares (`core.sequential`).

    Raises:
        InputError: the recipe declares no further blocks, or what comes before the gate is not done.
        StageError: a stage failed.
    """
    recipe = run.recipe
    if not recipe.gate.settle_blocks:
        raise InputError("expected gate.settle_blocks, the most blocks to add, found 0; set it in the recipe's [gate]")
    looks = plan_looks(blocks=recipe.bench.blocks, further=recipe.gate.settle_blocks, confidence=recipe.gate.confidence)
    execute(run, report, only="gate")
    for further in (look.blocks - recipe.bench.blocks for look in looks[1:]):
        if not wanted():
            break
        run = replace(run, recipe=_with_further(recipe, further))
        on_run(run)
        for stage in ("bench", "gate"):
            execute(run, report, only=stage)
    return run


def _with_further(recipe: Recipe, blocks: int) -> Recipe:
    bench = recipe.bench.model_copy(update={"further_blocks": max(blocks, recipe.bench.further_blocks)})
    return recipe.model_copy(update={"bench": bench})


def stage_arguments(run: Run, name: str) -> dict[str, Any]:
    """Version, parameters, input digests and what is further of a stage, as `run_stage` and `stage_state` take them."""
    stage, recipe = STAGES[name], run.recipe
    return {
        "further": {"bench": recipe.bench.further_blocks, "train": recipe.train.arms.seeds - 1}.get(name, 0),
        "version": stage.version,
        "parameters": stage.parameters(recipe),
        "inputs": {source: _digest(run.folder, source) for source in stage.inputs},
    }


def _entry(name: str) -> Callable[..., Any]:
    """A function of a stage's package by `module:function`; imported only when it is used."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def _step(run: Run, stage: Stage, *, done: set[str], verify: bool) -> Step:
    folder = run.folder / FOLDERS[stage.name]
    waits = sorted(stage.sources - done, key=list(STAGES).index)
    if waits:
        stage.parameters(run.recipe)  # what is absent is said though nothing depends on it yet
        state = "stale" if (folder / "manifest.json").is_file() else "todo"
        return Step(stage.name, state, f"waits for {', '.join(waits)}", folder)
    found: StageState = stage_state(folder=folder, stage=stage.name, verify=verify, **stage_arguments(run, stage.name))
    seconds = manifest.seconds if found.state == "done" and (manifest := read_manifest(folder)) else None
    why = (_failure(folder) if found.state == "partial" else None) or found.why
    return Step(stage.name, found.state, why, folder, seconds)


def _unless_blocked(run: Run, stage: Stage, step: Step, *, before: Sequence[Step]) -> Step:
    """The step, blocked where its stage lacks something, or needs one of those `before` that is blocked."""
    if lack := lack_of(run.recipe, stage.name):
        refusal = type(lack)(f"{lack}, or run only {_lesser_commands(run)}")
        return replace(step, state="blocked", why=str(refusal), refusal=refusal)
    blocked = [one for one in before if one.refusal and one.stage in stage.sources]
    if blocked:
        why = f"needs {', '.join(one.stage for one in blocked)}"
        return replace(step, state="blocked", why=why, refusal=blocked[0].refusal)
    if stage.name == "gate" and not run.recipe.budget and step.state != "done":
        return replace(step, why=f"{step.why}; no [budget.NAME] in the recipe: nothing will be judged, exit 4")
    return step


def _lesser_commands(run: Run) -> str:
    """What can be run of a recipe that lacks something: the command that does most, then the names of the others."""
    own = [stage for stage, command in COMMANDS.items() if command == stage]
    able = [name for name in own if not any(lack_of(run.recipe, stage.name) for stage in needed(name))]
    others = f" (or {', '.join(able[-2::-1])})" if able[1:] else ""
    return f"`{run.command(able[-1])}`{others}"


def _run_step(run: Run, stage: Stage, step: Step, *, report: Reporter, lock: int, launch: str | None = None) -> Step:
    began = time.monotonic()
    run_in_process(
        run=run.folder, recipe=run.recipe, stage=stage.name, entry=stage.entry, report=report, lock=lock,
        launch=launch, **stage_arguments(run, stage.name),
    )  # fmt: skip
    return replace(step, state="ran", seconds=round(time.monotonic() - began, 1))


def _require_inputs(run: Run, name: str, before: Sequence[Step]) -> None:
    undone = [step for step in before if step.state != "done"]
    if undone:
        told = [step for step in undone if not step.why.startswith("waits for")]
        found = "; ".join(f"{step.stage} is {step.state} ({step.why})" for step in told)
        raise InputError(f"{name} needs what comes before it done, found: {found}; run `{run.command()}` first")


def _source_of(folder: Path) -> Path | None:
    path = folder / SOURCE_FILE
    return Path(read_json(path)["path"]) if path.is_file() else None


def _failure(folder: Path) -> str | None:
    path = folder / "failed.json"
    return f"failed: {read_json(path)['error']}" if path.is_file() else None


def _digest(run: Path, source: str) -> str:
    name, _, file = source.partition("/")
    manifest: Manifest | None = read_manifest(run / FOLDERS[name])
    if manifest is None:
        raise StageError(f"expected {name} to be done in {run}, found no manifest; run `edgedistill run {run}`")
    if not file:
        return manifest.output_digest
    if file.endswith("/"):
        return content_digest(tuple(entry for entry in manifest.files if entry.path.startswith(file)))
    # A split that the recipe does not name is no file, and no change of the others.
    return next((entry.sha256 for entry in manifest.files if entry.path == file), "absent")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Hold the run's lock; stage processes inherit it, so an orphan of a killed run keeps it until it is gone."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as f:
        for attempt in range(31):
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == 30:
                    raise InputError(
                        f"expected {folder} free, found another edgedistill at work on it; wait for it or stop it"
                    ) from None
                time.sleep(0.1)
        yield f.fileno()
