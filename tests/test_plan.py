"""The plan: what makes which stage stale, that a run resumes, and how a stage's failure is told."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgedistill import plan, stage_process, stages
from edgedistill.core import needs
from edgedistill.core.errors import InputError, MissingError, StageError
from edgedistill.core.host import host_id
from edgedistill.core.recipe import Recipe, load_recipe, shipped_recipes
from edgedistill.core.runfolder import FOLDERS, SilentReporter, StageState, read_manifest, stage_state
from edgedistill.core.target import all_targets


class Collected(SilentReporter):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.parts: list[tuple[float, float, str]] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def progress(self, done: float, total: float, unit: str, **figures: object) -> None:
        self.parts.append((done, total, unit))


# The stage's process finds the fake stages, and the package that these tests belong to.
PATHS = os.pathsep.join(map(str, (Path(__file__).parent, Path(__file__).parents[1])))


@pytest.fixture(autouse=True)
def fakes_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", PATHS)


def use(monkeypatch: pytest.MonkeyPatch, **bodies: str) -> None:
    """Give every stage a fake body: `write` but for those named."""
    fakes = {
        name: replace(stage, entry=f"fake_stages:{bodies.get(name, 'write')}") for name, stage in plan.STAGES.items()
    }
    monkeypatch.setattr(plan, "STAGES", fakes)


def quickstart(*overrides: str) -> Recipe:
    return load_recipe(shipped_recipes()["quickstart"], overrides)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> plan.Run:
    """A quickstart run whose every stage was done by a fake body."""
    run = plan.Run(quickstart(), tmp_path_factory.mktemp("runs") / "quickstart")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PATHS)
        use(patch)
        steps = plan.execute(run, SilentReporter())
    assert [step.state for step in steps] == ["ran"] * 8
    return run


def changed(run: plan.Run, recipe: Recipe) -> dict[str, str]:
    """Stages that `recipe` makes stale by itself, whatever comes before them: name → why."""
    found = {}
    for stage in plan.STAGES:
        folder = run.folder / FOLDERS[stage]
        state = stage_state(folder=folder, stage=stage, **plan.stage_arguments(replace(run, recipe=recipe), stage))
        if state.state != "done":
            found[stage] = state.why
    return found


@pytest.mark.parametrize(
    ("override", "stale"),
    [
        ('budget.size.max="1 KB"', {"gate"}),
        ("gate.confidence=0.9", {"gate"}),
        ('export.release=["gguf-q8_0"]', {"gate"}),
        ("eval.kld_items=4", {"eval"}),
        ("bench.blocks=2", {"bench"}),
        ("threads=1", {"bench"}),
        ("task.answer_schema={}", {"data", "synth"}),
        ("task.max_new_tokens=9", {"teacher", "synth", "eval", "bench"}),
        ("export.parity_texts=4", {"export"}),
        ("train.lr=1e-4", {"train"}),
        ("train.checkpoint_every_s=5", set()),
        ("train.arms.seeds=3", {"train"}),
        ("train.arms.gold=true", {"train"}),
        ("student.cut.ffn=512", {"train"}),
        ("synth.top_k=4", {"synth"}),
        ("teacher.adapt.rank=4", {"teacher"}),
        ("data.heldout=10", {"data"}),
        ('name="other"', {"export", "gate"}),
        ('train.dtype="fp32"', {"teacher", "synth", "train"}),
        ("seed=99", {"data", "teacher", "train"}),
    ],
)
def test_an_override_makes_exactly_the_stages_stale_that_depend_on_it(
    finished: plan.Run, override: str, stale: set[str]
) -> None:
    assert set(changed(finished, quickstart(override))) == stale


def test_no_stage_reads_of_the_recipe_what_the_plan_does_not_watch() -> None:
    """Sections of the recipe that a package's stage.py reads, against those that its stages' parameters are made of."""
    root = Path(plan.__file__).parent
    watched: dict[str, set[str]] = {}
    for stage in plan.STAGES.values():
        package = stage.entry.split(".")[1]
        source = inspect.getsource(stage.parameters)
        watched.setdefault(package, set()).update(re.findall(r"recipe\.(\w+)", source))
        if "_task(" in source:
            watched[package].add("task")
    for package, sections in watched.items():
        read = set(re.findall(r"recipe\.(\w+)", (root / package / "stage.py").read_text(encoding="utf-8")))
        read &= set(Recipe.model_fields)
        # How many threads work changes no result but a time; the order of variants in a table is no result.
        assert read - sections <= {"threads"} | ({"export"} if package == "bench" else set()), package


def test_further_seeds_are_added_and_what_ships_of_the_first_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, train="seeds")
    run = plan.Run(quickstart(), tmp_path / "quickstart")
    plan.execute(run, SilentReporter())
    first = (run.folder / "20-train" / "student" / "weights").read_bytes()
    more = replace(run, recipe=quickstart("train.arms.seeds=3"))
    assert changed(run, more.recipe) == {"train": "0 of 2 further seeds are there"}
    ran = [step.stage for step in plan.execute(more, SilentReporter()) if step.state == "ran"]
    assert ran == ["train", "eval", "gate"]
    assert (run.folder / "20-train" / "student" / "weights").read_bytes() == first
    assert len(list((run.folder / "20-train").glob("student*/weights"))) == 3
    assert changed(run, run.recipe) == {}  # more than asked for is enough


def test_a_student_cut_for_a_speed_hangs_on_the_host_and_its_threads() -> None:
    parameters = plan.STAGES["train"].parameters
    plain, timed = parameters(quickstart()), parameters(quickstart("student.cut.target_tokens_per_s=90", "threads=2"))
    assert "host" not in plain and "threads" not in plain
    assert (timed["host"], timed["threads"]) == (host_id(), 2)


def test_stale_says_what_changed(finished: plan.Run) -> None:
    assert changed(finished, quickstart('budget.size.max="1 KB"'))["gate"] == "budget.size.max: None → '1 KB'"


def test_what_follows_a_stale_stage_waits_for_it(finished: plan.Run) -> None:
    steps = plan.plan(replace(finished, recipe=quickstart("bench.blocks=2")))
    assert (steps[-1].stage, steps[-1].state, steps[-1].why) == ("gate", "stale", "waits for bench")


def test_another_host_or_target_makes_bench_stale(
    finished: plan.Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(stages, "host_id", lambda: "another")
    assert set(changed(finished, quickstart())) == {"bench"}
    monkeypatch.undo()
    text = all_targets()["local-cpu"].read_text(encoding="utf-8")
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "local-cpu.toml").write_text(
        text + '\n[figures.extra]\nvalue = 9\nprovenance = "derived"\n'
    )
    monkeypatch.chdir(tmp_path)
    assert set(changed(finished, quickstart())) == {"bench"}


def test_new_heldout_makes_eval_stale_and_nothing_before_it(
    finished: plan.Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch)
    run = plan.Run(quickstart(), tmp_path / "run")
    plan.execute(run, SilentReporter(), until="eval")
    run = replace(run, recipe=quickstart("data.heldout=10"))
    steps = plan.execute(run, SilentReporter(), until="eval")
    assert [s.stage for s in steps if s.state == "ran"] == ["data", "eval"]


def test_a_stage_that_comes_out_the_same_leaves_what_follows_done(finished: plan.Run) -> None:
    (finished.folder / "05-teacher" / "out.jsonl").write_text("damaged")
    with pytest.MonkeyPatch.context() as patch:
        use(patch)
        before = plan.plan(finished)
        steps = plan.execute(finished, SilentReporter())
    assert "its manifest says" in before[1].why
    assert [s.stage for s in steps if s.state == "ran"] == ["teacher"]


def test_verify_finds_a_change_that_keeps_the_size(finished: plan.Run) -> None:
    path = finished.folder / "20-train" / "out.jsonl"
    good = path.read_text()
    path.write_text("x" * len(good))
    assert plan.plan(finished)[3].state == "done"
    step = plan.plan(finished, verify=True)[3]
    path.write_text(good)
    assert step.state == "stale" and "SHA-256" in step.why


def test_until_runs_what_it_needs_and_no_more() -> None:
    assert [s.name for s in plan.needed("bench")] == ["data", "teacher", "synth", "train", "export", "bench"]
    with pytest.raises(InputError, match="did you mean 'bench'"):
        plan.needed("benhc")


def test_notes_progress_and_chatter_arrive_where_they_belong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch)
    report, told = Collected(), []
    run = plan.Run(quickstart(), tmp_path / "run")
    plan.execute(run, report, until="data", on_step=lambda step: told.append(step.state))
    assert report.notes == ["data writes"] and report.parts == [(1, 2, "halves")]
    assert told == ["todo", "running", "ran"]
    assert (run.folder / "logs" / "data.log").read_text() == "a library chatters on stdout\nand on stderr\n"


def test_what_stages_are_lent_is_there_and_loaded_when_it_is_called() -> None:
    for entry in stage_process.LENT.values():
        module, _, function = entry.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
    assert stage_process._call("fractions:Fraction", 1, denominator=2) == 0.5


def test_a_failed_stage_resumes_and_earlier_stages_stand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, teacher="fail_once")
    run = plan.Run(quickstart(), tmp_path / "run")
    with pytest.raises(MissingError, match=r"^expected a device, found none; connect one$"):
        plan.execute(run, SilentReporter(), until="teacher")
    steps = plan.plan(run, until="teacher")
    assert [(s.state) for s in steps] == ["done", "partial"]
    assert steps[1].why == "failed: expected a device, found none; connect one"
    assert [s.state for s in plan.execute(run, SilentReporter(), until="teacher")] == ["done", "ran"]
    assert (run.folder / "05-teacher" / "half.txt").read_text() == "kept"
    assert not (run.folder / "05-teacher" / "failed.json").exists()


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (
            "no_space",
            r"data failed: the disk is full, writing .*model\.gguf; free space and run again, earlier stages stand",
        ),
        ("no_space_in_rust", r"data failed: the disk is full; free space and run again, earlier stages stand"),
        ("no_memory_in_torch", r"data failed: memory ran out; free memory or lower batch_size, and run again"),
        ("no_memory", r"data failed: memory ran out; free memory or lower batch_size"),
        ("killed", r"data was killed, most likely because memory ran out"),
        ("aborted", r"data ended with SIGABRT and without a reason; what it printed is in .*data\.log"),
        ("bug", r"data failed: RuntimeError: shapes differ; the traceback is in logs/data\.log"),
    ],
)
def test_a_stage_that_breaks_gives_its_cause(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str, sentence: str
) -> None:
    use(monkeypatch, data=body)
    run = plan.Run(quickstart(), tmp_path / "run")
    with pytest.raises(StageError, match=sentence) as caught:
        plan.execute(run, SilentReporter())
    assert "\n" not in str(caught.value)
    assert not (run.folder / "00-data" / "manifest.json").exists()
    step = plan.plan(run)[0]
    assert step.state == "partial"
    assert body in ("killed", "aborted") or step.why == f"failed: {caught.value}"


def test_a_gate_without_measurements_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch)
    run = plan.Run(quickstart(), tmp_path / "run")
    plan.execute(run, SilentReporter(), until="export")
    with pytest.raises(
        InputError, match=r"gate needs .*, found: eval is todo \(never run\); bench is todo \(never run\);"
    ):
        plan.execute(run, SilentReporter(), only="gate")


def hold_and_then(monkeypatch: pytest.MonkeyPatch, folder: Path, act: Callable[[subprocess.Popen[str], int], None]):
    """Start a run that hangs in its first stage, in a process of its own; `act(process, pid of the stage)`."""
    code = (
        "import pytest, test_plan; from edgedistill import plan; from pathlib import Path\n"
        "test_plan.use(pytest.MonkeyPatch(), data='hang')\n"
        f"plan.execute(plan.Run(test_plan.quickstart(), Path({str(folder)!r})), test_plan.SilentReporter())"
    )
    process = subprocess.Popen([sys.executable, "-c", code], text=True, stderr=subprocess.PIPE)
    pid_file = folder / "00-data" / "pid.txt"
    for _ in range(200):
        if pid_file.is_file():
            break
        time.sleep(0.1)
    try:
        act(process, int(pid_file.read_text()))
    finally:
        process.kill()
        process.wait()


def is_gone(pid: int) -> bool:
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_what_is_done_needs_nothing_any_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A finished run of graded answers, on a host that could not grade them."""
    graded = 'task={kind="summarization"}'
    use(monkeypatch)
    run = plan.Run(quickstart(graded), tmp_path / "run")
    monkeypatch.setattr(needs.importlib.util, "find_spec", lambda name: "found")
    plan.execute(run, SilentReporter())
    monkeypatch.setattr(needs.importlib.util, "find_spec", lambda name: None)
    for verify in (False, True):
        assert {step.state for step in plan.execute(run, SilentReporter(), verify=verify)} == {"done"}
    stricter = replace(run, recipe=quickstart(graded, "gate.confidence=0.9"))
    assert [step.state for step in plan.execute(stricter, SilentReporter(), only="gate")] == ["ran"]
    (run.folder / FOLDERS["eval"] / "manifest.json").unlink()
    for only in (None, "gate"):
        with pytest.raises(MissingError, match="expected the package rouge_score to grade a summarization"):
            plan.execute(run, SilentReporter(), only=only)
    assert plan.execute(run, SilentReporter(), until="bench")[-1].state == "done"


