"""The official SDKs against a real HTTP server: every way in which a reply can be no reply."""

from __future__ import annotations

import asyncio
import datetime
import email.utils
from collections.abc import Sequence
from typing import Any

import pytest
from synth_api_server import Server, serve

from edgedistill.core.errors import MissingError
from edgedistill.core.records import Message
from edgedistill.synth import clients
from edgedistill.synth.clients import Failed, open_client, read_key, sampling_of
from edgedistill.synth.journal import Reply

pytest.importorskip("openai", reason="the extra `api` is not installed")
pytest.importorskip("anthropic", reason="the extra `api` is not installed")
ENGINES = ("openai", "anthropic")
KEY = "sk-secret-of-the-test-0123456789"
CHAT = (Message(role="system", content="be brief"), Message(role="user", content="hello"))


def ask(
    server: Server, engine: str, messages: Sequence[Message] = CHAT, *, timeout_s: float = 5.0, **named: Any
) -> Reply:
    settings = {
        "max_output_tokens": 16, "temperature": 0.0, "top_logprobs": 0, "max_tokens_name": None, "official": False,
        "extra_body": {},
    }  # fmt: skip
    sampling = sampling_of(engine, **{name: named.pop(name, value) for name, value in settings.items()})

    async def once() -> Reply:
        base = server.url if engine == "openai" else server.url.removesuffix("/v1")
        async with open_client(
            engine, model="m-1", key=KEY, base_url=base, sampling=sampling, accepts=named.get("accepts", ()),
            timeout_s=timeout_s, concurrency=2,
        ) as client:  # fmt: skip
            return await client(messages)

    return asyncio.run(once())


def failure(server: Server, engine: str, **named: Any) -> Failed:
    with pytest.raises(Failed) as caught:
        ask(server, engine, **named)
    return caught.value


@pytest.mark.parametrize("engine", ENGINES)
def test_a_whole_reply_comes_with_its_tokens_and_the_request_says_what_it_should(engine: str) -> None:
    with serve() as server:
        assert ask(server, engine) == Reply("HELLO", "stop", "m-1", (5, 1))
    (body,) = server.bodies
    limit = {"max_tokens": 16, "temperature": 0.0, "model": "m-1"}
    turn = [{"role": "user", "content": "hello"}]
    if engine == "openai":
        assert body == limit | {"messages": [{"role": "system", "content": "be brief"}, *turn]}
    else:
        assert body == limit | {"messages": turn, "system": "be brief"}
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("fault", "reason", "end", "tokens"),
    [
        ("status=429/7", "rate-limited", "again", (0, 0)),
        ("status=500", "server-error", "again", None),
        ("status=503", "server-error", "again", (0, 0)),
        ("status=400", "bad-request", "never", (0, 0)),
        ("status=401", "not-allowed", "stop", (0, 0)),
        ("status=404", "not-allowed", "stop", (0, 0)),
        ("status=402", "no-credit", "stop", (0, 0)),
        ("half-json", "half-json", "again", None),
        ("cut", "cut", "again", None),
        ("closed", "cut", "again", None),
        ("hang=1", "timeout", "again", None),
        ("wrong-model", "wrong-model", "again", (5, 1)),
        ("empty-choice", "empty-choice", "again", (5, 1)),
        ("unfinished", "unfinished", "again", (5, 1)),
    ],
)
def test_each_fault_has_its_reason(engine: str, fault: str, reason: str, end: str, tokens: object) -> None:
    with serve(plan=lambda text, attempt: fault) as server:
        found = failure(server, engine, timeout_s=0.3 if fault.startswith("hang") else 5.0)
    assert (found.reason, found.end, found.tokens) == (reason, end, tokens)
    assert found.retry_after_s == (7 if fault == "status=429/7" else 0)
    assert found.overloaded == (reason in ("rate-limited", "server-error", "cut", "timeout"))
    assert sum(server.arrived.values()) == 1  # the SDK repeats nothing by itself
    assert KEY not in str(found) and KEY not in found.detail


