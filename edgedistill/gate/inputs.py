"""What a run left on disk, as the gate reads it: every file held against what its stage says of it."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from edgedistill.core.arms import arm_models, is_further_seed
from edgedistill.core.artifact import Manifest, content_digest, damaged_file, load_artifact
from edgedistill.core.config import validate
from edgedistill.core.errors import InputError
from edgedistill.core.files import read_json, read_jsonl
from edgedistill.core.measurement import Measurement
from edgedistill.core.records import EvalItem, Quality
from edgedistill.core.runfolder import FOLDERS, VOLATILE, read_manifest
from edgedistill.core.teacher import is_behind_api
from edgedistill.gate.rundata import ModelFacts, Role, RunData
from edgedistill.runtimes.safetensors_file import check_weights

SUMMARY = "summary.json"
# The Hugging Face folders of a run: name, stage, the folder below the stage's, and what the model is.
MODELS: tuple[tuple[str, str, str, Role], ...] = (
    ("teacher", "teacher", ".", "teacher"),
    ("untrained", "train", "untrained", "untrained"),
    ("gold", "train", "gold", "gold"),
    ("control", "train", "control", "control"),
    ("student", "train", "student", "student"),
)
FP32_BYTES = 4
ARCHITECTURE = {
    "num_hidden_layers": "layers",
    "hidden_size": "hidden",
    "intermediate_size": "FFN",
    "num_attention_heads": "heads",
    "num_key_value_heads": "KV heads",
    "vocab_size": "vocabulary",
}


def read_run(run: Path, *, host_id: str) -> RunData:
    """Everything a verdict on `run` rests on; models whose files changed are in `damaged`.

    Raises:
        InputError: a row of measurements or quality is damaged.
    """
    models: dict[str, ModelFacts] = {}
    damaged: dict[str, str] = {}
    for name, stage, below, role in (*MODELS, *_further_seeds(run / FOLDERS["train"])):
        folder = run / FOLDERS[stage]
        if not (folder / below / "config.json").is_file() or is_behind_api(folder):
            continue
        try:
            models[name] = _weights_facts(folder, below=below, role=role)
        except InputError as e:
            damaged[name] = str(e)
    for path in sorted((run / FOLDERS["export"]).glob("*/artifact.json")):
        try:
            models[path.parent.name] = _artifact_facts(path.parent)
        except InputError as e:
            damaged[path.parent.name] = str(e)
    return RunData(
        host_id=host_id,
        models=models,
        damaged=damaged,
        measurements=_measurements(run / FOLDERS["bench"]),
        items=_items(run / FOLDERS["eval"]),
        qualities=_qualities(run / FOLDERS["eval"] / SUMMARY),
    )


def read_parity(run: Path) -> dict[str, Mapping[str, Any]]:
    """Variant → the proof of equality that its artifact carries; before it, the grids of one of mixed precision."""
    found = {}
    for path in sorted((run / FOLDERS["export"]).glob("*/artifact.json")):
        artifact = read_json(path)
        proof = artifact.get("parity") or {}
        if grids := artifact.get("grids"):
            said = {"matrices on each grid": [f"{count} {grid}" for grid, count in grids.items()]}
            if artifact.get("max_bytes"):
                said["bytes they were chosen for"] = artifact["max_bytes"]
            proof = {"mixed": said, **proof}
        found[path.parent.name] = proof
    return found


def read_architectures(run: Path) -> dict[str, str]:
    """Teacher and student → what they are made of, as their config.json says it; a model without one is left out."""
    found = {}
    for name, stage, below, _ in MODELS:
        path = run / FOLDERS[stage] / below / "config.json"
        behind_api = is_behind_api(path.parent)
        if name in ("teacher", "student") and path.is_file() and not behind_api:
            config = read_json(path)
            parts = [str(config.get("model_type", "unknown kind"))]
            parts += [f"{label} {config[key]}" for key, label in ARCHITECTURE.items() if config.get(key) is not None]
            found[name] = ", ".join(parts)
    return found


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Rows of the training log; none if the run kept none."""
    path = run / FOLDERS["train"] / "metrics.jsonl"
    return read_jsonl(path) if path.is_file() else []


def read_manifests(run: Path) -> list[tuple[str, Manifest]]:
    """(folder name, manifest) of every finished stage before the gate, in order."""
    found = ((folder, read_manifest(run / folder)) for stage, folder in FOLDERS.items() if stage != "gate")
    return [(folder, manifest) for folder, manifest in found if manifest is not None]


def _further_seeds(train: Path) -> list[tuple[str, str, str, Role]]:
    """The folders of arms of further seeds, as `MODELS` has those of the first."""
    names = filter(is_further_seed, arm_models(path.parent.name for path in train.glob("*/config.json")))
    roles = {name: role for name, _, _, role in MODELS}
    return [(name, "train", name, roles[name.rpartition("-s")[0]]) for name in names]


def _weights_facts(folder: Path, *, below: str, role: Role) -> ModelFacts:
    """Facts of a Hugging Face folder; its bytes are what its weights take in fp32.

    Raises:
        InputError: its stage is not finished, or its files are not as the stage left them.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(f"{folder} has no manifest")
    if damage := damaged_file(folder, manifest.files):
        raise InputError(damage)
    parameters = sum(prod(shape) for shape in check_weights(folder / below).values())
    here = "" if below == "." else f"{below}/"
    files = tuple(entry for entry in manifest.files if entry.path.startswith(here))
    return ModelFacts(
        role=role,
        format="safetensors",
        bytes=FP32_BYTES * parameters,
        parameters=parameters,
        bits_per_weight=8.0 * FP32_BYTES,
        digest=content_digest(files, volatile=VOLATILE),
    )


def _artifact_facts(folder: Path) -> ModelFacts:
    artifact = load_artifact(folder)
    if artifact.variant != folder.name:
        raise InputError(f"{folder / 'artifact.json'} is of {artifact.variant!r}")
    return ModelFacts(
        role="quantized teacher" if artifact.variant.startswith("teacher-") else "artifact",
        format=artifact.format,
        bytes=artifact.total_bytes,
        parameters=artifact.parameters,
        bits_per_weight=artifact.bits_per_weight,
        digest=content_digest(artifact.files),
    )


def _measurements(folder: Path) -> list[Measurement]:
    rows = []
    for path in sorted(folder.glob("*/*/*.jsonl")):
        target, model = path.parts[-3:-1]
        for number, row in enumerate(read_jsonl(path), start=1):
            found = validate(Measurement, row, source=f"{path} line {number}")
            if (found.target, found.model, found.workload) != (target, model, path.stem):
                raise InputError(
                    f"{path} line {number}: expected a row of {model}, {target}, {path.stem}, found one of "
                    f"{found.model}, {found.target}, {found.workload}; run bench again"
                )
            rows.append(found)
    return rows


def _items(folder: Path) -> dict[str, list[EvalItem]]:
    return {
        path.stem: [
            validate(EvalItem, row, source=f"{path} line {number}")
            for number, row in enumerate(read_jsonl(path), start=1)
        ]
        for path in sorted(folder.glob("*.jsonl"))
    }


def _qualities(path: Path) -> dict[str, Quality]:
    if not path.is_file():
        return {}
    rows = read_json(path)
    if not isinstance(rows, dict):
        raise InputError(
            f"expected an object of model to quality in {path}, found {type(rows).__name__}; run eval again"
        )
    return {model: validate(Quality, row, source=f"{path}, {model}") for model, row in rows.items()}
