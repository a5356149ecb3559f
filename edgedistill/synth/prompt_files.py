"""Prompts out of users' JSONL files: one object a line, with `prompt` or chat `messages`, and perhaps `answer`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgedistill.core.errors import InputError
from edgedistill.core.files import digest_of
from edgedistill.core.records import Message, Prompt

KEYS = ("prompt", "messages", "answer", "kind")
ROLES = ("system", "user", "assistant")


@dataclass
class Loaded:
    """Prompts of one file, and the line numbers of what was left out."""

    prompts: list[Prompt] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    empty: list[int] = field(default_factory=list)
    duplicate: list[int] = field(default_factory=list)


def make_prompt(messages: Iterable[Message], *, answer: str | None = None, kind: str = "") -> Prompt:
    """A prompt whose id is the hash of its messages: equal requests have equal ids."""
    messages = tuple(messages)
    identity = digest_of([[m.role, m.content] for m in messages])[:32]
    return Prompt(id=identity, messages=messages, answer=answer, kind=kind)


def load_prompts(path: Path, *, system: str | None = None, needs_answer: bool = False) -> Loaded:
    """Read a JSONL file of prompts; empty and repeated ones are left out and their lines reported.

    A chat whose last message is the assistant's gives its answer. `system` goes before chats that have no system
    message of their own.

    Raises:
        InputError: the file is absent, holds no prompt, or a line is not what is expected; the message names the line.
    """
    if not path.is_file():
        raise InputError(f"expected a JSONL file of prompts at {path}, found nothing there")
    loaded = Loaded()
    seen: set[str] = set()
    with path.open("rb") as f:
        for number, raw in enumerate(f, start=1):
            if not raw.strip():
                continue
            prompt = _parse(raw, f"{path} line {number}", system=system)
            if prompt is None:
                loaded.empty.append(number)
            elif needs_answer and not (prompt.answer or "").strip():
                raise InputError(
                    f"{path} line {number}: expected an `answer`, found none; gold and test prompts need one"
                )
            elif prompt.id in seen:
                loaded.duplicate.append(number)
            else:
                seen.add(prompt.id)
                loaded.prompts.append(prompt)
                loaded.lines.append(number)
    if not loaded.prompts:
        raise InputError(f"expected at least one prompt in {path}, found none")
    return loaded


def _parse(raw: bytes, place: str, *, system: str | None) -> Prompt | None:
    """The prompt of one line, None where its last request is empty."""
    try:
        row = json.loads(raw)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as e:
        raise InputError(f"{place}: expected one JSON object, found damaged text ({e})") from None
    if not isinstance(row, dict):
        raise InputError(f"{place}: expected a JSON object, found {_kind(row)}")
    if unknown := sorted(row.keys() - set(KEYS)):
        raise InputError(f"{place}: expected the names {', '.join(KEYS)}, found {unknown[0]!r}")
    if ("prompt" in row) == ("messages" in row):
        raise InputError(
            f"{place}: expected either `prompt` or `messages`, found {'both' if 'prompt' in row else 'neither'}"
        )
    for name in ("prompt", "answer", "kind"):
        if name in row and not isinstance(row[name], str) and not (name == "answer" and row[name] is None):
            raise InputError(f"{place}: expected `{name}` to be text, found {_kind(row[name])}")
    messages = [Message(role="user", content=row["prompt"])] if "prompt" in row else _messages(row["messages"], place)
    answer = row.get("answer")
    if messages[-1].role == "assistant":
        if answer is not None:
            raise InputError(f"{place}: expected one answer, found `answer` and a last message by the assistant")
        answer = messages.pop().content
    if not messages or messages[-1].role != "user":
        raise InputError(f"{place}: expected the request to end with a user's message, found {_last_role(messages)}")
    if not messages[-1].content.strip():
        return None
    if system is not None and messages[0].role != "system":
        messages.insert(0, Message(role="system", content=system))
    return make_prompt(messages, answer=answer, kind=row.get("kind", ""))


def _messages(value: Any, place: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise InputError(f"{place}: expected `messages` to be a list of at least one message, found {_kind(value)}")
    messages = []
    for i, item in enumerate(value):
        where = f"{place}, message {i + 1}"
        if not isinstance(item, dict) or set(item) != {"role", "content"}:
            found = f"the names {', '.join(sorted(map(str, item)))}" if isinstance(item, dict) else _kind(item)
            raise InputError(f"{where}: expected an object of `role` and `content`, found {found}")
        if item["role"] not in ROLES:
            raise InputError(f"{where}: expected a role of {', '.join(ROLES)}, found {item['role']!r}")
        if not isinstance(item["content"], str):
            raise InputError(f"{where}: expected `content` to be text, found {_kind(item['content'])}")
        messages.append(Message(role=item["role"], content=item["content"]))
    return messages


def _last_role(messages: list[Message]) -> str:
    return f"one by the {messages[-1].role}" if messages else "none"


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return "an empty list" if value == [] else names[type(value)]
