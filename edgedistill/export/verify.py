"""The proof of a finished artifact against a model, or against another artifact of the same release.

The files first; then how text is read and ended; then what is predicted on real text, however the engine is fed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from edgedistill.core import stats
from edgedistill.core.errors import InputError
from edgedistill.core.files import read_jsonl
from edgedistill.core.host import usable_cores
from edgedistill.core.runfolder import Reporter
from edgedistill.export.onnx_run import padded_logits
from edgedistill.export.parity import BOUNDS, EIGHT_BIT, Bounds, beyond
from edgedistill.export.parity_text import ENDS, TEMPLATE, TOKENS, TextReference, compare_text
from edgedistill.export.subject import Subject, check_there, file_failures, open_subject, text_reference
from edgedistill.export.tally import Tally
from edgedistill.runtimes import chat
from edgedistill.runtimes.base import Session, decode, open_session

PROBES = 3600  # strings to draw; those that an engine is known not to follow are left out, and 3,000 stay
TOKENS_OF_TEXT = (32, 128)  # least and most; between them, so that a short file still makes `FEW_TEXTS`
FEW_TEXTS, MOST_TEXTS = 12, 64  # an interval over fewer texts says little; more cost minutes
CACHED_TEXTS, CACHED_TOKENS = 8, 48  # token by token is slow
PIECES = 4  # lengths of what is fed at once after a past of one token
BATCH = (48, 36, 24, 12)  # lengths of the sequences in a batch
CONFIDENCE = 0.95


def verify(artifact: Path, *, against: Path, text: Path, report: Reporter, probes: int = PROBES) -> dict[str, Any]:
    """Hold `artifact` against the model (or other artifact) `against`; every check with its figures, as JSON values.

    Both may be a GGUF file, an ONNX folder of onnxruntime-genai, or an artifact's folder; `against` a Hugging Face
    folder, too. `text` is plain text, or JSONL with `text`, or `messages` and `answer`, in each line; `probes` strings
    are tokenized.

    Raises:
        InputError: one of them is not what it should be, or damaged: nothing of it has been loaded by an engine then.
    """
    check_there(artifact, against)
    _check_text(text)
    subject, source = open_subject(artifact), open_subject(against)
    if subject.precision is None:
        raise InputError(f"expected an artifact (GGUF or ONNX) to verify, found the Hugging Face folder {artifact}")
    bounds = bounds_between(subject, source)
    threads = usable_cores()
    checks = [_check("files", file_failures(subject), found=_hashes(subject))]
    report.note(f"{checks[0]['name']} looked at; reading {probes:,} strings")
    meant = text_reference(source)
    figures, differences = compare_text(folder=subject.folder, entry=subject.entry, reference=meant, probes=probes)
    said = {
        TOKENS: f"{figures['strings']:,} strings by {figures['engine']}",
        TEMPLATE: "rendered in the sandbox" if figures["chat_template"] else "none on either side",
        ENDS: f"ids {figures['end_ids']}",
    }
    checks += [_check(place, [d.clause for d in differences if d.place == place], found=said[place]) for place in said]
    texts = read_texts(text, reference=meant)
    report.note(f"predicting {sum(map(len, texts)):,} tokens of {text}")
    ways, limits = _ways(subject, source, texts=texts, threads=threads, report=report)
    likeness = {way: _figures(tallies) for way, tallies in ways.items()}
    for way, tallies in ways.items():
        checks.append(_check(way, _beyond(tallies, bounds=bounds, way=way), found=_sentence(likeness[way])))
    return {
        "artifact": subject.given,
        "against": source.given,
        "precision": subject.precision,
        "bounds": vars(bounds),
        "text": str(text),
        "holds": all(check["holds"] for check in checks),
        "checks": checks,
        "tokenizer": figures,
        "likeness": likeness,
        "limits": [*figures["limits"], *limits],
    }


def bounds_between(subject: Subject, source: Subject) -> Bounds:
    """An artifact's bounds against its model; between two of one precision those of eight bits, as activations are."""
    mine, theirs = BOUNDS[str(subject.precision)], BOUNDS.get(str(source.precision))
    if theirs is None:
        return mine
    coarser = max(mine, theirs, key=lambda bounds: bounds.max_kld_nats)
    return min(coarser, EIGHT_BIT, key=lambda b: b.max_kld_nats) if mine == theirs else coarser


