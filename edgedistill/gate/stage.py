"""The stage `gate`: measurements and budgets → verdict, its reports, and the release if it passed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgedistill.core.arms import ArmsTable
from edgedistill.core.artifact import Manifest, list_files, load_artifact
from edgedistill.core.budget import Verdict
from edgedistill.core.errors import InputError
from edgedistill.core.files import atomic_folder, digest_of, sha256_file, write_json, write_text
from edgedistill.core.host import host_id, now
from edgedistill.core.runfolder import StageContext
from edgedistill.core.sequential import plan_looks
from edgedistill.gate.baseline import make_baseline, read_baseline
from edgedistill.gate.check import judge
from edgedistill.gate.compare import compare
from edgedistill.gate.inputs import read_architectures, read_manifests, read_metrics, read_parity, read_run
from edgedistill.gate.suggest import suggest
from edgedistill.gate.written import junit, markdown

RELEASE = "release"
COUNTS = (("data", "gold"), ("data", "valid"), ("data", "heldout"), ("data", "prompts"), ("synth", "asked"),
          ("synth", "kept"), ("synth", "rejected"), ("synth", "answer_tokens"), ("train", "trained_on"),
          ("train", "validated_on"))  # fmt: skip


def run(context: StageContext) -> None:
    """Write the verdict as JSON, Markdown, JUnit and HTML, the comparison, and `release/` if the verdict is pass.

    Besides: `suggested.toml`, budgets that this run would keep, and `baseline.json`, for a later one to compare with.

    A verdict that is no pass is a result of this stage, not a failure of it.

    Raises:
        InputError: a file of measurements or quality is damaged, or a baseline is named that no budget would miss and
            that is none.
    """
    from edgedistill.gate.report import render_report

    recipe, folder = context.recipe, context.folder
    release = recipe.export.release
    data = replace(read_run(context.run, host_id=host_id()), previous=read_baseline(recipe.gate.baseline))
    if recipe.gate.baseline and not any(budget.against == "previous" for budget in recipe.budget.values()):
        if isinstance(data.previous, str):
            raise InputError(f"expected a baseline to compare with, found none: {data.previous}")
        context.report.note('no budget has against = "previous": nothing is compared with the baseline')
    manifests = read_manifests(context.run)
    budgets = {name: budget.model_dump(mode="json") for name, budget in recipe.budget.items()}
    inputs = {"budgets": digest_of(budgets)} | {m.stage: m.output_digest for _, m in manifests}
    if recipe.gate.baseline and Path(recipe.gate.baseline).is_file():
        inputs["baseline"] = sha256_file(Path(recipe.gate.baseline))
    looks = ()
    if recipe.gate.settle_blocks:
        looks = plan_looks(
            blocks=recipe.bench.blocks, further=recipe.gate.settle_blocks, confidence=recipe.gate.confidence
        )
    verdict = judge(
        run=recipe.name,
        budgets=recipe.budget,
        release=release,
        data=data,
        confidence=recipe.gate.confidence,
        inputs=inputs,
        looks=looks,
        today=now()[:10],
    )
    comparison = compare(
        run=recipe.name, data=data, release=release, targets=recipe.bench.targets, confidence=recipe.gate.confidence
    )
    report = render_report(
        verdict=verdict,
        comparison=comparison,
        metrics=read_metrics(context.run),
        parity=read_parity(context.run),
        manifests=manifests,
        counts=_counts(manifests),
        looks=looks,
        architecture=read_architectures(context.run),
    )
    if verdict.outcome == "pass":
        # What no budget judged has not passed, whatever the recipe would ship.
        judged = [variant for variant in release if any(check.artifact == variant for check in verdict.checks)]
        write_release(
            [context.folder_of("export") / variant for variant in judged], out=folder / RELEASE, verdict=verdict
        )
        for variant in sorted(set(release) - set(judged)):
            context.report.note(f"{variant} is not released: no budget applies to it")
    write_json(folder / "verdict.json", verdict.model_dump(mode="json"))
    arms = comparison["arms"]
    write_text(folder / "verdict.md", markdown(verdict, ArmsTable.model_validate(arms) if arms else None))
    write_text(folder / "junit.xml", junit(verdict))
    write_json(folder / "comparison.json", comparison)
    write_text(folder / "report.html", report)
    proposed = suggest(
        data, release=release, targets=recipe.bench.targets, confidence=recipe.gate.confidence, looks=looks
    )
    write_text(folder / "suggested.toml", proposed)
    judged_models = {*release, "teacher", *(name for b in recipe.budget.values() for name in (*b.artifacts, b.against))}
    baseline = make_baseline(
        data,
        run=recipe.name,
        measured=next((m.finished for _, m in manifests if m.stage == "bench"), ""),
        inputs=inputs,
        models=judged_models,
        rows=comparison["rows"],
    )
    write_json(folder / "baseline.json", baseline)
    passed = sum(check.outcome == "pass" for check in verdict.checks)
    context.figures.update({"outcome": verdict.outcome, "checks": len(verdict.checks), "passed": passed})
    for check in verdict.checks:
        if check.outcome != "pass":
            context.report.note(f"{check.outcome}: {check.reason}")
    context.report.note(f"verdict: {verdict.outcome}, {passed} of {len(verdict.checks)} checks pass")


def write_release(folders: Sequence[Path], *, out: Path, verdict: Verdict) -> None:
    """Put whole artifact folders into `out` with a manifest of every file's size and SHA-256; all of it or nothing.

    Raises:
        InputError: a file is not as it was exported.
    """
    with atomic_folder(out) as temporary:
        artifacts = {}
        for folder in folders:
            artifact = load_artifact(folder)
            for name in ("artifact.json", *(entry.path for entry in artifact.files)):
                _link(folder / name, temporary / folder.name / name)
            artifacts[folder.name] = {
                "format": artifact.format,
                "entry": artifact.entry,
                "bytes": artifact.total_bytes,
                "parameters": artifact.parameters,
                "bits_per_weight": artifact.bits_per_weight,
            }
        files = [entry.model_dump(mode="json") for entry in list_files(temporary)]
        manifest = {
            "schema_version": 1,
            "run": verdict.run,
            "outcome": verdict.outcome,
            "inputs": verdict.inputs,
            "waived": [check.reason for check in verdict.checks if check.waived],
            "artifacts": artifacts,
            "files": files,
        }
        write_json(temporary / "manifest.json", manifest)


def _link(source: Path, target: Path) -> None:
    """A hard link, or a copy where the file system has none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _counts(manifests: Sequence[tuple[str, Manifest]]) -> list[tuple[str, Any, str]]:
    """(what, how many, which file says so) for the figures of the data that the stages noted."""
    by_stage = {manifest.stage: (folder, manifest.figures) for folder, manifest in manifests}
    found = []
    for stage, name in COUNTS:
        folder, figures = by_stage.get(stage, ("", {}))
        value = figures.get(name)
        if isinstance(value, dict):
            value = ", ".join(f"{number} {reason}" for reason, number in value.items()) or "none"
        if value is not None:
            found.append((f"{stage}: {name.replace('_', ' ')}", value, f"{folder}/manifest.json"))
    return found
