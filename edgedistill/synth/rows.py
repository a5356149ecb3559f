"""A row of the user's data on its way to a prompt: with its place, its source, and the group it belongs to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from edgedistill.core.files import digest_of
from edgedistill.core.records import LeftOut, Message, Prompt
from edgedistill.synth.textforms import asked_text


@dataclass(frozen=True)
class Row:
    """A prompt and where it came from; rows of one `group` stay in one split, the request itself where it is empty.

    `parts` are the fields that the request was made of, such as passage and question; none where it is one text.
    """

    prompt: Prompt
    place: str
    source: str = ""
    group: str = ""
    parts: tuple[str, ...] = ()


def make_prompt(messages: Iterable[Message], *, answer: str | None = None, kind: str = "") -> Prompt:
    """A prompt whose id is the hash of its messages: equal requests have equal ids."""
    messages = tuple(messages)
    identity = digest_of([said_of(m) for m in messages])[:32]
    return Prompt(id=identity, messages=messages, answer=answer, kind=kind)


def said_of(message: Message) -> list[Any]:
    """A message as hashes know it: role and text, and its functions and calls where it has some."""
    return [message.role, message.content, *([extras] if (extras := message.extras) else [])]


def left_out(row: Row, *, split: str, reason: str, detail: str = "") -> LeftOut:
    return LeftOut(split=split, place=row.place, reason=reason, detail=detail, text=asked_text(row.prompt))
