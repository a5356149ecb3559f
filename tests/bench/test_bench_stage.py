"""The stage on a tiny run: teacher in torch, a GGUF and an ONNX artifact, measured by real workers."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from bench_cgroup import require_memory_group

from edgedistill.bench import block, rounds, runner_local, stage, torch_settings
from edgedistill.bench.derived import memory_speed
from edgedistill.bench.limits import usable_cores
from edgedistill.core.artifact import Artifact, content_digest, list_files
from edgedistill.core.errors import InputError, StageError
from edgedistill.core.files import write_json, write_jsonl
from edgedistill.core.host import host_id
from edgedistill.core.measurement import Measurement, Workload
from edgedistill.core.metric import METRICS, Metric
from edgedistill.core.recipe import Recipe
from edgedistill.core.runfolder import FOLDERS, SilentReporter, StageContext, read_manifest, run_stage
from edgedistill.core.target import Target, load_target

QUICK = {
    *(Metric.LOAD_MS, Metric.TTFT_MS, Metric.RESPONSE_MS, Metric.TPOT_MS, Metric.REQUESTS_PER_HOUR),
    *(Metric.PREFILL_TOKENS_PER_S, Metric.DECODE_TOKENS_PER_S, Metric.LOAD_PEAK_BYTES),
    *(Metric.PEAK_RSS_BYTES, Metric.PEAK_ANON_BYTES, Metric.PEAK_FILE_BYTES),
}
SPEEDS = {"prefill_tokens_per_s": [1.0], "decode_tokens_per_s": [1.0]}
MODELS = {"teacher": "torch", "gguf-f16": "llamacpp", "onnx-fp32": "onnxruntime-genai"}


class Notes(SilentReporter):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def context_of(run: Path, name: str = "bench", **bench: Any) -> StageContext:
    fields = {"targets": ["local-cpu"], "blocks": 1, "prompts_per_block": 3, "prefill_tokens": 16, "decode_tokens": 4}
    recipe = {
        "name": "tiny",
        "threads": 1,
        "task": {"max_new_tokens": 5},
        "data": {},
        "teacher": {"model": "unused"},
        "student": {"model": "unused"},
        "bench": fields | bench,
    }
    return StageContext(recipe=Recipe.model_validate(recipe), run=run, stage=name, report=Notes(), figures={})


def add_artifact(run: Path, *, name: str, source: Path, tokenizer: Path) -> None:
    folder = run / FOLDERS["export"] / name
    if source.is_dir():
        shutil.copytree(source, folder)
    else:
        folder.mkdir(parents=True)
        shutil.copy(source, folder / "model.gguf")
    for path in tokenizer.glob("*.j*"):
        if path.name != "config.json" and not (folder / path.name).exists():
            shutil.copy(path, folder / path.name)
    form = name.partition("-")[0]
    artifact = Artifact(
        variant=name, format=form, entry=f"model.{form}", parameters=1, bits_per_weight=32.0, source_digest="",
        files=list_files(folder),
    )  # fmt: skip
    write_json(folder / "artifact.json", artifact.model_dump(mode="json"))


@pytest.fixture
def tiny_run(tmp_path: Path, tiny_llama: Path, tiny_gguf: Path, tiny_onnx: Path) -> Path:
    prompts = [{"id": str(i), "messages": [{"role": "user", "content": f"turn on lamp {i}"}]} for i in range(8)]
    write_jsonl(tmp_path / FOLDERS["data"] / "prompts.jsonl", prompts)

    def take(context: StageContext) -> None:
        shutil.copytree(tiny_llama, context.folder, dirs_exist_ok=True)

    run_stage(context=context_of(tmp_path, "teacher"), version=1, parameters={}, inputs={}, body=take)
    add_artifact(tmp_path, name="gguf-f16", source=tiny_gguf, tokenizer=tiny_llama)
    add_artifact(tmp_path, name="onnx-fp32", source=tiny_onnx, tokenizer=tiny_llama)
    return tmp_path


def read(run: Path, target: str = "local-cpu") -> list[Measurement]:
    from edgedistill.core.files import read_jsonl

    paths = sorted((run / FOLDERS["bench"] / target).glob("*/*.jsonl"))
    return [Measurement.model_validate(row) for path in paths for row in read_jsonl(path)]


def test_every_model_is_measured_in_its_own_runtime(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # On a model this small noise could choose bfloat16, whose answers differ in the end.
    monkeypatch.setattr(torch_settings, "FASTER_BY", 1000)
    context = context_of(tiny_run)
    run_stage(context=context, version=1, parameters={}, inputs={}, body=stage.run)
    rows = read(tiny_run)
    assert {(row.model, row.workload, row.engine) for row in rows} == {
        (model, workload, engine) for model, engine in MODELS.items() for workload in ("prompts", "shape", "memory")
    }
    assert all(row.valid and row.evidence == "measured" and row.settings["threads"] == 1 for row in rows)
    assert {metric for row in rows for metric in row.samples} == QUICK
    assert {row.environment["host_id"] for row in rows} == {host_id()}
    state = rows[0].environment["preflight"]
    assert state["cores"] == [max(usable_cores())] and state["free_bytes"] > 0 and isinstance(state["warnings"], list)
    assert all(0 <= row.settings["steal_share"] < 1 and row.settings["backend"] == "cpu" for row in rows)
    by_name = {(row.model, row.workload): row for row in rows}
    manifest = read_manifest(tiny_run / FOLDERS["teacher"])
    assert by_name["teacher", "prompts"].artifact_digest == content_digest(manifest.files)
    # One model in three runtimes: the same prompts get the same answers, the teacher each prompt once.
    answers = [by_name[model, "prompts"].outputs for model in MODELS]
    assert [len(found) for found in answers] == [2, 3, 3]
    assert answers[0] == answers[1][:2] == answers[2][:2] and answers[1][0] == answers[1][2]
    peaks = {m: by_name[m, "memory"].samples["peak_rss_bytes"][0] for m in MODELS}
    assert max(peaks["gguf-f16"], peaks["onnx-fp32"]) < 100 * 2**20 < peaks["teacher"]
    assert context.figures["invalid_rows"] == 0 and context.figures["rows"] == 9
    assert context.figures["local-cpu"]["gguf-f16"]["response_ms"] > 0

    def refuse(*args: Any, **named: Any) -> dict[str, Any]:
        raise AssertionError("a whole round was measured again")

    monkeypatch.setattr(block, "run_block", refuse)
    stage.run(context_of(tiny_run))


def test_the_full_profile_measures_every_metric_or_says_why_not(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_memory_group()
    monkeypatch.setattr(rounds, "memory_speed", lambda cores: memory_speed(cores, total_bytes=16 << 20))
    monkeypatch.setattr(torch_settings, "COMPILE_S", 0.5)
    context = context_of(tiny_run, profile="full", blocks=1, targets=["mobile-class"], sustained_s=0.2)
    context.folder.mkdir()
    stage.run(context)
    rows = read(tiny_run, "mobile-class")
    assert [(row.model, row.workload, row.invalid_reason) for row in rows if not row.valid] == []
    assert {(row.model, row.workload) for row in rows} == {(m, w) for m in MODELS for w in get_args(Workload)}
    by_name = {(row.model, row.workload): row for row in rows}
    # Everything that this host can measure is; the counter is the only thing a host may lack.
    bench = {metric for metric, info in METRICS.items() if info.source == "bench"}
    energy = by_name["gguf-f16", "energy"]
    without = {Metric.ENERGY_PER_TOKEN_J} if energy.not_measured else set()
    assert {metric for row in rows for metric in row.samples} == bench - without
    assert energy.not_measured == (energy.environment["preflight"]["energy"] if without else None)
    assert by_name["onnx-fp32", "streams-2"].not_measured == "onnxruntime-genai answers one request at a time here"
    choices = [by_name["teacher", workload].settings["choice"] for workload in get_args(Workload)]
    assert all(choice == choices[0] for choice in choices) and choices[0]["probed_on"] == "mobile-class"
    assert choices[0]["chosen"] == f"{by_name['teacher', 'shape'].settings['dtype']}, eager"
    assert choices[0]["tried"][2]["refused"] == "the worker gave no result within 0.5 s"
    assert "choice" not in by_name["gguf-f16", "shape"].settings
    # The tiny model has room for 512 tokens: 512 + 128 is no error, and says why.
    long = by_name["gguf-f16", "shape-512-128"]
    assert long.not_measured == "the model's context of 512 tokens is shorter than the 640 of shape-512-128"
    assert long.samples == {} and not by_name["gguf-f16", "shape-64-64"].not_measured
    for model in MODELS:
        shape, share = by_name[model, "shape"], by_name[model, "bandwidth"]
        (bytes_read,) = share.samples[Metric.BYTES_READ_PER_TOKEN]
        best = max(share.settings["read_bandwidth_bytes_per_s"])
        speeds = shape.samples[Metric.DECODE_TOKENS_PER_S]
        assert share.samples[Metric.BANDWIDTH_SHARE_RATIO] == pytest.approx([bytes_read * s / best for s in speeds])
        assert by_name[model, "text"].samples[Metric.TTFT_TEXT_MS]
        assert by_name[model, "reload"].samples[Metric.WARM_LOAD_MS][0] < shape.samples.get("load_ms", [1e9])[0]
        assert by_name[model, "fits"].samples[Metric.MEM_FITS] == [1.0] or (
            by_name[model, "fits"].settings["speed_ratio"] < 0.9
        )
        assert by_name[model, "sustained"].samples[Metric.SUSTAINED_RATIO][0] > 0
        assert by_name[model, "files"].samples[Metric.DOWNLOAD_BYTES][0] > 0
    gguf = tiny_run / FOLDERS["export"] / "gguf-f16"
    shipped = sum(path.stat().st_size for path in gguf.iterdir() if path.name != "artifact.json")
    assert by_name["gguf-f16", "files"].samples[Metric.DOWNLOAD_BYTES][0] < shipped
    streams = by_name["gguf-f16", "streams-4"]
    assert streams.settings["prompts"] == 3 and len(streams.samples[Metric.RESPONSE_MS]) == 3 * 4
    assert any(note.startswith("not measured: ") for note in context.report.notes)

    def refuse(*args: Any, **named: Any) -> dict[str, Any]:
        raise AssertionError("a whole round was measured again")

    monkeypatch.setattr(block, "run_block", refuse)
    again = context_of(tiny_run, profile="full", blocks=1, targets=["mobile-class"], sustained_s=0.2)
    stage.run(again)


def test_a_failing_model_leaves_invalid_rows_and_the_sweep_goes_on(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(job: dict[str, Any], **named: Any) -> dict[str, Any]:
        good = {"samples": {"response_ms": [1.0]} | SPEEDS, "outputs": [[1]] * len(job["prompts"])}
        row = {"invalid": "it is broken"} if job["engine"] == "llamacpp" else good
        rows = [{"workload": workload} | row for workload in job["workloads"]]
        limits = {"memory_limit_missing": "no group"} if named["memory_bytes"] else {}
        return {"engine": job["engine"], "settings": limits, "rows": rows}

    monkeypatch.setattr(block, "run_block", fake)
    monkeypatch.setattr(stage, "preflight", lambda **_: {"warnings": ["the host is busy"]})
    context = context_of(tiny_run, targets=["mobile-class"])
    context.folder.mkdir()
    stage.run(context)
    assert context.figures["invalid_rows"] == 3 and context.figures["rows"] == 9
    assert context.report.notes == [
        "measuring anyway: the host is busy",
        "teacher on mobile-class runs as float32, eager: a request of 16 + 4 tokens takes 20000 ms; bfloat16, eager "
        "20000 ms",
        "mobile-class: the memory limit was not applied: no group",
        "invalid: gguf-f16 on mobile-class: it is broken",
    ]
    rows = read(tiny_run, "mobile-class")
    assert {row.evidence for row in rows} == {"constrained"}
    assert all(row.environment["preflight"]["warnings"] == ["the host is busy"] for row in rows)


def test_rounds_of_another_device_are_measured_again(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target's runner is asked, and what it says of its device is in the rows."""
    asked: list[str] = []
    closed: list[str] = []

    class Device:
        def __init__(self, name: str) -> None:
            self.environment = {"device": {"id": name}}

        def cores(self, *, threads: int) -> list[int]:
            return [0]

        def run(self, job: dict[str, Any], **_: Any) -> dict[str, Any]:
            asked.append(self.environment["device"]["id"])
            row = {"samples": {"response_ms": [1.0]} | SPEEDS, "outputs": [[1]] * len(job["prompts"])}
            rows = [{"workload": workload} | row for workload in job["workloads"]]
            return {"engine": job["engine"], "settings": {}, "rows": rows, "environment": self.environment}

    def measure(name: str) -> None:
        @contextlib.contextmanager
        def device(target: Target) -> Iterator[Device]:
            assert target.id == "local-cpu"
            yield Device(name)
            closed.append(name)

        monkeypatch.setattr(stage, "open_runner", device)
        context = context_of(tiny_run)
        context.folder.mkdir(exist_ok=True)
        stage.run(context)

    for name in ("first", "first", "second"):
        measure(name)
    # Two probes of the teacher's settings, then six blocks.
    assert asked == ["first"] * 8 + ["second"] * 8 and closed == ["first", "first", "second"]
    assert {row.environment["device"]["id"] for row in read(tiny_run)} == {"second"}
    assert {row.environment["host_id"] for row in read(tiny_run)} == {host_id()}


