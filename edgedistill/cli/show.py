"""Nouns as text: plain aligned columns that read the same on a terminal and in a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgedistill.core.arms import COLUMNS, ArmsTable, arm_cells
from edgedistill.core.budget import Check, Verdict
from edgedistill.core.target import Anchor, Target
from edgedistill.plan import Step

MARKS = {"pass": "pass", "fail": "FAIL", "inconclusive": "inconclusive", "error": "ERROR"}

CHANGES = ("bytes_change_pct", "retention_pct", "latency_change_pct", "throughput_ratio", "memory_change_pct")
COMPARED = ("model", "target", "parameters", "bytes", "exact match", "response", "requests/h", "peak memory")
RULE = "─" * 40
ANCHORS = ("anchor", "quant", "engine", "read/token", "decode/s", "prefill/s", "provenance", "date", "source")


def duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60} min {int(seconds) % 60} s"


def quantity(value: float | None, unit: str) -> str:
    """A value with its unit as a person writes it: 18.5 MB, 42 ms, 95.3 %."""
    if value is None:
        return "–"
    if unit == "bytes":
        for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
            if abs(value) >= size:
                return f"{value / size:.4g} {name}"
        return f"{value:.0f} B"
    if unit == "ratio":
        return f"{100 * value:.4g} %"
    return f"{value:,.0f} {unit}".strip() if abs(value) >= 1000 else f"{value:.3g} {unit}".strip()


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def steps_json(steps: Sequence[Step]) -> list[dict[str, Any]]:
    return [
        {"stage": s.stage, "state": s.state, "why": s.why, "folder": str(s.folder), "seconds": s.seconds} for s in steps
    ]


def steps_table(steps: Sequence[Step]) -> str:
    rows = [
        (s.stage, s.state, duration(s.seconds) if s.seconds is not None else "", _why(s.state, s.why)) for s in steps
    ]
    return table(("stage", "state", "took", "why"), rows)


def estimate_text(found: dict[str, Any]) -> str:
    """What a dry run found: a table for whoever is asked, and of several the total; each likely and at most."""
    parts = [found, *found["further"]]
    tables = [table((part["asks"], "likely", ""), _estimate_rows(part)) for part in parts]
    return "\n\n".join(tables if len(parts) == 1 else [*tables, table(("total", "likely", ""), _total_rows(found))])


def _estimate_rows(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    money = found["currency"] or ""

    def cost(part: dict[str, Any]) -> str:
        return f"{part['cost']:,.2f} {money}".strip()

    costs = ("cost", "unknown: no [teacher.price]", "")
    if found["cost"] is not None:
        most, spent = cost(found["at_most"]), cost(found["spent"])
        costs = ("cost", cost(found), f"at most {most}; spent so far {spent}")
    limits = [f"{value:,.10g} {money if name == 'money' else name}" for name, value in found["limits"].items() if value]
    return [
        ("teacher", found["teacher"], ""),
        ("requests", f"{found['requests']:,}", f"{found['answered']:,} of {found['prompts']:,} prompts are answered"),
        *_token_rows(found),
        costs,
        ("time", "unknown" if found["seconds"] is None else duration(found["seconds"]), ""),
        ("limits", ", ".join(limits) or "none", ""),
        ("estimated from", found["from"], ""),
    ]


def _total_rows(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    total = found["total"]

    def cost(money: dict[str, float]) -> str:
        known = " + ".join(f"{amount:,.2f} {currency}" for currency, amount in money.items())
        unknown = f"what {', '.join(total['unpriced'])} costs" if total["unpriced"] else ""
        return " + ".join(filter(None, (known, unknown))) or "nothing"

    most, spent = cost(total["at_most"]["cost"]), cost(total["spent"]["cost"])
    return [
        ("requests", f"{total['requests']:,}", ""),
        *_token_rows(total),
        ("cost", cost(total["cost"]), f"at most {most}; spent so far {spent}"),
        ("time", "unknown" if total["seconds"] is None else duration(total["seconds"]), ""),
    ]


def _token_rows(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    names = ("input_tokens", "output_tokens")
    return [(name.replace("_", " "), f"{found[name]:,}", f"at most {found['at_most'][name]:,}") for name in names]


def sample_text(rows: Sequence[dict[str, Any]]) -> str:
    """Records as dialogues, with a line between them."""
    return f"\n{RULE}\n".join(
        "\n".join([*(f"{m['role']}: {m['content']}" for m in row["messages"]), f"teacher: {row['answer']}"])
        for row in rows
    )


def step_line(step: Step, *, figures: dict[str, Any]) -> str:
    """One line as a stage is found done, begins, or has run; `figures` are its headline numbers."""
    if step.state == "running":
        return f"{step.stage}: running ({_cut(step.why)})"
    shown = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items() if _is_short(v)][:5]
    said = f" ({', '.join(shown)})" if shown else ""
    took = f"done in {duration(step.seconds or 0)}" if step.state == "ran" else "done"
    return f"{step.stage}: {took}{said}"


def status_table(state: dict[str, Any]) -> str:
    """A run's stages and its verdict, from `follow.state_of`."""
    rows = [
        (s["stage"], s["state"], duration(s["seconds"]) if s["seconds"] is not None else "", _why(s["state"], s["why"]))
        for s in state["stages"]
    ]
    return (
        table(("stage", "state", "took", "why"), rows)
        + f"\n\n{state['folder']}: verdict {state['verdict'] or 'none yet'}"
    )


