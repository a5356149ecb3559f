"""Budget, Check, Verdict: what must hold, how one limit came out, and the release's answer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from edgedistill.core.metric import METRICS, Metric, parse_quantity
from edgedistill.core.model import Noun

Outcome = Literal["pass", "fail", "inconclusive", "error"]
Evidence = Literal["published", "projected", "constrained", "measured"]


class Budget(Noun):
    """One `[budget.<id>]`: limits on a metric, absolute or as a ratio against another model of the run.

    Several limits may stand in one budget; each is checked by itself. `artifacts` empty means the release artifacts.
    `target` is needed for metrics that a benchmark measures and refused for others.
    """

    metric: Metric
    target: str | None = None
    artifacts: tuple[str, ...] = ()
    max: float | str | None = None
    min: float | str | None = None
    max_ratio: float | str | None = None
    min_ratio: float | str | None = None
    against: str = "teacher"
    statistic: Literal["median", "mean"] = "median"
    level: Literal["error", "warn"] = "error"
    min_evidence: Evidence = "constrained"

    @model_validator(mode="after")
    def _limits_make_sense(self) -> Budget:
        limits = {name: getattr(self, name) for name in ("max", "min", "max_ratio", "min_ratio")}
        numbers: dict[str, float] = {}
        if all(value is None for value in limits.values()):
            raise ValueError("expected at least one of max, min, max_ratio, min_ratio")
        for name, value in limits.items():
            if value is not None:
                unit = "ratio" if name.endswith("ratio") else METRICS[self.metric].unit
                try:
                    numbers[name] = parse_quantity(value, unit=unit)
                except ValueError as e:
                    raise ValueError(f"{name} = {value!r}: {e}") from None
        for above, below in (("max", "min"), ("max_ratio", "min_ratio")):
            if above in numbers and below in numbers and numbers[above] < numbers[below]:
                raise ValueError(f"expected {below} <= {above}, found {numbers[below]:g} and {numbers[above]:g}")
        needs_target = METRICS[self.metric].source == "bench"
        if needs_target and self.target is None:
            raise ValueError(f'expected target = "…", because {self.metric.value} is measured on a target')
        if not needs_target and self.target is not None:
            raise ValueError(f"expected no target, because {self.metric.value} does not depend on one")
        return self

    def limits(self) -> dict[str, float]:
        """Limit name → value in the metric's unit (or as a plain ratio), only those that are set."""
        found = {}
        for name in ("max", "min", "max_ratio", "min_ratio"):
            value = getattr(self, name)
            if value is not None:
                unit = "ratio" if name.endswith("ratio") else METRICS[self.metric].unit
                found[name] = parse_quantity(value, unit=unit)
        return found


class Check(Noun):
    """One limit of one budget on one artifact: the estimate with its interval, and how it came out."""

    budget: str
    artifact: str
    metric: Metric
    unit: str
    target: str | None
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
    reason: str


class Verdict(Noun):
    """The release's answer: fail if any error-level check failed, else error, else inconclusive, else pass."""

    schema_version: Literal[1] = 1
    run: str
    outcome: Outcome
    checks: tuple[Check, ...] = Field(default=())
    inputs: dict[str, str] = Field(default_factory=dict)
