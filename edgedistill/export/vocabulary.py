"""A Hugging Face tokenizer as the token arrays, special ids and flags that a GGUF file carries."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from edgedistill.core.errors import InputError, shortened
from edgedistill.core.files import read_json, read_json_object
from edgedistill.export.pretokenizer import PreTokenizer, identify
from edgedistill.runtimes.chat import end_ids, refused_as
from edgedistill.runtimes.template import check_template
from edgedistill.runtimes.tokenizer_file import check_tokenizer

# Token types of the GGUF specification.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
ROLES = ("bos", "eos", "unk", "sep", "pad", "mask")
# What llama.cpp's converter gives pieces that text never becomes.
ADDED_SCORE, UNUSED_SCORE = -1000.0, -10000.0
# Classes that read tokenizer.json as it stands; every other class rebuilds parts of the pipeline in its own way.
PLAIN_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast", "PreTrainedTokenizer")
# Texts that llama.cpp takes for an end of generation, whatever the metadata say.
# fmt: off
ENDS_BY_TEXT = frozenset((
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[", "<|fim_pad|>",
    "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>",
    "<|file_sep|>",
))
# fmt: on


@dataclass(frozen=True)
class Vocabulary:
    """What GGUF says about a tokenizer.

    `tokens`, `types` (and `scores` of a SentencePiece model) have one entry per row of the embedding; `ids` maps a role
    (bos, eos, eot, …) to its token; `limits` tells where llama.cpp cannot follow the tokenizer.
    """

    kind: PreTokenizer
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...] | None
    merges: tuple[str, ...] | None
    ids: dict[str, int]
    add_bos: bool
    add_eos: bool
    chat_template: str | None

    @property
    def limits(self) -> tuple[str, ...]:
        return self.kind.limits


def read_vocabulary(*, model: Path, rows: int) -> Vocabulary:
    """Read the tokenizer of a Hugging Face folder for an embedding of `rows` rows; ids without a token become `[PADi]`.

    Raises:
        InputError: there is no tokenizer.json, its pipeline is none llama.cpp knows, a token lies beyond the embedding
            or stands twice, or the end-of-generation ids cannot be expressed.
    """
    place = model / "tokenizer_config.json"
    settings = read_json_object(place) if place.is_file() else {}
    tokenizer = load_tokenizer(model, settings=settings)
    parsed = json.loads(tokenizer.to_str())
    source = str(model / "tokenizer.json")
    kind = identify(parsed, source=source)
    pieces: dict[str, int] = parsed["model"]["vocab"]
    added = parsed.get("added_tokens") or []
    tokens, types = _token_arrays(pieces=pieces, added=added, rows=rows, source=source)
    if kind.model == "llama":
        unknown = parsed["model"].get("unk_token")
        types = [_sentencepiece_type(token, given=t, unknown=unknown) for token, t in zip(tokens, types, strict=True)]
    pairs: list[tuple[str, str]] = [tuple(pair) for pair in parsed["model"]["merges"]]
    add_bos, add_eos = _added_ends(tokenizer)
    return Vocabulary(
        kind=kind,
        tokens=tuple(tokens),
        types=tuple(types),
        scores=_scores(
            pairs, pieces=pieces, added={entry["content"] for entry in added}, tokens=tokens, types=types, source=source
        )
        if kind.model == "llama"
        else None,
        merges=tuple(" ".join(pair) for pair in pairs) if kind.model == "gpt2" else None,
        ids=_special_ids(model=model, settings=settings, tokens=tokens),
        add_bos=add_bos,
        add_eos=add_eos,
        chat_template=read_chat_template(model=model, settings=settings),
    )


def load_tokenizer(model: Path, *, settings: dict[str, Any]) -> Tokenizer:
    """The tokenizer as transformers runs it: tokenizer.json itself, or what the named class makes of it.

    Raises:
        InputError: no tokenizer.json, or it cannot be parsed.
    """
    path = model / "tokenizer.json"
    if not path.is_file():
        raise InputError(
            f"expected a tokenizer at {path}, found nothing there; load the model's tokenizer with AutoTokenizer and "
            f"save it into the folder"
        )
    damaged = f"{path} is not a tokenizer that can be read, restore it and run again"
    check_tokenizer(path)
    with refused_as(damaged):
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.encode("a")  # what its parts say of one another is found by running alone
    if settings.get("tokenizer_class") in PLAIN_CLASSES:
        return tokenizer
    from transformers import AutoTokenizer

    with refused_as(damaged):
        return AutoTokenizer.from_pretrained(model, local_files_only=True, trust_remote_code=False).backend_tokenizer


def read_chat_template(*, model: Path, settings: dict[str, Any]) -> str | None:
    """The default chat template: chat_template.jinja, else the one inside tokenizer_config.json.

    Raises:
        InputError: it is no text, or not safe to render.
    """
    path = model / "chat_template.jinja"
    found = settings.get("chat_template")
    if path.is_file():
        try:
            found = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{path}: expected a chat template in UTF-8, found other bytes; restore it") from None
    else:
        path = model / "tokenizer_config.json"
    if isinstance(found, list):
        named = [entry for entry in found if isinstance(entry, dict) and entry.get("name") == "default"]
        found = named[0].get("template") if named else None
    if found is not None and not isinstance(found, str):
        raise InputError(f"{path}: expected a chat template as text, found {type(found).__name__}; restore it")
    if found is not None:
        check_template(found, source=str(path))
    return found


def _token_arrays(
    *, pieces: dict[str, int], added: list[dict[str, Any]], rows: int, source: str
) -> tuple[list[str], list[int]]:
    tokens: list[str | None] = [None] * rows
    types = [UNUSED] * rows
    extra = {entry["id"]: entry for entry in added}
    for token, identity in {**pieces, **{entry["content"]: entry["id"] for entry in added}}.items():
        if identity >= rows:
            raise InputError(
                f"{source}: expected token ids below {rows}, the rows of the embedding, found "
                f"{shortened(repr(token), most=60)} at {identity}"
            )
        tokens[identity] = token
        types[identity] = NORMAL
    for identity, entry in extra.items():
        special = entry["special"] or _looks_special(entry["content"])
        # user-defined tokens are looked for in the text as it is written, where a space is a space
        tokens[identity] = entry["content"] if special else entry["content"].replace("▁", " ")
        types[identity] = CONTROL if special else USER_DEFINED
    named = [f"[PAD{i}]" if token is None else token for i, token in enumerate(tokens)]
    if len(set(named)) != rows or "" in named:
        twice = sorted({token for token in named if named.count(token) > 1 or not token})[:3]
        raise InputError(
            f"{source}: expected every token once and none empty, found {twice}; llama.cpp would abort on it"
        )
    return named, types


def _looks_special(token: str) -> bool:
    """Whether llama.cpp's converter takes an added token for a control token, whatever the tokenizer says of it."""
    ends = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
    named = token in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
    return named or any(token.startswith(start) and token.endswith(end) for start, end in ends)