def verdict_table(verdict: Verdict, *, only_open: bool = False) -> str:
    """Every check with estimate, interval and outcome; with `only_open` those that did not pass, and how many did."""
    checks = [c for c in verdict.checks if not (only_open and c.outcome == "pass")]
    passed = sum(c.outcome == "pass" for c in verdict.checks)
    summary = f"verdict: {verdict.outcome} ({passed} of {len(verdict.checks)} checks pass)"
    if not checks:
        return summary
    header = ("budget", "artifact", "target", "metric", "limit", "estimate", "interval", "outcome")
    reasons = [f"{c.budget}: {c.reason}" for c in checks if c.outcome != "pass"]
    return "\n".join([table(header, [_check_row(c) for c in checks]), *reasons, summary])


def comparison_table(comparison: dict[str, Any]) -> str:
    """A run's models, one row each and target, the change against the teacher in brackets; what is not told; arms."""
    problems = dict.fromkeys(f"note: {problem}" for row in comparison["rows"] for problem in row["problems"])
    found = comparison.get("arms")
    arms = ["", arms_text(ArmsTable.model_validate(found))] if found else []
    return "\n".join([table(COMPARED, comparison_rows(comparison)), *problems, *arms])


def arms_text(arms: ArmsTable) -> str:
    """The arms of a run beside one another, and what distillation is worth against its control."""
    return f"{table(COLUMNS, arm_cells(arms))}\n{arms.sentence}"


def comparison_rows(comparison: dict[str, Any]) -> list[tuple[str, ...]]:
    """The cells of `COMPARED` for each row of a `comparison.json`."""
    rows = []
    for row in comparison["rows"]:
        # The teacher's change against itself says nothing.
        change = dict.fromkeys(CHANGES) if row["model"] == comparison["reference"] else row
        rows.append(
            (
                f"{row['model']}{' *' if row['release'] else ''}",
                row["target"] or "–",
                f"{row['parameters'] / 1e6:.1f} M" if row["parameters"] else "–",
                _beside(quantity(row["artifact_bytes"], "bytes"), change["bytes_change_pct"], "%"),
                _beside(quantity(row["exact_match_ratio"], "ratio"), change["retention_pct"], "% kept"),
                _beside(quantity(row["response_ms"], "ms"), change["latency_change_pct"], "%"),
                _beside(quantity(row["requests_per_hour"], ""), change["throughput_ratio"], "×"),
                _beside(quantity(row["peak_rss_bytes"], "bytes"), change["memory_change_pct"], "%"),
            )
        )
    return rows


def targets_table(targets: Sequence[Target]) -> str:
    rows = [(t.id, t.device_class, t.runner, t.evidence, t.title) for t in targets]
    return table(("target", "class", "runner", "evidence", "title"), rows)


