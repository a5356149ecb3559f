"""Function calls as APIs, chat templates and plain text have them: asked, read, validated and learnt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgedistill.core.calls import as_text
from edgedistill.core.files import iter_jsonl
from edgedistill.core.kinds import calls_of, same_answer
from edgedistill.core.records import Message, Prompt, ToolCall
from edgedistill.runtimes import chat
from edgedistill.runtimes.tool_chat import spoken
from edgedistill.synth.clients import Failed, read_anthropic, read_openai
from edgedistill.synth.forms import Rules, to_row
from edgedistill.synth.rows import make_prompt
from edgedistill.synth.spend import most_tokens
from edgedistill.synth.validate import check_answer
from edgedistill.synth.wire import messages_of

TOOL = {
    "name": "weather",
    "description": "Tells.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
ROME = '{"arguments":{"city":"Rome"},"name":"weather"}'
GHENT = ROME.replace("Rome", "Ghent")
CHAT = [
    {"role": "user", "content": "Weather in Rome and Ghent?"},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}},
        {"type": "function", "function": {"name": "weather", "arguments": {"city": "Ghent"}}},
    ]},
    {"role": "tool", "tool_call_id": "a", "content": "31"},
    {"role": "tool", "content": "12"},
    {"role": "user", "content": "And Oslo?"},
]  # fmt: skip
HERMES = (
    "{% if tools %}<|im_start|>system\n{{ messages[0].content if messages[0].role == 'system' }}"
    "{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>{{ m.content }}</tool_response>"
    "<|im_end|>\n{% elif m.role != 'system' or not tools %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    '{% for c in m.tool_calls or [] %}<tool_call>\n{"name": "{{ c.function.name }}", "arguments": '
    "{{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def read(native: bool) -> Prompt:
    row = {"messages": CHAT, "tools": [{"type": "function", "function": TOOL}]}
    found = to_row(row, "here", source="s", rules=Rules(kind="function-call", system="Call.", native=native))
    assert found is not None
    return found.prompt


def test_a_chat_with_calls_and_results_is_kept_or_told_in_text() -> None:
    kept, told = read(True), read(False)
    assert [m.role for m in kept.messages] == ["system", "user", "assistant", "tool", "tool", "user"]
    assert kept.messages[0].tools == (TOOL,) and kept.messages[0].content == "Call."
    assert kept.messages[2].tool_calls[0] == ToolCall(name="weather", arguments={"city": "Rome"}, id="a")
    assert Prompt.model_validate(json.loads(json.dumps(kept.model_dump(mode="json")))) == kept
    assert "tool_calls" not in kept.messages[1].model_dump()
    assert list(told.messages) == as_text(kept.messages) and told.id != kept.id
    assert (
        told.messages[0].content.startswith("Call.\nFunctions: [{") and told.messages[2].content == f"[{ROME},{GHENT}]"
    )
    assert [m.role for m in told.messages] == ["system", "user", "assistant", "user"]
    assert told.messages[3].content == "Result: 31\nResult: 12\nAnd Oslo?"
    assert kept.tools == told.tools == (TOOL,)


def test_an_id_knows_functions_and_calls() -> None:
    asked = Message(role="user", content="x")
    plain = make_prompt([Message(role="system", content=""), asked])
    assert make_prompt([Message(role="system", content="", tools=(TOOL,)), asked]).id != plain.id
    more = most_tokens([Message(role="system", content="", tools=(TOOL,))], max_output_tokens=1)[0]
    assert more > len(json.dumps(TOOL)) and more > most_tokens(plain.messages, max_output_tokens=1)[0]


def test_openai_gets_functions_calls_and_results() -> None:
    sent = messages_of("openai", read(True).messages)
    assert sent["tools"] == [{"type": "function", "function": TOOL}]
    calls = sent["messages"][2]["tool_calls"]
    assert sent["messages"][2]["content"] is None and json.loads(calls[0]["function"]["arguments"]) == {"city": "Rome"}
    results = sent["messages"][3:5]
    assert [r["tool_call_id"] for r in results] == [c["id"] for c in calls] and len({c["id"] for c in calls}) == 2
    assert messages_of("openai", read(False).messages).keys() == {"messages"}


def test_anthropic_gets_functions_calls_and_results_in_blocks() -> None:
    sent = messages_of("anthropic", read(True).messages)
    assert sent["system"] == "Call." and sent["tools"][0]["input_schema"] == TOOL["parameters"]
    assert [m["role"] for m in sent["messages"]] == ["user", "assistant", "user"]
    used, told = sent["messages"][1]["content"], sent["messages"][2]["content"]
    assert [b["type"] for b in told] == ["tool_result", "tool_result", "text"] and told[2]["text"] == "And Oslo?"
    assert [b["tool_use_id"] for b in told[:2]] == [b["id"] for b in used] and used[1]["input"] == {"city": "Ghent"}


def openai_reply(*arguments: str) -> bytes:
    calls = [{"id": str(i), "type": "function", "function": {"name": "weather", "arguments": a}}
             for i, a in enumerate(arguments)]  # fmt: skip
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    return json.dumps({"model": "m", "choices": [{"message": message, "finish_reason": "tool_calls"}]}).encode()


def test_calls_in_replies_are_json_text() -> None:
    assert read_openai(openai_reply('{"city":"Rome"}')).text == ROME
    both = read_openai(openai_reply('{"city":"Rome"}', '{"city":"Ghent"}'))
    assert (both.text, both.finish) == (f"[{ROME},{GHENT}]", "stop")
    assert calls_of(read_openai(openai_reply('{"city":')).text) is None
    assert calls_of(read_openai(openai_reply('{"city":1e999}')).text) is None
    blocks = [{"type": "text", "text": "Let me see."},
              {"type": "tool_use", "id": "t", "name": "weather", "input": {"city": "Rome"}}]  # fmt: skip
    body = {"model": "m", "stop_reason": "tool_use", "content": blocks}
    assert read_anthropic(json.dumps(body).encode()).text == ROME
    boundless = json.dumps(body).replace('"Rome"', "1e999").encode()
    assert read_anthropic(boundless).text == "1 calls whose arguments have no JSON"
    with pytest.raises(Failed, match="no text in the first choice"):
        read_openai(json.dumps({"choices": [{"message": {"tool_calls": []}, "finish_reason": "stop"}]}).encode())


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (ROME, None),
        (f"<tool_call>\n{ROME}\n</tool_call>", None),
        (f"[{ROME}]", None),
        (f"[{ROME},{GHENT}]", "wrong"),
        (f"sure: <tool_call>{ROME}</tool_call>", "not-json"),
        (ROME.replace("city", "town"), "schema"),
        (f"[{ROME},{GHENT.replace('weather', 'news')}]", "schema"),
        ('{"arguments":"{","name":"weather"}', "no-answer"),
        (GHENT, "wrong"),
    ],
)
def test_calls_are_validated(answer: str, reason: str | None) -> None:
    fault = check_answer(answer, finish="stop", as_json=True, schema=None, expected=ROME, kind="function-call",
                         tools=(TOOL,), native=True)  # fmt: skip
    assert (fault and fault[0]) == reason


def test_tags_are_for_native_calls_alone() -> None:
    tagged = f"<tool_call>{ROME}</tool_call>"
    fault = check_answer(tagged, finish="stop", as_json=True, schema=None, expected=None, kind="function-call")
    assert fault is not None and fault[0] == "not-json"
    assert same_answer(tagged, ROME, kind="function-call")


def test_a_template_with_tools_writes_them_and_another_one_text(tiny_llama: Path) -> None:
    tokenizer, prompt = chat.load_tokenizer(tiny_llama), read(True)
    native = chat.render(tokenizer, prompt.messages, template=HERMES)
    assert "<tool_response>31</tool_response>" in native and '"parameters"' in native and "Functions:" not in native
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}' in native
    for template in (tokenizer.chat_template, "{% for m in messages %}{{ m.role }}:{{ m.content + '|' }}{% endfor %}"):
        text = chat.render(tokenizer, prompt.messages, template=template)
        assert "Functions: [{" in text and f"[{ROME},{GHENT}]" in text and "Result: 31" in text
    strict = HERMES + "{% if messages | length == 6 %}{{ raise_exception('six') }}{% endif %}"
    assert "Result: 31" in chat.render(tokenizer, prompt.messages[:5], template=tokenizer.chat_template)
    with pytest.raises(Exception, match="six"):
        chat.rendered(tokenizer, [{"role": "user", "content": "x"}] * 6, template=strict)


def test_an_answer_is_said_in_the_template_s_form_where_it_is_read_back(tiny_llama: Path) -> None:
    tokenizer, prompt = chat.load_tokenizer(tiny_llama), read(True)

    def said(answer: str, template: str, messages: Any = prompt.messages) -> str:
        return spoken(tokenizer, messages, answer, template=template)

    assert said(ROME, HERMES) == '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    assert calls_of(said(f"[{ROME},{GHENT}]", HERMES)) == calls_of(f"[{ROME},{GHENT}]")
    assert said(ROME, tokenizer.chat_template) == ROME
    assert said(ROME, HERMES.replace("tool_call>", "call>")) == ROME
    assert said("Sunny.", HERMES) == "Sunny." and said(ROME, HERMES, read(False).messages) == ROME


RECIPE = """
name = "calls"
threads = 1
[task]
kind = "function-call"
answer = "json"
tool_calls = "native"
max_new_tokens = 64
[data]
prompts = "prompts.jsonl"
[teacher]
model = "m-1"
engine = "{engine}"
base_url = "{url}"
smoke = 0
[student]
model = "student"
"""


@pytest.mark.parametrize("engine", ["openai", "anthropic"])
def test_a_run_asks_with_functions_and_keeps_calls(tmp_path: Path, tiny_llama: Path, engine: str) -> None:
    pytest.importorskip("openai", reason="the extra `api` is not installed")
    from synth_api_server import serve
    from test_api_stage import call

    city = {"one": {"city": "Rome"}, "two": {"town": "Rome"}}

    def extra(text: str) -> dict[str, Any]:
        if engine == "openai":
            return json.loads(openai_reply(json.dumps(city[text])))["choices"][0]
        used = {"type": "tool_use", "id": "t", "name": "weather", "input": city[text]}
        return {"content": [used], "stop_reason": "tool_use"}

    rows = [{"messages": [{"role": "user", "content": text}], "tools": [TOOL]} for text in city]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(tiny_llama, tmp_path / "student")
    (tmp_path / "student" / "chat_template.jinja").write_text(HERMES)
    with serve(extra=extra) as server:
        url = server.url if engine == "openai" else server.url.removesuffix("/v1")
        (tmp_path / "calls.toml").write_text(RECIPE.format(engine=engine, url=url))
        done = call("synth", tmp_path / "calls.toml", "--runs-dir", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    assert all(len(body["tools"]) == 1 for body in server.bodies) and len(server.bodies) == 2
    folder = tmp_path / "runs" / "calls" / "10-synth"
    (record,) = list(iter_jsonl(folder / "records-00000.jsonl"))
    assert record["calls"] == [{"name": "weather", "arguments": {"city": "Rome"}, "id": ""}]
    assert record["answer"].startswith("<tool_call>") and record["messages"][0]["tools"] == [TOOL]
    (reject,) = list(iter_jsonl(folder / "rejected.jsonl"))
    assert reject["reason"] == "schema"
