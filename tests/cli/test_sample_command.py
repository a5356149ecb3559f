"""`synth --sample`: phase 1 is brought up to date, then a few records are printed and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgedistill import plan
from edgedistill.cli.main import app
from edgedistill.core.files import write_jsonl
from edgedistill.core.runfolder import FOLDERS


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose phase 1 makes three records; the stages it is asked for are kept in `until`."""

    def execute(run: plan.Run, report: object, *, until: str) -> list[plan.Step]:
        assert until == "synth"
        rows = [
            {"id": f"{i}", "prompt_id": f"p{i}", "teacher": "t", "messages": [{"role": "user", "content": f"ask {i}"}],
             "answer": f"say {i}", "prompt_ids": [1], "answer_ids": [2]}
            for i in range(3)
        ]  # fmt: skip
        write_jsonl(run.folder / FOLDERS["synth"] / "records-00000.jsonl", rows)
        return []

    monkeypatch.setattr(plan, "execute", execute)
    return tmp_path


def test_a_sample_is_printed_as_text_or_json(finished: Path) -> None:
    command = ["synth", "quickstart", "--runs-dir", str(finished), "--sample", "2"]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0
    assert shown.stdout.splitlines() == ["user: ask 0", "teacher: say 0", "─" * 40, "user: ask 1", "teacher: say 1"]
    rows = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert [row["answer"] for row in rows] == ["say 0", "say 1"] and set(rows[0]) == {"prompt_id", "messages", "answer"}
