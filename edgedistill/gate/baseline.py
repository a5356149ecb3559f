"""The stored baseline: what a later run's `against = "previous"` is compared with, in one JSON file."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from edgedistill.core.config import validate
from edgedistill.core.errors import InputError
from edgedistill.core.files import digest_of, read_json
from edgedistill.core.measurement import Measurement
from edgedistill.core.model import Noun
from edgedistill.core.records import EvalItem, Quality
from edgedistill.gate.previous import CONDITIONS
from edgedistill.gate.rundata import ModelFacts, RunData

# What an estimate is kept of, for people to read: name in a row of comparison.json.
ESTIMATES = ("artifact_bytes", "exact_match_ratio", "kld_nats", "ttft_ms", "response_ms", "tpot_ms",
             "prefill_tokens_per_s", "decode_tokens_per_s", "requests_per_hour", "peak_rss_bytes")  # fmt: skip


class Baseline(Noun):
    """Raw block samples and answers of the models that budgets judge, and the estimates that they gave.

    `digest` is that of everything else in the file, so that a file that was cut or edited is not compared with.
    """

    schema_version: Literal[1] = 1
    run: str
    measured: str
    host_id: str
    inputs: dict[str, str]
    models: dict[str, ModelFacts]
    measurements: tuple[Measurement, ...]
    items: dict[str, tuple[EvalItem, ...]]
    qualities: dict[str, Quality]
    estimates: tuple[dict[str, Any], ...] = Field(default=())
    digest: str = ""


def make_baseline(
    data: RunData,
    *,
    run: str,
    measured: str,
    inputs: Mapping[str, str],
    models: Collection[str],
    rows: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The baseline of `models` as JSON values; `rows` are those of the comparison. Answers' words are left out."""
    baseline = Baseline(
        run=run,
        measured=measured,
        host_id=data.host_id,
        inputs=dict(inputs),
        models={name: facts for name, facts in data.models.items() if name in models},
        measurements=tuple(_slim(row) for row in data.measurements if row.model in models),
        items={
            name: tuple(item.model_copy(update={"answer": "", "other_answers": (), "output": ""}) for item in items)
            for name, items in data.items.items()
            if name in models
        },
        qualities={name: quality for name, quality in data.qualities.items() if name in models},
        estimates=tuple(
            {name: row[name] for name in ("model", "target", *ESTIMATES) if row.get(name) is not None}
            for row in rows
            if row["model"] in models
        ),
    )
    content = baseline.model_dump(mode="json")
    return content | {"digest": _digest(content)}


def read_baseline(path: str | None) -> RunData | str:
    """The baseline at `path` as data to compare with, or the reason why there is none."""
    if path is None:
        return "no baseline is named; set baseline in the recipe's [gate]"
    if not Path(path).is_file():
        return f"the baseline {path} is missing; save one with gate --save-baseline"
    try:
        content = read_json(Path(path))
        baseline = validate(Baseline, content, source=path)
    except InputError as e:
        return f"the baseline {path} is damaged ({_cause(e, path)}); restore it or save a new one"
    if baseline.digest != _digest(content):
        return f"the baseline {path} is not as it was saved; restore it or save a new one"
    return RunData(
        host_id=baseline.host_id,
        models=baseline.models,
        measurements=baseline.measurements,
        items=baseline.items,
        qualities=baseline.qualities,
    )


def _cause(error: InputError, path: str) -> str:
    """The first thing that is wrong, short: a damaged file may have hundreds, each with the value found."""
    first, *others = [line.strip() for line in str(error).splitlines()]
    said = others[0] if others else first.removeprefix(path).partition("; restore")[0]
    return textwrap.shorten(said, 100, placeholder=" …")


def _digest(content: Mapping[str, Any]) -> str:
    return digest_of({name: value for name, value in content.items() if name != "digest"})


def _slim(row: Measurement) -> Measurement:
    """A row without outputs, and of its settings and environment what a comparison asks for."""
    settings = {name: row.settings[name] for name in CONDITIONS if name in row.settings}
    host = {name: row.environment[name] for name in ("host_id", "versions") if name in row.environment}
    return row.model_copy(update={"outputs": [], "settings": settings, "environment": host})
