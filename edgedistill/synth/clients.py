"""One attempt at one answer, through the official SDKs: OpenAI's chat completions and Anthropic's Messages.

The SDKs' own retries are off: every attempt is journaled, paced and paid for by itself. Replies are read from the raw
body, because what is not whole must not count, and the SDKs take half a reply for a text.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import importlib
import json
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

from edgedistill.core.errors import MissingError, shortened
from edgedistill.core.records import Message
from edgedistill.synth.journal import Reply, Tokens
from edgedistill.synth.wire import anthropic_calls, anthropic_reasoning, messages_of, openai_calls, openai_reasoning

NOTHING: Tokens = (0, 0)
NO_KEY = "none"  # what servers without keys get
STOPS = {"stop", "end_turn", "stop_sequence", "eos", "tool_calls", "tool_use", "function_call"}
CUTS = {"length", "max_tokens"}
REFUSED_OUTRIGHT = (503, 529)  # turned away before any work

AskOnce = Callable[[Sequence[Message]], Awaitable[Reply]]


class Failed(Exception):
    """Why an attempt gave no answer.

    `end`: `again` (another attempt may do), `never` (this request will not), `stop` (no request will). `tokens` are
    those billed, None where that is unknown. `overloaded` asks for fewer requests in flight.
    """

    def __init__(
        self,
        reason: str,
        detail: str = "",
        *,
        end: str = "again",
        tokens: Tokens | None = None,
        overloaded: bool = False,
        retry_after_s: float = 0.0,
    ) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.end, self.tokens = reason, detail, end, tokens
        self.overloaded, self.retry_after_s = overloaded, retry_after_s


def read_key(name: str | None) -> str:
    """The key in the environment variable `name`.

    Raises:
        MissingError: it is not set.
    """
    if name is None:
        return NO_KEY
    key = os.environ.get(name, "").strip()
    if not key:
        raise MissingError(f"expected the API key in the environment variable {name}, found none; export it, run again")
    return key


@contextlib.asynccontextmanager
async def open_sdk(
    engine: str, *, key: str, base_url: str | None, timeout_s: float, concurrency: int
) -> AsyncIterator[tuple[Any, Any]]:
    """The engine's official SDK and a client of it, whose own retries are off.

    Raises:
        MissingError: the SDK is not installed.
    """
    try:
        sdk, http, _ = (importlib.import_module(name) for name in (engine, "httpx2", "aiohttp"))
    except ImportError:
        raise MissingError(
            f'expected the package {engine} for teacher.engine = "{engine}", found none; '
            "pip install 'edgedistill[api]'"
        ) from None
    # aiohttp takes half of httpx's processor time. Redirects are not followed: they would carry the key elsewhere.
    transport = sdk.DefaultAioHttpClient(
        limits=http.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
        follow_redirects=False,
        timeout=timeout_s,
    )
    client_class = sdk.AsyncOpenAI if engine == "openai" else sdk.AsyncAnthropic
    client = client_class(api_key=key, base_url=base_url, max_retries=0, timeout=timeout_s, http_client=transport)
    try:
        yield sdk, client
    finally:
        await client.close()


@contextlib.contextmanager
def as_failed(sdk: Any, *, key: str, timeout_s: float) -> Iterator[None]:
    """Turn what an SDK raises into `Failed`, without the key."""
    try:
        yield
    except TimeoutError:
        raise _timeout(timeout_s) from None
    except sdk.APIStatusError as e:
        raise _of_status(e.status_code, e.response.headers, _hidden(e.message, key)) from None
    except sdk.APIConnectionError as e:
        raise _of_connection(e, key, timeout_s) from None
    except sdk.APIError as e:
        raise Failed("malformed", shortened(_hidden(e.message, key))) from None


@contextlib.asynccontextmanager
async def open_client(
    engine: str,
    *,
    model: str,
    key: str,
    base_url: str | None,
    sampling: Mapping[str, Any],
    accepts: Sequence[str],
    timeout_s: float,
    concurrency: int,
) -> AsyncIterator[AskOnce]:
    """A function that asks `model` once and returns a whole answer or raises `Failed`; `sampling` as `sampling_of`.

    Raises:
        MissingError: the engine's SDK is not installed.
    """
    async with open_sdk(engine, key=key, base_url=base_url, timeout_s=timeout_s, concurrency=concurrency) as (
        sdk,
        client,
    ):
        send = client.chat.completions if engine == "openai" else client.messages

        async def ask(messages: Sequence[Message]) -> Reply:
            with as_failed(sdk, key=key, timeout_s=timeout_s):
                async with asyncio.timeout(timeout_s):  # the SDK's own bounds each read, not the whole
                    raw = await send.with_raw_response.create(
                        model=model, timeout=timeout_s, **sampling, **messages_of(engine, messages)
                    )
            return read_reply(engine, raw.http_response.content, model=model, accepts=accepts)

        yield ask


def read_reply(engine: str, body: bytes, *, model: str, accepts: Sequence[str]) -> Reply:
    """A whole reply of `model`, or of one that the recipe accepts for it; raises `Failed` for any other."""
    reply = read_openai(body) if engine == "openai" else read_anthropic(body)
    if not _is_of(reply.model, model, accepts):
        said = shortened(reply.model, most=60)
        hint = "name it in teacher.accepts if it is right"
        raise Failed("wrong-model", f"expected {model}, found {said!r}; {hint}", tokens=reply.tokens)
    return reply


def sampling_of(
    engine: str,
    *,
    max_output_tokens: int,
    temperature: float | None,
    top_logprobs: int,
    max_tokens_name: str | None,
    official: bool,
    extra_body: Mapping[str, Any],
) -> dict[str, Any]:
    """The request's settings, as the SDK takes them and as the request's id knows them.

    OpenAI's own newer models take `max_completion_tokens` alone, most other servers `max_tokens`.
    """
    if engine == "anthropic":
        limit = "max_tokens"
    else:
        limit = max_tokens_name or ("max_completion_tokens" if official else "max_tokens")
    sampling: dict[str, Any] = {limit: max_output_tokens}
    extra = dict(extra_body)
    if temperature is not None:  # which Anthropic's SDK has no argument for: its newest models take none
        (extra if engine == "anthropic" else sampling)["temperature"] = temperature
    if top_logprobs:
        sampling |= {"logprobs": True, "top_logprobs": top_logprobs}
    return sampling | ({"extra_body": extra} if extra else {})


def read_openai(body: bytes) -> Reply:
    """A whole reply of the chat completions API; raises `Failed` for any other."""
    data = _parsed(body)
    tokens = _usage(data, "prompt_tokens", "completion_tokens")
    choices = data.get("choices")
    if not isinstance(choices, list) or not choices:
        raise Failed("empty-choice", "no choice in the reply", tokens=tokens)
    choice = choices[0] if isinstance(choices[0], dict) else {}
    message = choice.get("message") if isinstance(choice.get("message"), dict) else {}
    if isinstance(message.get("refusal"), str) or choice.get("finish_reason") == "content_filter":
        raise Failed("refused", shortened(message.get("refusal") or "content filter"), end="never", tokens=tokens)
    text = openai_calls(message)
    text, reasoning = message.get("content") if text is None else text, openai_reasoning(message)
    text = "" if text is None and reasoning else text
    if not isinstance(text, str):
        raise Failed("empty-choice", "no text in the first choice", tokens=tokens)
    finish = _finish(choice.get("finish_reason"), tokens)
    logprobs = (choice.get("logprobs") or {}).get("content") if isinstance(choice.get("logprobs"), dict) else None
    return Reply(text, finish, str(data.get("model", "")), tokens, _logprobs(logprobs), reasoning)


def read_anthropic(body: bytes) -> Reply:
    """A whole reply of the Messages API; raises `Failed` for any other."""
    data = _parsed(body)
    tokens = _usage(data, "input_tokens", "output_tokens")
    blocks = data.get("content")
    if data.get("stop_reason") == "refusal":
        raise Failed("refused", "stop_reason refusal", end="never", tokens=tokens)
    if not isinstance(blocks, list) or not blocks:
        raise Failed("empty-choice", "no content in the reply", tokens=tokens)
    calls = anthropic_calls(blocks)
    texts = [b["text"] for b in blocks if isinstance(b, dict) and isinstance(b.get("text"), str)]
    reasoning = anthropic_reasoning(blocks)
    if not texts and calls is None and not reasoning:
        raise Failed("empty-choice", "no text in the content", tokens=tokens)
    return Reply(
        "".join(texts) if calls is None else calls,
        _finish(data.get("stop_reason"), tokens),
        str(data.get("model", "")),
        tokens,
        reasoning=reasoning,
    )


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise Failed("half-json", f"{len(body)} bytes that are no JSON") from None
    if not isinstance(data, dict):
        raise Failed("half-json", f"expected a JSON object, found {type(data).__name__}")
    return data


def _usage(data: Mapping[str, Any], input_name: str, output_name: str) -> Tokens | None:
    usage = data.get("usage")
    found = [usage.get(name) if isinstance(usage, dict) else None for name in (input_name, output_name)]
    if not all(type(n) is int and n >= 0 for n in found):
        return None
    return int(found[0] or 0), int(found[1] or 0)


def _finish(said: Any, tokens: Tokens | None) -> str:
    if said in STOPS:
        return "stop"
    if said in CUTS:
        return "length"
    raise Failed("unfinished", f"expected an answer that ended, found finish {said!r}", tokens=tokens)


def _logprobs(content: Any) -> list[list[list[Any]]] | None:
    """Rows of `[token bytes in hex, log-prob]`, the token said first; None unless every token has its bytes."""
    if not isinstance(content, list) or not content:
        return None
    try:
        rows = []
        for said in content:
            others = {_token_hex(top): float(top["logprob"]) for top in said.get("top_logprobs") or []}
            first = _token_hex(said)
            own = others.pop(first, float(said["logprob"]))
            rows.append([[first, own], *([token, value] for token, value in others.items())])
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    finite = all(value == value and -1e4 < value <= 1e-4 for row in rows for _, value in row)
    return rows if finite else None


def _token_hex(entry: Mapping[str, Any]) -> str:
    if isinstance(entry.get("bytes"), list):
        return bytes(entry["bytes"]).hex()
    token = str(entry["token"])
    if "\ufffd" in token:
        raise ValueError("part of a character, whose bytes the server does not give")
    return token.encode().hex()


def _is_of(found: str, model: str, accepts: Sequence[str]) -> bool:
    """Whether a reply may come from the model asked: by its name, a dated snapshot's, or one the recipe accepts."""
    return found in (model, *accepts) or re.match(rf"{re.escape(model)}-\d", found) is not None


