"""`edgedistill quantize`: sizes as people write them, the table, and refusals in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgedistill.cli.quantize import parse_bytes, table
from edgedistill.core.errors import InputError


def test_sizes_as_people_write_them() -> None:
    sizes = {"60MB": 60_000_000, "1.5 GiB": 1_610_612_736, "512kb": 512_000, "1000": 1000}
    assert {text: parse_bytes(text) for text in sizes} == sizes
    for wrong in ("sixty", "60XB", "-1MB", "0MB", ""):
        with pytest.raises(InputError, match="expected a number of bytes such as 60MB"):
            parse_bytes(wrong)


def test_the_table_has_a_line_for_each_artifact() -> None:
    row = {
        "bytes": 59_900_000, "bits_per_weight": 4.712, "grids": {"Q4_0": 12, "Q8_0": 2}, "kld_nats": 0.0312,
        "kld_low": 0.029, "kld_high": 0.0331, "top1_ratio": 0.91,
    }  # fmt: skip
    assert table({"gguf-mixed": row}) == (
        "gguf-mixed: 59.9 MB, 4.71 bits per weight (12 Q4_0, 2 Q8_0), KLD 0.0312 nats [0.029, 0.0331], top-1 91.0%"
    )


def test_help_names_the_budget(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from edgedistill.cli.main import app

    shown = CliRunner().invoke(app, ["quantize", "--help"])
    assert shown.exit_code == 0 and "--max-bytes" in shown.output and "--calibration" in shown.output
