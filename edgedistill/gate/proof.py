"""The proof of equality that artifacts carry, as a table for a reader: one column a variant, one row a figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgedistill.gate.words import number, quantity

NONE = "–"
BOUNDS = "bounds"  # what every finished export keeps
WAYS = {"fresh": "in one pass", "cached": "token by token through the KV cache"}
TEXT = {
    "engine": "engine",
    "strings": "strings tokenized by engine and student",
    "engine_differing": "of them tokenized otherwise by the engine",
    "tokenizer_differing": "of them tokenized otherwise by the tokenizer.json beside it",
    "decoding_differing": "of them decoded otherwise by the engine",
    "limits": "known limits of the engine's tokenizer",
    "chat_template": "chat template, rendered alike",
    "end_ids": "token ids that end an answer",
    "end_ids_beyond_student": "of them known to the engine only",
}
LOGITS = {
    "kld_nats": "KL divergence from the student",
    "top1_ratio": "same top token as the student",
    "positions": "positions compared",
    "sure_top1_ratio": "same top token where the student is sure",
    "sure_positions": "positions where the student is sure",
}


def proof_table(proofs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """`variants`, and `rows` of (figure, one cell a variant); a figure that is not known here keeps its own name."""
    flat = {variant: _figures(proof) for variant, proof in proofs.items()}
    names = list(dict.fromkeys(name for cells in flat.values() for name in cells))
    return {
        "variants": list(flat),
        "rows": [(name, [cells.get(name, NONE) for cells in flat.values()]) for name in names],
    }


def _figures(proof: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for part, values in proof.items():
        if part == BOUNDS:
            continue
        if not isinstance(values, Mapping):
            values = {part: values}
        known = {name: label for name, label in (TEXT if part == "text" else LOGITS).items() if name in values}
        for name in [*known, *(name for name in values if name not in known)]:
            label = known.get(name, name.replace("_", " "))
            found[f"{label}, {WAYS[part]}" if part in WAYS else label] = _shown(name, values[name])
    return found


def _shown(name: str, value: Any) -> str:
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        unit = {"ratio": "ratio", "nats": "nats"}.get(name.rpartition("_")[2])
        return quantity(value, unit) if unit else number(value)
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
