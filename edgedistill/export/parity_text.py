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
    (("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c\n\n"), ("assistant", "d"), ("user", "e")),
)
TOKENS, TEMPLATE, ENDS = "tokens", "chat template", "end ids"  # the places where text can part, in this order


@dataclass(frozen=True)
class TextReference:
    """How text is meant to be read and ended: `source` is where from, `ends` the ids at which an answer ends."""

    source: Path
    tokenizer: Any
    ends: frozenset[int]


@dataclass(frozen=True)
class Difference:
    """Where an artifact reads or ends text otherwise (`TOKENS`, `TEMPLATE` or `ENDS`), and a clause that says how."""

    place: str
    clause: str


@dataclass(frozen=True)
class EngineText:
    """What an artifact's engine makes of strings, and how it begins and ends text.

    `vocabulary` is its token of each id, None where only tokenizer.json says; `tokens` are its ids of each string;
    `decoded` the bytes it makes of the student's ids, by the string's index;
    `judged` is False where it is known to differ, so that differences are told but do not fail.
    `adds` says whether the engine puts the BOS and the EOS token around text, None where it adds none by itself;
    `bos` and `eos` are its ids of the two.
    """

    name: str
    vocabulary: list[str] | None
    tokens: list[list[int]]
    decoded: dict[int, bytes]
    template: str | None
    ends: frozenset[int]
    limits: tuple[str, ...] = ()
    judged: bool = True
    adds: tuple[bool, bool] | None = None
    bos: int | None = None
    eos: int | None = None


def check_text(*, folder: Path, entry: str, reference: Path, probes: int) -> tuple[dict[str, Any], list[str]]:
    """Hold the artifact `folder/entry` against the Hugging Face folder `reference`.

    `probes` strings are tokenized by the artifact's engine (llama.cpp, or onnxruntime-genai's own tokenizer) and by the
    tokenizer files beside it; strings touched by what the engine is known not to follow are left out and said.

    Returns the figures for artifact.json, and for each failure a clause that says what differs.
    """
    meant = TextReference(reference, chat.load_tokenizer(reference), frozenset(chat.end_ids(reference)))
    figures, differences = compare_text(folder=folder, entry=entry, reference=meant, probes=probes)
    return figures, [difference.clause for difference in differences]


