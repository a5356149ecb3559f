"""Where an artifact first parts from its model: tokens, template, end ids, embedding, a layer, head or KV cache.

Each place is judged against what the artifact's precision explains there. That is measured, not assumed: the model
itself runs with the artifact's weights (those that are the model's within rounding) and with its kernels' rounding of
activations. Whatever lies well beyond cannot come from precision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from edgedistill.core.artifact import damaged_file
from edgedistill.core.errors import InputError
from edgedistill.core.files import read_json
from edgedistill.core.host import usable_cores
from edgedistill.core.runfolder import Reporter
from edgedistill.export.parity_text import ENDS, TEMPLATE, TOKENS, compare_text
from edgedistill.export.settings import activation_failure, setting_failures
from edgedistill.export.subject import Subject, check_there, open_subject, text_reference
from edgedistill.export.tensors import NORM, Part, gguf_parts, onnx_parts
from edgedistill.export.trace import EMBEDDING as EMBEDDED
from edgedistill.export.trace import (
    FINAL_NORM,
    LOGITS,
    Trace,
    attention,
    mlp,
    trace_gguf,
    trace_hf,
    trace_onnx,
)
from edgedistill.export.twin import make_twin, most
from edgedistill.export.weigh import ROTATED, Weighed, weigh
from edgedistill.export.weights import stored_tensors
from edgedistill.quant.plan import EMBEDDING, HEAD
from edgedistill.runtimes import chat
from edgedistill.runtimes.base import decode, open_session

PROBES = 3600
TRACED_TOKENS = 64
CACHE = "KV cache"
MOST_CLAUSES = 2  # tensors told of one place
MANY = 4  # tensors that differ for no simple reason: no slip of a converter, but other weights
DRIFTED = 1.05  # times the error of plain rounding: within what an encoder may spend, but most tensors spend it
BEYOND = 1.5  # times what precision explains: two draws of the same rounding differ by less
FLOOR = 5e-3  # what kernels differ by anyhow: half-precision KV cache, fast exponentials, sums in another order


def diagnose(artifact: Path, *, against: Path, text: Path, report: Reporter, probes: int = PROBES) -> dict[str, Any]:
    """Name the places where `artifact` parts from the Hugging Face folder `against`, the first one first, as JSON.

    `text` is plain text whose beginning is traced through both; `probes` strings are tokenized.

    Raises:
        InputError: the artifact is damaged in its structure, is of another architecture's shape, or `against` is no
            Hugging Face folder.
    """
    check_there(artifact, against)
    subject, source = open_subject(artifact, rehash=False), open_subject(against)
    if subject.precision is None or source.engine != "hf":
        which = subject if subject.precision is None else source
        wanted = "an artifact (GGUF or ONNX)" if which is subject else "a Hugging Face folder"
        raise InputError(f"expected {wanted} to diagnose, found another kind of model at {which.given}")
    threads = usable_cores()
    meant = text_reference(source)
    report.note(f"reading {probes:,} strings")
    figures, differences = compare_text(folder=subject.folder, entry=subject.entry, reference=meant, probes=probes)
    causes: dict[str, list[str]] = {}
    notes = [f"{said}; what follows is of the files as they are"] if (said := _unlike_its_list(subject)) else []
    for difference in differences:
        causes.setdefault(difference.place, []).append(difference.clause)
    config = read_json(source.path / "config.json")
    report.note("weighing every tensor")
    parts, weighed = _weigh_all(subject, source, config=config)
    for place, clauses in _weight_causes(weighed).items():
        causes.setdefault(place, []).extend(clauses)
    for clause in setting_failures(subject, config=config):
        causes.setdefault(attention(0), []).append(clause)
    ids = chat.encode(meant.tokenizer, text.read_text(encoding="utf-8"))[:TRACED_TOKENS]
    report.note(f"tracing {len(ids)} tokens through both")
    own, twin, found = _traces(subject, source, parts=parts, weighed=weighed, ids=ids, threads=threads)
    stages = _stages(own, twin, found)
    stages.append(_cache_stage(subject, ids, explained=stages[-1]["explained"], threads=threads))
    findings = _findings(stages, causes, subject=subject, config=config, kind=most(parts)[0])
    return {
        "artifact": subject.given,
        "against": source.given,
        "precision": subject.precision,
        "sound": not findings,
        "first": findings[0] if findings else None,
        "findings": findings,
        "notes": notes,
        "stages": [_plain(stage) for stage in stages],
        "tensors": [_plain(vars(one)) for one in sorted(weighed, key=lambda one: -one.error)],
        "tokenizer": figures,
    }


def _unlike_its_list(subject: Subject) -> str | None:
    """The first file that is not as artifact.json lists it."""
    if subject.artifact is None:
        return None
    return damaged_file(subject.folder, subject.artifact.files, rehash=True)


def _weigh_all(subject: Subject, source: Subject, *, config: Mapping[str, Any]) -> tuple[list[Part], list[Weighed]]:
    """The artifact's weights, each held against the model's."""
    stored = stored_tensors(source.path)
    if subject.engine == "llamacpp":
        parts = list(gguf_parts(subject.path, stored=stored, config=config))
    else:
        parts = list(onnx_parts(subject.folder / subject.entry, stored=stored, config=config))
    if not parts:
        raise InputError(
            f"expected in {subject.given} the tensors of {source.given}, found none of them by name; "
            "give the model that the artifact was made from"
        )
    weighed = [weigh(part, stored=stored) for part in parts]
    if subject.engine == "llamacpp":  # its names are a standard; a graph's fused weights may go by others
        held = {part.source for part in parts} | ({HEAD} if config.get("tie_word_embeddings") else set())
        lost = sorted(name for name in stored if name.startswith(("model.", "lm_head.")) and name not in held)
        weighed += [
            Weighed(subject.entry, name, "", math.inf, 0.0, f"lacks {name}") for name in lost if "inv" not in name
        ]
    return parts, weighed


def _weight_causes(weighed: Sequence[Weighed]) -> dict[str, list[str]]:
    """A clause for each tensor beyond what its type explains, by its place; where most are, the first says so."""
    causes: dict[str, list[str]] = {}
    wrong = [one for one in weighed if not one.sound]
    for one in wrong:
        clause = f"{one.name} {one.why}"
        if math.isfinite(one.error):
            clause += f" (relative error {one.error:.2g} where {one.kind} explains {one.explained:.2g})"
        causes.setdefault(_place_of(one.source), []).append(clause)
    for place, clauses in causes.items():
        if len(clauses) > MOST_CLAUSES:
            causes[place] = [*clauses[:MOST_CLAUSES], f"{len(clauses) - MOST_CLAUSES} more tensors there differ"]
    plain = [one for one in wrong if one.why and one.why.startswith("differs from") and ROTATED not in one.why]
    # Few bits hide a small change of the weights in each tensor; where one with more bits shows it, most others hint.
    hinting = [one for one in weighed if one.sound and one.error > DRIFTED * one.explained > 0]
    rounded = [one for one in weighed if one.explained > 0]
    changed = len(plain) + (len(hinting) if plain and 2 * (len(plain) + len(hinting)) > len(rounded) else 0)
    if changed >= MANY:
        said = f"{changed} of {len(weighed)} tensors differ: the weights are of another model or state of training"
        first = min(causes, key=_order_of)
        causes[first].insert(0, said)
    return causes


def _order_of(place: str) -> tuple[int, int, int]:
    """Places of weights in the order of the model."""
    if place.startswith("layer "):
        return 1, int(place.split("'")[0][6:]), int(place.endswith("MLP"))
    return (0 if place == EMBEDDED else 2 if place == FINAL_NORM else 3), 0, 0


def _traces(
    subject: Subject,
    source: Subject,
    *,
    parts: Sequence[Part],
    weighed: Sequence[Weighed],
    ids: Sequence[int],
    threads: int,
) -> tuple[Trace, Trace, Trace]:
    """The model's own way, its way with the artifact's sound weights and rounding, and the artifact's."""
    sound = {(one.name, one.source) for one in weighed if one.sound}
    with closing(open_session("hf", source.path, threads=threads, context=len(ids))) as session:
        own = trace_hf(session.model, ids)
        chosen = [part for part in parts if (part.name, part.source) in sound]
        make_twin(session.model, chosen, parts=parts)
        twin = trace_hf(session.model, ids)
    if subject.engine == "llamacpp":
        return own, twin, trace_gguf(subject.path, ids, threads=threads)
    return own, twin, trace_onnx(subject.folder, ids, threads=threads)


