"""What `quantize` does and shows: budgets checked, and a table of what was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgedistill.cli import entries
from edgedistill.cli.progress import reporter
from edgedistill.core.errors import InputError


def quantized(
    model: str,
    *,
    max_bytes: float | None,
    min_tokens_per_s: float | None,
    calibration: Path,
    out: Path,
    formats: str,
    threads: int,
) -> dict[str, Any]:
    """Quantize within budgets of bytes and tokens per second; see `export.quantize_model`.

    Raises:
        InputError: as there; or less than a byte is allowed.
    """
    if max_bytes is not None and max_bytes < 1:
        raise InputError(f"--max-bytes: expected at least one byte, such as 60MB, found {max_bytes:g}")
    wanted = tuple(part.strip() for part in formats.split(",") if part.strip())
    with reporter() as report:
        return entries.quantize_model(
            model,
            max_bytes=None if max_bytes is None else int(max_bytes),
            min_tokens_per_s=min_tokens_per_s,
            calibration=calibration,
            out=out,
            formats=wanted,
            threads=threads,
            report=report,
        )


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