def target_text(target: Target) -> str:
    """A target with its limits, the provenance of each figure, and its anchors."""
    rows = [
        (name, f.value, f.provenance, f.date or "", "; ".join(text for text in (f.url, f.note) if text))
        for name, f in target.figures.items()
    ]
    limits = target.limits
    lines = [
        f"{target.id}: {target.title}",
        f"class {target.device_class}, runner {target.runner}, evidence {target.evidence}",
        f"limits: {limits.cores or 'all'} cores, "
        f"{quantity(limits.memory_bytes, 'bytes') if limits.memory_bytes else 'all'} memory",
    ]
    if target.note:
        lines.append(target.note)
    if target.connection:
        lines.append("connection: " + ", ".join(f"{name} {value}" for name, value in target.connection.items()))
    if rows:
        lines += ["", table(("figure", "value", "provenance", "date", "source"), rows)]
    if target.anchors:
        lines += ["", table(ANCHORS, [_anchor_row(anchor) for anchor in target.anchors])]
    return "\n".join(lines)


def projection_text(found: dict[str, Any]) -> str:
    """A projection with its band, what it rests on, and its evidence class; or that the model does not fit."""
    lines = [f"{found['target']}, {found['engine']} {found['backend']}, {found['quant']}: evidence {found['evidence']}"]
    if found["state"] == "does-not-fit":
        needed, memory = quantity(found["needed_bytes"], "bytes"), quantity(found["memory_bytes"], "bytes")
        return "\n".join([*lines, f"does not fit: {needed} are needed, {memory} can be had"])
    for name in ("decode_tokens_per_s", "prefill_tokens_per_s"):
        if (speed := found[name]) is not None:
            low, value, high = (quantity(speed[key], "tokens/s") for key in ("low", "tokens_per_s", "high"))
            of = f"{speed['anchors']} anchor{'s'[: speed['anchors'] != 1]} of this quant"
            lines.append(
                f"{name.partition('_')[0]}: {value} ({low} … {high} at {100 * speed['level']:g} %), "
                f"from {of} and {speed['residuals']} leave-one-out residuals"
            )
    if found["decode_tokens_per_s"]["extrapolated"]:
        read = quantity(found["model_bytes"], "bytes")
        lines.append(f"note: no anchor reads as few or as many bytes per token as {read}, so no band was tested there")
    return "\n".join(lines)


def _anchor_row(anchor: Anchor) -> tuple[str, ...]:
    return (
        anchor.model, anchor.quant, f"{anchor.engine} {anchor.backend}", quantity(anchor.read_bytes, "bytes"),
        quantity(anchor.decode_tokens_per_s, ""), quantity(anchor.prefill_tokens_per_s, ""),
        anchor.provenance, anchor.date, f"{anchor.device}: {anchor.source}" if anchor.device else anchor.source,
    )  # fmt: skip


def _check_row(check: Check) -> tuple[str, ...]:
    unit = "ratio" if check.limit_kind.endswith("ratio") else check.unit
    sign = "≤" if check.limit_kind.startswith("max") else "≥"
    against = f" of {check.against}" if check.against else ""
    interval = f"{quantity(check.low, unit)} … {quantity(check.high, unit)}" if check.low is not None else "–"
    return (
        check.budget, check.artifact, check.target or "–", check.metric.value,
        f"{sign} {quantity(check.limit, unit)}{against}", quantity(check.estimate, unit), interval,
        f"{MARKS[check.outcome]}, waived" if check.waived else MARKS[check.outcome],
    )  # fmt: skip


def _beside(text: str, change: float | None, unit: str) -> str:
    if change is None or text == "–":
        return text
    sign = "+" if unit == "%" and change > 0 else ""
    return f"{text} ({sign}{change:.1f}{'' if unit == '×' else ' '}{unit})"


def _why(state: str, text: str) -> str:
    """What changed can be a whole template; why a stage failed or cannot run is one sentence, and stays whole."""
    return text if state in ("partial", "blocked") else _cut(text)


def _cut(text: str, width: int = 120) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _is_short(value: object) -> bool:
    return isinstance(value, int | float | str) and len(str(value)) <= 24
