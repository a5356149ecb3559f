"""Streams on one model: the answers are those of one request at a time, and more requests than streams queue."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgedistill.bench.block import run_block

Job = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("streams", [2, 4])
def test_streams_answer_as_one_request_does(
    job: Job, tiny_gguf: Path, torch_answers: list[list[int]], streams: int
) -> None:
    work = job("llamacpp", tiny_gguf, workloads=[f"streams-{streams}"])
    work["options"]["streams"] = streams
    work |= {"prompts": work["prompts"] * 2, "stream_requests": 3, "batch": 64, "expected": torch_answers * 2}
    (row,) = run_block(work)["rows"]
    assert "invalid" not in row
    assert row["outputs"] == torch_answers * 2
    assert len(row["samples"]["response_ms"]) == 4 * 3
    (per_hour,) = row["samples"]["requests_per_hour"]
    mean = sum(row["samples"]["response_ms"]) / 12
    # Requests overlap: an hour holds more than one after another would, at most as many times as there are streams.
    assert 1.0 < per_hour * mean / 3600e3 <= streams + 0.01


def test_an_answer_ends_at_its_end_id_and_frees_its_stream(
    job: Job, tiny_gguf: Path, torch_answers: list[list[int]]
) -> None:
    end = next(token for token in torch_answers[0][1:] if token != torch_answers[0][0])
    length = torch_answers[0].index(end) + 1
    work = job("llamacpp", tiny_gguf, workloads=["streams-2"], end_ids=[end])
    work["options"]["streams"] = 2
    (row,) = run_block(work)["rows"]
    assert row["outputs"][0] == torch_answers[0][:length]


def test_a_prompt_that_no_batch_holds_is_an_error(job: Job, tiny_gguf: Path) -> None:
    work = job("llamacpp", tiny_gguf, workloads=["streams-2"], prompts=[list(range(60, 100))], batch=32)
    work["options"]["streams"] = 2
    (row,) = run_block(work)["rows"]
    assert row["invalid"] == "RuntimeError: a prompt of 40 tokens does not fit a batch of 32"
