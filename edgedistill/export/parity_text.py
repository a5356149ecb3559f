"""Whether an artifact reads and ends text as its student does: tokens, decoding, chat template, ends of generation."""

from __future__ import annotations

import ctypes
import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgedistill.core.files import read_json
from edgedistill.export.architectures import read_shape
from edgedistill.export.pretokenizer import (
    CASE_LIMIT,
    NFC_LIMIT,
    PREFIX_LIMIT,
    SPACES_LIMIT,
    STRIP_LIMIT,
    identify,
)
from edgedistill.export.probes import probe_strings
from edgedistill.runtimes import chat, llama_lib
from edgedistill.runtimes.gguf_file import read_gguf

GENAI_SPM_LIMIT = "onnxruntime-genai's own tokenizer cuts SentencePiece text otherwise; feed it tokenizer.json's ids"
GENAI_NFC_LIMIT = "the tokenizer brings text to Unicode NFC first, onnxruntime-genai's own does not"
CONVERSATIONS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("user", "Hi"),),
    (("system", "Answer in JSON."), ("user", "turn on  the light\n")),
    (("user", " a <|im_end|> b "), ("assistant", "  {\"x\": 'y'} "), ("user", "日本語 👍")),
    (("system", ""), ("user", ""), ("assistant", ""), ("user", "2 + 2 = ?")),
)


@dataclass(frozen=True)
class EngineText:
    """What an artifact's engine makes of strings, and how it begins and ends text.

    `vocabulary` is its token of each id, None where only tokenizer.json says; `tokens` are its ids of each string;
    `decoded` the bytes it makes of the student's ids, by the string's index;
    `judged` is False where it is known to differ, so that differences are told but do not fail.
    """

    name: str
    vocabulary: list[str] | None
    tokens: list[list[int]]
    decoded: dict[int, bytes]
    template: str | None
    ends: frozenset[int]
    limits: tuple[str, ...] = ()
    judged: bool = True


def check_text(*, folder: Path, entry: str, reference: Path, probes: int) -> tuple[dict[str, Any], list[str]]:
    """Hold the artifact `folder/entry` against the Hugging Face folder `reference`.

    `probes` strings are tokenized by the artifact's engine (llama.cpp, or onnxruntime-genai's own tokenizer) and by the
    tokenizer files beside it; strings touched by what the engine is known not to follow are left out and said.

    Returns the figures for artifact.json, and for each failure a clause that says what differs.
    """
    tokenizer, beside = chat.load_tokenizer(reference), chat.load_tokenizer(folder)
    specials = sorted(tokenizer.get_added_vocab())
    parsed = json.loads(tokenizer.backend_tokenizer.to_str())
    limits: tuple[str, ...] = ()
    strings = probe_strings(count=probes, specials=specials)
    if entry.endswith(".gguf"):
        limits = identify(parsed, source=str(reference / "tokenizer.json")).limits
        strings = followed(strings, limits=limits, specials=specials)
    else:
        strings = [text for text in strings if "\0" not in text]  # genai takes C strings, which end there
        limits = _genai_limits(parsed)
        strings = followed(strings, limits=limits, specials=specials)
    wanted = [list(ids) for ids in tokenizer(strings)["input_ids"]]
    files = [list(ids) for ids in beside(strings)["input_ids"]]
    text = [tokenizer.decode(ids, clean_up_tokenization_spaces=False).encode() for ids in wanted]
    if entry.endswith(".gguf"):
        limits += read_shape(reference).limits
        engine = _llama_cpp(folder / entry, strings, wanted, limits=limits)
    else:
        plain = [i for i, string in enumerate(strings) if not any(special in string for special in specials)]
        engine = _genai(folder, strings, wanted, plain=plain, tokenizer=tokenizer, limits=limits)
    counts: dict[str, int] = {}
    names = {identity: token for token, identity in tokenizer.get_vocab().items()}
    failures = _vocabulary_failures(names, beside.get_vocab(), engine=engine, plain=_spaced(tokenizer))
    for name, what, ours, theirs in (
        ("tokenizer_differing", "tokenizer.json beside it tokenizes", wanted, files),
        ("engine_differing", f"{engine.name} tokenizes", wanted, engine.tokens),
        ("decoding_differing", f"{engine.name} decodes", [text[i] for i in engine.decoded], [*engine.decoded.values()]),
    ):
        places = [*engine.decoded] if name == "decoding_differing" else range(len(strings))
        wrong = [strings[i] for i, a, b in zip(places, ours, theirs, strict=True) if a != b]
        counts[name] = len(wrong)
        if wrong and (engine.judged or name == "tokenizer_differing"):
            failures.append(f"{what} {len(wrong)} of {len(places)} strings otherwise, first {wrong[0]!r}")
    for place, template in ((engine.name, engine.template), ("the folder's tokenizer", beside.chat_template)):
        if _rendered(tokenizer, tokenizer.chat_template) != _rendered(tokenizer, template):
            failures.append(f"the chat template of {place} renders otherwise")
    wanted_ends = frozenset(chat.end_ids(reference))
    failures += _end_failures(tokenizer, wanted=wanted_ends, found=engine.ends)
    figures = {
        "engine": engine.name,
        "strings": len(strings),
        **counts,
        "limits": list(engine.limits),
        "chat_template": tokenizer.chat_template is not None,
        "end_ids": sorted(engine.ends),
        "end_ids_beyond_student": sorted(engine.ends - wanted_ends),
    }
    return figures, failures


