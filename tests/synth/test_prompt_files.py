"""Users' files: what is read, what is left out, and what each fault is called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgedistill.core.errors import InputError, MissingError
from edgedistill.synth import prompt_files
from edgedistill.synth.forms import Rules
from edgedistill.synth.prompt_files import Loaded, load_rows

USER = {"role": "user", "content": "hi"}


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def load(path: Path, **rules: object) -> Loaded:
    return load_rows(str(path), split="prompts", rules=Rules(**rules))


def test_prompts_chats_and_answers_are_read_and_given_content_ids(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.jsonl",
        {"prompt": "one", "answer": "1", "kind": "digit"},
        {"messages": [{"role": "system", "content": "own"}, USER]},
        {"messages": [USER, {"role": "assistant", "content": "hello"}]},
    )
    rows = load(path, system="be brief").rows
    assert [row.place for row in rows] == [f"{path} line {i}" for i in (1, 2, 3)]
    first, second, third = (row.prompt for row in rows)
    assert [m.role for m in first.messages] == ["system", "user"] and first.messages[0].content == "be brief"
    assert (first.answer, first.kind) == ("1", "digit")
    assert second.messages[0].content == "own"
    assert (third.answer, len(third.messages)) == ("hello", 2)
    again = load(write(tmp_path / "q.jsonl", {"prompt": "one"}), system="be brief").rows[0].prompt
    assert again.id == first.id
    assert load(tmp_path / "q.jsonl").rows[0].prompt.id != first.id


def test_empty_prompts_are_left_out_with_their_place(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": " "}, "", {"prompt": "b"})
    loaded = load(path)
    assert [row.prompt.messages[-1].content for row in loaded.rows] == ["a", "b"]
    assert [(row.place, row.reason) for row in loaded.empty] == [(f"{path} line 2", "empty")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"', "expected one JSON object, found damaged text"),
        ("[1]", "expected a JSON object, found a list"),
        ({"promt": "a"}, "expected one of the names messages, conversations, instruction, prompt, found promt"),
        ({"prompt": "a", "anwser": "b"}, "expected the names prompt, answer, kind, found 'anwser'; did you mean"),
        ({"answer": "a"}, "expected one of the names messages, conversations, instruction, prompt, found answer"),
        ({"prompt": "a", "messages": [USER]}, "instruction, prompt, found prompt, messages"),
        ({"prompt": 3}, "expected `prompt` to be text, found a number"),
        ({"prompt": "a", "answer": {}}, "expected `answer` to be text, found an object"),
        ({"messages": []}, "expected `messages` to be a list of at least one message, found an empty list"),
        ({"messages": ["a"]}, "message 1: expected an object of `role` and `content`, found text"),
        (
            {"messages": [{"role": "user"}]},
            "message 1: expected an object of `role` and `content`, found the names role",
        ),
        ({"messages": [{"role": "bot", "content": ""}]}, "system, user, assistant, tool, function, found 'bot'"),
        ({"messages": [{"role": "user", "content": None}]}, "expected `content` to be text, found null"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "expected parts of text, found image_url",
        ),
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
        ({"messages": [USER], "tools": ["f"]}, "expected tools to be a list of functions with a `name`, found text"),
        ({"conversations": []}, "expected `conversations` to be a list of turns, found an empty list"),
        ({"conversations": [{"from": "human"}]}, "turn 1: expected an object of `from` and `value`, found an object"),
        ({"conversations": [{"from": "tool", "value": ""}]}, "expected `from` to be one of human, user, gpt"),
        ({"instruction": 1}, "expected `instruction` to be text, found a number"),
        ({"instruction": "a", "output": []}, "expected `output` to be text, found an empty list"),
    ],
)
def test_a_wrong_line_is_named_with_what_was_found(tmp_path: Path, line: object, message: str) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": "fine"}, line)
    with pytest.raises(InputError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path} line 2")
    assert message in str(caught.value)


def test_missing_answers_files_and_prompts_are_said(tmp_path: Path) -> None:
    path = write(tmp_path / "g.jsonl", {"prompt": "a", "answer": "b"}, {"prompt": "c"})
    with pytest.raises(InputError, match="line 2: expected an `answer`, found none"):
        load_rows(str(path), split="gold", rules=Rules(), needs_answer=True)
    with pytest.raises(InputError, match=r"expected at least one prompt in .*, found none"):
        load(write(tmp_path / "e.jsonl", {"prompt": ""}))
    with pytest.raises(InputError, match=r"expected a file of prompts at .*absent.jsonl, found nothing there"):
        load(tmp_path / "absent.jsonl")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            {"text": "uterance", "label": "intent"},
            "'uterance', as data.columns says, found the columns utterance, inte",
        ),
        (
            {"text": "utterance", "label": "class"},
            "'class', as data.columns says, found the columns utterance, intent;",
        ),
    ],
)
def test_a_column_that_no_row_has_is_told_with_those_there(tmp_path: Path, columns: dict[str, str], said: str) -> None:
    path = tmp_path / "labelled.csv"
    path.write_text("utterance,intent\nhi,greet\n")
    rules = Rules(kind="classification", columns=columns)
    with pytest.raises(InputError) as e:
        load_rows(str(path), split="gold", rules=rules, needs_answer=True)
    assert str(e.value).startswith(f"{path} line 2: expected the column {said}")


def test_json_lists_and_csv_name_their_rows(tmp_path: Path) -> None:
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps([{"instruction": "Add", "input": "1 2", "output": "3"}, {"instruction": 1}]))
    with pytest.raises(InputError, match=r"alpaca.json row 2: expected `instruction` to be text, found a number"):
        load(path)
    path.write_text(json.dumps([{"instruction": "Add", "input": "1 2", "output": "3", "id": 9}]))
    (row,) = load(path).rows
    assert (row.prompt.messages[-1].content, row.prompt.answer) == ("Add\n\n1 2", "3")
    path.write_text('{"instruction": "x"}')
    with pytest.raises(InputError, match=r"expected a JSON list of objects, found an object; name JSON Lines .jsonl"):
        load(path)
    table = tmp_path / "t.csv"
    table.write_text('prompt,answer\n"two\nlines",x\ny\n')
    with pytest.raises(InputError, match=r"t.csv line 4: expected 2 values, found another number"):
        load(table)
    table.write_text('prompt,answer\n"two\nlines",x\n')
    assert load(table).rows[0].prompt.messages[0].content == "two\nlines"
    table.write_bytes(b"prompt\n\xff\n")
    with pytest.raises(InputError, match="expected CSV in UTF-8 with a header, found damaged text"):
        load(table)


def test_parquet_and_data_sets_by_name_say_what_they_need(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    for source in (str(tmp_path / "t.parquet"), "hf:org/name"):
        with pytest.raises(MissingError, match=r"pip install 'edgedistill\[datasets\]', or give a JSONL file"):
            load_rows(source, split="prompts", rules=Rules())
    with pytest.raises(InputError, match="expected hf:NAME"):
        load_rows("hf:", split="prompts", rules=Rules())


def test_parquet_is_read_through_datasets_with_classes_by_name(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    import pyarrow
    import pyarrow.parquet

    kept = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    path = tmp_path / "set" / "train.parquet"
    path.parent.mkdir()
    table = pyarrow.table({"text": ["a", "b"], "label": [1, 0]}, schema=kept.arrow_schema)
    pyarrow.parquet.write_table(table, path)
    # A folder of files is a data set by name, too.
    for source in (str(path), f"hf:{path.parent}#train"):
        rows = load_rows(source, split="prompts", rules=Rules(kind="classification")).rows
        assert [(row.prompt.messages[-1].content, row.prompt.answer) for row in rows] == [("a", "yes"), ("b", "no")]
        assert rows[1].place == f"{source} row 2"
    with pytest.raises(InputError, match="#odd: Unknown split"):
        load_rows(f"hf:{path.parent}#odd", split="prompts", rules=Rules())
    path.write_bytes(b"PAR1 damaged")
    with pytest.raises(InputError, match="expected a Parquet file, found a damaged one"):
        load(path)


def test_a_data_set_that_cannot_be_had_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        @staticmethod
        def load_dataset(name: str, config: str | None, *, revision: str | None, split: str) -> object:
            asked.append((name, config, revision, split))
            if split == "odd":
                raise ValueError("Unknown split 'odd'")
            raise ConnectionError("no network")

    asked: list[tuple[str | None, ...]] = []
    monkeypatch.setattr(prompt_files, "_datasets", lambda source: Gone)
    with pytest.raises(MissingError, match="could not be had: no network; check its name and the network"):
        load_rows("hf:org/set:plain@abc#test", split="prompts", rules=Rules())
    with pytest.raises(InputError, match="Unknown split 'odd'"):
        load_rows("hf:org/set#odd", split="prompts", rules=Rules())
    assert asked == [("org/set", "plain", "abc", "test"), ("org/set", None, None, "odd")]
