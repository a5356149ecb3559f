"""Users' prompt files: what is read, what is left out, and what each fault is called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgedistill.core.errors import InputError
from edgedistill.synth.prompt_files import load_prompts

USER = {"role": "user", "content": "hi"}


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_prompts_chats_and_answers_are_read_and_given_content_ids(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.jsonl",
        {"prompt": "one", "answer": "1", "kind": "digit"},
        {"messages": [{"role": "system", "content": "own"}, USER]},
        {"messages": [USER, {"role": "assistant", "content": "hello"}]},
    )
    first, second, third = load_prompts(path, system="be brief").prompts
    assert [m.role for m in first.messages] == ["system", "user"] and first.messages[0].content == "be brief"
    assert (first.answer, first.kind) == ("1", "digit")
    assert second.messages[0].content == "own"
    assert (third.answer, len(third.messages)) == ("hello", 2)
    again = load_prompts(write(tmp_path / "q.jsonl", {"prompt": "one"}), system="be brief").prompts[0]
    assert again.id == first.id
    assert load_prompts(tmp_path / "q.jsonl").prompts[0].id != first.id


def test_empty_and_repeated_prompts_are_left_out_by_line(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": " "}, "", {"prompt": "b"}, {"prompt": "a"})
    loaded = load_prompts(path)
    assert [p.messages[-1].content for p in loaded.prompts] == ["a", "b"]
    assert (loaded.lines, loaded.empty, loaded.duplicate) == ([1, 4], [2], [5])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"', "expected one JSON object, found damaged text"),
        ("[1]", "expected a JSON object, found a list"),
        ({"promt": "a"}, "expected the names prompt, messages, answer, kind, found 'promt'"),
        ({"answer": "a"}, "expected either `prompt` or `messages`, found neither"),
        ({"prompt": "a", "messages": [USER]}, "expected either `prompt` or `messages`, found both"),
        ({"prompt": 3}, "expected `prompt` to be text, found a number"),
        ({"prompt": "a", "answer": {}}, "expected `answer` to be text, found an object"),
        ({"messages": []}, "expected `messages` to be a list of at least one message, found an empty list"),
        ({"messages": ["a"]}, "message 1: expected an object of `role` and `content`, found text"),
        (
            {"messages": [{"role": "user"}]},
            "message 1: expected an object of `role` and `content`, found the names role",
        ),
        ({"messages": [{"role": "bot", "content": ""}]}, "expected a role of system, user, assistant, found 'bot'"),
        ({"messages": [{"role": "user", "content": None}]}, "expected `content` to be text, found null"),
        (
            {"messages": [{"role": "system", "content": "s"}]},
            "expected the request to end with a user's message, found one by the system",
        ),
        (
            {"messages": [{"role": "assistant", "content": "s"}]},
            "expected the request to end with a user's message, found none",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": "s"}], "answer": "t"},
            "expected one answer, found `answer` and a last message by the assistant",
        ),
    ],
)
def test_a_wrong_line_is_named_with_what_was_found(tmp_path: Path, line: object, message: str) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": "fine"}, line)
    with pytest.raises(InputError) as caught:
        load_prompts(path)
    assert str(caught.value).startswith(f"{path} line 2")
    assert message in str(caught.value)


def test_missing_answers_files_and_prompts_are_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 2: expected an `answer`, found none"):
        load_prompts(write(tmp_path / "g.jsonl", {"prompt": "a", "answer": "b"}, {"prompt": "c"}), needs_answer=True)
    with pytest.raises(InputError, match=r"expected at least one prompt in .*, found none"):
        load_prompts(write(tmp_path / "e.jsonl", {"prompt": ""}))
    with pytest.raises(InputError, match=r"expected a JSONL file of prompts at .*absent.jsonl, found nothing there"):
        load_prompts(tmp_path / "absent.jsonl")
