"""Function calls as a chat template writes them, where it has something for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgedistill.core.kinds import calls_of
from edgedistill.core.records import Message, ToolCall

MARK = "zqfunction"  # a name that no template writes by itself


def render_native(tokenizer: Any, messages: Sequence[Message], *, template: str, answering: bool) -> str | None:
    """The chat with the template's own form of functions, calls and results; None where it drops or refuses them."""
    from jinja2 import TemplateError

    from edgedistill.runtimes.chat import rendered

    tools = [{"type": "function", "function": dict(tool)} for m in messages for tool in m.tools]
    rows = [_row(m, names=_names(messages)) for m in messages if m.role != "system" or m.content]
    try:
        if not _writes_calls(tokenizer, template, tools=bool(tools)):
            return None
        return rendered(tokenizer, rows, template=template, add_generation_prompt=answering, tools=tools)
    except TemplateError:
        return None


def spoken(tokenizer: Any, messages: Sequence[Message], answer: str, *, template: str) -> str:
    """What the assistant says to give `answer`: calls in the template's form, where the prompt tells of functions.

    A form that is not read back as the same calls is of no use: then, as in any other case, it is the answer itself.
    """
    calls = calls_of(answer) if any(m.tools for m in messages) else None
    if calls is None:
        return answer
    asked = render_native(tokenizer, messages, template=template, answering=True)
    said = Message(role="assistant", content="", tool_calls=tuple(ToolCall(**call) for call in calls))
    whole = render_native(tokenizer, [*messages, said], template=template, answering=False)
    if asked is None or whole is None or not whole.startswith(asked):
        return answer
    told = whole[len(asked) :]
    end = told.rfind("</tool_call>")
    told = told[: end + len("</tool_call>")] if end >= 0 else told
    return told if calls_of(told) == calls else answer


def _row(message: Message, *, names: dict[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        row["tool_calls"] = [
            {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.role == "tool":
        row |= {"tool_call_id": message.tool_call_id, "name": names.get(message.tool_call_id, "")}
    return row


def _names(messages: Sequence[Message]) -> dict[str, str]:
    return {call.id: call.name for m in messages for call in m.tool_calls}


def _writes_calls(tokenizer: Any, template: str, *, tools: bool) -> bool:
    """Whether calls, results and, where asked for, functions come through a template: shown by one of each."""
    from edgedistill.runtimes.chat import rendered

    rows = [
        {"role": "user", "content": "."},
        _row(Message(role="assistant", content="", tool_calls=(ToolCall(name=MARK, id="a"),)), names={}),
        _row(Message(role="tool", content=f"{MARK}2", tool_call_id="a"), names={"a": f"{MARK}3"}),
    ]
    told = [{"type": "function", "function": {"name": f"{MARK}4", "description": ".", "parameters": {}}}] * tools
    text = rendered(tokenizer, rows, template=template, tools=told)
    with_result = f"{MARK}2" in text
    without = rendered(tokenizer, rows[:2], template=template, add_generation_prompt=False, tools=told)
    return with_result and MARK in without.replace(f"{MARK}4", "") and (not tools or f"{MARK}4" in text)
