"""Chats with function calls: their fields as text, for templates and tasks that know nothing of calls."""

from __future__ import annotations

from collections.abc import Sequence

from edgedistill.core.files import canonical_json
from edgedistill.core.records import Message, ToolCall


def has_calls(messages: Sequence[Message]) -> bool:
    """Whether a chat tells functions, calls one, or holds what one returned."""
    return any(m.tools or m.tool_calls or m.role == "tool" for m in messages)


def calls_text(calls: Sequence[ToolCall]) -> str:
    """`{"arguments": …, "name": …}` of one call, a list of these of several."""
    plain = [{"name": call.name, "arguments": call.arguments} for call in calls]
    return canonical_json(plain[0] if len(plain) == 1 else plain)


def as_text(messages: Sequence[Message]) -> list[Message]:
    """The same chat in text alone: functions in the system message, calls as JSON, what they return as the user's."""
    found: list[Message] = []
    returned = False
    for message in messages:
        parts = [message.content]
        if message.tools:
            parts.append(f"Functions: {canonical_json(list(message.tools))}")
        if message.tool_calls:
            parts.append(calls_text(message.tool_calls))
        said = "\n".join(part for part in parts if part)
        said = f"Result: {said}" if message.role == "tool" else said
        role = "user" if message.role == "tool" else message.role
        if returned and role == "user":  # of several calls, or before what the user says: turns alternate
            found[-1] = Message(role="user", content=f"{found[-1].content}\n{said}")
        else:
            found.append(Message(role=role, content=said))
        returned = message.role == "tool"
    return found
