"""Plots as inline SVG that takes its colours from the page, so that it reads on light and on dark paper.

Text stays text; every colour is a CSS variable: `--ink`, `--faint`, `--grid`, and `--NAME` for each series.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH_IN, HEIGHT_IN, DPI = 5.6, 3.5, 100
CHARACTER_PX = 7.4
# Where a label may stand around its mark, best first: pixels right and up, and which part of it is at that place.
OFFSETS = (
    (10, 0, 0.0),
    (-10, 0, 1.0),
    *((0, sign * d, side) for d in range(16, 200, 14) for sign in (1, -1) for side in (0.5, 0.15, 0.85)),
)
MARKERS = "osX^vD"
_INK, _FAINT, _GRID, _SERIES = "#0a0a01", "#0a0a02", "#0a0a03", "#0a0b{:02x}"


@dataclass(frozen=True)
class Point:
    """One model in a scatter plot; `low` and `high` are the ends of its vertical interval where it has one."""

    label: str
    series: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    strong: bool = False


@dataclass(frozen=True)
class Line:
    """One curve; a dashed one has few points and shows them."""

    label: str
    series: str
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False


def scatter(points: Sequence[Point], *, series: Sequence[str], x: str, y: str, title: str, log_y: bool) -> str:
    """Models over a logarithmic size axis, each labelled beside its mark; the released ones filled."""
    figure, axes = _axes(x=x, y=y)
    axes.set_xscale("log")
    if log_y:
        axes.set_yscale("log")
    for point in points:
        color = _color(series, point.series)
        if point.low is not None and point.high is not None:
            axes.plot([point.x, point.x], [point.low, point.high], color=color, linewidth=1.2)
        axes.plot(
            [point.x], [point.y], marker=MARKERS[series.index(point.series) % len(MARKERS)], color=color,
            markersize=6.5, markeredgewidth=1.4, markerfacecolor=color if point.strong else "none", linestyle="none",
        )  # fmt: skip
    axes.margins(x=0.1, y=0.15)
    left, right = axes.get_xlim()
    axes.set_xlim(left, right * (right / left) ** 0.12)  # room for the rightmost label
    _label(axes, points)
    _plain_ticks(axes, log_y=log_y)
    return _svg(figure, series=series, title=title)


def curves(lines: Sequence[Line], *, series: Sequence[str], x: str, y: str, title: str) -> str:
    """Lines over a linear axis with a legend."""
    figure, axes = _axes(x=x, y=y)
    for line in lines:
        style = {"linestyle": "--", "marker": "o", "markersize": 4} if line.dashed else {"linestyle": "-"}
        axes.plot(line.x, line.y, color=_color(series, line.series), linewidth=1.6, label=line.label, **style)
    axes.margins(x=0.02)
    axes.set_ylim(bottom=0)
    if lines:
        axes.legend(frameon=False, labelcolor=_INK, fontsize=9)
    return _svg(figure, series=series, title=title)


def thin(x: Sequence[float], y: Sequence[float], *, most: int = 150) -> tuple[list[float], list[float]]:
    """At most `most` points: means of equal stretches, so that a long noisy curve stays small and readable."""
    stretch = -(-len(x) // most) or 1
    starts = range(0, len(x), stretch)
    return (
        [_mean(x[i : i + stretch]) for i in starts],
        [_mean(y[i : i + stretch]) for i in starts],
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _axes(*, x: str, y: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), dpi=DPI, layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(_FAINT)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=_FAINT, labelsize=9, length=3)
    axes.set_xlabel(x, color=_FAINT, fontsize=9)
    axes.set_title(y, color=_FAINT, fontsize=9, loc="left")  # the name of the vertical axis, where it can be read
    return figure, axes


def _plain_ticks(axes: Any, *, log_y: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in (axes.xaxis, axes.yaxis) if log_y else (axes.xaxis,):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axis.set_minor_formatter(NullFormatter())


Box = tuple[float, float, float, float]  # left, bottom, right, top in pixels


def _label(axes: Any, points: Sequence[Point]) -> None:
    """Write each label where it covers no mark, interval or other label, tied by a line where that is not beside."""
    axes.figure.canvas.draw()
    frame = axes.bbox
    marks = {point: tuple(axes.transData.transform((point.x, point.y))) for point in points}
    taken: list[Box] = []
    for point, (x, y) in marks.items():
        taken.append((x - 6, y - 6, x + 6, y + 6))
        if point.low is not None and point.high is not None:
            ends = [axes.transData.transform((point.x, value))[1] for value in (point.low, point.high)]
            taken.append((x - 2, ends[0], x + 2, ends[1]))
    for point, (x, y) in sorted(marks.items(), key=lambda mark: (not mark[0].strong, mark[1])):
        width = CHARACTER_PX * len(point.label)
        boxes = [
            (x + dx - width * side, y + dy - 7, x + dx + width * (1 - side), y + dy + 7) for dx, dy, side in OFFSETS
        ]
        inside = [
            b for b in boxes if b[0] > frame.x0 + 4 and b[2] < frame.x1 and b[1] > frame.y0 + 2 and b[3] < frame.y1
        ]
        box = next((b for b in inside if not any(_overlap(b, other) for other in taken)), boxes[0])
        taken.append(box)
        middle = (box[1] + box[3]) / 2
        axes.annotate(
            point.label, xy=(point.x, point.y), color=_INK, fontsize=9, va="center_baseline",
            xytext=((box[0] - x) * 72 / DPI, (middle - y) * 72 / DPI), textcoords="offset points",
            fontweight="bold" if point.strong else "normal",
            arrowprops={"arrowstyle": "-", "color": _FAINT, "linewidth": 0.7} if abs(middle - y) > 20 else None,
        )  # fmt: skip


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _color(series: Sequence[str], name: str) -> str:
    return _SERIES.format(series.index(name))


def _svg(figure: Any, *, series: Sequence[str], title: str) -> str:
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Title": title})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[a-zA-Z0-9.]+_[0-9]+"', "", text)
    text = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", text)
    text = re.sub(r"(font: [0-9a-z. ]*px) [^;\"]*", r"\1 var(--sans)", text)
    text = re.sub(r' width="[0-9.]+pt" height="[0-9.]+pt"', f' role="img" aria-label="{title}"', text, count=1)
    return _recolored(text, {_INK: "ink", _FAINT: "faint", _GRID: "grid"} | {_color(series, s): s for s in series})


def _recolored(text: str, names: Mapping[str, str]) -> str:
    for color, name in names.items():
        text = text.replace(color, f"var(--{name.replace(' ', '-')})")
    return text