def _stages(own: Trace, twin: Trace, artifact: Trace) -> list[dict[str, Any]]:
    """Error and what is explained at every place of the model; a layer that shows no middle is judged whole."""
    found = artifact.places()
    whole = frozenset(int(place.split()[1]) for place in found if place.startswith("layer ") and "'" not in place)
    rounded = twin.places(whole=whole)
    stages = []
    for place, wanted in own.places(whole=whole).items():
        if place in found and found[place].shape == wanted.shape:
            stages.append(_stage(place, _error(found[place], wanted), explained=_error(rounded[place], wanted)))
    if not stages:
        raise InputError("expected values of the model's shape in the artifact's graph, found none; give its own model")
    return stages


def _stage(place: str, error: float, *, explained: float) -> dict[str, Any]:
    parts = not error <= BEYOND * explained + FLOOR
    return {"place": place, "error": error, "explained": explained, "parts": parts}


def _error(found: np.ndarray, wanted: np.ndarray) -> float:
    """Median over positions of the difference's norm relative to what is wanted, both `[seq, width]`.

    The median, because a first token's stream may be a hundred times as long as the others'.
    """
    norms = np.linalg.norm(wanted, axis=1)
    return float(np.median(np.linalg.norm(found - wanted, axis=1) / np.maximum(norms, 1e-30)))


