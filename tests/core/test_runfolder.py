"""The run folder: done, stale with what changed, partial after a kill, and never a manifest after a failure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgedistill.core.artifact import load_artifact
from edgedistill.core.errors import InputError, StageError
from edgedistill.core.files import read_json, write_json, write_text
from edgedistill.core.recipe import Recipe
from edgedistill.core.runfolder import SilentReporter, StageContext, read_manifest, run_stage, stage_state

RECIPE = Recipe.model_validate(
    {
        "name": "x",
        "data": {"generator": "home-commands"},
        "teacher": {"model": "m"},
        "student": {"cut": {"layers": [0]}},
    }
)
WANTED = {"version": 1, "parameters": {"lr": 0.1, "cut": {"layers": 8}}, "inputs": {"data": "d1"}}


def context(run: Path) -> StageContext:
    return StageContext(recipe=RECIPE, run=run, stage="train", report=SilentReporter(), figures={})


def run(folder: Path, body: Callable[[StageContext], None], **changed: object):
    return run_stage(context=context(folder), body=body, **(WANTED | changed))


def state(folder: Path, verify: bool = False, **changed: object) -> tuple[str, str]:
    found = stage_state(folder=folder / "20-train", stage="train", verify=verify, **(WANTED | changed))
    return found.state, found.why


def write_student(context: StageContext) -> None:
    write_text(context.folder / "student" / "weights", "w" * 10)
    write_text(context.folder / "metrics.jsonl", "{}\n")
    context.figures["loss"] = 0.5


def test_a_stage_is_done_when_its_manifest_stands_and_says_what_it_holds(tmp_path: Path) -> None:
    assert state(tmp_path) == ("todo", "never run")
    manifest = run(tmp_path, write_student)
    assert state(tmp_path)[0] == "done"
    assert [entry.path for entry in manifest.files] == ["metrics.jsonl", "student/weights"]
    assert manifest.figures == {"loss": 0.5}
    assert read_manifest(tmp_path / "20-train") == manifest
    assert manifest.environment["versions"]["python"]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"version": 2}, "stage version 1 → 2"),
        ({"inputs": {"data": "d2"}}, "the output of data changed"),
        ({"inputs": {"data": "d1", "synth": "s"}}, "the output of synth changed"),
        ({"parameters": {"lr": 0.2, "cut": {"layers": 8}}}, "lr: 0.1 → 0.2"),
        ({"parameters": {"lr": 0.1, "cut": {"layers": 9}}}, "cut.layers: 8 → 9"),
    ],
)
def test_a_stale_stage_says_which_input_changed(tmp_path: Path, changed: dict[str, object], why: str) -> None:
    run(tmp_path, write_student)
    assert state(tmp_path, **changed) == ("stale", why)


def test_a_damaged_file_makes_the_stage_stale(tmp_path: Path) -> None:
    run(tmp_path, write_student)
    weights = tmp_path / "20-train" / "student" / "weights"
    weights.write_text("W" * 10)
    assert state(tmp_path)[0] == "done"
    assert state(tmp_path, verify=True) == ("stale", f"{weights} does not have the SHA-256 its manifest says")
    weights.write_text("w")
    assert state(tmp_path) == ("stale", f"{weights} has 1 bytes, its manifest says 10")
    weights.unlink()
    assert state(tmp_path) == ("stale", f"{weights} is missing")
    (tmp_path / "20-train" / "manifest.json").write_text("{")
    assert state(tmp_path)[0] == "stale"


def test_a_failure_leaves_its_sentence_and_no_manifest_and_the_work_done(tmp_path: Path) -> None:
    def fail(context: StageContext) -> None:
        write_text(context.folder / "shard-0", "kept")
        raise StageError("expected a falling loss, found NaN at step 3")

    with pytest.raises(StageError):
        run(tmp_path, fail)
    folder = tmp_path / "20-train"
    assert read_json(folder / "failed.json")["error"] == "expected a falling loss, found NaN at step 3"
    assert read_manifest(folder) is None
    assert state(tmp_path) == ("partial", "begun and not finished")

    seen: list[bool] = []
    run(tmp_path, lambda c: seen.append((c.folder / "shard-0").exists()))
    assert seen == [True]
    assert not (folder / "failed.json").exists()
    assert state(tmp_path)[0] == "done"


def test_what_another_recipe_left_is_not_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, _interrupted)
    assert state(tmp_path, version=2) == ("todo", "begun with other inputs")
    seen: list[bool] = []
    run(tmp_path, lambda c: seen.append((c.folder / "shard-0").exists()), version=2)
    assert seen == [False]


def _interrupted(context: StageContext) -> None:
    write_text(context.folder / "shard-0", "half")
    (context.folder / ".weights.x.tmp").write_text("litter")
    raise KeyboardInterrupt


def test_the_litter_of_a_killed_writer_is_no_output(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, _interrupted)
    manifest = run(tmp_path, lambda context: None)
    assert [entry.path for entry in manifest.files] == ["shard-0"]
    assert not list((tmp_path / "20-train").glob(".*"))


def test_timings_do_not_count_as_output(tmp_path: Path) -> None:
    def with_metrics(text: str) -> Callable[[StageContext], None]:
        def body(context: StageContext) -> None:
            write_text(context.folder / "weights", "same")
            write_text(context.folder / "metrics.jsonl", text)

        return body

    first = run(tmp_path / "a", with_metrics("{}\n"))
    second = run(tmp_path / "b", with_metrics('{"tok_s":1}\n'))
    other = run(tmp_path / "c", write_student)
    assert first.output_digest == second.output_digest != other.output_digest


def test_an_artifact_that_changed_after_export_is_refused(tmp_path: Path) -> None:
    write_text(tmp_path / "model.gguf", "GGUF")
    artifact = {
        "variant": "gguf-q4_0",
        "format": "gguf",
        "entry": "model.gguf",
        "parameters": 1,
        "bits_per_weight": 4.5,
        "source_digest": "s",
        "files": [{"path": "model.gguf", "size": 4, "sha256": "0" * 64}],
    }
    write_json(tmp_path / "artifact.json", artifact)
    assert load_artifact(tmp_path, rehash=False).total_bytes == 4
    with pytest.raises(InputError, match="does not have the SHA-256 its manifest says; export it again"):
        load_artifact(tmp_path)
    artifact["files"] = [{"path": "../model.gguf", "size": 4, "sha256": "0" * 64}]
    write_json(tmp_path / "artifact.json", artifact)
    with pytest.raises(InputError, match="expected a path inside"):
        load_artifact(tmp_path)
