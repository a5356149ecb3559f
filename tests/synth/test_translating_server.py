"""Anthropic's protocol against a real server of it: litellm's proxy before llama-cpp-python's OpenAI server."""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripts_outside import ROOT

from edgedistill.core.files import iter_jsonl, write_jsonl
from edgedistill.core.records import Message
from edgedistill.core.runfolder import SilentReporter
from edgedistill.synth import remote
from edgedistill.synth.rows import make_prompt
from edgedistill.synth.service import Service

LITELLM = os.environ.get("EDGEDISTILL_LITELLM") or shutil.which("litellm")
pytest.importorskip("anthropic", reason="the extra `api` is not installed")
pytest.importorskip("uvicorn", reason="the parts of llama-cpp-python's server are not installed")
pytestmark = pytest.mark.skipif(
    LITELLM is None, reason="no litellm on PATH; pip install 'litellm[proxy]' elsewhere, name it in EDGEDISTILL_LITELLM"
)
CONFIG = """
model_list:
  - model_name: claude-teacher
    litellm_params: {{model: openai/teacher, api_base: "http://127.0.0.1:{port}/v1", api_key: none}}
"""


@contextlib.contextmanager
def translating(folder: Path, port: int, *, key: str) -> Iterator[str]:
    """The address of the proxy, as long as the context is open."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        own = s.getsockname()[1]
    (folder / "litellm.yaml").write_text(CONFIG.format(port=port))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it is fetched
        "LITELLM_USE_CHAT_COMPLETIONS_URL_FOR_ANTHROPIC_MESSAGES": "True",  # else it asks for OpenAI's newer protocol
        "LITELLM_MASTER_KEY": key,
    }
    command = [str(LITELLM), "--config", str(folder / "litellm.yaml"), "--host", "127.0.0.1", "--port", str(own)]
    with (folder / "litellm.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=folder)
        try:
            deadline = time.monotonic() + 240
            while process.poll() is None and time.monotonic() < deadline:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", own), timeout=1):
                    break
                time.sleep(0.5)
            else:
                pytest.fail((folder / "litellm.log").read_text()[-2000:])
            yield f"http://127.0.0.1:{own}"
        finally:
            process.terminate()
            process.wait()


def test_messages_come_through_a_translating_server(
    tmp_path: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    faults = importlib.import_module("generation_faults")
    said = [
        [Message(role="system", content="Be brief."), Message(role="user", content=text)] for text in ("on", "lock it")
    ]
    write_jsonl(tmp_path / "p.jsonl", [make_prompt(m).model_dump(mode="json") for m in said])

    key = f"sk-{secrets.token_hex(32)}"

    def asked(engine: str, model: str, url: str) -> list[dict[str, Any]]:
        service = Service(engine, model, "", {"max_tokens": 8}, 8)
        client = {"key": key, "base_url": url, "accepts": ("teacher", "openai/teacher"), "timeout_s": 120.0}
        remote.ask_all(
            [tmp_path / "p.jsonl"], folder=tmp_path / engine, service=service, client=client, concurrency=2,
            attempts=3, smoke=0, judge=lambda answer, finish, prompt: None, report=SilentReporter(),
        )  # fmt: skip
        return list(iter_jsonl(tmp_path / engine / "answers.jsonl"))

    with (
        faults._server(tiny_gguf, threads=1) as port,
        translating(tmp_path, port, key=key) as url,
    ):
        rows = asked("anthropic", "claude-teacher", url)
    answers = [row for row in rows if "answer" in row]
    assert len(answers) == 2 and not [row for row in rows if "failed" in row]
    assert all(row["finish"] in ("stop", "length") and row["tokens"][0] > 0 for row in answers)
    assert not [path for path in tmp_path.rglob("answers.jsonl") if key in path.read_text()]
    assert all(isinstance(row["text"], str) and row["model"] for row in answers)
