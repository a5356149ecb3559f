"""Kinds of task: the fields of a row, the words of the request, and how an answer is read and compared.

Label kinds are judged by accuracy, question answering as SQuAD does (Rajpurkar et al. 2016), math by the number at the
end (Cobbe et al. 2021), function calls by name and arguments; summaries and conversations are graded.
"""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from edgedistill.core.files import canonical_json, once_each

KindName = Literal[
    "classification", "nli", "question-answering", "math", "summarization", "conversation", "function-call"
]
NLI_LABELS = ("entailment", "neutral", "contradiction")
TURNS = "turns"


@dataclass(frozen=True)
class Kind:
    """One kind of task.

    `fields` of a row make the request, those of `optional` may be absent; `answer` is the field of the right answer.
    `system` is said before the request, with the task's labels in the place of `{labels}`. A `graded` kind has no one
    right answer.
    """

    fields: tuple[str, ...]
    answer: str
    system: str
    optional: frozenset[str] = frozenset()
    graded: bool = False


KINDS: dict[str, Kind] = {
    "classification": Kind(
        ("text",), "label", "Name the class of the text{labels}. Answer with the name of the class alone."
    ),
    "nli": Kind(
        ("premise", "hypothesis"),
        "label",
        "Does the premise entail the hypothesis, contradict it, or neither? Answer with one word{labels}.",
    ),
    "question-answering": Kind(
        ("context", "question"), "answer", "Answer the question in as few words as it needs.", frozenset({"context"})
    ),
    "math": Kind(("question",), "answer", 'Solve the problem step by step. End with a line "Answer: " and the number.'),
    "summarization": Kind(("document",), "summary", "Summarize the text in one sentence.", graded=True),
    "conversation": Kind((TURNS,), "reply", "", graded=True),
    "function-call": Kind(
        (TURNS,),
        "call",
        'Call the function that the request needs. Answer with one JSON object of "name" and "arguments" alone.',
    ),
}


def system_text(kind: str, *, labels: Sequence[str] = ()) -> str:
    """What is said before each request of a kind; empty for none."""
    named = f" ({', '.join(labels)})" if labels else ""
    return KINDS[kind].system.replace("{labels}", named)


def request_text(kind: str, fields: dict[str, str]) -> str:
    """The user's message of a request: one field alone, several each after its name and on lines of their own."""
    given = [(name, fields[name]) for name in KINDS[kind].fields if name in fields]
    if len(given) == 1:
        return given[0][1]
    return "\n".join(f"{name.capitalize()}: {value}" for name, value in given)


def without_reasoning(text: str) -> str:
    """An answer without the `<think>…</think>` before it."""
    found = THOUGHT.match(text)
    return text[found.end() :] if found else text


def extract(text: str, *, kind: str, labels: Sequence[str] = ()) -> Any | None:
    """The answer that `text` gives, in a form where equal answers are equal values; None where it gives none."""
    return _EXTRACTORS[kind](without_reasoning(text), tuple(labels))


def same_answer(found: str, expected: str, *, kind: str, labels: Sequence[str] = ()) -> bool:
    """Whether two answers of a kind say the same."""
    one = extract(found, kind=kind, labels=labels)
    return one is not None and one == extract(expected, kind=kind, labels=labels)


def answer_words(text: str) -> list[str]:
    """The words of an answer without case, punctuation and English articles, as SQuAD's evaluation compares them."""
    plain = "".join(" " if c in _PUNCTUATION else c for c in unicodedata.normalize("NFKC", text).casefold())
    return [word for word in plain.split() if word not in ("a", "an", "the")]


def call_of(text: str) -> tuple[str, dict[str, Any]] | None:
    """Name and arguments of a function call in JSON, None if `text` is none."""
    try:
        value = strict_json(text)
    except ValueError:
        return None
    if not isinstance(value, dict) or value.keys() != {"name", "arguments"}:
        return None
    name, arguments = value["name"], value["arguments"]
    return (name, arguments) if isinstance(name, str) and isinstance(arguments, dict) else None


def calls_of(text: str) -> list[dict[str, Any]] | None:
    """Function calls in JSON, as one object, a list, or each in the tags that many chat templates write; else None."""
    if (tagged := _TAGGED.findall(text)) and not _TAGGED.sub("", text).strip():
        found = [call_of(call) for call in tagged]
    else:
        try:
            value = strict_json(text)
        except ValueError:
            return None
        found = [call_of(canonical_json(call)) for call in (value if isinstance(value, list) else [value])]
    return [{"name": call[0], "arguments": call[1]} for call in found if call] if found and all(found) else None


def strict_json(text: str) -> Any:
    """JSON without NaN, Infinity, or a name that stands twice.

    Raises:
        ValueError: `text` is not that, or nested too deeply.
    """

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    try:
        return json.loads(text, parse_constant=refuse, object_pairs_hook=once_each)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


THOUGHT = re.compile(r"^\s*<think>(?P<thought>.*?)</think>\s*", flags=re.DOTALL)
_TAGGED = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", flags=re.DOTALL)
_PUNCTUATION = frozenset(string.punctuation + "‘’“”–—…")
_SAID = re.compile(r"(?:\banswer\s*(?:is\s*)?:|####|\\boxed\{)\s*", flags=re.IGNORECASE)
_NUMBER = re.compile(r"[-−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s*/\s*\d+(?![\d.]))?|[-−]?\.\d+")


def _said(text: str) -> str:
    """What follows the last mark of an answer, the whole text without one."""
    return _SAID.split(text)[-1]


def _label(text: str, labels: tuple[str, ...]) -> str | None:
    said = _folded(_said(text))
    if not labels:
        return said or None
    names = {_folded(label): label for label in labels}
    if said in names:
        return names[said]
    spoken = f" {_folded(text)} "
    mentioned = {label for name, label in names.items() if f" {name} " in spoken}
    return mentioned.pop() if len(mentioned) == 1 else None


def _folded(text: str) -> str:
    return re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()


def _span(text: str, labels: tuple[str, ...]) -> str | None:
    return " ".join(answer_words(_said(text))) or None


def _number(text: str, labels: tuple[str, ...]) -> Fraction | None:
    marked = _SAID.search(text) is not None
    found = _NUMBER.findall(_said(text) if marked else text)
    if not found:
        return None
    plain = re.sub(r"[,\s]", "", found[0] if marked else found[-1]).replace("−", "-")
    try:
        return Fraction(plain)
    except (ValueError, ZeroDivisionError):
        return None


def _call(text: str, labels: tuple[str, ...]) -> str | None:
    calls = calls_of(text)
    return canonical_json(calls[0] if len(calls) == 1 else calls) if calls else None


def _whole(text: str, labels: tuple[str, ...]) -> str | None:
    return " ".join(text.split()) or None


_EXTRACTORS: dict[str, Callable[[str, tuple[str, ...]], Any | None]] = {
    "classification": _label,
    "nli": lambda text, labels: _label(text, labels or NLI_LABELS),
    "question-answering": _span,
    "math": _number,
    "summarization": _whole,
    "conversation": _whole,
    "function-call": _call,
}
