"""Batch APIs, which ask for half the price within a day: OpenAI's (and Azure's) Batches, Anthropic's Message Batches.

A batch has a name of its own, which ends each of its requests' custom ids. It stands in the journal before it is sent,
and again with the server's id after that, so that one which was just sent when the process died or the reply was lost
is found at the server and not sent twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgedistill.core.errors import shortened
from edgedistill.core.files import canonical_json
from edgedistill.core.records import Message
from edgedistill.synth.clients import NOTHING, Failed, as_failed, open_sdk, read_reply
from edgedistill.synth.journal import Reply
from edgedistill.synth.wire import messages_of

Outcomes = dict[str, Reply | Failed]
ID_PART, NAME_PART = 40, 16  # digits of a request's id and of a batch's name in a custom id, which has 64 at most
LISTED = 200  # batches of the server looked through, newest first
ENDED = ("completed", "failed", "expired", "cancelled")


@dataclass(frozen=True)
class BatchClient:
    """`submit(name, requests)` gives the server's id; `find(name, size, known)` that of a batch sent before, or None.

    `find` looks at no batch of the ids in `known`. `results(id)` gives what became of each request by the first
    `ID_PART` digits of its id, None while the batch is at work. All raise `Failed`.
    """

    submit: Callable[[str, Mapping[str, Sequence[Message]]], Awaitable[str]]
    find: Callable[[str, int, Collection[str]], Awaitable[str | None]]
    results: Callable[[str], Awaitable[Outcomes | None]]


@contextlib.asynccontextmanager
async def open_batches(
    engine: str,
    *,
    model: str,
    key: str,
    base_url: str | None,
    sampling: Mapping[str, Any],
    accepts: Sequence[str],
    timeout_s: float,
    poll_s: float,
) -> AsyncIterator[BatchClient]:
    """The batch API of the engine; arguments as of `clients.open_client`.

    Raises:
        MissingError: the engine's SDK is not installed.
    """
    extra = dict(sampling)
    body = {"model": model, **extra.pop("extra_body", {}), **extra}
    async with open_sdk(engine, key=key, base_url=base_url, timeout_s=timeout_s, concurrency=4) as (sdk, client):

        def read(reply: Any) -> Reply | Failed:
            try:
                body = canonical_json(reply).encode("utf-8", "replace")
            except ValueError as e:
                return Failed("half-json", shortened(str(e)))
            try:
                return read_reply(engine, body, model=model, accepts=accepts)
            except Failed as failed:
                return failed

        def guarded(call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
            async def wrapped(*arguments: Any) -> Any:
                with as_failed(sdk, key=key, timeout_s=timeout_s):
                    return await call(*arguments)

            return wrapped

        make = _openai if engine == "openai" else _anthropic
        submit, find, results = make(client, body=body, read=read, poll_s=poll_s)
        yield BatchClient(guarded(submit), guarded(find), guarded(results))


def _openai(client: Any, *, body: Mapping[str, Any], read: Callable[[Any], Reply | Failed], poll_s: float) -> Any:
    async def submit(name: str, requests: Mapping[str, Sequence[Message]]) -> str:
        shared = {"method": "POST", "url": "/v1/chat/completions"}
        lines = (
            {"custom_id": _custom(i, name), "body": {**body, **messages_of("openai", m)}, **shared}
            for i, m in requests.items()
        )
        data = "".join(canonical_json(line) + "\n" for line in lines).encode()
        file = await client.files.create(file=(f"{name[:16]}.jsonl", data), purpose="batch")
        batch = await client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"name": name}
        )
        return str(batch.id)

    async def find(name: str, size: int, known: Collection[str]) -> str | None:
        seen = 0
        async for batch in client.batches.list(limit=100):
            if (batch.metadata or {}).get("name") == name:
                return str(batch.id)
            seen += 1
            if seen >= LISTED:
                break
        return None

    async def results(identity: str) -> Outcomes | None:
        batch = await client.batches.retrieve(identity)
        if batch.status not in ENDED:
            return None
        found: Outcomes = {}
        for file in filter(None, (batch.output_file_id, batch.error_file_id)):
            for row in _rows((await client.files.content(file)).content):
                request, response = row["custom_id"][:ID_PART], row.get("response") or {}
                if response.get("status_code") == 200:
                    found[request] = read(response.get("body"))
                else:
                    found[request] = _failed(response.get("status_code"), row.get("error") or response)
        if batch.status == "failed":
            said = [error.message for error in (batch.errors.data if batch.errors else None) or []]
            raise Failed("batch-refused", shortened("; ".join(filter(None, said)) or "no reason"), end="stop")
        return found

    return submit, find, results


def _anthropic(client: Any, *, body: Mapping[str, Any], read: Callable[[Any], Reply | Failed], poll_s: float) -> Any:
    batches = client.messages.batches

    async def submit(name: str, requests: Mapping[str, Sequence[Message]]) -> str:
        wanted = [
            {"custom_id": _custom(i, name), "params": {**body, **messages_of("anthropic", m)}}
            for i, m in requests.items()
        ]
        return str((await batches.create(requests=wanted)).id)

    async def find(name: str, size: int, known: Collection[str]) -> str | None:
        """A batch has no name at Anthropic: it is known by the custom ids of its results, once it has ended."""
        seen = 0
        async for batch in batches.list(limit=100):
            seen += 1
            if batch.id not in known and sum(batch.request_counts.model_dump().values()) == size:
                while (rows := await ended(batch.id)) is None:
                    await asyncio.sleep(poll_s)
                if any(row["custom_id"].endswith(name[:NAME_PART]) for row in rows):
                    return str(batch.id)
            if seen >= LISTED:
                break
        return None

    async def ended(identity: str) -> list[dict[str, Any]] | None:
        if (await batches.retrieve(identity)).processing_status != "ended":
            return None
        raw = await batches.with_raw_response.results(identity)
        return _rows(await raw.http_response.aread())

    async def results(identity: str) -> Outcomes | None:
        rows = await ended(identity)
        if rows is None:
            return None
        found: Outcomes = {}
        for row in rows:
            request, result = row["custom_id"][:ID_PART], row.get("result") or {}
            if result.get("type") == "succeeded":
                found[request] = read(result.get("message"))
            elif result.get("type") == "errored":
                error = (result.get("error") or {}).get("error") or {}
                status = 400 if error.get("type") == "invalid_request_error" else 500
                found[request] = _failed(status, error)
            else:
                found[request] = Failed("expired", str(result.get("type")), tokens=NOTHING)
        return found

    return submit, find, results


def _custom(request: str, name: str) -> str:
    return f"{request[:ID_PART]}-{name[:NAME_PART]}"


def _failed(status: Any, said: Any) -> Failed:
    """What one request of a batch came to; what never came to an answer is not billed."""
    never = isinstance(status, int) and 400 <= status < 500 and status not in (408, 409, 429)
    reason = "bad-request" if never else "server-error"
    return Failed(reason, shortened(f"{status} {said}"), end="never" if never else "again", tokens=NOTHING)


def _rows(data: bytes) -> list[dict[str, Any]]:
    """The rows of a result file; half a file is none, and is fetched again."""
    try:
        rows = [json.loads(line) for line in data.splitlines() if line.strip()]
        if all(isinstance(row, dict) and isinstance(row.get("custom_id"), str) for row in rows):
            return rows
    except ValueError:
        pass
    raise Failed("half-json", f"a result file of {len(data)} bytes that is not whole")