def _check_text(path: Path) -> None:
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise InputError(f"expected a text or JSONL file at {path}, found {found} there; name a file")


def read_texts(path: Path, *, reference: TextReference) -> list[list[int]]:
    """Token ids of up to `MOST_TEXTS` texts evenly from a file, begun as the tokenizer begins text.

    Raises:
        InputError: the file is absent, a line is none of the known, or there is no text of two tokens.
    """
    _check_text(path)
    tokenizer = reference.tokenizer
    least, most = TOKENS_OF_TEXT
    if path.suffix == ".jsonl":
        rows = [_row_ids(row, reference=reference, place=f"{path}:{n}") for n, row in enumerate(read_jsonl(path), 1)]
        texts = [ids[:most] for ids in rows]
    else:
        try:
            ids = chat.encode(tokenizer, path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            raise InputError(f"expected UTF-8 text in {path}, found other bytes; convert it first") from None
        width = min(most, max(least, len(ids) // FEW_TEXTS))
        lead = list(tokenizer("")["input_ids"])[:1] if tokenizer("")["input_ids"] else []
        texts = [[*lead, *ids[at : at + width]] for at in range(0, len(ids), width)]
    texts = [ids for ids in texts if len(ids) > 1]
    if not texts:
        raise InputError(f"expected text of at least two tokens in {path}, found none")
    return texts[:: -(-len(texts) // MOST_TEXTS)]


def _row_ids(row: Any, *, reference: TextReference, place: str) -> list[int]:
    tokenizer = reference.tokenizer
    if isinstance(row, dict) and isinstance(row.get("text"), str):
        return list(tokenizer(row["text"])["input_ids"])
    try:
        shown = chat.rendered(tokenizer, row["messages"], template=chat.template_of(tokenizer))
        return chat.encode(tokenizer, shown + row["answer"])
    except (TypeError, KeyError):
        found = json.dumps(row, ensure_ascii=False)[:60]
        raise InputError(f"{place}: expected 'text', or 'messages' and 'answer', found {found}") from None


def _ways(
    subject: Subject, source: Subject, *, texts: list[list[int]], threads: int, report: Reporter
) -> tuple[dict[str, list[Tally]], tuple[str, ...]]:
    """A tally of each text by the way that the artifact was fed, and what its engine cannot be fed."""
    context = max(*map(len, texts), max(BATCH))
    ways: dict[str, list[Tally]] = {}
    few = texts[:: -(-len(texts) // CACHED_TEXTS)]
    batch = [ids[:length] for ids, length in zip(sorted(texts, key=len, reverse=True), BATCH, strict=False)]
    with (
        closing(open_session(source.engine, source.path, threads=threads, context=context)) as model,
        closing(open_session(subject.engine, subject.path, threads=threads, context=context)) as artifact,
    ):
        if model.vocab != artifact.vocab:
            raise InputError(
                f"expected logits for the {model.vocab} tokens of {source.given}, found {artifact.vocab} in "
                f"{subject.given}; give the model that the artifact was made from"
            )
        ways["fresh"] = []
        for number, ids in enumerate(texts):
            report.progress(number, len(texts), "texts")
            tally = Tally()
            tally.add(model.logits(ids), artifact.logits(ids), following=ids[1:])
            ways["fresh"].append(tally)
        for ids in few:
            cut = ids[:CACHED_TOKENS]
            wanted = model.logits(cut)
            for name, (places, rows) in _cached(artifact, cut).items():
                tally = Tally()
                tally.add(wanted[places], rows)
                ways.setdefault(name, []).append(tally)
        together, limits = _batched(subject, artifact, batch, threads=threads)
        for name, parts in together.items():
            ways[name] = []
            for ids, rows in zip(batch, parts, strict=True):
                tally = Tally()
                tally.add(model.logits(ids), rows)
                ways[name].append(tally)
    return ways, limits


def _cached(artifact: Session, ids: Sequence[int]) -> dict[str, tuple[list[int], np.ndarray]]:
    """By what the KV cache held first: the places of the rows, and the logits there.

    From nothing and from half of the text it goes token by token; from one token, a piece of several at once.
    """
    half, after_one = len(ids) // 2, []
    ends = sorted({max(2, len(ids) * part // PIECES) for part in range(1, PIECES + 1)})
    for end in ends:
        artifact.reset()
        artifact.feed(ids[:1])
        after_one.append(artifact.feed(ids[1:end]))
    return {
        "KV cache, past 0": ([*range(len(ids))], decode(artifact, ids)),
        "KV cache, past 1": ([end - 1 for end in ends], np.stack(after_one)),
        "KV cache, past N": ([*range(half, len(ids))], decode(artifact, ids[half:], past=ids[:half])),
    }


def _batched(
    subject: Subject, artifact: Any, batch: list[list[int]], *, threads: int
) -> tuple[dict[str, list[np.ndarray]], tuple[str, ...]]:
    if subject.engine == "llamacpp":
        return {f"batch of {len(batch)}": artifact.batch_logits(batch)}, ()
    found, refused = padded_logits(subject.folder, batch, threads=threads)
    limits = tuple(f"the graph takes no position_ids, so its batches cannot be padded on the {s}" for s in refused)
    return {f"batch of {len(batch)}, padded {side}": rows for side, rows in found.items()}, limits


def _beyond(tallies: list[Tally], *, bounds: Bounds, way: str) -> list[str]:
    total = Tally()
    for tally in tallies:
        total.merge(tally)
    return beyond(total.divergence(), bounds=bounds, way=f"({way})")


def _figures(tallies: list[Tally]) -> dict[str, Any]:
    """Each figure with its interval at `CONFIDENCE`, bootstrapped over texts, and its counts."""
    total = Tally()
    for tally in tallies:
        total.merge(tally)
    positions = [tally.positions for tally in tallies]
    found: dict[str, Any] = {
        "texts": len(tallies),
        "positions": total.positions,
        "kld_nats": _interval([tally.kld for tally in tallies], positions),
        "top1_ratio": _interval([tally.equal for tally in tallies], positions),
        "sure_positions": total.sure,
        "sure_top1_ratio": total.divergence().sure_top1_ratio,
    }
    if total.scored:
        scored = [tally.scored for tally in tallies]
        change = [tally.nll - tally.student_nll for tally in tallies]
        found["perplexity"] = _interval([tally.nll for tally in tallies], scored, transform=_exp)
        found["model_perplexity"] = _interval([tally.student_nll for tally in tallies], scored, transform=_exp)
        found["perplexity_ratio"] = _interval(change, scored, transform=_exp)
    return found


def _interval(
    over: Sequence[float], under: Sequence[float], *, transform: Callable[[float], float] = float
) -> dict[str, float | None]:
    """`[low, high]` and estimate of a weighted mean; None where it is no number, which JSON cannot hold."""
    if not all(map(math.isfinite, over)):
        return {"estimate": None, "low": None, "high": None}
    found = stats.ratio_of_sums_interval(over, under, confidence=CONFIDENCE, seed=0)
    return {name: transform(value) for name, value in vars(found).items()}


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))  # beyond, a float is infinite, which JSON cannot hold


def _sentence(found: dict[str, Any]) -> str:
    kld, top1 = found["kld_nats"], found["top1_ratio"]
    if kld["estimate"] is None:
        return f"logits are not numbers at {found['positions']:,} positions"
    said = f"KLD {kld['estimate']:.2g} [{kld['low']:.2g}, {kld['high']:.2g}]"
    said += f", top-1 {top1['estimate']:.1%} [{top1['low']:.1%}, {top1['high']:.1%}]"
    if ratio := found.get("perplexity_ratio"):
        said += f", perplexity {found['perplexity']['estimate']:.4g}"
        said += f" = {ratio['estimate']:.4f}x [{ratio['low']:.4f}, {ratio['high']:.4f}]"
    return f"{said}, {found['positions']:,} positions"


def _hashes(subject: Subject) -> str:
    if subject.artifact is None:
        return "whole, nothing outside, nothing twice; no artifact.json to hold hashes against"
    return f"{len(subject.artifact.files)} files as hashed, nothing outside, nothing twice"


def _check(name: str, failures: list[str], *, found: str) -> dict[str, Any]:
    return {"name": name, "holds": not failures, "found": found if not failures else "; ".join(failures)}
