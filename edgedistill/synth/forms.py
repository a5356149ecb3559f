"""The forms in which people keep prompts and answers, each turned into a `Prompt`; detected by its names, or named.

`prompt` (`prompt`, `answer`), `messages` (the chats of OpenAI and Azure, with tools and tool calls), `alpaca`
(`instruction`, `input`, `output`), `sharegpt` (`conversations` of `from` and `value`) and `fields` (those of the task's
kind).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgedistill.core.calls import as_text, calls_text
from edgedistill.core.config import did_you_mean
from edgedistill.core.errors import InputError
from edgedistill.core.kinds import KINDS, TURNS, request_text
from edgedistill.core.records import Message, ToolCall
from edgedistill.synth.rows import Row, make_prompt

ROLES = ("system", "user", "assistant")
RETURNED = ("tool", "function")  # roles of what a call gave
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
NAMES = {
    "prompt": ("prompt", "answer", "kind"),
    "messages": ("messages", "answer", "kind", "tools", "functions", "parallel_tool_calls"),
}
MARKS = {"messages": "messages", "conversations": "sharegpt", "instruction": "alpaca", "prompt": "prompt"}
Parsed = tuple[list[Message], str | None]


@dataclass(frozen=True)
class Rules:
    """How the rows of a source are read: the recipe's form, kind, columns, group, system message and tools.

    `native` keeps functions and calls as they are; else they become text.
    Rows may do without the column of the group where `needs_group` is false.
    """

    form: str = "auto"
    kind: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    group: str | None = None
    needs_group: bool = True
    system: str | None = None
    tools: tuple[dict[str, Any], ...] = ()
    native: bool = False


def to_row(raw: Mapping[str, Any], place: str, *, source: str, rules: Rules) -> Row | None:
    """The row of an object of a file, None where its last request is empty.

    A chat whose last message is the assistant's gives its answer; `rules.system` goes before chats that have no system
    message of their own, and the functions that may be called are told in it.

    Raises:
        InputError: the object is not of its form; the message begins with `place`.
    """
    named = _renamed(raw, place, rules)
    form = rules.form if rules.form != "auto" else _detected(named, place, rules.kind)
    if rules.form == "auto" and form in NAMES:
        _require_names(
            raw, place, known=(*NAMES[form], *rules.columns.values(), *([rules.group] if rules.group else ()))
        )
    messages, answer = _PARSERS[form](named, place, rules)
    if messages and messages[-1].role == "assistant":
        if answer is not None:
            raise InputError(f"{place}: expected one answer, found `answer` and a last message by the assistant")
        last = messages.pop()
        answer = calls_text(last.tool_calls) if last.tool_calls else last.content  # what is said beside a call is none
    if not messages or messages[-1].role not in ("user", "tool"):
        last = f"one by the {messages[-1].role}" if messages else "none"
        raise InputError(f"{place}: expected the request to end with a user's message, found {last}")
    if messages[-1].role == "user" and not messages[-1].content.strip():
        return None
    if rules.system is not None and messages[0].role != "system":
        messages.insert(0, Message(role="system", content=rules.system))
    tools = _tools(named.get("tools") or named.get("functions"), place) or rules.tools
    messages = _with_tools(messages, tools)
    prompt = make_prompt(
        messages if rules.native else as_text(messages), answer=answer, kind=_text(named, "kind", place) or ""
    )
    further = {"tools": tools, "other_answers": _other_answers(named, rules.kind) if form == "fields" else ()}
    parts = _parts_of(named, rules.kind) if form == "fields" else ()
    return Row(prompt.model_copy(update=further), place, source, _group(raw, place, rules), parts)


def unanswered(raw: Mapping[str, Any], place: str, *, rules: Rules) -> str:
    """The sentence about a row that has no answer and needs one: of the column it should be in, if one is named."""
    named = (column for wanted, column in rules.columns.items() if wanted in _answer_names(rules))
    if (absent := next((column for column in named if column not in raw), None)) is not None:
        return _no_column(absent, raw, place, key="data.columns")
    return f"{place}: expected an `answer`, found none; gold and test prompts need one"


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "null"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return "an empty list" if value == [] else names.get(type(value), f"a {type(value).__name__}")


def _renamed(raw: Mapping[str, Any], place: str, rules: Rules) -> dict[str, Any]:
    named = dict(raw)
    for wanted, column in rules.columns.items():
        if column in raw:
            named[wanted] = raw[column]
        elif wanted not in _answer_names(rules):  # prompts have no answers yet
            raise InputError(_no_column(column, raw, place, key="data.columns"))
    return named


def _answer_names(rules: Rules) -> set[str]:
    return {"answer", "output", *([KINDS[rules.kind].answer] if rules.kind else ())}


def _no_column(column: str, raw: Mapping[str, Any], place: str, *, key: str) -> str:
    found = ", ".join(map(str, raw)) or "none"
    near = did_you_mean(column, map(str, raw)) if raw else ""
    hint = near if near.startswith("; did") else f"; correct {key}"
    return f"{place}: expected the column {column!r}, as {key} says, found the columns {found}{hint}"


def _detected(named: Mapping[str, Any], place: str, kind: str | None) -> str:
    if kind is not None and all(name in named for name in _required(kind)):
        return "fields"
    found = [name for name in MARKS if name in named]
    if len(found) == 1:
        return MARKS[found[0]]
    expected = f"the fields {', '.join(_required(kind))} of a {kind} task, or " if kind else ""
    names = ", ".join(map(str, named)) or "none"
    raise InputError(f"{place}: expected {expected}one of the names {', '.join(MARKS)}, found {names}; see data.form")


def _required(kind: str) -> list[str]:
    return [name for name in KINDS[kind].fields if name not in KINDS[kind].optional]


def _require_names(raw: Mapping[str, Any], place: str, *, known: tuple[str, ...]) -> None:
    if unknown := sorted(raw.keys() - set(known)):
        near = did_you_mean(unknown[0], known)
        raise InputError(f"{place}: expected the names {', '.join(known)}, found {unknown[0]!r}{near}")


def _prompt(named: Mapping[str, Any], place: str, rules: Rules) -> Parsed:
    if not isinstance(named.get("prompt"), str):
        raise InputError(f"{place}: expected `prompt` to be text, found {kind_of(named.get('prompt'))}")
    return [Message(role="user", content=named["prompt"])], _answer(named, "answer", place, rules.kind)


def _chat(named: Mapping[str, Any], place: str, rules: Rules) -> Parsed:
    value = named.get("messages")
    if not isinstance(value, list) or not value:
        raise InputError(f"{place}: expected `messages` to be a list of at least one message, found {kind_of(value)}")
    messages = [_message(item, f"{place}, message {i}") for i, item in enumerate(value, start=1)]
    if messages[-1].role == "assistant" and value[-1].get("weight") == 0:  # a turn that is not to be learnt
        messages.pop()
    return messages, _answer(named, "answer", place, rules.kind)


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, dict) or "role" not in item or ("content" not in item and not _called(item)):
        found = f"the names {', '.join(sorted(map(str, item)))}" if isinstance(item, dict) else kind_of(item)
        raise InputError(f"{where}: expected an object of `role` and `content`, found {found}")
    role = "system" if item["role"] == "developer" else item["role"]
    if role not in (*ROLES, *RETURNED):
        raise InputError(f"{where}: expected a role of {', '.join((*ROLES, *RETURNED))}, found {item['role']!r}")
    content = item.get("content")
    calls = _calls(called, where) if (called := _called(item)) else ()
    if isinstance(content, list):
        content = _parts(content, where)
    if calls and content is None:
        content = ""
    if not isinstance(content, str):
        raise InputError(f"{where}: expected `content` to be text, found {kind_of(content)}")
    if role in RETURNED:
        return Message(role="tool", content=content, tool_call_id=str(item.get("tool_call_id") or ""))
    return Message(role=role, content=content, tool_calls=calls)


def _called(item: Any) -> Any:
    return item.get("tool_calls") or item.get("function_call") if isinstance(item, dict) else None


def _parts(content: list[Any], where: str) -> str:
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            found = part.get("type", kind_of(part)) if isinstance(part, dict) else kind_of(part)
            raise InputError(f"{where}: expected parts of text, found {found}; images and sound are not learnt")
    return "".join(part["text"] for part in content)


def _alpaca(named: Mapping[str, Any], place: str, rules: Rules) -> Parsed:
    instruction, given = _text(named, "instruction", place), _text(named, "input", place)
    if instruction is None:
        raise InputError(f"{place}: expected `instruction` to be text, found {kind_of(named.get('instruction'))}")
    asked = f"{instruction}\n\n{given}" if given and given.strip() else instruction
    messages = [Message(role="user", content=asked)]
    if system := _text(named, "system", place):
        messages.insert(0, Message(role="system", content=system))
    return messages, _answer(named, "output", place, rules.kind)


def _sharegpt(named: Mapping[str, Any], place: str, rules: Rules) -> Parsed:
    value = named.get("conversations")
    if not isinstance(value, list) or not value:
        raise InputError(f"{place}: expected `conversations` to be a list of turns, found {kind_of(value)}")
    messages = []
    for number, turn in enumerate(value, start=1):
        where = f"{place}, turn {number}"
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise InputError(f"{where}: expected an object of `from` and `value`, found {kind_of(turn)}")
        if (speaker := turn.get("from")) not in SPEAKERS:
            raise InputError(f"{where}: expected `from` to be one of {', '.join(SPEAKERS)}, found {speaker!r}")
        messages.append(Message(role=SPEAKERS[speaker], content=turn["value"]))  # type: ignore[arg-type]
    return messages, None


def _fields(named: Mapping[str, Any], place: str, rules: Rules) -> Parsed:
    if rules.kind is None:
        raise InputError(f'{place}: data.form = "fields" expects a task.kind, found none; it says which fields')
    kind = KINDS[rules.kind]
    if missing := [name for name in _required(rules.kind) if named.get(name) is None]:
        raise InputError(
            f"{place}: expected the field {missing[0]!r} of a {rules.kind} task, found none; see data.columns"
        )
    answer = _answer(named, kind.answer, place, rules.kind)
    if TURNS in kind.fields:
        return _turns(named[TURNS], place), answer
    fields = {name: value for name in kind.fields if (value := _text(named, name, place)) is not None}
    if rules.kind == "math" and answer is not None and (steps := _text(named, "solution", place)):
        answer = f"{steps}\nAnswer: {answer}"
    return [Message(role="user", content=request_text(rules.kind, fields))], answer


def _parts_of(named: Mapping[str, Any], kind: str | None) -> tuple[str, ...]:
    """The fields of a request that has several."""
    given = [named[name] for name in KINDS[kind].fields if isinstance(named.get(name), str)] if kind else []
    return tuple(given) if len(given) > 1 else ()


def _turns(value: Any, place: str) -> list[Message]:
    """Turns as text, as a list of texts by user and assistant in turn (or each after `user: `), or as messages."""
    if isinstance(value, str):
        return [Message(role="user", content=value)]
    if not isinstance(value, list) or not value:
        raise InputError(f"{place}: expected `{TURNS}` to be text or a list of turns, found {kind_of(value)}")
    messages = []
    for number, turn in enumerate(value):
        if not isinstance(turn, str):
            messages.append(_message(turn, f"{place}, turn {number + 1}"))
            continue
        speaker, mark, said = turn.partition(": ")
        named = bool(mark) and speaker.lower() in SPEAKERS
        role = SPEAKERS[speaker.lower()] if named else ROLES[1 + number % 2]
        messages.append(Message(role=role, content=said if named else turn))  # type: ignore[arg-type]
    return messages


def _answer(named: Mapping[str, Any], name: str, place: str, kind: str | None) -> str | None:
    """The right answer as text: of several the first, of a function call its JSON, of a number its digits."""
    value = named.get(name)
    if kind is None or value is None or isinstance(value, str):
        return _text(named, name, place)
    if kind == "function-call":
        return _call_text(value, place)
    value = (_several(value) or [value])[0]
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return json.dumps(value)
    raise InputError(f"{place}: expected `{name}` to be text, found {kind_of(value)}")


def _other_answers(named: Mapping[str, Any], kind: str | None) -> tuple[str, ...]:
    first, *others = _several(named.get(KINDS[kind].answer) if kind else None) or [None]
    return tuple(dict.fromkeys(text for text in others if isinstance(text, str) and text.strip() and text != first))


def _several(value: Any) -> list[Any]:
    """Right answers that stand together, in a list or in SQuAD's object of lists; none for one that stands alone."""
    value = value.get("text") if isinstance(value, dict) else value
    return value if isinstance(value, list) else []


