"""Any Hugging Face folder into artifacts within a budget: precision by tensor, chosen on calibration text."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgedistill.core.artifact import Artifact, content_digest, list_files
from edgedistill.core.errors import InputError
from edgedistill.core.files import atomic_folder, read_json, read_jsonl
from edgedistill.core.host import usable_cores
from edgedistill.core.runfolder import NOT_OUTPUT, Reporter
from edgedistill.core.stats import Interval
from edgedistill.export.imatrix import chunks_of
from edgedistill.export.mixed import Text, choose_codes, divergence, divided, write_artifact
from edgedistill.export.pace import Measure
from edgedistill.export.parity import predict
from edgedistill.export.precision import Choice
from edgedistill.export.seal import seal
from edgedistill.export.weights import check_finite
from edgedistill.runtimes.chat import encode, load_tokenizer
from edgedistill.runtimes.sources import resolve_model

FORMATS = ("gguf", "onnx")


def quantize_model(
    model: str,
    *,
    max_bytes: int | None = None,
    min_tokens_per_s: float | None = None,
    measure: Measure | None = None,
    calibration: Path,
    out: Path,
    formats: Sequence[str] = FORMATS,
    threads: int = 0,
    report: Reporter,
) -> dict[str, Any]:
    """Write `out/gguf-mixed` and `out/onnx-mixed` from one code set, within a budget of bytes, of speed, or of both.

    `max_bytes` are those of all that ships, for each.

    `model` is any reference to a Hugging Face folder, `calibration` a text file, or JSONL with a `text` or `prompt` in
    each line. Candidates are measured on a part of the text that no code was chosen on. Returned: by variant its bytes,
    bits per weight, grids and KL divergence with its interval.

    With `min_tokens_per_s`, for one format, each candidate's speed is measured by `measure` too (see `pace`), and what
    is returned has it.

    Raises:
        InputError: there is no budget, one that cannot be kept, or one of speed for two formats; the text is too short,
            a format unknown, or `out` not empty.
        StageError: a conversion failed, or an artifact is not equal to the model.
    """
    if not formats or set(formats) - set(FORMATS):
        raise InputError(f"expected formats of {', '.join(FORMATS)}, found {', '.join(formats) or 'none'}")
    if max_bytes is None and min_tokens_per_s is None:
        raise InputError(
            "expected --max-bytes, --min-tokens-per-s or both, found neither; say what the model must keep"
        )
    if min_tokens_per_s is not None and len(formats) > 1:
        raise InputError(
            "expected one format with --min-tokens-per-s, found two, whose engines differ in speed; quantize for each"
        )
    if not calibration.is_file():
        raise InputError(f"expected calibration text at {calibration}, found no such file; name one")
    work = out / ".work.tmp"
    if work.exists():
        raise InputError(
            f"expected an empty folder at {out}, found {work.name} in it, of a call that runs or was killed; wait for "
            "it or delete that"
        )
    if out.exists() and any(out.iterdir()):
        raise InputError(f"expected an empty folder at {out}, found files in it; name another or empty it")
    threads = threads or usable_cores()
    folder = resolve_model(model).folder
    check_finite(folder)
    text = _text(folder, calibration)
    work.mkdir(parents=True)
    try:
        chosen = choose_codes(
            folder,
            text,
            formats=formats,
            max_bytes=max_bytes,
            min_tokens_per_s=min_tokens_per_s,
            measure=measure,
            dataset=calibration.name,
            work=work,
            threads=threads,
            report=report,
        )
        digest = content_digest(list_files(folder, skip=NOT_OUTPUT))
        predictions = predict(model=folder, texts=text.measured, threads=threads)
        found = {}
        for form in formats:
            with atomic_folder(out / f"{form}-mixed") as made:
                weights = write_artifact(
                    folder, made, form=form, codes=chosen.codes, graph=chosen.graph, threads=threads
                )
                artifact = seal(
                    made,
                    variant=f"{form}-mixed",
                    form=form,
                    precision="mixed",
                    model=folder,
                    source_digest=digest,
                    predictions=predictions,
                    weights=weights | {"grids": dict(chosen.choice.counts), "max_bytes": max_bytes},
                    threads=threads,
                )
            kld = divergence(out / f"{form}-mixed", form, text.measured, chosen.wanted, threads=threads)
            found[artifact.variant] = _figures(artifact, chosen.choice, kld)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return found


def _text(folder: Path, path: Path) -> Text:
    if path.suffix == ".jsonl":
        rows = [row.get("text", row.get("prompt")) for row in read_jsonl(path)]
        if not all(isinstance(row, str) for row in rows):
            raise InputError(f"expected a text or prompt in each line of {path}, found a line without; name one so")
        text = "\n".join(rows)
    else:
        text = path.read_text(encoding="utf-8")
    context = read_json(folder / "config.json").get("max_position_embeddings", 512)
    chunks = chunks_of(encode(load_tokenizer(folder), text), size=min(512, context))
    if len(chunks) < 2:
        raise InputError(
            f"expected calibration text of at least {2 * min(512, context)} tokens in {path}, found less; give more, "
            "such as 50,000 words of what the model will read"
        )
    return divided(chunks)


def _figures(artifact: Artifact, choice: Choice, kld: Interval) -> dict[str, Any]:
    ns = choice.best.ns
    return {
        "bytes": artifact.total_bytes,
        "bits_per_weight": artifact.bits_per_weight,
        "fallback_tensors": artifact.fallback_tensors,
        "grids": dict(choice.counts),
        "kld_nats": float(f"{kld.estimate:.4g}"),
        "kld_low": float(f"{kld.low:.4g}"),
        "kld_high": float(f"{kld.high:.4g}"),
        "top1_ratio": artifact.parity["fresh"]["top1_ratio"],
        "candidates": choice.measured,
        **({"tokens_per_s": float(f"{1e9 / ns:.4g}")} if ns else {}),
    }
