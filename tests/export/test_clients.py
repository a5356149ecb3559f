"""Third-party clients from npm load what we write as it is, and answer as our own engines do; skipped without npm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from edgedistill.core.files import atomic_folder, cache_dir
from edgedistill.core.records import Message
from edgedistill.export.companions import write_companions
from edgedistill.export.gguf import export_gguf_codes
from edgedistill.export.onnx import export_onnx
from edgedistill.quant.codes import CodeSet
from edgedistill.quant.plan import Plan
from edgedistill.runtimes import chat
from edgedistill.runtimes.base import open_session

HERE = Path(__file__).parent
TRANSFORMERS_JS = ("@huggingface/transformers@4.3.1",)
NODE_LLAMA_CPP = ("node-llama-cpp@3.22.1", "@node-llama-cpp/linux-x64@3.22.1")
QUESTION, COUNT = "Turn on the light in the kitchen, please.", 12


@pytest.fixture(scope="session")
def node_modules() -> Callable[[tuple[str, ...]], Path]:
    """The folder that holds npm packages without their install scripts; skips where they cannot be had."""

    def installed(packages: tuple[str, ...]) -> Path:
        if shutil.which("node") is None or shutil.which("npm") is None:
            pytest.skip("node and npm are not installed")
        root = cache_dir() / "npm" / packages[0].replace("/", "-")
        if not root.is_dir():
            with atomic_folder(root) as folder:
                command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder)]
                done = subprocess.run([*command, *packages], capture_output=True, text=True, timeout=600)
                if done.returncode:
                    pytest.skip(f"{packages[0]} cannot be installed: {done.stderr.strip()[-200:]}")
        return root / "node_modules"

    return installed


def node(script: str, *arguments: str, modules: Path) -> dict[str, Any]:
    done = subprocess.run(
        ["node", str(HERE / script), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"NODE_PATH": str(modules)},
    )
    assert done.returncode == 0, done.stderr[:2000]
    return json.loads(done.stdout.splitlines()[-1])


def answer(engine: str, path: Path, folder: Path) -> tuple[str, list[int], list[int]]:
    """Prompt, its ids, and the ids of our own greedy answer before its end."""
    tokenizer = chat.load_tokenizer(folder)
    text = chat.render(tokenizer, [Message(role="user", content=QUESTION)], template=chat.template_of(tokenizer))
    ids, ends = chat.encode(tokenizer, text), frozenset(chat.end_ids(folder))
    with closing(open_session(engine, path, threads=1, context=256)) as session:
        (found,) = session.generate([ids], max_new_tokens=COUNT, eos_ids=ends)
    return text, ids, [i for i in found.ids if i not in ends]


@pytest.mark.parametrize("grid", ["Q8_0", "Q4_0"])
def test_transformers_js_loads_the_onnx_folder_and_answers_the_same(
    grid: str, node_modules: Callable[[tuple[str, ...]], Path], tiny_llama: Path, tmp_path: Path
) -> None:
    modules, out = node_modules(TRANSFORMERS_JS), tmp_path / "onnx"
    export_onnx(model=tiny_llama, out=out, threads=1, codes=CodeSet(Plan(grid, "Q8_0")))
    write_companions(model=tiny_llama, folder=out, entry="model.onnx")
    _, ids, wanted = answer("onnx", out, out)
    found = node("transformers_js.cjs", str(out), QUESTION, str(COUNT), modules=modules)
    assert found["prompt"] == ids
    assert [i for i in found["ids"] if i not in chat.end_ids(out)] == wanted and wanted


def test_node_llama_cpp_loads_the_gguf_file_and_answers_the_same(
    node_modules: Callable[[tuple[str, ...]], Path], tiny_llama: Path, tmp_path: Path
) -> None:
    modules, out = node_modules(NODE_LLAMA_CPP), tmp_path / "model.gguf"
    export_gguf_codes(model=tiny_llama, out=out, codes=CodeSet(Plan("Q4_0", "Q8_0")))
    text, ids, wanted = answer("llamacpp", out, tiny_llama)
    found = node("node_llama_cpp.mjs", str(modules), str(out), text, str(COUNT), modules=modules)
    assert (found["prompt"], found["ids"], found["end"]) == (ids, wanted, 2) and wanted
