"""What a verdict rests on, as data: models, rows, answers, and an estimate made of them.

Pure: no clock, no file, no environment.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from edgedistill.core.budget import Evidence
from edgedistill.core.files import digest_of
from edgedistill.core.measurement import Measurement, Workload
from edgedistill.core.metric import Metric
from edgedistill.core.records import EvalItem, Quality
from edgedistill.core.stats import Interval

Role = Literal["teacher", "quantized teacher", "untrained", "gold", "control", "student", "artifact"]
Blocks = tuple[tuple[float, ...], ...]

MIN_BLOCKS = 3
ROLES: tuple[Role, ...] = get_args(Role)
WORKLOADS: tuple[Workload, ...] = get_args(Workload)
EVIDENCE: tuple[Evidence, ...] = get_args(Evidence)  # worst to best
PER_ITEM = (Metric.ANSWER_SCORE_RATIO, Metric.KLD_NATS, Metric.TOP1_RATIO)
STATISTICS = {"median": statistics.median, "mean": statistics.fmean}


class UnmeasuredError(ValueError):
    """The reason, as the end of a sentence, why a figure cannot be told from a run's rows."""


@dataclass(frozen=True)
class ModelFacts:
    """A model's files as they are now: bytes that ship (the teacher's: fp32 weights), parameters, and their digest."""

    role: Role
    format: str
    bytes: int
    parameters: int
    bits_per_weight: float
    digest: str


@dataclass(frozen=True)
class RunData:
    """Everything a verdict rests on. `damaged` holds models whose files are not what they were, and how.

    `previous` is the stored baseline as such data of its own, or the reason why there is none to compare with.
    """

    host_id: str
    models: Mapping[str, ModelFacts] = field(default_factory=dict)
    damaged: Mapping[str, str] = field(default_factory=dict)
    measurements: Sequence[Measurement] = ()
    items: Mapping[str, Sequence[EvalItem]] = field(default_factory=dict)
    qualities: Mapping[str, Quality] = field(default_factory=dict)
    previous: RunData | str = "no baseline is named; set baseline in the recipe's [gate]"


@dataclass(frozen=True)
class Estimate:
    """An estimate with its interval; `samples` counts what it rests on: blocks, items or tokens.

    `note` is what else a reader must know of how it was taken.
    """

    interval: Interval
    samples: int
    evidence: Evidence
    note: str = ""


def exact(value: float, *, samples: int) -> Estimate:
    return Estimate(Interval(value, value, value), samples, "measured")


def seed_of(values: object) -> int:
    return int(digest_of(values)[:15], 16)


def require_undamaged(data: RunData, model: str) -> None:
    if model in data.damaged:
        raise UnmeasuredError(f"{model} is not as it was exported: {data.damaged[model]}")
