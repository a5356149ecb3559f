"""The fast tokenizer inside a GGUF, rebuilt with its pre-tokenizer and proved against llama.cpp's own token ids.

A GGUF names its pre-tokenizer (`tokenizer.ggml.pre`) and carries no rule for it; loaders that guess produce token ids
its model never saw. Here a rule is taken only if it gives llama.cpp's ids on every probe.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from edgedistill.core.errors import InputError
from edgedistill.runtimes.gguf_file import GgufFile
from edgedistill.runtimes.llama_lib import tokenize_with

CONTROL, USER_DEFINED = 3, 4
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

PIECES = (
    " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", " \n", "\u00a0", "\u2003", "\u3000", "0", "7", "42", "1234567",
    "3.14", "1e-4", "٣", "½", "²", "Ⅷ", "a", "The", "kitchen", "don't", "I'LL", "we're", "'s", "é", "ñandú", "Straße",
    "Ünï", "привет", "你好", "日本語", "한국어", "عربي", "हिन्दी", "e\u0301", "\u200d", "🙂",
    "\U0001f469\u200d\U0001f467", "🇩🇪", "!", "?!", "...", '{"device":', '"light"}', "=>", "//", "/*",
    "*/", "x_1", "foo(bar)", "[0]", "<b>", "</b>",
    "&amp;", "#", "$9.99", "%", "_", "--", "—", "“q”", "\\n", "~/.cfg", "http://a.b/c?d=1", "\ufeff", "\x01x",
    "def f(x):\n    return x",
)  # fmt: skip


def probe_strings(count: int, *, seed: int = 0, special: tuple[str, ...] = ()) -> list[str]:
    """Seeded strings that pull tokenizers apart: digits, whitespace runs, scripts, code, punctuation, specials."""
    draw = random.Random(seed)
    pieces = PIECES + special
    alone = [text for piece in pieces for text in (piece, f" {piece}", f"{piece} ")]
    mixed = (
        "".join(draw.choice(pieces) for _ in range(draw.randint(2, 12))) for _ in range(max(count - len(alone), 0))
    )
    return [*alone, *mixed][:count]


def differing(fast: Tokenizer, texts: list[str], expected: list[list[int]]) -> list[str]:
    """The texts whose token ids, specials added, are not the expected ones."""
    encoded = fast.encode_batch(texts)
    return [text for text, ours, ids in zip(texts, encoded, expected, strict=True) if ours.ids != ids]


def build_tokenizer(gguf: GgufFile, *, probes: int = 1500) -> PreTrainedTokenizerFast:
    """The tokenizer of a GGUF that `check_gguf` let through as a Hugging Face fast tokenizer, with its chat template.

    Raises:
        InputError: the vocabulary is inconsistent, or no known pre-tokenizer gives llama.cpp's token ids.
    """
    fields = gguf.fields
    model, pre = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "default")
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    kinds = fields.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    special = tuple(t for t, kind in zip(tokens, kinds, strict=False) if kind in (CONTROL, USER_DEFINED))
    texts = probe_strings(probes, special=special[:24])
    expected = tokenize_with(gguf.path, texts)
    if model == "gpt2":
        vocabulary = _vocabulary(gguf, tokens, kinds)
        order = sorted(FAMILIES, key=lambda family: pre not in family[0])
        candidates: list[Callable[[], Tokenizer]] = [
            lambda family=family: _byte_level_bpe(gguf, vocabulary, kinds, *family[1:]) for family in order
        ]
    else:
        folder, name = str(gguf.path.parent), gguf.path.name
        candidates = [lambda: AutoTokenizer.from_pretrained(folder, gguf_file=name).backend_tokenizer]
    wrong: list[str] = []
    for make in candidates:
        fast = make()
        found = differing(fast, texts, expected)
        if not found:
            return _wrap(gguf, tokens, fast)
        wrong = wrong or found
    raise InputError(
        f"the tokenizer of {gguf.path} (model {model!r}, pre-tokenizer {pre!r}) cannot be rebuilt: {len(wrong)} of "
        f"{len(texts)} probes differ from llama.cpp, first {wrong[0]!r}; "
        "give the model as a Hugging Face folder instead"
    )


def _vocabulary(gguf: GgufFile, tokens: list[str], kinds: list[int]) -> dict[str, int]:
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens) or len(kinds) != len(tokens):
        raise InputError(
            f"the vocabulary of {gguf.path} is inconsistent: {len(tokens)} tokens, {len(vocabulary)} distinct, "
            f"{len(kinds)} types; choose another model file"
        )
    return vocabulary


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _digits_gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior="isolated"), bytes_only])


# names in `tokenizer.ggml.pre`, the rule, and whether a whole piece that is a token wins over its merges
FAMILIES: tuple[tuple[frozenset[str], Callable[[], pre_tokenizers.PreTokenizer], bool], ...] = (
    (frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"}), _digits_gpt2, False),
    (frozenset({"gpt-2", "gpt2", "phi-2", "default"}), _gpt2, False),
    (frozenset({"qwen2", "deepseek-r1-qwen", "megrez"}), lambda: _split(QWEN2), False),
    (frozenset({"llama-bpe", "llama3", "llama-v3", "falcon3"}), lambda: _split(LLAMA3), True),
)


def _byte_level_bpe(
    gguf: GgufFile,
    vocabulary: dict[str, int],
    kinds: list[int],
    rule: Callable[[], pre_tokenizers.PreTokenizer],
    ignore_merges: bool,
) -> Tokenizer:
    merges = []
    for merge in gguf.fields.get("tokenizer.ggml.merges") or []:
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= vocabulary.keys():
            raise InputError(f"{gguf.path} merges {merge!r}, which its vocabulary lacks; choose another model file")
        merges.append((left, right))
    fast = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=ignore_merges))
    fast.pre_tokenizer = rule()
    fast.decoder = decoders.ByteLevel()
    by_kind = {CONTROL: fast.add_special_tokens, USER_DEFINED: fast.add_tokens}
    for kind, add in by_kind.items():
        add(
            [
                AddedToken(t, normalized=False, special=kind == CONTROL)
                for t, i in vocabulary.items()
                if kinds[i] == kind
            ]
        )
    if gguf.fields.get("tokenizer.ggml.add_bos_token"):
        bos_id = gguf.fields["tokenizer.ggml.bos_token_id"]
        bos = next(token for token, i in vocabulary.items() if i == bos_id)
        fast.post_processor = processors.TemplateProcessing(single=[bos, "$A"], special_tokens=[(bos, bos_id)])
    return fast


def _wrap(gguf: GgufFile, tokens: list[str], fast: Tokenizer) -> PreTrainedTokenizerFast:
    named: dict[str, Any] = {}
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token_id = gguf.fields.get(f"tokenizer.ggml.{theirs}_token_id")
        if token_id is not None:
            named[f"{ours}_token"] = tokens[token_id]
    architecture = gguf.fields.get("general.architecture")
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=fast,
        clean_up_tokenization_spaces=False,
        model_max_length=gguf.fields.get(f"{architecture}.context_length"),
        **named,
    )
    wrapped.chat_template = gguf.fields.get("tokenizer.chat_template")
    return wrapped
