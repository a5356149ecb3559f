"""What `bench` shows: the rows of a run's target, of a model from elsewhere, or of a llama-bench file."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from edgedistill import plan
from edgedistill.cli import entries, show
from edgedistill.cli.follow import follow
from edgedistill.cli.outputs import require_no_folders
from edgedistill.cli.progress import reporter
from edgedistill.core.config import did_you_mean, validate
from edgedistill.core.errors import InputError
from edgedistill.core.files import read_jsonl
from edgedistill.core.measurement import Measurement, Workload
from edgedistill.core.metric import METRICS, Metric
from edgedistill.core.runfolder import FOLDERS
from edgedistill.core.stats import percentile, percentile_supported

HEADER = ("model", "target", "workload", "metric", "median", "p95", "samples", "blocks")
CONFIDENCE = 0.95
ELSEWHERE = ("local-cpu",)  # where a model is measured when no target is named


def rows_of(
    reference: str | None,
    *,
    targets: tuple[str, ...],
    overrides: tuple[str, ...],
    runs_dir: Path,
    verify: bool,
    blocks: int,
    imported: Path | None,
    llama_bench_out: Path | None,
    as_json: bool,
) -> list[Measurement] | None:
    """The rows to show, measured now or before; None when a run's bench was brought up to date and nothing is asked.

    Raises:
        InputError: neither or both of a model and a file are named, what is named is not there, or the file to write is
            a folder.
        StageError: no measurement was valid.
    """
    if (reference is None) == (imported is None):
        raise InputError("expected a model, a run or a recipe to measure, or --import FILE; name one of them")
    require_no_folders({"llama-bench-out": llama_bench_out})
    if imported is not None:
        rows = entries.read_llama_bench(imported)
    elif _is_model(str(reference)):
        with reporter() as report:
            rows = entries.measure_foreign(
                Path(str(reference)), targets=targets or ELSEWHERE, blocks=blocks, report=report
            )  # fmt: skip
    else:
        shown = bool(targets or as_json or llama_bench_out)
        found = _of_run(str(reference), targets, overrides, runs_dir=runs_dir, verify=verify, quiet=shown)
        if not shown:
            return None
        rows = found
    if llama_bench_out is not None:
        entries.write_llama_bench(llama_bench_out, rows)
    return rows


def rows_json(rows: Sequence[Measurement]) -> list[dict[str, Any]]:
    return [row.model_dump(mode="json") for row in rows]


def rows_table(rows: Sequence[Measurement]) -> str:
    """Every metric of every model, workload and target: median, p95 where the samples support one; then what is not."""
    places = {name: i for i, name in enumerate(get_args(Workload))}
    in_order = lambda group: (*group[0][:2], places[group[1][0].workload], group[0])  # noqa: E731
    groups: dict[tuple[str, str, str], list[Measurement]] = {}
    for row in rows:
        groups.setdefault((row.model, row.target, _label(row)), []).append(row)
    lines, notes = [], {}
    for (model, target, workload), found in sorted(groups.items(), key=in_order):
        for row in found:
            if reason := row.not_measured or row.invalid_reason:
                notes[f"{'not measured' if row.valid else 'invalid'}: {model}, {target}, {workload}: {reason}"] = None
            notes |= {f"warning: {text}": None for text in row.settings.get("warnings", ())}
            notes |= {f"warning: {text}": None for text in row.environment.get("preflight", {}).get("warnings", ())}
        for metric in Metric:
            blocks = [row.samples[metric] for row in found if row.valid and row.samples.get(metric)]
            if blocks:
                lines.append((model, target, workload, metric.value, *_cells(metric, blocks)))
    return "\n".join([show.table(HEADER, lines), *notes])


def _label(row: Measurement) -> str:
    """The workload; of a free shape that another tool chose, its lengths too, or different ones would be one."""
    if row.workload != "shape" or "llama_bench" not in row.settings:
        return row.workload
    return f"shape ({row.settings['prefill_tokens']}, {row.settings['decode_tokens']})"


def _cells(metric: Metric, blocks: Sequence[Sequence[float]]) -> tuple[str, ...]:
    unit, samples = METRICS[metric].unit, [value for block in blocks for value in block]
    told = unit == "ms" and percentile_supported(n=len(samples), p=95, confidence=CONFIDENCE)
    return (
        show.quantity(statistics.median(statistics.median(block) for block in blocks), unit),
        show.quantity(percentile(samples, 95), unit) if told else "–",
        str(len(samples)),
        str(len(blocks)),
    )


def _is_model(reference: str) -> bool:
    """Whether it names files that are neither a recipe nor a run."""
    path = Path(reference)
    return path.exists() and path.suffix != ".toml" and not (path / plan.LOCK_FILE).is_file()


def _of_run(
    reference: str, targets: tuple[str, ...], overrides: tuple[str, ...], *, runs_dir: Path, verify: bool, quiet: bool
) -> list[Measurement]:
    run = plan.resolve(reference, overrides, runs_dir=runs_dir)
    known = run.recipe.bench.targets
    for target in targets:
        if target not in known:
            near = did_you_mean(target, known)
            raise InputError(f"expected a target of the run ({', '.join(known)}), found {target!r}{near}")
    if quiet:
        with reporter() as report:
            plan.execute(run, report, until="bench", verify=verify)
    else:
        follow(reference, overrides, runs_dir=runs_dir, verify=verify, until="bench")
    paths = [p for t in targets or known for p in sorted((run.folder / FOLDERS["bench"] / t).glob("*/*.jsonl"))]
    return [validate(Measurement, row, source=str(path)) for path in paths for row in read_jsonl(path)]
