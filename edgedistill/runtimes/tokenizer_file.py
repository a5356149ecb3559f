"""tokenizer.json before the tokenizers library builds it: ids that cost memory, expressions that never end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgedistill.core.errors import InputError, shortened
from edgedistill.core.files import read_json_object

MOST_ID = 2**22  # an id costs a row wherever tokens are listed in order; the largest vocabularies have 2^18
MOST_PATTERN = 20_000  # characters
UNBOUNDED = ("+", "*")


def check_tokenizer(path: Path) -> dict[str, Any]:
    """The parsed tokenizer.json.

    Raises:
        InputError: it has no model with a vocabulary, an id is none, or an expression repeats what repeats already,
            which takes time exponential in a text's length.
    """
    parsed = read_json_object(path)
    model, added = parsed.get("model"), parsed.get("added_tokens") or []
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict | list) or not vocab:
        raise _wrong(path, "a model with its vocabulary", model)
    if not isinstance(added, list) or not all(isinstance(entry, dict) for entry in added):
        raise _wrong(path, "a list of added tokens", added)
    if not all(isinstance(entry.get("content"), str) for entry in added):
        raise _wrong(path, "added tokens with their texts", added)
    ids = [*(vocab.values() if isinstance(vocab, dict) else ()), *(entry.get("id") for entry in added)]
    if wrong := [token for token in ids if type(token) is not int or not 0 <= token < MOST_ID]:
        raise _wrong(path, f"token ids below {MOST_ID}", wrong[0])
    for pattern in _patterns({key: value for key, value in parsed.items() if key != "model"}):
        if len(pattern) > MOST_PATTERN or repeats_in_repeats(pattern):
            raise _wrong(path, "expressions that repeat nothing that repeats already", pattern)
    return parsed


def repeats_in_repeats(pattern: str) -> bool:
    """Whether a group that repeats without bound holds something that does too, as in `(a+)+`."""
    groups, closed, at = [False], False, 0  # whether each open group, and the one just closed, repeats inside
    while at < len(pattern):
        step, what = _token(pattern, at)
        if what == "(":
            groups.append(False)
        elif what == ")" and len(groups) > 1:
            closed = groups.pop()
            groups[-1] |= closed
        elif what in UNBOUNDED:
            if closed and pattern[at - 1] == ")":
                return True
            groups[-1] = True
        at += step
    return False


def _token(pattern: str, at: int) -> tuple[int, str]:
    """Length and kind of what stands at a place: a bracket, a repeat without bound, or anything else."""
    here = pattern[at]
    if here == "\\":
        return 2, ""
    if here == "[":
        return _class_length(pattern, at), ""
    if here == "{" and (end := pattern.find("}", at)) > 0:
        return end + 1 - at, "+" if pattern[at + 1 : end].endswith(",") else ""
    return 1, here if here in "()+*" else ""


def _class_length(pattern: str, at: int) -> int:
    depth, place = 0, at
    while place < len(pattern):
        here = pattern[place]
        depth += (here == "[") - (here == "]" and place > at + 1)
        place += 2 if here == "\\" else 1
        if not depth:
            break
    return place - at


def _patterns(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("Regex"), str):
            yield value["Regex"]
        for inner in value.values():
            yield from _patterns(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _patterns(inner)


def _wrong(path: Path, expected: str, found: object) -> InputError:
    return InputError(f"{path}: expected {expected}, found {shortened(repr(found), most=60)}; restore the tokenizer")