def test_a_file_of_a_finished_stage_is_hashed_once(monkeypatch: pytest.MonkeyPatch, finished: plan.Run) -> None:
    hashed: list[bool] = []

    def counted(*, verify: bool, **named: Any) -> StageState:
        hashed.append(verify)
        return stage_state(verify=verify, **named)

    monkeypatch.setattr(plan, "stage_state", counted)
    plan.execute(finished, SilentReporter(), verify=True)
    assert hashed.count(True) == len(plan.STAGES)


def test_a_second_process_on_a_run_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def act(process: subprocess.Popen[str], stage: int) -> None:
        with pytest.raises(InputError, match="found another edgedistill at work on it"):
            plan.execute(plan.Run(quickstart(), tmp_path / "run"), SilentReporter())

    hold_and_then(monkeypatch, tmp_path / "run", act)


def test_a_stage_ends_with_the_run_that_was_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def act(process: subprocess.Popen[str], stage: int) -> None:
        process.send_signal(signal.SIGKILL)
        assert is_gone(stage)
        use(monkeypatch)
        assert plan.execute(plan.Run(quickstart(), tmp_path / "run"), SilentReporter(), until="data")[0].state == "ran"

    hold_and_then(monkeypatch, tmp_path / "run", act)


def test_resolve_finds_names_paths_and_run_folders(finished: plan.Run, tmp_path: Path) -> None:
    assert plan.resolve("quickstart").folder == Path("runs/quickstart")
    again = plan.resolve(str(finished.folder), ("seed=3",))
    assert again.folder == finished.folder
    assert again.recipe == quickstart("seed=3")
    with pytest.raises(InputError, match=r"did you mean 'quickstart'\?"):
        plan.resolve("quickstrat")
    with pytest.raises(InputError, match=r"found no recipe\.lock\.json in"):
        plan.resolve(str(tmp_path))


