"""Strings on which tokenizers disagree: digits after spaces, odd whitespace, contractions, scripts, emoji, specials."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence

# fmt: off
WORDS = (
    "turn", "the", "light", "on", "kitchen", "Kitchen", "KITCHEN", "can't", "I'm", "we'll", "THEY'RE", "it's",
    "don'T", "'d", "'s", "naïve", "café", "Straße", "Ångström", "internationalization", "x1y2", "e-mail",
    "snake_case", "camelCase", "http://a.b/c?d=e&f=1#g", "user@example.org", "C++", "a/b/c", ".5", "<tag>", "</tag>",
    "{{x}}", "\\n", "\\u00e9", "$9.99", "100%", "#1", "@home", "~/x", "`code`", "**bold**", "[link](url)", "...",
    "--", "—",
)
NUMBERS = (
    "0", "7", "42", "123", "1234", "12345678901234567890", "3.14", "1,000,000", "-5", "٣٤", "Ⅻ", "½", "²", "१२३", "①",
)
SPACES = (
    "", " ", "  ", "   ", " " * 17, "\t", "\t\t", " \t ", "\n", "\n\n", "\r\n", " \n ", "\n  ", "\u00a0", "\u3000",
    "\u200b",
)
PIECES = (
    "日本語", "中文字符", "한국어", "ภาษาไทย", "हिन्दी", "العربية", "עברית", "Ελληνικά", "русский", "ქართული", "Tiếng",
    "e\u0301", "n\u0303o", "Z\u0351\u036b", "👍", "👍🏽", "👩\u200d👧", "🇫🇷", "☃", "€", "±", "→", "∑", "„quoted“",
    "‘x’", "…", "ﬁ", "\u212b", "\ufeff", "\x00", "\x07", "\x7f", "!!!", "???", "!?", "()", "[]", "{}", '""', "''",
    '{"device":"light","value":null}', '{\n  "a": [1, 2.5, true]\n}', "def f(x):\n    return x ** 2\n", "<|", "|>",
    "<s", "</", "[PAD5]", "<0x0A>", "▁", "▁▁a", "Ġ", "Ċ",
)
# fmt: on
LETTERS = " ".join(string.ascii_letters)
PUNCTUATION = string.punctuation


def probe_strings(*, count: int, seed: int = 0, specials: Sequence[str] = ()) -> list[str]:
    """`count` different non-empty strings, the same for the same arguments; the fixed ones come first.

    `specials` are the tokenizer's added tokens, put among the text so that their borders are tried too.
    """
    fixed = [LETTERS, string.ascii_letters, *WORDS, *NUMBERS, *PIECES, *PUNCTUATION, *specials]
    spaced = [f"{space}{item}{space}" for space in SPACES if space for item in ("a", "7", "12 3", "!", "'s")]
    source = random.Random(seed)
    found = dict.fromkeys(_thinned([*fixed, *spaced, *(s for s in SPACES if s)], count=count // 2))
    while len(found) < count:
        found.setdefault(_mixture(source, specials=specials))
    return list(found)[:count]


def _thinned(items: list[str], *, count: int) -> list[str]:
    """At most `count` of `items`, evenly from all of it."""
    step = max(1, -(-len(items) // max(1, count)))
    return items[::step]


def _mixture(source: random.Random, *, specials: Sequence[str]) -> str:
    """A few pieces of any kind, glued with any whitespace."""
    kinds: list[Sequence[str]] = [WORDS, WORDS, NUMBERS, PIECES, PUNCTUATION]
    if specials and source.random() < 0.25:
        kinds.append(specials)
    parts = []
    for _ in range(source.randint(1, 9)):
        parts.append(_letters(source) if source.random() < 0.1 else source.choice(source.choice(kinds)))
        parts.append(source.choice(SPACES) if source.random() < 0.5 else " ")
    return "".join(parts[: source.randint(1, len(parts))]) or " "


def _letters(source: random.Random) -> str:
    """Random letters of one stretch of the Basic Multilingual Plane below the surrogates."""
    start = source.choice((0x61, 0xC0, 0x100, 0x370, 0x400, 0x5D0, 0x620, 0x905, 0xE01, 0x10D0, 0x1E00, 0x3041, 0x4E00))
    return "".join(chr(start + source.randrange(24)) for _ in range(source.randint(1, 6)))