def followed(strings: list[str], *, limits: Sequence[str], specials: Sequence[str]) -> list[str]:
    """The strings that the engine's known limits do not touch."""
    if NFC_LIMIT in limits or GENAI_NFC_LIMIT in limits:
        strings = list(dict.fromkeys(unicodedata.normalize("NFC", text) for text in strings))
    if PREFIX_LIMIT in limits:
        strings = [s for s in strings if s[0] not in " ▁" and not any(special in s for special in specials)]
    if CASE_LIMIT in limits:
        strings = [s for s in strings if not any(map(_cased_beyond_ascii, s))]
    if SPACES_LIMIT in limits:
        strings = [s for s in strings if "▁" not in s]
    if STRIP_LIMIT in limits:
        beyond_ascii = re.compile(rf"(?:{'|'.join(map(re.escape, specials))})\s*[^\S\t-\r ]")
        strings = [s for s in strings if not beyond_ascii.search(s)]
    return strings


def _cased_beyond_ascii(character: str) -> bool:
    return character > "\x7f" and unicodedata.category(character) in ("Lu", "Ll", "Lt", "Mn", "Mc", "Me")


def _llama_cpp(path: Path, strings: list[str], ids: list[list[int]], *, limits: tuple[str, ...]) -> EngineText:
    return EngineText(
        name="llama.cpp",
        vocabulary=read_gguf(path).fields["tokenizer.ggml.tokens"],
        tokens=llama_lib.tokenize_with(path, strings),
        decoded=dict(enumerate(_pieces(path, ids))),
        template=read_gguf(path).fields.get("tokenizer.chat_template"),
        ends=llama_lib.end_ids(path),
        limits=limits,
    )


def _pieces(path: Path, sequences: list[list[int]]) -> list[bytes]:
    """The bytes of each sequence as a client prints them, token after token, specials and all."""
    lib = llama_lib.library()
    model = llama_lib.load(path, vocab_only=True)
    try:
        vocab = lib.llama_model_get_vocab(model)
        buffer = ctypes.create_string_buffer(1024)
        pieces: dict[int, bytes] = {}
        for token in {token for ids in sequences for token in ids}:
            length = lib.llama_token_to_piece(vocab, token, buffer, len(buffer), 0, True)
            pieces[token] = buffer.raw[: max(length, 0)]
        return [b"".join(pieces[token] for token in ids) for ids in sequences]
    finally:
        lib.llama_model_free(model)


