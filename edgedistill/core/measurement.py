"""Workload and Measurement: one flat row = result + every setting + environment + raw samples."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from edgedistill.core.budget import Evidence
from edgedistill.core.metric import Metric
from edgedistill.core.model import Noun

# In order of rank: a metric that several workloads measure is that of the first.
Workload = Literal[
    "prompts", "shape", "memory", "text", "reload", "shape-64-64", "shape-512-128", "depth-2048-64", "sustained",
    "energy", "streams-2", "streams-4", "fits", "bandwidth", "files",
]  # fmt: skip


QUICK: tuple[Workload, ...] = ("prompts", "shape", "memory")  # those that bench.profile = "quick" measures


class Measurement(Noun):
    """One block of one model on one target: a fresh process, its settings as it got them, and raw samples.

    `samples` holds one value per repetition in the metric's unit, in the order measured; `outputs` the token ids made
    meanwhile. `pair` numbers the round in which every model was measured once, so that ratios can be taken within a
    round. An invalid row keeps its reason. A row with `not_measured` is valid and empty: the model or this host
    cannot do what was asked, for that reason, such as a context shorter than the shape.
    """

    schema_version: Literal[1] = 1
    model: str
    engine: str
    target: str
    workload: Workload
    pair: int
    evidence: Evidence
    valid: bool
    invalid_reason: str | None = None
    not_measured: str | None = None
    samples: dict[Metric, list[float]] = Field(default_factory=dict)
    outputs: list[list[int]] = Field(default_factory=list)
    settings: dict[str, Any] = Field(default_factory=dict)
    environment: dict[str, Any] = Field(default_factory=dict)
    artifact_digest: str = ""
    started: str
