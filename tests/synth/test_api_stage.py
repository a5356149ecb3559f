"""A whole run with a teacher behind an API: estimate, first answers, records, a verdict, and no key anywhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from synth_api_server import Server, serve

from edgedistill.core.files import iter_jsonl, read_json

pytest.importorskip("openai", reason="the extra `api` is not installed")
EDGEDISTILL = Path(sys.executable).parent / "edgedistill"
KEY = "sk-never-to-be-written-5f3a9c"
RECIPE = """
name = "api"
threads = 1
[task]
max_new_tokens = 16
[data]
prompts = "prompts.jsonl"
heldout = "heldout.jsonl"
[teacher]
model = "m-1"
engine = "{engine}"
base_url = "{url}"
key_env = "TEST_API_KEY"
concurrency = 4
timeout_s = 5
smoke = 2
temperature = 0.0
[teacher.price]
input_per_mtok = 1.0
output_per_mtok = 2.0
date = 2026-01-02
source = "a test"
[teacher.limits]
money = 1.0
[student]
model = "student"
[train]
epochs = 1
batch_size = 8
[export]
variants = ["gguf-f16"]
release = ["gguf-f16"]
parity_texts = 2
[eval]
kld_items = 2
[bench]
targets = ["local-cpu"]
blocks = 3
prompts_per_block = 1
prefill_tokens = 8
decode_tokens = 4
[budget.size]
metric = "artifact_bytes"
max = "1 GB"
"""


def folder_for(tmp_path: Path, student: Path, server: Server, *, engine: str = "openai") -> Path:
    """A recipe beside its files; returns its path."""
    words = [f"light {i:02} on" for i in range(24)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": w}) + "\n" for w in words))
    held = [{"prompt": f"lock {i}", "answer": "x"} for i in range(2)]
    (tmp_path / "heldout.jsonl").write_text("".join(json.dumps(h) + "\n" for h in held))
    (tmp_path / "student").symlink_to(student)
    url = server.url if engine == "openai" else server.url.removesuffix("/v1")
    (tmp_path / "api.toml").write_text(RECIPE.format(engine=engine, url=url))
    return tmp_path / "api.toml"


def call(*arguments: object, key: str | None = KEY) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TEST_API_KEY"}
    if key is not None:
        environment["TEST_API_KEY"] = key
    command = [EDGEDISTILL, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)


def names_the_key(folder: Path) -> list[str]:
    """Files with the key in them, links followed; the whole key and its beginning."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    return [str(path) for path in files if KEY[:12].encode() in path.read_bytes()]


def first_attempt_fails(text: str, attempt: int) -> str:
    faults = {"3": "status=429/0", "5": "status=500", "7": "status=400"}
    return faults.get(text[7:8], "") if attempt == 1 or text[7:8] == "7" else ""


def test_estimate_ask_and_write_nowhere_the_key(tmp_path: Path, tiny_llama: Path) -> None:
    with serve(plan=first_attempt_fails) as server:
        recipe = folder_for(tmp_path, tiny_llama, server)
        runs = tmp_path / "runs"
        estimated = call("synth", recipe, "--runs-dir", runs, "--dry-run", "--json")
        assert estimated.returncode == 0, estimated.stderr
        found = json.loads(estimated.stdout)
        assert (found["requests"], found["prompts"], found["currency"]) == (24, 24, "USD") and found["cost"] > 0
        assert not server.arrived and not (runs / "api" / "10-synth").exists()
        shown = call("synth", recipe, "--runs-dir", runs, "--dry-run").stdout
        assert re.search(r"^requests +24 ", shown, re.MULTILINE) and "1 USD" in shown and "total" not in shown
        assert (found["total"]["requests"], found["total"]["cost"]) == (24, {"USD": found["cost"]})

        keyless = call("synth", recipe, "--runs-dir", runs, key=None)
        assert keyless.returncode == 5 and "environment variable TEST_API_KEY, found none" in keyless.stderr
        assert not server.arrived

        done = call("synth", recipe, "--runs-dir", runs)
        assert done.returncode == 0, done.stderr
        assert "first answers: light 00 on → LIGHT 00 ON (kept)" in done.stderr
        assert "terms: whether openai:m-1 allows training on its answers: unknown" in done.stderr
        assert "22 of 24 answers kept (2 bad-request)" in done.stderr
        figures = read_json(runs / "api" / "10-synth" / "manifest.json")["figures"]
        assert figures["asked"] == 24 == figures["kept"] + sum(figures["rejected"].values())
        assert figures["failed_attempts"] == {"bad-request": 2, "rate-limited": 3, "server-error": 2}
        assert figures["attempts"] == sum(server.arrived.values()) == 24 + 5
        assert figures["cost"]["amount"] > 0

        server.plan = lambda text, attempt: "status=401"
        other = call("synth", recipe, "--runs-dir", runs, "--set", 'teacher.revision="b"')
        assert other.returncode == 4 and "the server refused (not-allowed: 401" in other.stderr
        assert {header["authorization"] for header in server.headers} == {f"Bearer {KEY}"}
        assert names_the_key(runs) == [] and KEY[:12] not in other.stderr + done.stderr + done.stdout


def test_another_judge_asks_nothing_again(tmp_path: Path, tiny_llama: Path) -> None:
    with serve() as server:
        recipe = folder_for(tmp_path, tiny_llama, server, engine="anthropic")
        assert call("synth", recipe, "--runs-dir", tmp_path).returncode == 0
        again = call(
            "synth", recipe, "--runs-dir", tmp_path, "--set", "task.chat_template=\"{{ messages[0]['content'] }}:\""
        )
        assert again.returncode == 0, again.stderr
        assert set(server.arrived.values()) == {1} and "first answers" not in again.stderr
    records = [row for path in (tmp_path / "api" / "10-synth").glob("records-*") for row in iter_jsonl(path)]
    assert len(records) == 24 and {row["teacher"] for row in records} == {"anthropic:m-1"}


def test_text_alone_trains_a_student_to_a_verdict(tmp_path: Path, tiny_llama: Path) -> None:
    with serve() as server:
        recipe = folder_for(tmp_path, tiny_llama, server)
        done = call("run", recipe, "--runs-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "api"
    verdict: dict[str, Any] = read_json(run / "60-gate" / "verdict.json")
    assert verdict["outcome"] == "pass"
    rows = read_json(run / "60-gate" / "comparison.json")["rows"]
    assert {row["model"] for row in rows} == {"untrained", "student", "gguf-f16"}
    assert not [row["problems"] for row in rows if row["problems"]]
    assert read_json(run / "05-teacher" / "api.json")["model"] == "m-1"
    assert read_json(run / "20-train" / "manifest.json")["figures"]["records"] == 24
