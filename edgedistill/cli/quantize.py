"""What `quantize` reads and shows: sizes as people write them, and a table of what was made."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from edgedistill.cli import entries
from edgedistill.cli.progress import reporter
from edgedistill.core.errors import InputError

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def quantized(
    model: str,
    *,
    max_bytes: str | None,
    min_tokens_per_s: float | None,
    calibration: Path,
    out: Path,
    formats: str,
    threads: int,
) -> dict[str, Any]:
    """Quantize within budgets such as "60MB" and 100 tokens per second; see `export.quantize_model`."""
    wanted = tuple(part.strip() for part in formats.split(",") if part.strip())
    with reporter() as report:
        return entries.quantize_model(
            model,
            max_bytes=None if max_bytes is None else parse_bytes(max_bytes),
            min_tokens_per_s=min_tokens_per_s,
            calibration=calibration,
            out=out,
            formats=wanted,
            threads=threads,
            report=report,
        )


def parse_bytes(text: str) -> int:
    """Bytes of "60MB", "1.5 GiB" or "60000000".

    Raises:
        InputError: it is no positive number of bytes.
    """
    matched = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if matched is None or matched[2].upper() not in UNITS or not float(matched[1]):
        raise InputError(f"expected a number of bytes such as 60MB or 1.5GiB, found {text!r}")
    return int(float(matched[1]) * UNITS[matched[2].upper()])


def table(found: dict[str, Any]) -> str:
    """One line for each artifact: bytes, bits per weight, grids, divergence with its interval."""
    lines = []
    for variant, row in found.items():
        grids = ", ".join(f"{count} {grid}" for grid, count in row["grids"].items())
        speed = f", {row['tokens_per_s']:g} tokens per second" if "tokens_per_s" in row else ""
        lines.append(
            f"{variant}: {row['bytes'] / 1e6:.1f} MB, {row['bits_per_weight']:.2f} bits per weight ({grids}), "
            f"KLD {row['kld_nats']:.3g} nats [{row['kld_low']:.3g}, {row['kld_high']:.3g}], "
            f"top-1 {row['top1_ratio']:.1%}{speed}"
        )
    return "\n".join(lines)