def _of_status(status: int, headers: Mapping[str, str], message: str) -> Failed:
    said = f"{status} {shortened(message)}"
    wait = _retry_after_s(headers)
    if status == 402 or (status == 429 and "insufficient_quota" in message):
        return Failed("no-credit", said, end="stop", tokens=NOTHING)
    if status == 429:
        return Failed("rate-limited", said, tokens=NOTHING, overloaded=True, retry_after_s=wait)
    if status in (408, 409) or status >= 500:
        billed = NOTHING if status in REFUSED_OUTRIGHT else None
        return Failed("server-error", said, tokens=billed, overloaded=True, retry_after_s=wait)
    if status in (401, 403, 404) or status < 400:
        return Failed("not-allowed", said, end="stop", tokens=NOTHING)
    return Failed("bad-request", said, end="never", tokens=NOTHING)


def _of_connection(error: BaseException, key: str, timeout_s: float) -> Failed:
    """Told by what lies at the bottom: aiohttp's bridge to the SDKs calls refused and closed connections timeouts."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    names = [type(cause).__name__ for cause in causes[1:]]
    if any("Connector" in name or name == "ConnectionTimeoutError" for name in names):
        return Failed("unreachable", shortened(_hidden(str(causes[-1]), key)), tokens=NOTHING, overloaded=True)
    if names and "Timeout" in names[-1]:
        return _timeout(timeout_s)
    return Failed("cut", shortened(_hidden(f"{type(causes[-1]).__name__} {causes[-1]}", key)), overloaded=True)


def _timeout(timeout_s: float) -> Failed:
    return Failed("timeout", f"no answer within {timeout_s:g} s", overloaded=True)


def _retry_after_s(headers: Mapping[str, str]) -> float:
    """Seconds to wait, by `retry-after-ms` or `Retry-After` in seconds or as a date (RFC 9110, 10.2.3); 0 for none."""
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        said = headers.get(name)
        if said is None:
            continue
        try:
            return max(0.0, float(said) * scale)
        except ValueError:
            with contextlib.suppress(ValueError):
                return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    return 0.0


def _hidden(text: str, key: str) -> str:
    """`text` without the key, which servers repeat in what they refuse."""
    return text if key == NO_KEY else text.replace(key, "…")
