"""Numbers and reasons as a person reads them: one sentence, three digits, the unit."""

from __future__ import annotations

import re

_SIZES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def number(value: float) -> str:
    """Three significant digits, thousands separated, never in scientific notation: 0.0412, 18.3, 12,345."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.3g}")
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{rounded:.12f}".rstrip("0").rstrip(".")


def quantity(value: float, unit: str) -> str:
    """A value in a metric's unit: 18.3 MB, 42 ms, 95.3 %."""
    if unit == "bytes":
        for size, name in _SIZES:
            if abs(value) >= size:
                return f"{number(value / size)} {name}"
        return f"{number(value)} B"
    if unit == "ratio":
        return f"{number(100 * value)} %"
    if unit == "ms" and abs(value) >= 10_000:
        return f"{number(value / 1000)} s"
    return f"{number(value)} {unit}"


def span(low: float, high: float, unit: str) -> str:
    """Two values with their unit, said once where it is the same: 157–185 ms, 0.9–1.1 MB."""
    first, second = quantity(low, unit), quantity(high, unit)
    value, _, its_unit = first.partition(" ")
    return f"{value}–{second}" if its_unit == second.partition(" ")[2] else f"{first}–{second}"


def times(value: float) -> str:
    """A ratio: 0.0412×."""
    return f"{number(value)}×"


def possessive(model: str) -> str:
    return {"teacher": "the teacher's", "previous": "its baseline's"}.get(model, f"{model}'s")


def sentence_case(text: str) -> str:
    """`text` as a sentence of its own: a capital first, a full stop last."""
    return f"{text[:1].upper()}{text[1:]}."


def one_line(text: str) -> str:
    """`text` without control characters and line breaks: what a subprocess said may hold any."""
    return re.sub(r"\s+", " ", re.sub(r"[^\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]", " ", text)).strip()