def _text(named: Mapping[str, Any], name: str, place: str) -> str | None:
    value = named.get(name)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{place}: expected `{name}` to be text, found {kind_of(value)}")
    return value


def _call_text(value: Any, where: str) -> str:
    """Function calls as `{"arguments": …, "name": …}` or a list of these, in whichever spelling they come."""
    return calls_text(_calls(value, where))


def _calls(value: Any, where: str) -> tuple[ToolCall, ...]:
    return tuple(_call(one, where) for one in (value if isinstance(value, list) and value else [value]))


def _call(value: Any, where: str) -> ToolCall:
    identity = value.get("id") if isinstance(value, dict) else None
    value = value.get("function", value) if isinstance(value, dict) else value
    if isinstance(value, dict):
        name = value.get("name", value.get("method"))
        arguments = value.get("arguments", value.get("parameters", {}))
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError:
                arguments = None
        if isinstance(name, str) and isinstance(arguments, dict):
            return ToolCall(name=name, arguments=arguments, id=identity if isinstance(identity, str) else "")
    raise InputError(f"{where}: expected a function call of `name` and `arguments`, found {kind_of(value)}")


def _tools(value: Any, place: str) -> tuple[dict[str, Any], ...]:
    if value is None:
        return ()
    found = [
        tool.get("function", tool) if isinstance(tool, dict) else tool
        for tool in (value if isinstance(value, list) else [value])
    ]
    for tool in found:
        if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
            raise InputError(f"{place}: expected tools to be a list of functions with a `name`, found {kind_of(tool)}")
    return tuple({name: tool[name] for name in ("name", "description", "parameters") if name in tool} for tool in found)


def _with_tools(messages: list[Message], tools: tuple[dict[str, Any], ...]) -> list[Message]:
    """The chat with its functions beside the system message."""
    if not tools:
        return messages
    said = messages[0].content if messages[0].role == "system" else ""
    others = messages[1:] if messages[0].role == "system" else messages
    return [Message(role="system", content=said, tools=tools), *others]


def _group(raw: Mapping[str, Any], place: str, rules: Rules) -> str:
    value = raw.get(rules.group) if rules.group else None
    if rules.group is None or (value is None and not rules.needs_group):
        return ""
    if rules.group not in raw:
        raise InputError(_no_column(rules.group, raw, place, key="data.group"))
    if not isinstance(value, str | int):
        raise InputError(f"{place}: expected {rules.group!r}, as data.group says, to be text, found {kind_of(value)}")
    return str(value)


_PARSERS: dict[str, Callable[[Mapping[str, Any], str, Rules], Parsed]] = {
    "prompt": _prompt,
    "messages": _chat,
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
    "fields": _fields,
}