def _genai_limits(parsed: dict[str, Any]) -> tuple[str, ...]:
    """What onnxruntime-genai's own tokenizer passes over in a parsed tokenizer.json."""
    sentencepiece = (GENAI_SPM_LIMIT,) if parsed["model"].get("byte_fallback") else ()
    return sentencepiece + ((GENAI_NFC_LIMIT,) if (parsed.get("normalizer") or {}).get("type") == "NFC" else ())


def _genai(
    folder: Path,
    strings: list[str],
    ids: list[list[int]],
    *,
    plain: list[int],
    tokenizer: Any,
    limits: tuple[str, ...],
) -> EngineText:
    """onnxruntime-genai adds no BOS or EOS by itself and prints none: those of the tokenizer are put around its own."""
    import onnxruntime_genai as og

    own = og.Tokenizer(og.Model(str(folder)))
    bare, full = (list(tokenizer("a", add_special_tokens=flag)["input_ids"]) for flag in (False, True))
    begin = full.index(bare[0])
    lead, trail = full[:begin], full[begin + len(bare) :]
    found = read_json(folder / "genai_config.json")["model"]["eos_token_id"]
    before, after = (tokenizer.decode(part, clean_up_tokenization_spaces=False) for part in (lead, trail))

    def printed(sequence: list[int]) -> bytes:
        return f"{before}{own.decode(sequence[len(lead) : len(sequence) - len(trail)])}{after}".encode()

    return EngineText(
        name="onnxruntime-genai",
        vocabulary=None,
        tokens=[[*lead, *map(int, own.encode(text)), *trail] for text in strings],
        decoded={i: printed(ids[i]) for i in plain},
        template=read_json(folder / "tokenizer_config.json").get("chat_template"),
        ends=frozenset(found if isinstance(found, list) else [found]),
        limits=limits,
        judged=GENAI_SPM_LIMIT not in limits,
    )


def _spaced(tokenizer: Any) -> dict[int, str]:
    """Added tokens of text, not of control, in which a GGUF writes spaces as they are, by id."""
    added = tokenizer.added_tokens_decoder.items()
    return {i: token.content.replace("▁", " ") for i, token in added if "▁" in token.content and not token.special}


def _vocabulary_failures(
    names: dict[int, str], beside: dict[str, int], *, engine: EngineText, plain: dict[int, str]
) -> list[str]:
    """Every id must mean the same token, those that no probe reaches too; `plain` holds other spellings of some."""
    failures = []
    found = {"tokenizer.json beside it": {identity: token for token, identity in beside.items()}}
    if engine.vocabulary is not None:
        found[engine.name] = {identity: engine.vocabulary[identity] for identity in names}
    for place, tokens in found.items():
        other = [i for i in sorted(names | tokens) if tokens.get(i) not in (names.get(i), plain.get(i, names.get(i)))]
        if other:
            first = f"id {other[0]} is {tokens.get(other[0])!r}, not {names.get(other[0])!r}"
            failures.append(f"{place} has {len(other)} other tokens, first {first}")
    return failures


def _rendered(tokenizer: Any, template: str | None) -> list[str | None]:
    """Every conversation with and without the generation prompt; None where the template refuses it."""
    from jinja2 import TemplateError

    texts: list[str | None] = []
    for conversation in CONVERSATIONS if template is not None else ():
        messages = [{"role": role, "content": content} for role, content in conversation]
        for prompt in (True, False):
            try:
                text = tokenizer.apply_chat_template(
                    messages, chat_template=template, tokenize=False, add_generation_prompt=prompt
                )
            except TemplateError:
                text = None
            texts.append(text)
    return texts


def _end_failures(tokenizer: Any, *, wanted: frozenset[int], found: frozenset[int]) -> list[str]:
    """Every end the student has must end the artifact; one it has beyond must at least be no token of plain text."""
    special = set(tokenizer.added_tokens_decoder)
    failures = []
    if missing := sorted(wanted - found):
        failures.append(f"generation does not end at {tokenizer.convert_ids_to_tokens(missing)} (ids {missing})")
    if plain := sorted(found - wanted - special):
        failures.append(
            f"generation ends at {tokenizer.convert_ids_to_tokens(plain)} (ids {plain}), tokens of plain text"
        )
    return failures
