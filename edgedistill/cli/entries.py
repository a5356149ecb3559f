"""What of the benchmark and the export the command line reaches outside of a run, by entries as plans reach stages."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from edgedistill.core.measurement import Measurement
from edgedistill.core.runfolder import Reporter
from edgedistill.plan import Run


def project(target: str, **of_model: Any) -> dict[str, Any]:
    """A model's projected speed on `target` as JSON values; see the entry's docstring.

    Raises:
        InputError: the target, engine or quant has no anchor to project from.
    """
    return _entry("edgedistill.bench.target_projection:project_target")(target, **of_model)


def estimate(run: Run) -> dict[str, Any]:
    """What phase 1 would ask, use and cost; see `synth.stage`."""
    return _entry("edgedistill.synth.stage:estimate")(run.folder, run.recipe)


def sample_records(folder: Path, count: int) -> list[dict[str, Any]]:
    """A few of the teacher's records; see `synth.card`."""
    return _entry("edgedistill.synth.card:sample_records")(folder, count)


def measure_foreign(path: Path, *, targets: tuple[str, ...], blocks: int, report: Reporter) -> list[Measurement]:
    """Measure a model that no run made; see `bench.foreign`."""
    return _entry("edgedistill.bench.foreign:measure_foreign")(path, targets=targets, blocks=blocks, report=report)


def read_llama_bench(path: Path) -> list[Measurement]:
    """Rows of a llama-bench file; see `bench.llama_bench`."""
    return _entry("edgedistill.bench.llama_bench:read_llama_bench")(path)


def write_llama_bench(path: Path, rows: list[Measurement]) -> int:
    """Write rows as llama-bench does; see `bench.llama_bench`."""
    return _entry("edgedistill.bench.llama_bench:write_llama_bench")(path, rows)


def verify(artifact: Path, *, against: Path, text: Path | None, report: Reporter) -> dict[str, Any]:
    """Prove an artifact, on the text that every run is evaluated on where none is given; see `export.verify`."""
    text = text or _entry("edgedistill.evals.stage:ENGLISH")
    return _entry("edgedistill.export.verify:verify")(artifact, against=against, text=text, report=report)


def diagnose(artifact: Path, *, against: Path, report: Reporter) -> dict[str, Any]:
    """Find where an artifact parts from its model; see `export.diagnose`."""
    text = _entry("edgedistill.evals.stage:ENGLISH")
    return _entry("edgedistill.export.diagnose:diagnose")(artifact, against=against, text=text, report=report)


def quantize_model(model: str, **settings: Any) -> dict[str, Any]:
    """Write artifacts within a budget, their speed measured as runs measure it; see `export.quantize_model`."""
    speed = _entry("edgedistill.bench.decode_speed:decode_times")
    return _entry("edgedistill.export.quantize_model:quantize_model")(
        model, measure=lambda paths, threads: speed(paths, threads=threads), **settings
    )


def _entry(name: str) -> Any:
    # Named, not imported: the command line stands above the plan, and loads a stage package only where it is used.
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)
