"""Chats as the APIs take them, functions and calls included, and the calls and the reasoning in what they reply."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from edgedistill.core.files import canonical_json
from edgedistill.core.records import Message

UNNAMED = "call"  # and a number: the id of a call that has none


def messages_of(engine: str, messages: Sequence[Message]) -> dict[str, Any]:
    """Messages as the engine's API takes them: functions beside them, for Anthropic the system's text too."""
    named = _with_ids(messages)
    tools = [tool for m in messages for tool in m.tools]
    if engine == "openai":
        said = [_openai(m) for m in named if m.role != "system" or m.content]
        functions = [{"type": "function", "function": dict(tool)} for tool in tools]
        return {"messages": said, **({"tools": functions} if tools else {})}
    system = "\n\n".join(m.content for m in named if m.role == "system" and m.content)
    return {
        "messages": _anthropic([m for m in named if m.role != "system"]),
        **({"system": system} if system else {}),
        **({"tools": [_anthropic_tool(t) for t in tools]} if tools else {}),
    }


def openai_calls(message: Mapping[str, Any]) -> str | None:
    """The functions that a reply's message calls as JSON text, None where it calls none."""
    calls = message.get("tool_calls")
    functions = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    return _text([f for f in functions if isinstance(f, dict)])


def anthropic_calls(blocks: Sequence[Any]) -> str | None:
    """The functions that a reply's content calls as JSON text, None where it calls none."""
    used = [b for b in blocks if isinstance(b, dict) and b.get("type") == "tool_use"]
    return _text([{"name": b.get("name"), "arguments": b.get("input")} for b in used])


def openai_reasoning(message: Mapping[str, Any]) -> str:
    """The reasoning beside a reply's text: DeepSeek's and SGLang's name for it, and vLLM's and OpenRouter's."""
    found = (message.get(name) for name in ("reasoning_content", "reasoning"))
    return next((text for text in found if isinstance(text, str) and text), "")


def anthropic_reasoning(blocks: Sequence[Any]) -> str:
    """The text of a reply's thinking blocks."""
    return "\n".join(b["thinking"] for b in blocks if isinstance(b, dict) and isinstance(b.get("thinking"), str))


def _text(functions: Sequence[Mapping[str, Any]]) -> str | None:
    """Arguments that are no JSON stay text: the answer is then rejected as what it is."""
    if not functions:
        return None
    calls = []
    for function in functions:
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            with contextlib.suppress(ValueError, RecursionError):
                arguments = json.loads(arguments or "{}", parse_constant=str)
        calls.append({"name": function.get("name"), "arguments": arguments})
    try:
        return canonical_json(calls[0] if len(calls) == 1 else calls)
    except (ValueError, RecursionError):  # a number beyond all bounds, or brackets without end
        return f"{len(calls)} calls whose arguments have no JSON"


def _with_ids(messages: Sequence[Message]) -> list[Message]:
    """The chat with an id for each call, and its results named by it in order where they name none."""
    found, waiting, count = [], [], 0
    for message in messages:
        calls = []
        for call in message.tool_calls:
            count += 1
            calls.append(call if call.id else call.model_copy(update={"id": f"{UNNAMED}{count}"}))
        waiting = [call.id for call in calls] or waiting
        update: dict[str, Any] = {"tool_calls": tuple(calls)}
        if message.role == "tool":
            ours = message.tool_call_id or (waiting[0] if waiting else f"{UNNAMED}{count}")
            waiting = [one for one in waiting if one != ours]
            update["tool_call_id"] = ours
        found.append(message.model_copy(update=update))
    return found


def _openai(message: Message) -> dict[str, Any]:
    row: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        row["content"] = message.content or None
        row["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": canonical_json(c.arguments)}}
            for c in message.tool_calls
        ]
    return row | ({"tool_call_id": message.tool_call_id} if message.role == "tool" else {})


def _anthropic(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Results are blocks of a user's message; those of one turn stand in one, with what the user says then."""
    turns: list[dict[str, Any]] = []
    for m in messages:
        blocks: list[dict[str, Any]] = []
        if m.role == "tool":
            blocks = [{"type": "tool_result", "tool_use_id": m.tool_call_id, "content": m.content}]
        elif m.tool_calls:
            blocks = [{"type": "text", "text": m.content}] if m.content else []
            blocks += [{"type": "tool_use", "id": c.id, "name": c.name, "input": c.arguments} for c in m.tool_calls]
        role = "user" if m.role == "tool" else m.role
        last = turns[-1] if turns else {}
        if role == "user" and last.get("role") == "user" and isinstance(last["content"], list):
            last["content"] += blocks or [{"type": "text", "text": m.content}]
        else:
            turns.append({"role": role, "content": blocks or m.content})
    return turns


def _anthropic_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    schema = tool.get("parameters") or {"type": "object", "properties": {}}
    return {k: v for k, v in tool.items() if k != "parameters"} | {"input_schema": schema}
