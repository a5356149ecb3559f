"""Log-probs that an API gives by the bytes of tokens, as distributions over the student's token ids.

They teach only where the teacher's tokens are the student's: every token said must be the one that the student's
tokenizer has at this place. Of the likeliest ones those that the student does not know fall to the tail, as all tokens
do that the server does not name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgedistill.core.files import read_json
from edgedistill.runtimes.logit_cache import LogitRow, make_row

FLOOR, LEAST = -100.0, 1e-40  # log-prob of what fills a row up to k, and a probability above it: it is dropped again


def logit_row(
    logprobs: Sequence[Sequence[Sequence[Any]]],
    answer_ids: Sequence[int],
    *,
    token_ids: Mapping[str, int],
    k: int,
) -> LogitRow | None:
    """The distributions `[answer tokens, k]` of an answer whose ids end with the end token; None where tokens differ.

    `logprobs` as in `journal.Reply`. APIs tell nothing of the place where the answer ends: that it ended counts as
    certain there, as it does for an answer of text alone.
    """
    said = [token_ids.get(row[0][0], -1) for row in logprobs]
    if said != list(answer_ids[:-1]):
        return None
    ids, values = [], []
    for row in logprobs:
        known = {token_ids[token]: float(value) for token, value in row if token in token_ids}
        best = sorted(known.items(), key=lambda item: (-item[1], item[0]))[:k]
        ids.append([i for i, _ in best])
        values.append([min(0.0, value) for _, value in best])
    ids.append([answer_ids[-1]])
    values.append([0.0])
    for place, row_values in zip(ids, values, strict=True):
        fill = (i for i in range(k + len(place)) if i not in set(place))
        place += [next(fill) for _ in range(k - len(place))]
        row_values += [FLOOR] * (k - len(row_values))
    return make_row(np.array(ids), np.array(values), least=LEAST)


def token_bytes(folder: Path) -> dict[str, int]:
    """Bytes of each token of `tokenizer.json` in hex → its id; of two tokens with the same bytes neither.

    Byte-level BPE writes each byte as one printable character (Radford et al. 2019, GPT-2); SentencePiece writes a
    space as ▁ and single bytes as <0xNN>.
    """
    parsed = read_json(folder / "tokenizer.json")
    vocab = parsed["model"]["vocab"]
    pairs = list(vocab.items()) if isinstance(vocab, dict) else [(text, i) for i, (text, _) in enumerate(vocab)]
    added = {token["content"]: token["id"] for token in parsed.get("added_tokens") or []}
    of_bytes = _byte_characters() if '"ByteLevel"' in (folder / "tokenizer.json").read_text(encoding="utf-8") else None
    found: dict[str, int] = {}
    twice: set[str] = set()
    for text, identity in pairs:
        if text in added:
            continue
        key = _bytes_of(text, of_bytes).hex()
        if key in found:
            twice.add(key)
        found[key] = identity
    return {key: identity for key, identity in found.items() if key not in twice}


def _bytes_of(text: str, of_bytes: Mapping[str, int] | None) -> bytes:
    if of_bytes is not None:
        return bytes(of_bytes[c] for c in text) if all(c in of_bytes for c in text) else text.encode()
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return bytes([int(text[3:5], 16)])
    return text.replace("▁", " ").encode()


def _byte_characters() -> dict[str, int]:
    """Character → byte: printable Latin-1 stands for itself, the others follow from U+0100 on in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(others)}