def _sentencepiece_type(token: str, *, given: int, unknown: str | None) -> int:
    if given != NORMAL:
        return given
    if token == unknown:
        return UNKNOWN
    return BYTE if len(token) == 6 and token.startswith("<0x") and token.endswith(">") else NORMAL


def _scores(
    pairs: list[tuple[str, str]],
    *,
    pieces: dict[str, int],
    added: set[str],
    tokens: list[str],
    types: list[int],
    source: str,
) -> tuple[float, ...]:
    """SentencePiece scores that merge in the order of the BPE merges: minus a piece's place in that order.

    llama.cpp merges any two neighbours whose union is a piece, best score first. That is the same as ranked merges only
    if a piece's merges stand together and none is missing, as in every tokenizer converted from SentencePiece. (Those
    of added tokens may stand anywhere: llama.cpp cuts them out before it merges.)
    """
    first: dict[str, int] = {}
    for rank, (left, right) in enumerate(pairs):
        first.setdefault(left + right, rank)
    order = [first[left + right] for left, right in pairs if left + right not in added]
    listed = set(pairs)
    missing = sorted(
        (piece[:cut], piece[cut:])
        for piece in pieces.keys() - added
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces and (piece[:cut], piece[cut:]) not in listed
    )
    if order != sorted(order) or missing:
        why = f"{missing[0]} is missing" if missing else "the merges of one piece do not stand together"
        raise InputError(
            f"{source}: expected merges made from SentencePiece scores, found that {why}; llama.cpp would merge in "
            "another order; export this model to ONNX instead"
        )
    normal = [i for i, kind in enumerate(types) if kind == NORMAL]
    normal.sort(key=lambda i: (first.get(tokens[i], len(pairs)), i))
    scores = {NORMAL: 0.0, UNKNOWN: 0.0, BYTE: 0.0, UNUSED: UNUSED_SCORE}
    found = [scores.get(kind, ADDED_SCORE) for kind in types]
    for place, i in enumerate(normal):
        found[i] = -float(place)
    return tuple(found)


def _added_ends(tokenizer: Tokenizer) -> tuple[bool, bool]:
    """Whether the tokenizer puts BOS before and EOS after a text: what it does, whatever its settings say."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    return full != bare and full[0] != bare[0], full != bare and full[-1] != bare[-1]


def _special_ids(*, model: Path, settings: dict[str, Any], tokens: list[str]) -> dict[str, int]:
    place = {token: i for i, token in enumerate(tokens)}
    config = read_json(model / "config.json")
    ids: dict[str, int] = {}
    for role in ROLES:
        named = settings.get(f"{role}_token")
        named = named.get("content") if isinstance(named, dict) else named
        identity = place.get(named) if named is not None else config.get(f"{role}_token_id")
        if isinstance(identity, int) and 0 <= identity < len(tokens):
            ids[role] = identity
    wanted = set(end_ids(model))
    if max(wanted) >= len(tokens) or min(wanted) < 0:
        raise InputError(
            f"expected eos_token_id of {model} within the vocabulary of {len(tokens)}, found {sorted(wanted)}"
        )
    if ids.get("eos") not in wanted:
        ids["eos"] = min(wanted)
    # An absent id would fall back to llama.cpp's own default, which is another model's token.
    ids.setdefault("bos", ids["eos"])
    rest = sorted(i for i in wanted - {ids["eos"]} if tokens[i] not in ENDS_BY_TEXT)
    if len(rest) > 2:
        named = [tokens[i] for i in rest]
        raise InputError(
            f"expected at most two end-of-generation tokens beside eos that llama.cpp does not know, found {named}"
        )
    ids.update(zip(("eot", "eom"), rest, strict=False))
    return ids
