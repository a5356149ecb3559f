"""Blocks added to a finished bench: only they are measured, and the first ones stay what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_bench_stage import MODELS, context_of, read, tiny_run  # noqa: F401

from edgedistill.bench import block as worker
from edgedistill.bench import stage
from edgedistill.bench.rounds import memory_rounds
from edgedistill.core.recipe import Recipe
from edgedistill.core.runfolder import StageContext, run_stage

PROBES = 2  # of the teacher's settings, once in a run


@pytest.mark.parametrize(
    ("blocks", "further", "wanted"),
    [(6, 0, {0, 2, 4}), (6, 5, {0, 2, 4, 6, 8, 10}), (3, 2, {0, 1, 2, 3, 4}), (7, 3, {0, 2, 4, 7, 9})],
)
def test_further_rounds_take_the_memory_pass_as_often_and_leave_the_first_as_they_are(
    blocks: int, further: int, wanted: set[int]
) -> None:
    assert memory_rounds(blocks, further=further) == wanted
    assert memory_rounds(blocks) == {pair for pair in wanted if pair < blocks}


def test_only_further_blocks_are_measured(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    made: list[str] = []

    def block(job: dict[str, Any], **_: Any) -> dict[str, Any]:
        made.append(job["engine"])
        speeds = {"prefill_tokens_per_s": [1.0], "decode_tokens_per_s": [1.0]}
        row = {"samples": {"response_ms": [float(len(made))]} | speeds, "outputs": [[1]] * len(job["prompts"])}
        return {
            "engine": job["engine"], "settings": {}, "rows": [{"workload": name} | row for name in job["workloads"]],
        }  # fmt: skip

    monkeypatch.setattr(worker, "run_block", block)

    def bench(further: int) -> StageContext:
        context = context_of(tiny_run, blocks=2)
        fields = context.recipe.model_dump(mode="json")
        fields["bench"]["further_blocks"], fields["gate"]["settle_blocks"] = further, 4
        grown = StageContext(Recipe.model_validate(fields), tiny_run, "bench", context.report, {})
        run_stage(context=grown, version=1, parameters={}, inputs={}, further=further, body=stage.run)
        return grown

    bench(0)
    first, count = read(tiny_run), len(made)
    context = bench(2)
    assert len(made) == 2 * count - PROBES > 0 and context.figures["invalid_rows"] == 0
    rows = read(tiny_run)
    assert {row.pair for row in rows} == {0, 1, 2, 3}
    assert [row for row in rows if row.pair < 2] == first
    assert {row.model for row in rows if row.pair == 3} == set(MODELS)
