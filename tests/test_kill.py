"""SIGKILL at many points of a whole run on a tiny random model, then the same command again: equal bytes at the end."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

EDGEDISTILL = Path(sys.executable).parent / "edgedistill"
STAGES = ("00-data", "05-teacher", "10-synth", "20-train", "30-export", "40-eval")  # what follows measures times
RUNS = ("calm", "killed")
TIMED = {"manifest.json", "started.json", "metrics.jsonl"}
KILLS = 20
PATIENCE_S = 120

# A kill follows the appearance of each of these, by up to `LATE_S`, which lands it before, in and after later writes.
LATE_S = 0.15
POINTS = [
    "recipe.lock.json",
    "00-data/started.json",
    "05-teacher/started.json",
    "05-teacher/model.safetensors",
    "10-synth/started.json",
    "10-synth/logits-00000.safetensors",
    "10-synth/records-00000.jsonl",
    "20-train/started.json",
    "20-train/untrained/config.json",
    "20-train/metrics.jsonl",
    "20-train/checkpoints/*",
    "20-train/student/config.json",
    "20-train/control/config.json",
    "30-export/started.json",
    "30-export/.*.tmp",
    "30-export/onnx-fp32/artifact.json",
    "30-export/gguf-f16/artifact.json",
    "30-export/onnx-int4/artifact.json",
    "40-eval/started.json",
    "40-eval/teacher.jsonl",
    "40-eval/onnx-fp32.jsonl",
    "50-bench/started.json",
    "50-bench/*/*/*.jsonl",
    "60-gate/started.json",
]

RECIPE = """
name = "tiny"
threads = 1
[task]
max_new_tokens = 6
[data]
prompts = "prompts.jsonl"
heldout = "heldout.jsonl"
[teacher]
model = "teacher"
[synth]
label_gold = false
batch_size = 8
shard_size = 16
top_k = 4
[student.cut]
layers = [0]
ffn = 96
[train]
lr = 1e-3
epochs = 3
batch_size = 4
checkpoint_every_s = 0.2
[train.control]
[export]
variants = ["gguf-f16", "gguf-q4_0", "onnx-fp32", "onnx-int4"]
release = ["gguf-q4_0", "onnx-int4"]
parity_texts = 2
[eval]
kld_items = 2
[bench]
targets = ["local-cpu"]
blocks = 2
prompts_per_block = 1
teacher_prompts_per_block = 1
prefill_tokens = 8
decode_tokens = 4
[budget.size]
metric = "artifact_bytes"
max = "1 KB"
"""


def teach(folder: Path, requests: list[str]) -> None:
    """Train the model in `folder` until it answers each request with a word and ends, in place."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chats = [[{"role": "user", "content": r}, {"role": "assistant", "content": r.split()[3]}] for r in requests]
    rows = [tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"] for chat in chats]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=-1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        model(input_ids=ids.clamp(min=0), labels=ids.where(ids >= 0, torch.tensor(-100))).loss.backward()
        optimizer.step()
    model.save_pretrained(folder, safe_serialization=True)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A whole recipe with a tiny teacher that has learned to answer and to end, so that every stage has work to do."""
    folder = tmp_path_factory.mktemp("kill")
    words = [f"turn the light {i} on in the kitchen" for i in range(48)]
    teach(shutil.copytree(tiny_llama, folder / "teacher"), words)
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": w}) + "\n" for w in words))
    held = [{"prompt": f"close lock {i}", "answer": "x"} for i in range(4)]
    (folder / "heldout.jsonl").write_text("".join(json.dumps(h) + "\n" for h in held))
    (folder / "tiny.toml").write_text(RECIPE)
    return folder / "tiny.toml"


def start(recipe: Path, runs: Path) -> subprocess.Popen[str]:
    command = [EDGEDISTILL, "run", recipe, "--runs-dir", runs]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(recipe: Path, runs: Path) -> str:
    """Run to the end; the tiny artifacts are over their budget of 1 KB, so the verdict is fail."""
    process = start(recipe, runs)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 1, output
    return output


def killed_at(process: subprocess.Popen[str], folder: Path, point: str, *, late: float, whole_group: bool) -> bool:
    """Kill `late` seconds after `point` is there; whether the run was still at work then."""
    deadline = time.monotonic() + PATIENCE_S
    while process.poll() is None and not any(folder.glob(point)):
        assert time.monotonic() < deadline, f"{point} did not appear"
        time.sleep(0.003)
    time.sleep(late)
    alive = process.poll() is None
    with contextlib.suppress(ProcessLookupError):
        if whole_group:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()  # the stage's process has to notice by itself
    process.communicate(timeout=60)
    return alive


def contents(run: Path) -> dict[str, bytes]:
    """Every file of the stages whose output is not a time, but for the files that record times."""
    files = (p for p in sorted(run.glob("[0-4]*/**/*")) if p.is_file() and p.name not in TIMED)
    return {p.relative_to(run).as_posix(): p.read_bytes() for p in files}


def test_a_run_killed_at_many_points_ends_byte_for_byte_alike(recipe: Path, tmp_path: Path) -> None:
    finish(recipe, tmp_path / "calm")
    rng = random.Random(0)
    folder = tmp_path / "killed" / "tiny"
    kills = []
    for number, point in enumerate(POINTS):
        process = start(recipe, tmp_path / "killed")
        if killed_at(process, folder, point, late=rng.uniform(0, LATE_S), whole_group=number % 3 > 0):
            kills.append(point)
    finish(recipe, tmp_path / "killed")
    assert len(kills) >= KILLS, kills

    calm, killed = contents(tmp_path / "calm" / "tiny"), contents(folder)
    assert calm.keys() == killed.keys()
    assert [name for name in calm if calm[name] != killed[name]] == []
    assert any(name.startswith("30-export/gguf-q4_0/") for name in calm)
    assert any(name.startswith("30-export/onnx-int4/") for name in calm)

    for stage in STAGES:
        ours, theirs = (json.loads((tmp_path / run / "tiny" / stage / "manifest.json").read_text()) for run in RUNS)
        assert (ours["key"], ours["output_digest"]) == (theirs["key"], theirs["output_digest"]), stage

    output = finish(recipe, tmp_path / "killed")
    assert "nothing to do: all 8 stages are done" in output
