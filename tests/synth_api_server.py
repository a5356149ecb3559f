"""A real HTTP server in a thread that speaks OpenAI's and Anthropic's chat APIs, and fails as it is told to."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = Callable[["Handler", dict[str, Any]], None]


@dataclass
class Server:
    """What was asked, by the last message's text; `plan(text, attempt)` names the fault of an attempt or nothing."""

    url: str = ""
    plan: Callable[[str, int], str] = lambda text, attempt: ""
    answer: Callable[[str], str] = lambda text: text.upper()
    extra: Callable[[str], dict[str, Any]] = lambda text: {}
    delay_s: float = 0.0
    arrived: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        state = self.state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        with state.lock:
            state.arrived[text] += 1
            attempt = state.arrived[text]
            state.bodies.append(body)
            state.headers.append({name.lower(): value for name, value in self.headers.items()})
            state.in_flight += 1
            state.most_in_flight = max(state.most_in_flight, state.in_flight)
        try:
            time.sleep(state.delay_s)
            fault = state.plan(text, attempt)
            if not fault:
                with state.lock:
                    state.answered[text] += 1
            self.reply(body, text, fault)
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with state.lock:
                state.in_flight -= 1

    def reply(self, body: dict[str, Any], text: str, fault: str) -> None:
        whole = self.anthropic(body, text) if self.path.endswith("/messages") else self.openai(body, text)
        part = whole["choices"][0] if "choices" in whole else whole
        name, _, value = fault.partition("=")
        if name == "hang":
            time.sleep(float(value or 2))
        elif name == "status":
            code, _, wait = value.partition("/")
            echo = self.headers.get("Authorization", "") + self.headers.get("x-api-key", "")
            headers = {"Retry-After": wait} if wait else {}
            self.send(json.dumps({"error": {"message": f"refused {echo}"}}).encode(), int(code), headers)
            return
        elif name == "wrong-model":
            whole["model"] = "some-other-model"
        elif name == "empty-choice":
            whole |= {"choices": []} if "choices" in whole else {"content": []}
        elif name == "length":
            (whole["choices"][0] if "choices" in whole else whole).update(
                finish_reason="length", stop_reason="max_tokens"
            )
        elif name == "unfinished":
            part.update(finish_reason=None, stop_reason=None)
        data = json.dumps(whole).encode()
        if name == "half-json":
            data = data[: len(data) // 2]
        if name == "closed":
            self.close_connection = True
            self.connection.shutdown(2)
            return
        if name == "cut":
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.send(data, 200, {})

    def send(self, data: bytes, code: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def openai(self, body: dict[str, Any], text: str) -> dict[str, Any]:
        said = self.state.answer(text)
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        usage = {"prompt_tokens": len(text), "completion_tokens": max(1, len(said) // 4)}
        return {
            "id": "x", "object": "chat.completion", "created": 0, "model": body["model"],
            "choices": [choice | self.state.extra(text)], "usage": usage,
        }  # fmt: skip

    def anthropic(self, body: dict[str, Any], text: str) -> dict[str, Any]:
        said = self.state.answer(text)
        usage = {"input_tokens": len(text), "output_tokens": max(1, len(said) // 4)}
        return {
            "id": "x", "type": "message", "role": "assistant", "model": body["model"], "stop_reason": "end_turn",
            "content": [{"type": "text", "text": said}], "usage": usage, **self.state.extra(text),
        }  # fmt: skip


class QuietServer(ThreadingHTTPServer):
    """Says nothing of clients that are gone: tests kill them."""

    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: object, client_address: object) -> None:
        pass


@contextlib.contextmanager
def serve(**settings: Any) -> Iterator[Server]:
    """A server on a free port of loopback, as long as the context is open."""
    state = Server(**settings)
    handler = type("Bound", (Handler,), {"state": state})
    httpd = QuietServer(("127.0.0.1", 0), handler)
    state.url = f"http://127.0.0.1:{httpd.server_address[1]}/v1"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        httpd.shutdown()
        httpd.server_close()
