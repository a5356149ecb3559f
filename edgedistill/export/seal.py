"""What makes a folder with weights an artifact: its companions, its proof of equality, and artifact.json, last."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedistill.core.artifact import Artifact, list_files
from edgedistill.core.files import write_json

if TYPE_CHECKING:
    from edgedistill.export.parity import Prediction

PROBES = 400  # strings each variant is tokenized on; the tests use thousands
ENTRIES = {"gguf": "model.gguf", "onnx": "model.onnx"}


def furnish(folder: Path, *, model: Path, form: str) -> None:
    """Put beside the weights what an artifact is not whole without: tokenizer, template, and for GGUF a Modelfile.

    Raises:
        InputError: the model's folder lacks them.
    """
    from edgedistill.export.companions import write_companions
    from edgedistill.export.modelfile import write_modelfile

    write_companions(model=model, folder=folder, entry=ENTRIES[form])
    if form == "gguf":
        write_modelfile(model=model, folder=folder, entry=ENTRIES[form])


def seal(
    folder: Path,
    *,
    variant: str,
    form: str,
    precision: str,
    model: Path,
    source_digest: str,
    predictions: Sequence[Prediction],
    weights: dict[str, Any],
    threads: int,
) -> Artifact:
    """Make `folder`, which holds its entry, whole: prove it equal to the Hugging Face folder `model` and say so.

    `precision` names the parity bounds, `predictions` are the model's own, `weights` the counts of `Artifact`.

    Raises:
        StageError: the artifact is not equal to its source.
        InputError: the model's folder lacks what an artifact carries.
    """
    from edgedistill.export.parity import check_parity

    entry = ENTRIES[form]
    furnish(folder, model=model, form=form)
    parity = check_parity(
        folder=folder,
        entry=entry,
        variant=variant,
        precision=precision,
        reference=model,
        predictions=predictions,
        probes=PROBES,
        threads=threads,
    )
    artifact = Artifact(
        variant=variant,
        format=form,
        entry=entry,
        files=list_files(folder),
        source_digest=source_digest,
        parity=parity,
        **weights,
    )
    write_json(folder / "artifact.json", artifact.model_dump(mode="json"))
    return artifact
