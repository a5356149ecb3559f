"""How well a projection predicts: published cells held out and predicted from one anchor per device × quant.

Usage: python benchmarks/projection.py [DEVICES_CSV]
Writes benchmarks/results/projection.json; the last line printed is the same figures as one JSON object.

A device keeps the cells of one model as its anchors; every other cell of it is predicted from those and from the other
devices' cells, with each model in turn as the anchor. Neither the held-out cell nor any other cell of its device takes
part in the fit or in the band's residuals. `all_other_cells` holds out one cell at a time and keeps the rest instead;
`model_unseen_anywhere` takes the held-out model from the other devices too.
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgedistill.bench.projection import Cell, anchor_sets, fit, half_width, log_seconds, transfer_residuals
from edgedistill.core.errors import InputError
from edgedistill.core.files import write_json
from edgedistill.core.host import environment

ROOT = Path(__file__).resolve().parents[1]
DEVICES = ROOT.parent / "shared" / "data" / "devices.csv"
RESULT = Path(__file__).with_name("results") / "projection.json"
LEVEL = 0.9
MIB = 2**20


class Model(NamedTuple):
    """What a model is whatever device it runs on: weights in its layers, in its output matrix, KV bytes a position.

    Layers' weights follow from the size of the Q8_0 file (34 bytes for 32 weights); the rest is in its `config.json`.
    `tables` are loaded and not read: llama.cpp holds a tied embedding twice, an untied one beside the output matrix.
    """

    body: float
    head: float
    kv_per_position: float
    tables: int = 1


def _kv(layers: int, heads: int, width: int) -> float:
    """Bytes of keys and values of one position in f16."""
    return layers * heads * width * 2 * 2


MODELS = {
    "deepseek-r1-distill-qwen-1.5b": Model(1.3108e9, 151936 * 1536, _kv(28, 2, 128)),
    "qwen2.5-1.5b": Model(1.3108e9, 151936 * 1536, _kv(28, 2, 128)),
    "qwen3-1.7b": Model(1.4098e9, 151936 * 2048, _kv(28, 8, 128)),
    # Of 24 layers every fourth has a KV cache; the others keep a state of fixed size.
    "qwen3.5-0.8b": Model(0.5011e9, 248320 * 1024, _kv(6, 2, 256)),
    "qwen3.5-2b": Model(1.3781e9, 248320 * 2048, _kv(6, 2, 256)),
    "phi-3.5-mini": Model(3.6247e9, 32064 * 3072, _kv(32, 32, 96)),
    "phi-4-mini": Model(3.2220e9, 200064 * 3072, _kv(32, 8, 128)),
    # Ollama's size is the file's, in which the tied table is the output matrix and is read.
    "llama-3.2-3b": Model(2.8190e9, 128256 * 3072, _kv(28, 8, 128), tables=0),
}
# One architecture under two names: an anchor of one says more of the other than of a third.
TWINS = {"deepseek-r1-distill-qwen-1.5b", "qwen2.5-1.5b"}


def read_cells(path: Path, *, speed: str = "decode") -> list[Cell]:
    """Cells of the table that have this speed; what is known of a model is added.

    Raises:
        InputError: the file is absent or lacks a column.
    """
    if not path.is_file():
        raise InputError(f"expected a table of published speeds at {path}, found none; give its path as the argument")
    cells = []
    with path.open(encoding="utf-8", newline="") as f:
        for row in csv.DictReader(f):
            try:
                if row[f"{speed}_tokens_per_s"]:
                    cells.append(_cell(row, speed=speed))
            except (KeyError, ValueError) as e:
                raise InputError(f"{path}: expected a table of speeds, found a row without a proper {e}") from None
    return cells


def _cell(row: dict[str, str], *, speed: str) -> Cell:
    loaded = float(row["weights_mib"]) * MIB
    model = MODELS.get(row["model"].lower())
    positions = float(row["prefill_tokens"] or 0) + float(row["decode_tokens"] or 0) / 2
    cell = Cell(
        device=row["device"],
        # llama.rn and Ollama run llama.cpp's kernels.
        engine="llama.cpp" if row["engine"].startswith(("llama.cpp", "Ollama")) else row["engine"],
        backend=row["backend"],
        model=row["model"].lower(),
        quant=row["quant"],
        seconds_per_token=1 / float(row[f"{speed}_tokens_per_s"]),
        read_bytes=loaded,
    )
    if model is None:
        return cell
    weights = model.body + model.head
    return replace(
        cell,
        read_bytes=loaded * weights / (weights + model.tables * model.head),
        kv_bytes=model.kv_per_position * positions,
        weights=weights,
        head_weights=model.head,
    )


def one_anchor(cells: Sequence[Cell], *, unseen: bool = False) -> Iterator[dict[str, Any]]:
    """Predictions of every cell from each set of anchors: the cells of one other model on its device.

    With `unseen` the other devices have no cell of the held-out model either, nor of its twin: a model of one's own.
    """
    for others, anchors, held in anchor_sets(cells):
        for name in sorted({cell.model for cell in held}) if unseen else [""]:
            hidden = TWINS if name in TWINS else {name}
            train = [*(cell for cell in others if cell.model not in hidden), *anchors]
            asked = [cell for cell in held if not unseen or cell.model == name]
            if not (unseen and anchors[0].model in hidden):
                yield from predicted(train, asked, anchor=anchors[0].model, band=not unseen)


def all_others(cells: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    """Predictions of every cell from all other cells, where one of its device and quant is left."""
    for i, cell in enumerate(cells):
        rest = [*cells[:i], *cells[i + 1 :]]
        if any((other.device, other.quant) == (cell.device, cell.quant) for other in rest):
            yield from predicted(rest, [cell], anchor="all", band=False)


def predicted(
    train: Sequence[Cell], held: Sequence[Cell], *, anchor: str, band: bool = True
) -> Iterator[dict[str, Any]]:
    """The held-out cells' errors and, with `band`, whether the band has them, which is made of `train` alone."""
    half = half_width(transfer_residuals(train), level=LEVEL, engine=train[0].engine) if band else None
    error = np.log([cell.seconds_per_token for cell in held]) - log_seconds(fit(train), held)
    for cell, e in zip(held, error, strict=True):
        yield {
            "device": cell.device,
            "engine": cell.engine,
            "model": cell.model,
            "quant": cell.quant,
            "anchor": anchor,
            # Of tokens per second: predicted over measured, less one.
            "error_pct": 100 * (float(np.exp(e)) - 1),
        } | (
            {"covered": bool(abs(e) <= half), "half_width_pct": 100 * (float(np.exp(half)) - 1)}
            if half is not None
            else {}
        )


