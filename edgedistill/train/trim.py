"""A smaller vocabulary for a BPE model: fewer tokens, the same text, and the same tokens wherever they are all kept.

A token is only kept together with the tokens its merges go through, in the tokenizer's own order of merges. So a text
whose tokens are all kept is tokenized as before, and any other text falls back to smaller pieces, down to bytes.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

from edgedistill.core.errors import InputError, StageError
from edgedistill.core.files import canonical_json, read_json, write_json, write_text

ROLES = ("bos_token", "eos_token", "pad_token", "sep_token", "cls_token", "mask_token")
SPACES = ("\u0120", "\u2581")  # how byte-level and SentencePiece vocabularies write a space
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def read_tokenizer(folder: Path) -> dict[str, Any]:
    """Parse `tokenizer.json`, with merges as pairs.

    Raises:
        InputError: it is absent, or no BPE without affixes.
    """
    path = folder / "tokenizer.json"
    parsed = read_json(path)
    model = parsed.get("model", {})
    if model.get("type") != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise InputError(
            f"trimming a vocabulary needs a plain BPE tokenizer, found {model.get('type')} in {path}; "
            "leave student.cut.vocab out"
        )
    model["merges"] = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    return parsed


def count_tokens(tokenizer: Any, texts: Iterable[str]) -> Counter[int]:
    """How often each token id occurs in `texts`."""
    counts: Counter[int] = Counter()
    for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]:
        counts.update(ids)
    return counts


def protected_tokens(folder: Path, parsed: Mapping[str, Any], *, template: str) -> set[str]:
    """Texts of special tokens that the template, the settings, the post-processor or the end of generation use."""
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    texts = {_content(settings.get(role)) for role in ROLES} | {parsed["model"].get("unk_token")}
    texts |= {token["content"] for token in parsed.get("added_tokens") or [] if token["content"] in template}
    used = canonical_json(parsed.get("post_processor"))
    texts |= {token["content"] for token in parsed.get("added_tokens") or [] if json.dumps(token["content"]) in used}
    names = {identity: text for text, identity in token_ids(parsed).items()}
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            ends = read_json(folder / name).get("eos_token_id")
            texts |= {names.get(i) for i in (ends if isinstance(ends, list) else [ends])}
    return {text for text in texts if text}


def token_ids(parsed: Mapping[str, Any]) -> dict[str, int]:
    """Id of every token, those of the model and the added ones."""
    return parsed["model"]["vocab"] | {t["content"]: t["id"] for t in parsed.get("added_tokens") or []}


def choose_tokens(
    parsed: Mapping[str, Any],
    *,
    size: int,
    task: Mapping[int, int],
    english: Mapping[int, int],
    protected: Iterable[str],
) -> np.ndarray:
    """Ids to keep, ascending `[size]`.

    First the special tokens in use, the byte alphabet and every token of `task`; then the most frequent of `english`;
    then those merged earliest. Each comes with the tokens its merges go through. But for `english`, which shows what it
    needs, each comes with its twin too, the same letters with or without a space before them: copying a word from a
    sentence into quotes then takes one step, not spelling.

    Raises:
        InputError: `size` is no multiple of 32.
        StageError: `size` is too small for the task, or the vocabulary is too small for `size`.
    """
    if size % 32:
        raise InputError(f"expected student.cut.vocab to be a multiple of 32, found {size}")
    vocab = parsed["model"]["vocab"]
    ids = token_ids(parsed)
    added = {t["id"] for t in parsed.get("added_tokens") or []}
    ranks = {pair: rank for rank, pair in reversed(list(enumerate(parsed["model"]["merges"])))}
    parts = _Parts(vocab, ranks)
    kept = {ids[text] for text in protected}
    kept |= {vocab[text] for text in (*ByteLevel.alphabet(), *BYTES) if text in vocab}
    for token in task:
        kept |= parts.of(token)
    if len(kept) > size:
        need = -(-len(kept) // 32) * 32
        raise StageError(
            f"the task's texts need {len(kept)} tokens, found student.cut.vocab = {size}; raise it to at least {need}"
        )
    by_count = sorted(english, key=lambda token: (-english[token], token))
    by_rank = [vocab[a + b] for a, b in ranks_in_order(ranks) if a + b in vocab]
    twins = _twins(vocab)
    used = sorted((token for token in task if token in twins), key=lambda token: (-task[token], token))
    copied = (parts.of(t) | parts.of(twins[t]) for t in used)
    frequent = (parts.of(t) for t in by_count if t not in added)
    pairs = (parts.of(t) | parts.of(twins[t]) if t in twins else parts.of(t) for t in by_rank)
    alone = (parts.of(t) for t in by_rank)  # for what has no room for two
    for wanted in itertools.chain(copied, frequent, pairs, alone):
        if len(kept) == size:
            break
        if len(kept) + len(wanted - kept) <= size:
            kept |= wanted
    if len(kept) < size:
        raise StageError(
            f"the tokenizer has only {len(kept)} tokens to keep, found student.cut.vocab = {size}; lower it to at most "
            f"{len(kept) // 32 * 32}, or leave it out"
        )
    return np.array(sorted(kept))


def _twins(vocab: Mapping[str, int]) -> dict[int, int]:
    """For each token that differs from another in nothing but a space before it, that other."""
    mark = next((m for m in SPACES if m in vocab), None)
    if mark is None:
        return {}
    pairs = [(vocab[text], vocab[mark + text]) for text in vocab if mark + text in vocab]
    return {a: b for pair in pairs for a, b in (pair, pair[::-1])}


def ranks_in_order(ranks: Mapping[tuple[str, str], int]) -> list[tuple[str, str]]:
    return sorted(ranks, key=ranks.__getitem__)


def trim_tokenizer(parsed: Mapping[str, Any], keep: np.ndarray) -> dict[str, Any]:
    """The parsed tokenizer with the kept tokens alone, renumbered in their old order."""
    new = {int(old): position for position, old in enumerate(keep)}
    model = parsed["model"]
    vocab = {text: new[old] for text, old in sorted(model["vocab"].items(), key=lambda item: item[1]) if old in new}
    merges = [[a, b] for a, b in model["merges"] if a in vocab and b in vocab and a + b in vocab]
    unknown = model.get("unk_token")
    added = [t | {"id": new[t["id"]]} for t in parsed.get("added_tokens") or [] if t["id"] in new]
    return {
        **parsed,
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "post_processor": _renumber(parsed.get("post_processor"), {old: new[old] for old in new}),
        "model": {**model, "vocab": vocab, "merges": merges, "unk_token": unknown if unknown in vocab else None},
    }


def id_map(keep: np.ndarray, *, size: int) -> np.ndarray:
    """New id of each of `size` old ids, -1 for those not kept."""
    new = np.full(size, -1)
    new[keep] = np.arange(len(keep))
    return new


def trim_embeddings(model: Any, keep: np.ndarray) -> None:
    """Keep these rows of the model's input and output embeddings, in place, and renumber its configured ids."""
    import torch

    new = {int(old): position for position, old in enumerate(keep)}
    rows = torch.from_numpy(keep)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    embedding.weight = torch.nn.Parameter(embedding.weight.detach()[rows].clone())
    embedding.num_embeddings = len(keep)
    embedding.padding_idx = new.get(embedding.padding_idx)
    if head is not None:
        head.weight = embedding.weight if tied else torch.nn.Parameter(head.weight.detach()[rows].clone())
        head.out_features = len(keep)
        if getattr(head, "bias", None) is not None:
            head.bias = torch.nn.Parameter(head.bias.detach()[rows].clone())
    model.config.vocab_size = model.vocab_size = len(keep)
    for config in (model.config, model.generation_config):
        for name, value in config.to_dict().items():
            if name.endswith("token_id") and value is not None:
                found = [new[i] for i in (value if isinstance(value, list) else [value]) if i in new]
                setattr(config, name, found if isinstance(value, list) else found[0] if found else None)