@pytest.mark.parametrize("engine", ENGINES)
def test_an_answer_cut_at_the_limit_is_whole_and_says_so(engine: str) -> None:
    with serve(plan=lambda text, attempt: "length") as server:
        assert ask(server, engine).finish == "length"


@pytest.mark.parametrize("engine", ENGINES)
def test_nobody_there(engine: str) -> None:
    found = failure(Server(url="http://127.0.0.1:9/v1"), engine)
    assert (found.reason, found.end, found.tokens, found.overloaded) == ("unreachable", "again", (0, 0), True)


def test_names_of_models_that_are_the_one_asked() -> None:
    with serve(extra=lambda text: {}) as server:
        server.plan = lambda text, attempt: "wrong-model"
        assert ask(server, "openai", accepts=("some-other-model",)).text == "HELLO"
    for found, right in (("m-1", True), ("m-1-2026-01-01", True), ("m-1-mini", False), ("m-12", False)):
        assert clients._is_of(found, "m-1", ()) is right


def test_refusals_are_final_and_an_empty_text_is_an_answer() -> None:
    with serve(extra=lambda text: {"finish_reason": "content_filter"}) as server:
        assert failure(server, "openai").end == "never"
    with serve(extra=lambda text: {"message": {"role": "assistant", "content": None, "refusal": "I cannot"}}) as server:
        found = failure(server, "openai")
        assert (found.reason, found.detail, found.end) == ("refused", "I cannot", "never")
    with serve(answer=lambda text: "") as server:
        assert ask(server, "openai").text == ""


def test_log_probs_come_as_bytes_said_first(engine: str = "openai") -> None:
    top = [{"token": "b", "bytes": [98], "logprob": -0.5}, {"token": "a", "bytes": None, "logprob": -1.0}]
    content = [{"token": "a", "bytes": [97], "logprob": -1.0, "top_logprobs": top}]
    with serve(extra=lambda text: {"logprobs": {"content": content}}) as server:
        assert ask(server, engine, top_logprobs=2).logprobs == [[["61", -1.0], ["62", -0.5]]]
        assert server.bodies[0]["logprobs"] is True and server.bodies[0]["top_logprobs"] == 2
    content[0] |= {"token": "\ufffd", "bytes": None}
    with serve(extra=lambda text: {"logprobs": {"content": content}}) as server:
        assert ask(server, engine, top_logprobs=2).logprobs is None


def test_settings_reach_the_request_as_the_server_wants_them() -> None:
    base = {"max_output_tokens": 9, "top_logprobs": 0, "extra_body": {}}
    assert sampling_of("openai", temperature=None, max_tokens_name=None, official=True, **base) == {
        "max_completion_tokens": 9
    }
    with serve() as server:
        ask(server, "openai", temperature=None, extra_body={"think": False}, max_tokens_name="max_completion_tokens")
    body = server.bodies[0]
    assert body["think"] is False and body["max_completion_tokens"] == 16
    assert "temperature" not in body and "max_tokens" not in body


def test_retry_after_may_be_a_date_or_milliseconds() -> None:
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=90)
    assert 85 < clients._retry_after_s({"retry-after": email.utils.format_datetime(soon, usegmt=True)}) <= 90
    assert clients._retry_after_s({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert clients._retry_after_s({"retry-after": "soon"}) == 0 == clients._retry_after_s({})


def test_the_key_comes_from_the_environment_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", f" {KEY}\n")
    assert read_key("A_KEY") == KEY and read_key(None) == clients.NO_KEY
    monkeypatch.delenv("A_KEY")
    with pytest.raises(MissingError, match="API key in the environment variable A_KEY, found none; export it"):
        read_key("A_KEY")


def test_a_missing_sdk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(MissingError, match=r"expected the package openai .* pip install 'edgedistill\[api\]'"):
        ask(Server(url="http://127.0.0.1:9/v1"), "openai")
