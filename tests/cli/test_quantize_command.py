"""`edgedistill quantize`: its budget in bytes, the table, and refusals in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgedistill.cli import entries, main
from edgedistill.cli.quantize import table


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], size: str) -> tuple[int, str]:
    arguments = ["quantize", "model", "--calibration", "text.txt", "--out", "out", "--max-bytes", size]
    monkeypatch.setattr("sys.argv", ["edgedistill", *arguments])
    with pytest.raises(SystemExit) as ended:
        main.main()
    return ended.value.code, capsys.readouterr().err


def test_sizes_as_people_write_them(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    given = []
    monkeypatch.setattr(entries, "quantize_model", lambda model, **settings: given.append(settings["max_bytes"]) or {})
    for size in ("60MB", "1.5 GiB", "512kb", "1000", "6e7"):
        assert said(monkeypatch, capsys, size)[0] in (0, None)
    assert given == [60_000_000, 1_610_612_736, 512_000, 1000, 60_000_000]
    for wrong, sentence in (
        ("sixty", "expected a number or a text such as '150 MB'"),
        ("60XB", "units are B, KB, MB, GB, KiB, MiB, GiB; found '60XB'"),
        ("-1MB", "expected no negative number of bytes, found '-1MB'"),
        ("0MB", "expected at least one byte, such as 60MB, found 0"),
    ):
        code, words = said(monkeypatch, capsys, wrong)
        assert code == 2 and "--max-bytes" in words and sentence in words


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
