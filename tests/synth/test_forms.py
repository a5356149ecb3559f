"""The forms people keep their data in, each to the same prompt; and the fields of each kind of task."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgedistill.core.errors import InputError
from edgedistill.core.kinds import KINDS, call_of
from edgedistill.core.records import Prompt
from edgedistill.synth.forms import Rules, to_row

CALL = '{"arguments":{"city":"Rome"},"name":"weather"}'
TOOL = {"name": "weather", "description": "Tells.", "parameters": {"type": "object", "required": ["city"]}}


def read(row: dict[str, Any], **rules: Any) -> Prompt:
    found = to_row(row, "here", source="s", rules=Rules(**rules))
    assert found is not None
    return found.prompt


def test_one_conversation_in_every_form_is_one_prompt() -> None:
    turns = [("user", "Hi"), ("assistant", "Hello"), ("user", "Bye")]
    chat = {"messages": [{"role": r, "content": c} for r, c in turns]}
    parts = {"messages": [{"role": r, "content": [{"type": "text", "text": c}]} for r, c in turns]}
    sharegpt = {"id": 1, "conversations": [{"from": {"user": "human"}.get(r, "gpt"), "value": c} for r, c in turns]}
    lists = {"turns": [c for _, c in turns]}
    said = {"turns": [f"{r}: {c}" for r, c in turns]}
    found = [read(chat), read(parts), read(sharegpt), *(read(row, kind="conversation") for row in (lists, said))]
    assert len({prompt.id for prompt in found}) == 1
    assert [m.role for m in found[0].messages] == ["user", "assistant", "user"] and found[0].answer is None


def test_the_last_turn_of_the_assistant_is_the_answer_unless_it_has_no_weight() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert read({"messages": turns}).answer == "b"
    azure = [*turns[:1], turns[1] | {"weight": 0}]
    assert read({"messages": azure}).answer is None
    assert read({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}).answer == "b"


@pytest.mark.parametrize(
    "answer",
    [
        {"content": None, "tool_calls": [{"id": "1", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}]},
        {"content": "", "function_call": {"name": "weather", "arguments": '{"city": "Rome"}'}},
        {"content": "Let me see.", "tool_calls": [{"function": {"name": "weather", "arguments": '{"city":"Rome"}'}}]},
        {"content": CALL},
    ],
)
def test_tool_calls_of_a_chat_are_json_answers_and_tools_are_told(answer: dict[str, Any]) -> None:
    chat = [{"role": "user", "content": "Weather in Rome?"}, {"role": "assistant", **answer}]
    row = {"messages": chat, "tools": [{"type": "function", "function": TOOL}], "parallel_tool_calls": False}
    prompt = read(row, kind="function-call", system="Call.")
    assert prompt.answer == CALL and prompt.tools == (TOOL,)
    assert prompt.messages[0].content.startswith('Call.\nFunctions: [{"description":"Tells.","name":"weather"')
    assert read({"messages": chat}, kind="function-call", tools=(TOOL,)).tools == (TOOL,)


def test_several_calls_are_a_list_and_what_is_no_call_is_refused() -> None:
    calls: list[Any] = [{"function": {"name": "f", "arguments": "{}"}}] * 2
    chat = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": calls}]
    assert read({"messages": chat}).answer == '[{"arguments":{},"name":"f"},{"arguments":{},"name":"f"}]'
    calls[1] = {"function": {"name": "f", "arguments": "{"}}
    with pytest.raises(InputError, match="here, message 2: expected a function call of `name` and `arguments`"):
        read({"messages": chat})


def test_alpaca_joins_instruction_and_input() -> None:
    assert read({"instruction": "Do", "input": "", "output": "x", "id": 3}).messages[0].content == "Do"
    assert read({"instruction": "Do", "input": "it", "output": "x"}).messages[0].content == "Do\n\nit"


@pytest.mark.parametrize(
    ("kind", "row", "asked", "answer"),
    [
        ("nli", {"premise": "P", "hypothesis": "H", "label": "neutral"}, "Premise: P\nHypothesis: H", "neutral"),
        ("classification", {"text": "T", "label": "a"}, "T", "a"),
        ("question-answering", {"question": "Q", "answer": "A"}, "Q", "A"),
        (
            "question-answering",
            {"context": "C", "question": "Q", "answer": {"text": ["A", "B"], "answer_start": [0, 1]}},
            "Context: C\nQuestion: Q",
            "A",
        ),
        ("math", {"question": "Q", "answer": 7}, "Q", "7"),
        ("math", {"question": "Q", "answer": "7", "solution": "3 + 4"}, "Q", "3 + 4\nAnswer: 7"),
        ("summarization", {"document": "D", "summary": ["S", "T"]}, "D", "S"),
        ("function-call", {"turns": "Q", "call": {"method": "weather", "parameters": {"city": "Rome"}}}, "Q", CALL),
        ("conversation", {"turns": ["Hi", "Hello"]}, "Hi", "Hello"),
    ],
)
def test_the_fields_of_a_kind_make_its_request(kind: str, row: dict[str, Any], asked: str, answer: str) -> None:
    prompt = read(row | {"extra": 1}, kind=kind)
    assert (prompt.messages[-1].content, prompt.answer) == (asked, answer)
    several = isinstance(row.get("summary"), list) or isinstance(row.get("answer"), dict)
    assert len(prompt.other_answers) == several


def test_columns_rename_and_groups_are_read() -> None:
    rules = Rules(kind="classification", columns={"text": "utterance", "label": "intent"}, group="who")
    row = to_row({"utterance": "hi", "intent": "greet", "who": "me"}, "here", source="s", rules=rules)
    assert row is not None and row.prompt.answer == "greet" and row.group == "me"
    unlabelled = to_row({"utterance": "hi", "who": "me"}, "here", source="s", rules=rules)
    assert unlabelled is not None and unlabelled.prompt.answer is None
    with pytest.raises(InputError) as e:
        to_row({"utterence": "hi", "who": "me"}, "here", source="s", rules=rules)
    assert str(e.value) == (
        "here: expected the column 'utterance', as data.columns says, found the columns utterence, who; did you mean "
        "'utterence'?"
    )
    needless = to_row({"utterance": "hi"}, "here", source="s", rules=replace(rules, needs_group=False))
    assert needless is not None and needless.group == ""
    with pytest.raises(InputError, match=r"here: expected the column 'who', as data.group says, found the columns utt"):
        to_row({"utterance": "hi"}, "here", source="s", rules=rules)
    with pytest.raises(InputError, match=r"here: expected 'who', as data.group says, to be text, found null"):
        to_row({"utterance": "hi", "who": None}, "here", source="s", rules=rules)


def test_a_form_that_is_named_does_not_mind_other_columns_and_misses_its_own() -> None:
    assert read({"prompt": "a", "id": 4}, form="prompt").messages[0].content == "a"
    with pytest.raises(InputError, match="expected the names prompt, answer, kind, found 'id'"):
        read({"prompt": "a", "id": 4})
    with pytest.raises(InputError, match=r'data.form = "fields" expects a task.kind, found none'):
        read({"text": "a"}, form="fields")
    with pytest.raises(InputError, match=r"expected the field 'hypothesis' of a nli task, found none; see"):
        read({"premise": "a"}, form="fields", kind="nli")
    with pytest.raises(InputError, match="expected the fields premise, hypothesis of a nli task, or one of the names"):
        read({"premise": "a"}, kind="nli")


COLUMNS: dict[str, tuple[str, dict[str, str]]] = {
    "clinc150": ("classification", {"label": "intent"}),
    "snips": ("classification", {"label": "intent"}),
    "snli_esnli": ("nli", {}),
    "boolq": ("question-answering", {}),
    "xquad_en": ("question-answering", {"answer": "answers"}),
    "gsm8k": ("math", {}),
    "scitldr": ("summarization", {"summary": "summaries"}),
    "sgd_calls": ("function-call", {"turns": "history"}),
    "sgd_dialogues": ("conversation", {}),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_real_data_sets_of_every_kind_are_read_whole(shared_data: Path, name: str) -> None:
    kind, columns = COLUMNS[name]
    lines = (shared_data / name / "test.jsonl").read_text().splitlines()[:300]
    for number, line in enumerate(lines):
        prompt = read(json.loads(line), kind=kind, columns=columns)
        assert prompt.messages[-1].role == "user" and (prompt.answer or kind == "conversation"), number
        assert kind != "function-call" or call_of(prompt.answer or "")
    assert len(lines) >= 200 and {kind for kind, _ in COLUMNS.values()} == set(KINDS)
