"""Budgets against what a run measured: pass, fail or inconclusive from confidence intervals, never from a guess.

Pure: no clock, no file, no environment. What is missing, stale, invalid or measured elsewhere is an error, not a pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from edgedistill.core.budget import Budget, Check, Outcome, Verdict
from edgedistill.core.metric import METRICS
from edgedistill.core.stats import Interval
from edgedistill.gate.estimate import EVIDENCE, Estimate, RunData, UnmeasuredError, estimate, estimate_ratio
from edgedistill.gate.words import number, one_line, possessive, quantity, span, times

LimitKind = Literal["max", "min", "max_ratio", "min_ratio"]
NO_ARTIFACT = "none"


def judge(
    *,
    run: str,
    budgets: Mapping[str, Budget],
    release: Sequence[str],
    data: RunData,
    confidence: float,
    inputs: Mapping[str, str],
) -> Verdict:
    """Every limit of every budget on each of its artifacts (default: `release`) as one `Check`, and what they make.

    Args:
        confidence: of each two-sided interval; a limit outside of it is decided, one inside is not.
        inputs: name → digest of what was judged; copied into the verdict.
    """
    checks = tuple(
        _check(identity, budget, artifact=artifact, kind=kind, limit=limit, data=data, confidence=confidence)
        for identity, budget in sorted(budgets.items())
        for artifact in budget.artifacts or tuple(release) or (NO_ARTIFACT,)
        for kind, limit in budget.limits().items()
    )
    return Verdict(run=run, outcome=outcome_of(checks), checks=checks, inputs=dict(sorted(inputs.items())))


def outcome_of(checks: Sequence[Check]) -> Outcome:
    """The worst of the error-level checks; a release of which nothing was measured has not passed."""
    if all(check.outcome == "error" for check in checks):
        return "error"
    binding = {check.outcome for check in checks if check.level == "error"}
    for outcome in ("fail", "error", "inconclusive"):
        if outcome in binding:
            return outcome
    return "pass"


def decide(interval: Interval, *, kind: LimitKind, limit: float) -> Outcome:
    """`pass` where the whole interval keeps the limit, `fail` where none of it does, else `inconclusive`."""
    if kind.startswith("max"):
        kept, broken = interval.high <= limit, interval.low > limit
    else:
        kept, broken = interval.low >= limit, interval.high < limit
    return "pass" if kept else "fail" if broken else "inconclusive"


def _check(
    identity: str, budget: Budget, *, artifact: str, kind: LimitKind, limit: float, data: RunData, confidence: float
) -> Check:
    found: Estimate | None = None
    against = budget.against if kind.endswith("ratio") else None
    try:
        found = _estimate(budget, artifact=artifact, against=against, data=data, confidence=confidence)
        if EVIDENCE.index(found.evidence) < EVIDENCE.index(budget.min_evidence):
            raise UnmeasuredError(f"its evidence is {found.evidence}, the budget asks for {budget.min_evidence}")
        outcome = decide(found.interval, kind=kind, limit=limit)
        said = _judged(budget, found.interval, kind=kind, limit=limit, outcome=outcome)
    except UnmeasuredError as e:
        outcome = "error"
        said = f"{budget.metric.value} cannot be judged, because {e}"
    place = f"{artifact} on {budget.target}" if budget.target else artifact
    return Check(
        budget=identity,
        artifact=artifact,
        metric=budget.metric,
        unit=METRICS[budget.metric].unit,
        target=budget.target,
        limit_kind=kind,
        limit=limit,
        against=against,
        estimate=found.interval.estimate if found else None,
        low=found.interval.low if found else None,
        high=found.interval.high if found else None,
        confidence=confidence,
        samples=found.samples if found else 0,
        evidence=found.evidence if found else None,
        outcome=outcome,
        level=budget.level,
        reason=one_line(f"{place}: {said}"),
    )


def _estimate(budget: Budget, *, artifact: str, against: str | None, data: RunData, confidence: float) -> Estimate:
    if artifact == NO_ARTIFACT:
        raise UnmeasuredError("the budget names no artifact and the recipe releases none")
    if against is None:
        return estimate(
            data,
            metric=budget.metric,
            model=artifact,
            target=budget.target,
            confidence=confidence,
            statistic=budget.statistic,
        )
    return estimate_ratio(
        data,
        metric=budget.metric,
        model=artifact,
        against=against,
        target=budget.target,
        confidence=confidence,
        statistic=budget.statistic,
    )


def _judged(budget: Budget, interval: Interval, *, kind: LimitKind, limit: float, outcome: Outcome) -> str:
    """`response_ms is 0.04× the teacher's (0.036–0.045), within the limit of 0.15×`."""
    unit = METRICS[budget.metric].unit

    ratio = kind.endswith("ratio")

    def shown(value: float) -> str:
        return times(value) if ratio else quantity(value, unit)

    whose = f" {possessive(budget.against)}" if ratio else ""
    ends = f"{number(interval.low)}–{number(interval.high)}" if ratio else span(interval.low, interval.high, unit)
    spread = "" if interval.low == interval.high else f" ({ends})"
    ending = {
        ("pass", True): "within the limit of {}",
        ("fail", True): "over the limit of {}",
        ("pass", False): "at least the {} asked for",
        ("fail", False): "under the {} asked for",
        ("inconclusive", True): "too close to the limit of {} to tell; measure more blocks or items",
        ("inconclusive", False): "too close to the {} asked for to tell; measure more blocks or items",
    }[outcome, kind.startswith("max")]
    return f"{budget.metric.value} is {shown(interval.estimate)}{whose}{spread}, {ending.format(shown(limit))}"