def compare_text(
    *, folder: Path, entry: str, reference: TextReference, probes: int
) -> tuple[dict[str, Any], list[Difference]]:
    """As `check_text`, each difference with its place; a GGUF file may lie in a folder without a tokenizer."""
    tokenizer = reference.tokenizer
    beside = chat.load_tokenizer(folder) if (folder / "tokenizer.json").is_file() else None
    specials = sorted(tokenizer.get_added_vocab())
    parsed = json.loads(tokenizer.backend_tokenizer.to_str())
    limits: tuple[str, ...] = ()
    strings = probe_strings(count=probes, specials=specials)
    if entry.endswith(".gguf"):
        limits = identify(parsed, source=str(reference.source / "tokenizer.json")).limits
        strings = followed(strings, limits=limits, specials=specials)
    else:
        strings = [text for text in strings if "\0" not in text]  # genai takes C strings, which end there
        limits = _genai_limits(parsed)
        strings = followed(strings, limits=limits, specials=specials)
    wanted = [list(ids) for ids in tokenizer(strings)["input_ids"]]
    text = [tokenizer.decode(ids, clean_up_tokenization_spaces=False).encode() for ids in wanted]
    if entry.endswith(".gguf"):
        if (reference.source / "config.json").is_file():
            limits += read_shape(reference.source).limits
        engine = _llama_cpp(folder / entry, strings, wanted, limits=limits)
    else:
        plain = [i for i, string in enumerate(strings) if not any(special in string for special in specials)]
        engine = _genai(folder, strings, wanted, plain=plain, tokenizer=tokenizer, limits=limits)
    counts: dict[str, int] = {}
    names = {identity: token for token, identity in tokenizer.get_vocab().items()}
    clauses = _vocabulary_failures(
        names, beside.get_vocab() if beside else None, engine=engine, plain=_spaced(tokenizer)
    )
    ways = [
        ("engine_differing", f"{engine.name} tokenizes", wanted, engine.tokens),
        ("decoding_differing", f"{engine.name} decodes", [text[i] for i in engine.decoded], [*engine.decoded.values()]),
    ]
    if beside is not None:
        files = [list(ids) for ids in beside(strings)["input_ids"]]
        ways.insert(0, ("tokenizer_differing", "tokenizer.json beside it tokenizes", wanted, files))
    for name, what, ours, theirs in ways:
        places = [*engine.decoded] if name == "decoding_differing" else range(len(strings))
        wrong = [strings[i] for i, a, b in zip(places, ours, theirs, strict=True) if a != b]
        counts[name] = len(wrong)
        if wrong and (engine.judged or name == "tokenizer_differing"):
            clauses.append(f"{what} {len(wrong)} of {len(places)} strings otherwise, first {wrong[0]!r}")
    differences = [Difference(TOKENS, clause) for clause in clauses + _flag_failures(tokenizer, engine=engine)]
    wanted_texts = _rendered(tokenizer, tokenizer.chat_template)
    templates = [(engine.name, engine.template)]
    if beside is not None:
        templates.append(("the folder's tokenizer", beside.chat_template))
    for place, template in templates:
        clause = _template_failure(wanted_texts, _rendered(tokenizer, template), has=template is not None, place=place)
        differences += [Difference(TEMPLATE, clause)] if clause else []
    ends = _end_failures(tokenizer, wanted=reference.ends, found=engine.ends, eos=engine.eos)
    differences += [Difference(ENDS, clause) for clause in ends]
    figures = {
        "engine": engine.name,
        "strings": len(strings),
        **counts,
        "limits": list(engine.limits),
        "chat_template": tokenizer.chat_template is not None,
        "end_ids": sorted(engine.ends),
        "end_ids_beyond_student": sorted(engine.ends - reference.ends),
    }
    return figures, differences


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
    fields, special = read_gguf(path).fields, llama_lib.special_ids(path)
    return EngineText(
        name="llama.cpp",
        vocabulary=fields["tokenizer.ggml.tokens"],
        tokens=llama_lib.tokenize_with(path, strings),
        decoded=dict(enumerate(_pieces(path, ids))),
        template=fields.get("tokenizer.chat_template"),
        ends=llama_lib.end_ids(path),
        limits=limits,
        adds=(special.add_bos, special.add_eos),
        bos=special.bos,
        eos=special.eos,
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
    lead, trail = _around(tokenizer)
    settings = read_json(folder / "genai_config.json")["model"]
    found = settings["eos_token_id"]
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
        bos=settings.get("bos_token_id"),
    )


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and after any text."""
    bare, full = (list(tokenizer("a", add_special_tokens=flag)["input_ids"]) for flag in (False, True))
    begin = full.index(bare[0])
    return full[:begin], full[begin + len(bare) :]


def _flag_failures(tokenizer: Any, *, engine: EngineText) -> list[str]:
    """Whether text begins and ends with the same special tokens, and the id of BOS is the tokenizer's."""
    lead, trail = _around(tokenizer)
    failures = []
    if engine.adds is not None and engine.adds != (bool(lead), bool(trail)):
        for name, meant, found in zip(("BOS", "EOS"), (bool(lead), bool(trail)), engine.adds, strict=True):
            if meant != found:
                failures.append(f"{engine.name} {'adds' if found else 'does not add'} {name}, the tokenizer otherwise")
    if tokenizer.bos_token_id is not None and engine.bos not in (None, tokenizer.bos_token_id):
        failures.append(f"{engine.name} has BOS id {engine.bos}, the tokenizer {tokenizer.bos_token_id}")
    return failures