def _cache_stage(subject: Subject, ids: Sequence[int], *, explained: float, threads: int) -> dict[str, Any]:
    """The artifact against itself: token by token after half of the text, and in one pass."""
    half = len(ids) // 2
    with closing(open_session(subject.engine, subject.path, threads=threads, context=len(ids))) as session:
        fresh = session.logits(ids)[half:]
        cached = decode(session, ids[half:], past=ids[:half])
    return _stage(CACHE, _error(cached, fresh), explained=explained)


def _findings(
    stages: Sequence[dict[str, Any]],
    causes: Mapping[str, list[str]],
    *,
    subject: Subject,
    config: Mapping[str, Any],
    kind: str,
) -> list[dict[str, Any]]:
    """Every place that parts or has a cause to, in the order of the model, with its number and a sentence.

    Beyond the first place that parts, all that follow part, too: only those with a cause of their own are told then.
    """
    by_place = {stage["place"]: stage for stage in stages}
    order = [TOKENS, TEMPLATE, ENDS, *by_place]
    order += [place for place in causes if place not in order]
    findings: list[dict[str, Any]] = []
    parted = False
    for place in order:
        stage, why = by_place.get(place), list(causes.get(place, ()))
        parts = stage is not None and stage["parts"]
        if not why and (not parts or (parted and place != CACHE)):
            continue
        if parts and not parted and place.endswith("MLP"):
            why += filter(None, [activation_failure(subject, layer=int(place.split("'")[0][6:]), config=config)])
        said = []
        if stage is not None and (parts or not why):
            said.append(
                f"relative error {stage['error']:.2g} where its {kind} weights explain {stage['explained']:.2g}"
            )
        findings.append(
            {
                "place": place,
                "error": stage["error"] if stage else None,
                "explained": stage["explained"] if stage else None,
                "sentence": "; ".join([*said, *why]),
                "causes": why,
            }
        )
        parted = parted or parts
    return [_plain(finding) for finding in findings]


def _place_of(source: str) -> str:
    """The place of the model that a tensor works at."""
    if source in (EMBEDDING, HEAD, NORM):
        return {EMBEDDING: EMBEDDED, HEAD: LOGITS, NORM: FINAL_NORM}[source]
    layer = int(source.split(".")[2])
    before_mlp = ".mlp." in source or ("layernorm" in source and ".input_" not in source)
    return mlp(layer) if before_mlp else attention(layer)


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with None for numbers that JSON cannot hold."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }
