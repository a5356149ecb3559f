"""Budgets against what a run measured: pass, fail or inconclusive from confidence intervals, never from a guess.

Pure: no clock, no file, no environment. What is missing, stale, invalid or measured elsewhere is an error, not a pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from edgedistill.core.budget import PREVIOUS, Budget, Check, Outcome, Verdict
from edgedistill.core.metric import METRICS, Metric
from edgedistill.core.sequential import Look, further_needed, looks_at
from edgedistill.core.stats import Interval
from edgedistill.gate.estimate import estimate, estimate_ratio
from edgedistill.gate.guard import length_problem
from edgedistill.gate.previous import NAME, baseline_of, estimate_previous
from edgedistill.gate.rundata import EVIDENCE, Estimate, RunData, UnmeasuredError
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
    looks: Sequence[Look] = (),
    today: str = "",
) -> Verdict:
    """Every limit of every budget on each of its artifacts (default: `release`) as one `Check`, and what they make.

    Args:
        confidence: of each two-sided interval; a limit outside of it is decided, one inside is not.
        inputs: name → digest of what was judged; copied into the verdict.
        looks: where growing measurements are judged, and how strictly; the first that decides counts. None: once.
        today: ISO date that waivers are held against; without one every waiver has expired.
    """
    checks = tuple(
        _check(
            identity, budget, artifact=artifact, kind=kind, limit=limit, data=data, confidence=confidence, looks=looks,
            today=today,
        )
        for identity, budget in sorted(budgets.items())
        for artifact in budget.artifacts or tuple(release) or (NO_ARTIFACT,)
        for kind, limit in budget.limits().items()
    )  # fmt: skip
    return Verdict(run=run, outcome=outcome_of(checks), checks=checks, inputs=dict(sorted(inputs.items())))


def outcome_of(checks: Sequence[Check]) -> Outcome:
    """The worst of the binding checks; a release of which nothing was measured has not passed."""
    if all(check.outcome == "error" for check in checks):
        return "error"
    binding = {check.outcome for check in checks if check.level == "error" and not check.waived}
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
    identity: str,
    budget: Budget,
    *,
    artifact: str,
    kind: LimitKind,
    limit: float,
    data: RunData,
    confidence: float,
    looks: Sequence[Look],
    today: str,
) -> Check:
    found: Estimate | None = None
    further: int | None = None
    against = budget.against if kind.endswith("ratio") else None
    benched = METRICS[budget.metric].source == "bench"
    measured = max((row.pair + 1 for row in data.measurements if row.target == budget.target), default=0)
    taken = looks_at(looks, measured) if looks and benched else (Look(measured, confidence),)
    try:
        for look in taken:
            found = _estimate(
                budget, artifact=artifact, against=against, data=data, confidence=look.confidence,
                rounds=look.blocks if benched else None,
            )  # fmt: skip
            outcome = decide(found.interval, kind=kind, limit=limit)
            if outcome != "inconclusive":
                break
        if EVIDENCE.index(found.evidence) < EVIDENCE.index(budget.min_evidence):
            raise UnmeasuredError(f"its evidence is {found.evidence}, the budget asks for {budget.min_evidence}")
        said = _judged(budget, found.interval, kind=kind, limit=limit, outcome=outcome) + found.note
        if outcome == "inconclusive":
            needed = _needed(found, limit=limit)
            further = needed and math.ceil(needed * look.blocks / found.samples) if benched else None
            said += _advice(further if benched else needed, "blocks" if benched else "items")
        if budget.metric is Metric.EXACT_MATCH_RATIO and (problem := _length_problem(budget, artifact, data)):
            outcome, said = "fail", f"{said}; but {problem}"
    except UnmeasuredError as e:
        outcome = "error"
        said = f"{budget.metric.value} cannot be judged, because {e}"
    waived = _is_waived(budget, outcome=outcome, today=today)
    place = f"{artifact} on {budget.target}" if budget.target else artifact
    return Check(
        budget=identity,
        artifact=artifact,
        metric=budget.metric,
        unit=METRICS[budget.metric].unit,
        target=budget.target,
        workload=budget.workload,
        statistic=budget.statistic,
        limit_kind=kind,
        limit=limit,
        against=against,
        estimate=found.interval.estimate if found else None,
        low=found.interval.low if found else None,
        high=found.interval.high if found else None,
        confidence=look.confidence if found else confidence,
        samples=found.samples if found else 0,
        evidence=found.evidence if found else None,
        outcome=outcome,
        level=budget.level,
        waived=waived,
        waiver=budget.waiver,
        further_blocks=further,
        reason=one_line(f"{place}: {said}{_waiver(budget, outcome=outcome, waived=waived, today=today)}"),
    )


def _estimate(
    budget: Budget, *, artifact: str, against: str | None, data: RunData, confidence: float, rounds: int | None
) -> Estimate:
    if artifact == NO_ARTIFACT:
        raise UnmeasuredError("the budget names no artifact and the recipe releases none")
    how = {
        "metric": budget.metric, "model": artifact, "target": budget.target, "confidence": confidence,
        "statistic": budget.statistic, "workload": budget.workload, "rounds": rounds,
    }  # fmt: skip
    if against is None:
        return estimate(data, **how)
    return estimate_previous(data, **how) if against == PREVIOUS else estimate_ratio(data, against=against, **how)


def _length_problem(budget: Budget, artifact: str, data: RunData) -> str | None:
    """What is wrong with the length of the answers beside those that the budget compares with."""
    if budget.against == PREVIOUS:
        return length_problem(data, model=artifact, reference=baseline_of(data), against=artifact, name=NAME)
    return length_problem(data, model=artifact, reference=data, against=budget.against, name=budget.against)


def _needed(found: Estimate, *, limit: float) -> int | None:
    """Further blocks or items likely to bring the interval clear of the limit; positive values go by factors."""
    ends = (found.interval.estimate, found.interval.low, found.interval.high, limit)
    value, low, high, limit = map(math.log, ends) if min(ends) > 0 else ends
    half = value - low if limit < value else high - value
    return further_needed(blocks=found.samples, distance=abs(limit - value), half_width=half)


def _advice(needed: int | None, what: str) -> str:
    return (
        f"; about {needed} further {what} are likely to settle it" if needed else f"; no further {what} are likely to"
    )


def _is_waived(budget: Budget, *, outcome: Outcome, today: str) -> bool:
    """A missed limit may be waived; what was not measured may not."""
    unexpired = budget.waiver is not None and bool(today) and today <= budget.waiver.expires.isoformat()
    return unexpired and outcome in ("fail", "inconclusive")


def _waiver(budget: Budget, *, outcome: Outcome, waived: bool, today: str) -> str:
    if budget.waiver is None:
        return ""
    until, why = budget.waiver.expires.isoformat(), budget.waiver.reason
    if waived:
        return f"; waived until {until}: {why}"
    if not today or today > until:
        return f"; its waiver ({why}) expired on {until}, so it binds again"
    if outcome == "pass":
        return f"; its waiver ({why}) until {until} is not needed"
    return f"; its waiver ({why}) until {until} does not cover what was not measured"


def _judged(budget: Budget, interval: Interval, *, kind: LimitKind, limit: float, outcome: Outcome) -> str:
    """`response_ms is 0.04× the teacher's (0.036–0.045), within the limit of 0.15×`."""
    unit = METRICS[budget.metric].unit

    ratio = kind.endswith("ratio")

    def shown(value: float) -> str:
        return times(value) if ratio else quantity(value, unit)

    whose = f" {possessive(budget.against)}" if ratio else ""
    name = budget.metric.value if budget.statistic == "median" else f"{budget.metric.value} ({budget.statistic})"
    ends = f"{number(interval.low)}–{number(interval.high)}" if ratio else span(interval.low, interval.high, unit)
    spread = "" if interval.low == interval.high else f" ({ends})"
    ending = {
        ("pass", True): "within the limit of {}",
        ("fail", True): "over the limit of {}",
        ("pass", False): "at least the {} asked for",
        ("fail", False): "under the {} asked for",
        ("inconclusive", True): "too close to the limit of {} to tell",
        ("inconclusive", False): "too close to the {} asked for to tell",
    }[outcome, kind.startswith("max")]
    return f"{name} is {shown(interval.estimate)}{whose}{spread}, {ending.format(shown(limit))}"
