"""Budget, Check, Verdict: what must hold, how one limit came out, and the release's answer."""

from __future__ import annotations

import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationInfo, field_validator, model_validator

from edgedistill.core.metric import METRICS, Metric, parse_quantity
from edgedistill.core.model import Noun

Outcome = Literal["pass", "fail", "inconclusive", "error"]
Evidence = Literal["published", "projected", "constrained", "measured"]
Statistic = Literal["median", "mean", "p50", "p90", "p95", "p99"]
LIMITS = ("max", "min", "max_ratio", "min_ratio")
PREVIOUS = "previous"  # what a budget is held `against` when it means the stored baseline


class Waiver(Noun):
    """Why a budget may be missed, and the last day on which it may."""

    reason: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
    expires: datetime.date


class Budget(Noun):
    """One `[budget.<id>]`: limits on a metric, absolute or as a ratio against another model or the stored baseline.

    Several limits may stand in one budget; each is checked by itself. `artifacts` empty means the release artifacts.
    `target` is needed for metrics that a benchmark measures and refused for others; `workload` says whose rows count
    where several measure the metric. A percentile is one of the raw samples, of a metric whose high end is the bad one.
    """

    metric: Metric
    target: str | None = None
    workload: str | None = None
    artifacts: tuple[str, ...] = ()
    max: float | str | None = None
    min: float | str | None = None
    max_ratio: float | str | None = None
    min_ratio: float | str | None = None
    against: str = "teacher"
    statistic: Statistic = "median"
    level: Literal["error", "warn"] = "error"
    min_evidence: Evidence = "constrained"
    waiver: Waiver | None = None

    @field_validator(*LIMITS)
    @classmethod
    def _a_limit_is_a_quantity(cls, value: float | str | None, info: ValidationInfo) -> float | str | None:
        metric = info.data.get("metric")  # absent where it is itself wrong, which is told
        if value is not None and metric is not None and _in_unit(value, str(info.field_name), metric) < 0:
            raise ValueError(f"expected at least 0, because no {metric.value} is negative")
        return value

    @model_validator(mode="after")
    def _limits_make_sense(self) -> Budget:
        numbers = self.limits()
        if not numbers:
            raise ValueError("expected at least one of max, min, max_ratio, min_ratio")
        for above, below in (("max", "min"), ("max_ratio", "min_ratio")):
            if above in numbers and below in numbers and numbers[above] < numbers[below]:
                raise ValueError(f"expected {below} <= {above}, found {numbers[below]:g} and {numbers[above]:g}")
        self._rows_make_sense()
        return self

    def _rows_make_sense(self) -> None:
        info = METRICS[self.metric]
        needs_target = info.source == "bench"
        if needs_target and self.target is None:
            raise ValueError(f'expected target = "…", because {self.metric.value} is measured on a target')
        if not needs_target and self.target is not None:
            raise ValueError(f"expected no target, because {self.metric.value} does not depend on one")
        if not needs_target and self.workload is not None:
            raise ValueError(f"expected no workload, because {self.metric.value} is not measured by one")
        if self.statistic not in ("median", "mean"):
            if not needs_target:
                raise ValueError(f"expected no percentile, because {self.metric.value} has no samples in time")
            if info.better == "higher":
                good = f"{self.statistic} of {self.metric.value} is its good end"
                raise ValueError(f"expected statistic median or mean, because {good}")

    def limits(self) -> dict[str, float]:
        """Limit name → value in the metric's unit (or as a plain ratio), only those that are set."""
        given = {name: value for name in LIMITS if (value := getattr(self, name)) is not None}
        return {name: _in_unit(value, name, self.metric) for name, value in given.items()}


def _in_unit(value: float | str, limit: str, metric: Metric) -> float:
    return parse_quantity(value, unit="ratio" if limit.endswith("ratio") else METRICS[metric].unit)


class Check(Noun):
    """One limit of one budget on one artifact: the estimate with its interval, and how it came out.

    `waived` is true where an unexpired waiver keeps a missed limit from binding; the outcome stays what it is.
    `further_blocks` is how many more are likely to decide an inconclusive check, None where none would or it is no
    matter of blocks.
    """

    budget: str
    artifact: str
    metric: Metric
    unit: str
    target: str | None
    workload: str | None = None
    statistic: Statistic = "median"
    limit_kind: Literal["max", "min", "max_ratio", "min_ratio"]
    limit: float
    against: str | None
    estimate: float | None
    low: float | None
    high: float | None
    confidence: float
    samples: int
    evidence: Evidence | None
    outcome: Outcome
    level: Literal["error", "warn"]
    waived: bool = False
    waiver: Waiver | None = None
    further_blocks: int | None = None
    reason: str


class Verdict(Noun):
    """The release's answer: fail if any binding check failed, else error, else inconclusive, else pass.

    Binding are checks of level error that are not waived.
    """

    schema_version: Literal[1] = 1
    run: str
    outcome: Outcome
    checks: tuple[Check, ...] = Field(default=())
    inputs: dict[str, str] = Field(default_factory=dict)