def save_tokenizer(parsed: Mapping[str, Any], *, source: Path, folder: Path, template: str) -> None:
    """Write the trimmed tokenizer with the settings of `source` that still hold, and the chat template."""
    kept = token_ids(parsed)
    write_text(folder / "tokenizer.json", json.dumps(parsed, ensure_ascii=False, separators=(",", ":")))
    settings = read_json(source / "tokenizer_config.json") if (source / "tokenizer_config.json").is_file() else {}
    settings.pop("added_tokens_decoder", None)  # tokenizer.json says the same
    settings.pop("chat_template", None)
    for name, value in list(settings.items()):
        if name.endswith("_token") and value is not None and _content(value) not in kept:
            del settings[name]
        elif name in ("additional_special_tokens", "extra_special_tokens") and isinstance(value, list):
            settings[name] = [token for token in value if _content(token) in kept]
    write_json(folder / "tokenizer_config.json", settings)
    write_text(folder / "chat_template.jinja", template)


class _Parts:
    """For a token, itself and every token that merging its characters goes through."""

    def __init__(self, vocab: Mapping[str, int], ranks: Mapping[tuple[str, str], int]) -> None:
        self.vocab, self.ranks = vocab, ranks
        self.texts = {identity: text for text, identity in vocab.items()}

    def of(self, token: int) -> set[int]:
        text = self.texts.get(token)
        if text is None:  # an added token, which no merge makes
            return {token}
        symbols: Sequence[str] = list(text)
        found = {token} | {self.vocab[s] for s in symbols if s in self.vocab}
        while len(symbols) > 1:
            best = min(itertools.pairwise(symbols), key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            merged: list[str] = []
            for symbol in symbols:
                if merged and (merged[-1], symbol) == best:
                    merged[-1] += symbol
                else:
                    merged.append(symbol)
            symbols = merged
            found.add(self.vocab["".join(best)])
        return found


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _renumber(processor: Any, new: Mapping[int, int]) -> Any:
    """Token ids inside a post-processor: `"ids": […]`, and the `[text, id]` pairs of BERT and RoBERTa."""
    if isinstance(processor, list):
        if len(processor) == 2 and isinstance(processor[0], str) and isinstance(processor[1], int):
            return [processor[0], new[processor[1]]]
        return [_renumber(inner, new) for inner in processor]
    if isinstance(processor, dict):
        return {
            name: [new[i] for i in inner] if name == "ids" else _renumber(inner, new)
            for name, inner in processor.items()
        }
    return processor
