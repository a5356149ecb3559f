"""Faults of an answer's text that need no right answer: refusals, the wrong language, length, a pattern it breaks."""

from __future__ import annotations

import functools
import re
from typing import Any

from edgedistill.core.errors import InputError

CONFIDENCE = 0.9  # of the language model before an answer is called foreign; short texts do not reach it
BEGINNING = 240  # characters in which a refusal shows itself

_REFUSAL = re.compile(
    r"^\W*(?:(?:i[’']?m|i am) (?:very |really |so )?sorry\b|sorry,|i apologi[sz]e\b|unfortunately, i )"
    r"|\bi (?:can(?:no|[’'])t|can not|won[’']t|will not|am (?:not able|unable) to|[’']m (?:not able|unable) to)"
    r" (?:help|assist|do that|provide|fulfil|comply|answer|create|generate|write|engage|continue|support|give you)"
    r"|\bas an? (?:ai|artificial intelligence|large language|language) (?:model|assistant|language model)"
    r"|\bi(?: do not|[’'] ?m not| don[’']t) (?:have the ability|feel comfortable|able to)",
    flags=re.IGNORECASE,
)


def is_refusal(text: str) -> bool:
    """Whether an English answer begins by declining, apologising or speaking of itself as a model."""
    return _REFUSAL.search(text[:BEGINNING]) is not None


def foreign_language(text: str, expected: str) -> str | None:
    """The language (ISO 639) that `text` is clearly in, None if it is `expected` or too short to tell.

    Raises:
        InputError: `expected` is no language that can be told from others.
    """
    if expected not in _identifier().labels:
        raise InputError(f"task.language: expected a language that can be told from others, found {expected!r}")
    language, confidence = _identifier().classify(text)
    return language if language not in (expected, "zxx") and confidence >= CONFIDENCE else None


def length_fault(text: str, *, least: int, most: int) -> str | None:
    """What is wrong with the number of words, None if it is within `least` and `most`."""
    words = len(text.split())
    return None if least <= words <= most else f"expected {least} to {most} words, found {words}"


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