def figures(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median and 90th percentile of the absolute errors, share of cells within the band, its half-width, and counts."""
    errors = [abs(row["error_pct"]) for row in rows]
    band = {}
    if all("covered" in row for row in rows):
        band = {
            "band_coverage": round(statistics.mean(row["covered"] for row in rows), 4),
            "band_half_width_pct": round(statistics.median(row["half_width_pct"] for row in rows), 1),
        }
    return {
        "median_abs_pct_error": round(statistics.median(errors), 2),
        "p90_abs_pct_error": round(float(np.percentile(errors, 90)), 2),
        **band,
        "n": len(rows),
        "cells": len({(row["device"], row["engine"], row["model"], row["quant"]) for row in rows}),
    }


def measure(path: Path) -> dict[str, Any]:
    """Every figure of the benchmark.

    Raises:
        InputError: the table is absent, or has no device with two models of one quant.
    """
    cells = read_cells(path)
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.engine, cell.backend), []).append(cell)
    rows: list[dict[str, Any]] = []
    rest: list[dict[str, Any]] = []
    unseen: list[dict[str, Any]] = []
    bytes_only: list[dict[str, Any]] = []
    prefill: list[dict[str, Any]] = []
    for group in groups.values():
        known = [cell for cell in group if cell.weights is not None]
        rows += one_anchor(known)
        rest += all_others(known)
        unseen += one_anchor(known, unseen=True)
        bytes_only += one_anchor([replace(cell, weights=None, head_weights=0.0) for cell in group])
    if not rows:
        raise InputError(f"{path}: expected a device with two models of one quant, found none; nothing can be held out")
    for engine, backend in groups:
        found = [c for c in read_cells(path, speed="prefill") if (c.engine, c.backend) == (engine, backend)]
        prefill += one_anchor([replace(cell, kv_bytes=0.0) for cell in found if cell.weights is not None])
    done = {(row["device"], row["engine"], row["model"], row["quant"]) for row in rows}
    left = [cell for cell in cells if (cell.device, cell.engine, cell.model, cell.quant) not in done]
    untwinned = [row for row in rows if not {row["model"], row["anchor"]} <= TWINS]
    return {
        **figures(rows),
        "protocol": "one anchor per device x quant, each model in turn; the device's other cells held out",
        "level": LEVEL,
        "by_engine": _by(rows, "engine"),
        "by_device": _by(rows, "device"),
        "by_quant": _by(rows, "quant"),
        "without_twins": figures(untwinned),
        "model_unseen_anywhere": figures(unseen),
        "all_other_cells": figures(rest),
        "bytes_only": figures(bytes_only),
        "prefill": figures(prefill),
        "refused": [f"{c.device}, {c.engine} {c.backend}, {c.quant}: no second cell to predict it from" for c in left],
    }


def _by(rows: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    return {
        value: figures([row for row in rows if row[name] == value]) for value in sorted({row[name] for row in rows})
    }


if __name__ == "__main__":
    if len(sys.argv) > 2:
        sys.exit("usage: python benchmarks/projection.py [DEVICES_CSV]")
    try:
        result = measure(Path(sys.argv[1]) if len(sys.argv) == 2 else DEVICES)
    except InputError as e:
        print(e, file=sys.stderr)
        sys.exit(2)
    if len(sys.argv) == 1:
        RESULT.parent.mkdir(exist_ok=True)
        write_json(RESULT, {"schema_version": 1, "environment": environment(), **result})
    print(json.dumps(result))
