"""The batch APIs of OpenAI and Anthropic beside the chat APIs of `synth_api_server`, as far as their SDKs need them."""

from __future__ import annotations

import contextlib
import email
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from synth_api_server import Handler, QuietServer, Server

CREATED = "2026-01-02T03:04:05Z"


@dataclass
class BatchServer(Server):
    """`polls`: how often a batch is still at work; `lose`: replies to a submission that never arrive."""

    polls: int = 1
    lose: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    half: bool = False  # the next result file comes but half


class BatchHandler(Handler):
    state: BatchServer

    def do_POST(self) -> None:
        state = self.state
        if self.path.endswith("/files"):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            parts = email.message_from_bytes(head + body).get_payload()
            (data,) = (p.get_payload(decode=True) for p in parts if p.get_filename())
            name = f"file-{len(state.files)}"
            state.files[name] = data
            return self.json({"id": name, "object": "file", "bytes": len(data), "created_at": 0, "filename": "x",
                              "purpose": "batch", "status": "processed"})  # fmt: skip
        if not self.path.endswith("/batches"):
            return super().do_POST()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "input_file_id" in body:
            rows = [json.loads(line) for line in state.files[body["input_file_id"]].splitlines()]
            requests = {row["custom_id"]: row["body"] for row in rows}
        else:
            requests = {row["custom_id"]: row["params"] for row in body["requests"]}
        name = f"batch-{len(state.batches)}"
        state.batches[name] = {"requests": requests, "polls": state.polls, "metadata": body.get("metadata")}
        if state.lose:
            state.lose -= 1
            self.close_connection = True
            return self.connection.shutdown(2)
        return self.json(self.told(name))

    def do_GET(self) -> None:
        state = self.state
        path = self.path.partition("?")[0].strip("/").split("/")
        if path[-1] == "batches":
            page = {"object": "list", "has_more": False, "first_id": None, "last_id": None}
            return self.json(page | {"data": [self.told(name) for name in reversed(state.batches)]})
        if path[-1] in ("content", "results"):
            data = self.results(path[-2].replace("out-", ""))
            if state.half:
                state.half, data = False, data[: len(data) - 9]
            return self.send(data, 200, {"Content-Type": "application/jsonl"})
        state.batches[path[-1]]["polls"] -= 1
        return self.json(self.told(path[-1]))

    def told(self, name: str) -> dict[str, Any]:
        batch = self.state.batches[name]
        done = batch["polls"] < 0
        if batch["metadata"] is not None:
            return {
                "id": name, "object": "batch", "completion_window": "24h", "created_at": 0,
                "endpoint": "/v1/chat/completions", "input_file_id": "x", "metadata": batch["metadata"],
                "status": "completed" if done else "in_progress", "output_file_id": f"out-{name}" if done else None,
            }  # fmt: skip
        counts = dict.fromkeys(("canceled", "errored", "expired", "processing", "succeeded"), 0)
        counts["succeeded" if done else "processing"] = len(batch["requests"])
        return {
            "id": name, "type": "message_batch", "created_at": CREATED, "expires_at": CREATED,
            "processing_status": "ended" if done else "in_progress", "request_counts": counts,
            "results_url": f"{self.state.url}/messages/batches/{name}/results" if done else None,
        }  # fmt: skip

    def results(self, name: str) -> bytes:
        batch, state = self.state.batches[name], self.state
        lines = []
        for custom, body in reversed(batch["requests"].items()):
            text = body["messages"][-1]["content"]
            if not batch.get("counted"):
                state.arrived[text] += 1
            fault = state.plan(text, state.arrived[text])
            openai = batch["metadata"] is not None
            if fault == "missing":
                continue
            if fault.startswith("status="):
                code = int(fault.removeprefix("status="))
                kind = "invalid_request_error" if code == 400 else "api_error"
                error = {"error": {"type": kind, "message": "as planned"}}
                result = {"type": "errored", "error": error}
                row = {"response": {"status_code": code, "body": error}} if openai else {"result": result}
            else:
                state.answered[text] += not batch.get("counted")
                whole = self.openai(body, text) if openai else self.anthropic(body, text)
                row = {"response": {"status_code": 200, "body": whole}} if openai else {
                    "result": {"type": "succeeded", "message": whole}
                }  # fmt: skip
            lines.append(json.dumps({"custom_id": custom, **row}) + "\n")
        batch["counted"] = True
        return "".join(lines).encode()

    def json(self, value: dict[str, Any]) -> None:
        self.send(json.dumps(value).encode(), 200, {})


@contextlib.contextmanager
def serve_batches(**settings: Any) -> Iterator[BatchServer]:
    """A server on a free port of loopback, as long as the context is open."""
    state = BatchServer(**settings)
    httpd = QuietServer(("127.0.0.1", 0), type("Bound", (BatchHandler,), {"state": state}))
    state.url = f"http://127.0.0.1:{httpd.server_address[1]}/v1"
    threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield state
    finally:
        httpd.shutdown()
        httpd.server_close()
