"""The verdict as SARIF 2.1.0: one rule a budget, one result for each check that did not pass, at the budget's line.

Specification: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgedistill.cli.github import relative
from edgedistill.core.budget import Check, Verdict
from edgedistill.core.files import digest_of
from edgedistill.core.host import package_versions
from edgedistill.core.metric import METRICS

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def sarif(verdict: Verdict, places: Mapping[str, tuple[Path, int]]) -> dict[str, Any]:
    """The log; checks that pass are no results, so that an alert on one closes when it does."""
    budgets = {check.budget: check for check in verdict.checks}
    numbers = {name: number for number, name in enumerate(sorted(budgets))}
    rules = [
        {
            "id": f"budget.{name}",
            "name": check.metric.value,
            "shortDescription": {"text": f"Budget {name} on {check.metric.value}"},
            "fullDescription": {"text": METRICS[check.metric].definition},
        }
        for name, check in sorted(budgets.items())
    ]
    driver = {"name": "edgedistill", "version": package_versions().get("edgedistill", "unknown"), "rules": rules}
    results = [
        _result(check, places[check.budget], rule=numbers[check.budget])
        for check in verdict.checks
        if check.outcome != "pass"
    ]
    run = {
        "tool": {"driver": driver},
        "automationDetails": {"id": f"edgedistill/{verdict.run}/"},
        "columnKind": "unicodeCodePoints",
        "invocations": [{"executionSuccessful": verdict.outcome != "error"}],
        "results": results,
        "properties": {"outcome": verdict.outcome, "inputs": verdict.inputs},
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _result(check: Check, place: tuple[Path, int], *, rule: int) -> dict[str, Any]:
    path, line = place
    uri = relative(path)
    location = uri.as_uri() if uri.is_absolute() else uri.as_posix()
    mild = check.level == "warn" or check.outcome == "inconclusive"
    identity = [check.budget, check.artifact, check.target, check.limit_kind]
    result: dict[str, Any] = {
        "ruleId": f"budget.{check.budget}",
        "ruleIndex": rule,
        "kind": "fail",
        "level": "warning" if mild else "error",
        "message": {"text": f"{check.outcome}: {check.reason}"},
        "locations": [
            {"physicalLocation": {"artifactLocation": {"uri": location}, "region": {"startLine": line}}},
        ],
        "partialFingerprints": {"edgedistillCheck/v1": digest_of(identity)},
        "properties": {"outcome": check.outcome, "estimate": check.estimate, "limit": check.limit},
    }
    if check.waived and check.waiver:
        result["suppressions"] = [
            {"kind": "external", "status": "accepted", "justification": check.waiver.reason},
        ]
    return result
