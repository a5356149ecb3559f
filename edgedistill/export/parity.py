"""The proof an artifact carries: it reads, ends and predicts text as the float32 student does, within its precision."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgedistill.core.errors import StageError
from edgedistill.export.parity_text import check_text
from edgedistill.export.tally import Divergence, Tally
from edgedistill.runtimes.base import decode, open_session

MAX_TOKENS = 96  # of one text: enough for a chat turn, and little enough for every variant of every run


@dataclass(frozen=True)
class Bounds:
    """What a sound artifact keeps: mean KL divergence to the student in nats, top-1 agreement where it is sure."""

    max_kld_nats: float
    min_sure_top1_ratio: float


# Bounds tell broken from sound, not good from better: budgets do that. Measured on a sound 135M model: half precision
# 5e-6 nats, eight bits 0.005, four bits 0.41; top-1 where the model is sure 100 %, 100 %, 85 %. (Over all positions
# even half precision loses 1 % to ties.) Four bits of an untrained model 64 wide still keep 45 %. A wrong rotation, a
# lost tensor or a shifted vocabulary costs nats and nearly all agreement.
EXACT, EIGHT_BIT, FOUR_BIT = Bounds(1e-3, 0.99), Bounds(0.05, 0.95), Bounds(1.0, 0.25)
SIX_BIT, THREE_BIT = Bounds(0.15, 0.9), Bounds(2.0, 0.15)
BOUNDS = {
    **dict.fromkeys(("f16", "fp32"), EXACT),
    **dict.fromkeys(("q8_0", "int8"), EIGHT_BIT),
    **dict.fromkeys(("q6_k", "q5_k_m"), SIX_BIT),
    **dict.fromkeys(("q4_0", "int4", "q4_k_m", "iq4_xs", "iq4_nl", "mixed"), FOUR_BIT),
    **dict.fromkeys(("q3_k_m", "iq3_m"), THREE_BIT),
}


@dataclass(frozen=True)
class Prediction:
    """A held-in text's ids and the float32 student's logits at each, `[len(ids), vocab]`."""

    ids: list[int]
    logits: np.ndarray


def check_parity(
    *,
    folder: Path,
    entry: str,
    variant: str,
    precision: str,
    reference: Path,
    predictions: Sequence[Prediction],
    probes: int,
    threads: int,
) -> dict[str, Any]:
    """Prove the artifact `folder/entry` equal to the Hugging Face folder `reference`; the figures go to artifact.json.

    `predictions` are the reference's own. The artifact predicts the same ids in one pass ("fresh"), and with the first
    half as prompt and the rest token by token through the KV cache ("cached"). `precision` names the bounds.

    Raises:
        StageError: tokens, template or ends differ, or the logits lie beyond the precision's bounds.
    """
    bounds = BOUNDS[precision]
    text_figures, failures = check_text(folder=folder, entry=entry, reference=reference, probes=probes)
    fresh, cached = compare_logits(folder=folder, entry=entry, predictions=predictions, threads=threads)
    for way, found in (("in one pass", fresh), ("through the KV cache", cached)):
        failures += beyond(found, bounds=bounds, way=way)
    if failures:
        raise StageError(f"{variant} is not equal to its source in {reference}: {'; '.join(failures)}")
    return {
        "text": text_figures,
        "fresh": _figures(fresh),
        "cached": _figures(cached),
        "bounds": vars(bounds),
    }


def beyond(found: Divergence, *, bounds: Bounds, way: str) -> list[str]:
    """A clause for each bound that the divergence, measured in some `way`, does not keep; NaN keeps none."""
    failures = []
    if not found.kld_nats <= bounds.max_kld_nats:
        failures.append(f"KLD to the student {way} is {found.kld_nats:.4g} nats, over {bounds.max_kld_nats:g}")
    if found.sure_top1_ratio is not None and found.sure_top1_ratio < bounds.min_sure_top1_ratio:
        failures.append(
            f"top-1 agreement {way} where the student is sure is {found.sure_top1_ratio:.1%}, "
            f"under {bounds.min_sure_top1_ratio:.0%}"
        )
    return failures


def predict(*, model: Path, texts: Sequence[Sequence[int]], threads: int) -> list[Prediction]:
    """What the Hugging Face folder `model` predicts in float32 over `texts`, each cut to `MAX_TOKENS`.

    Raises:
        StageError: there is no text of two tokens.
    """
    cuts = [list(ids[:MAX_TOKENS]) for ids in texts if len(ids) > 1]
    if not cuts:
        raise StageError("expected held-in texts of at least two tokens to compare logits on, found none")
    with closing(open_session("hf", model, threads=threads, context=MAX_TOKENS, dtype="float32")) as session:
        return [Prediction(ids, session.logits(ids)) for ids in cuts]


def compare_logits(
    *, folder: Path, entry: str, predictions: Sequence[Prediction], threads: int
) -> tuple[Divergence, Divergence]:
    """Divergence of the artifact from the student's predictions: in one pass, and through the KV cache.

    Raises:
        StageError: the two have another vocabulary.
    """
    engine, path = ("llamacpp", folder / entry) if entry.endswith(".gguf") else ("onnx", folder)
    fresh, cached = Tally(), Tally()
    with closing(open_session(engine, path, threads=threads, context=MAX_TOKENS)) as artifact:
        for ids, wanted in ((p.ids, p.logits) for p in predictions):
            if wanted.shape[1] != artifact.vocab:
                raise StageError(f"{path} has logits for {artifact.vocab} tokens, its source for {wanted.shape[1]}")
            half = len(ids) // 2
            fresh.add(wanted, artifact.logits(ids))
            cached.add(wanted[half:], decode(artifact, ids[half:], past=ids[:half]))
    return fresh.divergence(), cached.divergence()


def _figures(found: Divergence) -> dict[str, Any]:
    # Four digits: what another number of threads changes in a sum's last bits shall not change artifact.json.
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in vars(found).items()}