def test_a_local_model_that_changed_makes_its_stage_stale(tiny_llama: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(tiny_llama, tmp_path / "model")
    recipe = quickstart(f'teacher.model="{tmp_path / "model"}"')
    before = plan.STAGES["teacher"].parameters(recipe)
    assert plan.STAGES["teacher"].parameters(recipe) == before
    os.utime(tmp_path / "model" / "config.json", (1, 1))
    assert plan.STAGES["teacher"].parameters(recipe) != before


def test_a_named_file_that_is_absent_is_bad_input(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('name="mine"\n[data]\nprompts="no.jsonl"\n[teacher]\nmodel="m/m"\n[student]\nmodel="m/m"\n')
    with pytest.raises(
        InputError, match=r"expected a file at .*no\.jsonl, as the recipe names it, found none; put it there"
    ):
        plan.plan(plan.resolve(str(recipe), runs_dir=tmp_path))


def test_what_a_late_stage_lacks_is_said_before_the_first_begins(tmp_path: Path) -> None:
    recipe = quickstart('bench.targets=["local-cpu", "mobile-clas"]', "budget={}")
    with pytest.raises(InputError, match=r"found 'mobile-clas'; did you mean 'mobile-class'\?"):
        plan.execute(plan.Run(recipe, tmp_path / "run"), SilentReporter())
    with pytest.raises(InputError, match="did you mean 'mobile-class'"):
        plan.plan(plan.Run(recipe, tmp_path / "run"))
    projected = quickstart('bench.targets=["raspberry-pi-5"]', "budget={}")
    with pytest.raises(InputError, match="a target that can be measured, found raspberry-pi-5 with runner 'projected'"):
        plan.execute(plan.Run(projected, tmp_path / "run"), SilentReporter())
    assert not (tmp_path / "run" / "00-data").exists()


def test_a_recipe_without_a_budget_is_told_what_its_verdict_will_be(tmp_path: Path) -> None:
    steps = {budget: plan.plan(plan.Run(quickstart(*budget), tmp_path / "run"))[-1] for budget in ((), ("budget={}",))}
    assert steps[()].why.startswith("waits for") and "[budget.NAME]" not in steps[()].why
    assert steps[("budget={}",)].why.endswith("no [budget.NAME] in the recipe: nothing will be judged, exit 4")


def test_the_lock_file_gives_the_recipe_back(finished: plan.Run) -> None:
    data = json.loads((finished.folder / plan.LOCK_FILE).read_text())
    assert Recipe.model_validate(data) == quickstart()


def settling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> plan.Run:
    """A finished run whose bench makes one file a block."""
    use(monkeypatch, bench="grow")
    run = plan.Run(quickstart("bench.blocks=6", *overrides), tmp_path / "quickstart")
    plan.execute(run, SilentReporter())
    return run


def measured(run: plan.Run) -> tuple[int, int, int]:
    """Blocks there, blocks that the last run of the stage made, and how many are further ones."""
    folder = run.folder / FOLDERS["bench"]
    manifest = read_manifest(folder)
    assert manifest is not None
    return len(list(folder.glob("*.txt"))), manifest.figures["measured"], manifest.further


def test_settling_adds_blocks_look_by_look_and_measures_none_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = settling(tmp_path, monkeypatch, "gate.settle_blocks=9")
    assert measured(run) == (6, 6, 0)
    answers = iter([True, True, False])
    grown: list[int] = []
    ended = plan.settle(
        run, SilentReporter(), wanted=lambda: next(answers),
        on_run=lambda later: grown.append(later.recipe.bench.further_blocks),
    )  # fmt: skip
    assert grown == [3, 6] and measured(run) == (12, 3, 6)
    assert ended.recipe.bench.further_blocks == 6
    # Asking for fewer leaves what is there; what a kill interrupts is gone on with.
    assert {step.state for step in plan.plan(run)} == {"done"}
    assert {step.state for step in plan.plan(plan.resolve(str(run.folder)))} == {"done"}
    (run.folder / FOLDERS["bench"] / "manifest.json").unlink()
    plan.execute(ended, SilentReporter(), only="bench")
    assert measured(run) == (12, 0, 6)


def test_settling_ends_at_the_declared_maximum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = settling(tmp_path, monkeypatch, "gate.settle_blocks=2")
    plan.settle(run, SilentReporter(), wanted=lambda: True)
    assert measured(run) == (8, 1, 2)


def test_other_inputs_measure_everything_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = settling(tmp_path, monkeypatch, "gate.settle_blocks=2")
    plan.settle(run, SilentReporter(), wanted=lambda: True)
    other = replace(run, recipe=quickstart("bench.blocks=6", "gate.settle_blocks=2", "threads=1"))
    assert changed(run, other.recipe).keys() == {"bench"}
    plan.execute(other, SilentReporter(), until="bench")
    assert measured(run) == (6, 6, 0)


def test_settling_without_a_maximum_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"expected gate\.settle_blocks, the most blocks to add, found 0"):
        plan.settle(plan.Run(quickstart(), tmp_path), SilentReporter(), wanted=lambda: True)
    with pytest.raises(InputError, match=r"expected bench\.further_blocks <= gate\.settle_blocks, found 3 and 0"):
        quickstart("bench.further_blocks=3")


def test_a_waiver_that_expires_and_a_baseline_that_changes_make_the_gate_stale(
    finished: plan.Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    waiver = 'budget.size.waiver={reason="known", expires="2030-01-01"}'
    monkeypatch.setattr(stages, "now", lambda: "2029-12-31T23:00:00+00:00")
    before = plan.stage_arguments(replace(finished, recipe=quickstart(waiver)), "gate")["parameters"]
    monkeypatch.setattr(stages, "now", lambda: "2030-01-02T00:00:00+00:00")
    after = plan.stage_arguments(replace(finished, recipe=quickstart(waiver)), "gate")["parameters"]
    assert (before["expired"], after["expired"]) == ([], ["size"])
    path = tmp_path / "main.json"
    named = quickstart(f"gate.baseline={json.dumps(str(path))}")
    stored = []
    for text in (None, "{}", "[]"):
        if text:
            path.write_text(text)
        stored.append(plan.stage_arguments(replace(finished, recipe=named), "gate")["parameters"]["gate"]["baseline"])
    assert stored[0] is None and len(set(stored)) == 3


def test_memory_that_runs_out_in_training_names_the_micro_batch() -> None:
    for error in (MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")):
        said = stage_process._cause("train", error)
        assert said == "train failed: memory ran out; free memory or lower train.micro_batch_tokens, and run again"
    assert "lower train.micro_batch_tokens, and run again" in stage_process._crash("train", -9, Path("train.log"))
