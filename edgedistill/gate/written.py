"""The verdict as people and machines read it elsewhere: Markdown and JUnit XML."""

from __future__ import annotations

import io
from xml.etree import ElementTree

from edgedistill.core.arms import COLUMNS, ArmsTable, arm_cells
from edgedistill.core.budget import Check, Verdict
from edgedistill.gate.words import number, quantity, sentence_case, span, times

NOTHING_JUDGED = "the recipe has no budget, so nothing was judged"


def markdown(verdict: Verdict, arms: ArmsTable | None = None) -> str:
    """A heading with the outcome, a table of checks, a sentence for each that did not pass, and the table of arms."""
    lines = [f"# {verdict.run}: {verdict.outcome}", ""]
    told = [] if arms is None else _arms(arms)
    if not verdict.checks:
        return "\n".join([*lines, NOTHING_JUDGED.capitalize() + ".", *told, ""])
    lines += ["| outcome | budget | artifact | target | metric | estimate | interval | limit |", "|---|" + "---|" * 7]
    lines += ["| " + " | ".join(_cells(check)) + " |" for check in verdict.checks]
    open_checks = [check for check in verdict.checks if check.outcome != "pass"]
    if open_checks:
        lines += ["", *(f"- **{check.budget}** ({shown_level(check)}): {check.reason}" for check in open_checks)]
    return "\n".join([*lines, *told, ""])


def _arms(arms: ArmsTable) -> list[str]:
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    lines += [f"| {' | '.join(cells)} |" for cells in arm_cells(arms)]
    return ["", f"## Arms: {arms.outcome}", "", *lines, "", sentence_case(arms.sentence)]


def junit(verdict: Verdict) -> str:
    """One test case a check; only `pass` succeeds, and a warning or a waived one is skipped with its reason."""
    checks = verdict.checks
    suite = ElementTree.Element("testsuite", name=f"edgedistill {verdict.run}")
    for check in checks:
        name = f"{check.artifact}{f' on {check.target}' if check.target else ''}, {check.limit_kind}"
        case = ElementTree.SubElement(suite, "testcase", classname=f"budget.{check.budget}", name=name)
        if check.outcome != "pass":
            element = (
                "skipped"
                if check.level == "warn" or check.waived
                else "failure"
                if check.outcome == "fail"
                else "error"
            )
            kind = {} if element == "skipped" else {"type": check.outcome}
            ElementTree.SubElement(case, element, kind, message=check.reason).text = check.reason
    if not checks:
        case = ElementTree.SubElement(suite, "testcase", classname="budget", name="any")
        ElementTree.SubElement(case, "error", message=NOTHING_JUDGED, type="error").text = NOTHING_JUDGED
    suite.set("tests", str(len(suite)))
    for element, plural in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        suite.set(plural, str(len(suite.findall(f"testcase/{element}"))))
    root = ElementTree.Element("testsuites", dict(suite.attrib))
    root.append(suite)
    ElementTree.indent(root)
    buffer = io.BytesIO()
    ElementTree.ElementTree(root).write(buffer, encoding="utf-8", xml_declaration=True)
    return buffer.getvalue().decode() + "\n"


def shown_level(check: Check) -> str:
    return "waived" if check.waived else check.level


def interval_text(check: Check) -> str:
    """The check's interval, empty where there is none or it has no width."""
    if check.low is None or check.high is None or check.low == check.high:
        return ""
    if check.against:
        return f"{number(check.low)}–{number(check.high)}"
    return span(check.low, check.high, check.unit)


def _cells(check: Check) -> list[str]:
    def shown(value: float | None) -> str:
        return "–" if value is None else times(value) if check.against else quantity(value, check.unit)

    interval = interval_text(check) or "–"
    sign = "≤" if check.limit_kind.startswith("max") else "≥"
    whose = f" {check.against}" if check.against else ""
    confidence = f" at {number(100 * check.confidence)} %" if interval != "–" else ""
    outcome = f"{check.outcome}, waived" if check.waived else check.outcome
    cells = (
        outcome, check.budget, check.artifact, check.target or "–", check.metric.value, shown(check.estimate),
        interval + confidence, f"{sign} {shown(check.limit)}{whose}",
    )  # fmt: skip
    return [cell.replace("|", "\\|") for cell in cells]