def test_nothing_valid_is_an_error(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(job: dict[str, Any], **_: Any) -> dict[str, Any]:
        rows = [{"workload": workload, "invalid": "no luck"} for workload in job["workloads"]]
        return {"engine": job["engine"], "settings": {}, "rows": rows}

    monkeypatch.setattr(block, "run_block", fake)
    context = context_of(tiny_run)
    context.folder.mkdir()
    with pytest.raises(StageError, match="expected measurements, found 9 invalid rows; the first: no luck"):
        stage.run(context)
    assert len(read(tiny_run)) == 9


def test_what_is_missing_is_said(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(runner_local, "usable_cores", list)
        with pytest.raises(InputError, match="target mobile-class wants 1 cores, this host lets 0 be used"):
            stage.run(context_of(tiny_run, targets=["mobile-class"]))
    (tiny_run / FOLDERS["data"] / "prompts.jsonl").unlink()
    with pytest.raises(InputError, match=r"expected data\.prompts or data\.gold to ask the models with"):
        stage.run(context_of(tiny_run))
    shutil.rmtree(tiny_run / FOLDERS["teacher"])
    with pytest.raises(StageError, match=r"expected the teacher's model in .*; run the stage teacher first"):
        stage.run(context_of(tiny_run))


def test_no_artifact_is_an_error(tiny_run: Path) -> None:
    shutil.rmtree(tiny_run / FOLDERS["export"])
    with pytest.raises(StageError, match=r"expected artifacts in .*; run the stage export first"):
        stage.run(context_of(tiny_run))


def test_a_device_that_is_not_here_is_never_measured_as_this_host(tiny_run: Path) -> None:
    with pytest.raises(InputError, match="found raspberry-pi-5 with runner 'projected'; use `edgedistill targets pro"):
        stage.run(context_of(tiny_run, targets=["raspberry-pi-5"]))


def test_a_board_with_more_cores_than_this_host_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = runner_local.LocalRunner(load_target("sbc-class"))
    monkeypatch.setattr(runner_local, "usable_cores", lambda: [0, 1])
    with pytest.raises(InputError, match="target sbc-class wants 4 cores, this host lets 2 be used"):
        runner.cores(threads=0)
    monkeypatch.setattr(runner_local, "usable_cores", lambda: [0, 1, 2, 3, 4])
    assert runner.cores(threads=0) == [1, 2, 3, 4]