def _spaced(tokenizer: Any) -> dict[int, str]:
    """Added tokens of text, not of control, in which a GGUF writes spaces as they are, by id."""
    added = tokenizer.added_tokens_decoder.items()
    return {i: token.content.replace("▁", " ") for i, token in added if "▁" in token.content and not token.special}


def _vocabulary_failures(
    names: dict[int, str], beside: dict[str, int] | None, *, engine: EngineText, plain: dict[int, str]
) -> list[str]:
    """Every id must mean the same token, those that no probe reaches too; `plain` holds other spellings of some."""
    failures = []
    found: dict[str, dict[int, str]] = {}
    if beside is not None:
        found["tokenizer.json beside it"] = {identity: token for token, identity in beside.items()}
    if engine.vocabulary is not None:
        listed = engine.vocabulary
        found[engine.name] = {identity: listed[identity] for identity in names if identity < len(listed)}
    for place, tokens in found.items():
        other = [i for i in sorted(names | tokens) if tokens.get(i) not in (names.get(i), plain.get(i, names.get(i)))]
        if other:
            first = f"id {other[0]} is {tokens.get(other[0])!r}, not {names.get(other[0])!r}"
            failures.append(f"{place} has {len(other)} other tokens, first {first}{_shift(names, tokens, other)}")
    return failures


def _shift(names: dict[int, str], tokens: dict[int, str], other: list[int]) -> str:
    """Says so where most of the `other` ids hold the token of an id a few places away."""
    for shift in (1, -1, 2, -2):
        if 2 * sum(tokens.get(i + shift) == names.get(i) for i in other) > len(other) > 2:
            return f": most tokens lie {abs(shift)} {'higher' if shift > 0 else 'lower'}"
    return ""


def _rendered(tokenizer: Any, template: str | None) -> list[str | None]:
    """Every conversation with and without the generation prompt; None where the template refuses it."""
    from jinja2 import TemplateError

    texts: list[str | None] = []
    for conversation in CONVERSATIONS if template is not None else ():
        messages = [{"role": role, "content": content} for role, content in conversation]
        for prompt in (True, False):
            try:
                text = chat.rendered(tokenizer, messages, template=template, add_generation_prompt=prompt)
            except TemplateError:
                text = None
            texts.append(text)
    return texts


def _template_failure(wanted: list[str | None], found: list[str | None], *, has: bool, place: str) -> str | None:
    """A clause on the first conversation that renders otherwise; None where all render alike."""
    if found == wanted:
        return None
    if not has or not wanted:
        why = "the source has none" if has else "there is none"
        return f"the chat template of {place} renders otherwise: {why}"
    number = next(i for i, (a, b) in enumerate(zip(wanted, found, strict=True)) if a != b)
    ours, theirs = (text if text is None else text[-60:] for text in (wanted[number], found[number]))
    how = f"conversation {number // 2 + 1} ends {theirs!r}, not {ours!r}"
    return f"the chat template of {place} renders otherwise: {how}"


def _end_failures(
    tokenizer: Any, *, wanted: frozenset[int], found: frozenset[int], eos: int | None = None
) -> list[str]:
    """Every end the student has must end the artifact; one it has beyond must at least be no token of plain text.

    `eos` is what the engine holds for the one EOS, whatever else ends text in it.
    """
    special = set(tokenizer.added_tokens_decoder)
    failures = []
    if missing := sorted(wanted - found):
        failures.append(f"generation does not end at {tokenizer.convert_ids_to_tokens(missing)} (ids {missing})")
    if plain := sorted(found - wanted - special):
        failures.append(
            f"generation ends at {tokenizer.convert_ids_to_tokens(plain)} (ids {plain}), tokens of plain text"
        )
    meant = {*wanted, tokenizer.eos_token_id}
    if eos is not None and eos not in meant:
        token = tokenizer.convert_ids_to_tokens(eos)
        failures.append(f"its EOS is {token!r} (id {eos}), expected one of {sorted(i for i in meant if i is not None)}")
    return failures
