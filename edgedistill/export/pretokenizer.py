"""Which llama.cpp pre-tokenizer a tokenizer's real pipeline is, decided by its structure and never by a hash.

llama.cpp knows pre-tokenizers by name (`tokenizer.ggml.pre`) and splits text with expressions built into its binary.
A name is given only where those expressions and the pipeline of `tokenizer.json` cut every text at the same places.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from edgedistill.core.errors import InputError, shortened

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_SPLIT = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
QWEN2_SPLIT = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K_SPLIT = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGIT_SPLIT = r"\p{N}"
DIGITS = ("Digits", True)

# (steps of the pipeline, whether BPE takes a whole word that stands in the vocabulary before merging) -> llama.cpp name
KNOWN: dict[tuple[tuple[tuple[Any, ...], ...], bool], str] = {
    ((("ByteLevel", True),), False): "gpt-2",
    ((("Split", GPT2_SPLIT), ("ByteLevel", False)), False): "gpt-2",
    ((DIGITS, ("ByteLevel", True)), False): "smollm",
    ((("Split", DIGIT_SPLIT), ("Split", GPT2_SPLIT), ("ByteLevel", False)), False): "smollm",
    ((("Split", LLAMA3_SPLIT), ("ByteLevel", False)), True): "llama-bpe",
    ((("Split", LLAMA3_SPLIT), ("ByteLevel", False)), False): "dbrx",
    ((("Split", QWEN2_SPLIT), ("ByteLevel", False)), False): "qwen2",
    ((("Split", O200K_SPLIT), ("ByteLevel", False)), False): "gpt-4o",
}
# Expressions that match every character of every text: what they do not match, and so is removed or kept, is nothing.
TOTAL_SPLITS = (LLAMA3_SPLIT, QWEN2_SPLIT, O200K_SPLIT)
# White space after every special token but these is dropped by llama.cpp in a model named Phi-3.
PHI3_KEEPS, PHI3_STRIPS = frozenset({"<unk>", "<s>", "<|endoftext|>"}), "</s>"
KNOWN_IN_WORDS = (
    "ByteLevel (gpt-2); Digits(individual) + ByteLevel (smollm); Split(Llama 3) + ByteLevel (llama-bpe, dbrx); "
    "Split(Qwen 2) + ByteLevel (qwen2); Split(o200k) + ByteLevel (gpt-4o); "
    "Metaspace or Prepend + Replace with byte fallback (SentencePiece)"
)
PREFIX_LIMIT = (
    "llama.cpp puts a space before every stretch of text between special tokens, the tokenizer only before a text "
    "that begins without one"
)
NFC_LIMIT = "the tokenizer brings text to Unicode NFC first, llama.cpp does not"
CASE_LIMIT = (
    "llama.cpp tells capital from small letters within ASCII alone and takes combining marks for punctuation; the "
    "tokenizer cuts words by their case in every script"
)
STRIP_LIMIT = "after special tokens llama.cpp drops white space of ASCII alone, the tokenizer any"
SPACES_LIMIT = (
    "the tokenizer takes a ▁ in the text for a space, llama.cpp not where it looks for its tokens of several spaces"
)


@dataclass(frozen=True)
class PreTokenizer:
    """`model` and `pre` as GGUF names them; `limits` are sentences on where llama.cpp cannot follow the tokenizer.

    `strips_right`: white space after special tokens is dropped, in the way that llama.cpp knows of Phi-3.
    """

    model: str
    pre: str
    add_space_prefix: bool
    limits: tuple[str, ...] = ()
    strips_right: bool = False


def identify(tokenizer: dict[str, Any], *, source: str) -> PreTokenizer:
    """Name the pre-tokenizer of a parsed `tokenizer.json`.

    Raises:
        InputError: the model is not BPE, or the pipeline is none that llama.cpp is known to repeat, or an added token
            takes white space or words around it in a way that llama.cpp does not.
    """
    kind = _pipeline(tokenizer, source=source)
    if not _strips_right(tokenizer, source=source):
        return kind
    return replace(kind, strips_right=True, limits=(*kind.limits, STRIP_LIMIT))


def _pipeline(tokenizer: dict[str, Any], *, source: str) -> PreTokenizer:
    model = tokenizer["model"]
    if model.get("type") != "BPE":
        raise InputError(
            f"{source}: expected a BPE tokenizer, found {model.get('type')}; llama.cpp export knows {KNOWN_IN_WORDS}"
        )
    normalizer, limits = tokenizer.get("normalizer"), ()
    if model.get("byte_fallback"):
        return _sentencepiece(tokenizer, source=source)
    if normalizer is not None:
        if normalizer.get("type") != "NFC":
            raise _unknown(tokenizer, source)
        limits = (NFC_LIMIT,)
    steps = tuple(_step(part) for part in _parts(tokenizer.get("pre_tokenizer"), "pretokenizers"))
    name = KNOWN.get((steps, bool(model.get("ignore_merges"))))
    if name is None or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise _unknown(tokenizer, source)
    limits += (CASE_LIMIT,) if name == "gpt-4o" else ()
    return PreTokenizer(model="gpt2", pre=name, add_space_prefix=False, limits=limits)


def _strips_right(tokenizer: dict[str, Any], *, source: str) -> bool:
    """Whether added tokens drop white space after them, all that llama.cpp would let drop it and no others."""
    added = tokenizer.get("added_tokens") or []
    stripping = {entry["content"] for entry in added if entry["rstrip"]}
    others = {entry["content"] for entry in added} - PHI3_KEEPS
    like_phi3 = stripping == others and PHI3_STRIPS in stripping and {e["content"] for e in added} >= PHI3_KEEPS
    for entry in added:
        if entry["single_word"] or entry["lstrip"] or (entry["rstrip"] and not like_phi3):
            raise InputError(
                f"{source}: expected added tokens that match as they stand, found {entry['content']!r} with "
                "single_word, lstrip or rstrip, which llama.cpp cannot repeat; set them to false"
            )
    return like_phi3


def spelled_out(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """The same `tokenizer.json` with Digits and ByteLevel's built-in expression written as Split steps.

    onnxruntime-genai passes over a Digits step and so cuts white space before digits wrongly; Split steps it obeys.
    Other pipelines come back as they are.
    """
    steps = tuple(_step(part) for part in _parts(tokenizer.get("pre_tokenizer"), "pretokenizers"))
    if steps != (DIGITS, ("ByteLevel", True)):
        return tokenizer
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in (DIGIT_SPLIT, GPT2_SPLIT)
    ]
    bytes_only = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {**tokenizer, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, bytes_only]}}


def _sentencepiece(tokenizer: dict[str, Any], *, source: str) -> PreTokenizer:
    """SentencePiece-style BPE: a space is `▁`, put before a text by a normalizer (always) or Metaspace (by scheme)."""
    normalizers = [
        (part["type"], part.get("prepend"), part.get("content"))
        for part in _parts(tokenizer.get("normalizer"), "normalizers")
    ]
    replaced = ("Replace", None, "▁")
    pre_tokenizers = _parts(tokenizer.get("pre_tokenizer"), "pretokenizers")
    if not pre_tokenizers and normalizers == [("Prepend", "▁", None), replaced]:
        return PreTokenizer(model="llama", pre="default", add_space_prefix=True)
    # no space is left to split at once the normalizer has replaced them all
    idle = [{"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}]
    if pre_tokenizers in ([], idle) and normalizers == [replaced]:
        spaces = any("▁" in e["content"] and not e["special"] for e in tokenizer.get("added_tokens") or [])
        limits = (SPACES_LIMIT,) if spaces else ()
        return PreTokenizer(model="llama", pre="default", add_space_prefix=False, limits=limits)
    if not normalizers and len(pre_tokenizers) == 1 and pre_tokenizers[0]["type"] == "Metaspace":
        part = pre_tokenizers[0]
        scheme = part.get("prepend_scheme", "always")
        if part.get("replacement") == "▁" and part.get("split") is False:
            limits = (PREFIX_LIMIT,) if scheme != "never" else ()
            return PreTokenizer(model="llama", pre="default", add_space_prefix=scheme != "never", limits=limits)
    raise _unknown(tokenizer, source)


def _parts(component: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    if component is None:
        return []
    if component["type"] == "Sequence":
        return [leaf for part in component[inner] for leaf in _parts(part, inner)]
    return [component]


def _step(part: dict[str, Any]) -> tuple[Any, ...]:
    """A pipeline step reduced to what decides where text is cut."""
    kind = part["type"]
    if kind == "Digits":
        return (kind, bool(part.get("individual_digits")))
    if kind == "ByteLevel" and not part.get("add_prefix_space"):
        return (kind, part.get("use_regex", True) is not False)
    if kind == "Split" and part.get("behavior") == "Isolated" and not part.get("invert"):
        return (kind, part.get("pattern", {}).get("Regex"))
    if kind == "Split" and part.get("behavior") == "Removed" and part.get("invert"):
        pattern = part.get("pattern", {}).get("Regex")
        return (kind, pattern) if pattern in TOTAL_SPLITS else (kind, repr(part))
    return (kind, repr(part))


def _unknown(tokenizer: dict[str, Any], source: str) -> InputError:
    found = {name: tokenizer.get(name) for name in ("pre_tokenizer", "normalizer")}
    found["ignore_merges"] = tokenizer["model"].get("ignore_merges")
    said = shortened(found, most=40)
    return InputError(
        f"{source}: expected a tokenizer pipeline that llama.cpp can repeat ({KNOWN_IN_WORDS}), found {said}; "
        "export this model to ONNX instead"
    )
