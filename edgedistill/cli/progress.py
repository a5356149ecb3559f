"""Progress on stderr: a moving bar with time left on a terminal, few plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

QUIET_S = 20.0  # between two plain lines of one part


def reporter() -> PlainReporter | BarReporter:
    return BarReporter() if sys.stderr.isatty() else PlainReporter()


def time_left(done: float, total: float, elapsed_s: float) -> str:
    """`1:05 left` at the pace so far; empty when nothing can be said yet."""
    if done <= 0 or total <= 0 or elapsed_s <= 0:
        return ""
    left = max(0.0, total - done) * elapsed_s / done
    return f"{int(left) // 60}:{int(left) % 60:02d} left"


def _figures(figures: dict[str, Any]) -> str:
    """What the stage says beside its progress; its own estimate of the time left gives way to the pace seen here."""
    said = {name: value for name, value in figures.items() if name != "eta_s"}
    shown = (f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in said.items())
    return "".join(f", {figure}" for figure in shown)


class PlainReporter:
    """For pipes and logs: notes as lines, progress at most one line each `QUIET_S` seconds."""

    def __init__(self) -> None:
        self.part = ""
        self.first = 0.0
        self.began = self.spoke = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        pass

    def note(self, message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    def progress(self, done: float, total: float, unit: str, **figures: object) -> None:
        now = time.monotonic()
        if f"{total}{unit}" != self.part:
            # A resumed part starts above zero: what was there before says nothing about the pace.
            self.part, self.first, self.began, self.spoke = f"{total}{unit}", done, now, now
        if now - self.spoke >= QUIET_S:
            self.spoke = now
            left = time_left(done - self.first, total - self.first, now - self.began)
            self.note(f"    {done:.10g} of {total:.10g} {unit}{_figures(figures)}{', ' + left if left else ''}")


class BarReporter:
    """For a terminal: one bar for the present part, notes above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn("    {task.description}"), BarColumn(), TextColumn("{task.fields[text]}"), TimeRemainingColumn(),
            console=Console(stderr=True, highlight=False, markup=False), transient=True,
        )  # fmt: skip
        self.part = ""

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.bar.stop()

    def note(self, message: str) -> None:
        for task in self.bar.task_ids:
            self.bar.remove_task(task)
        self.part = ""
        self.bar.console.print(message, soft_wrap=True)

    def progress(self, done: float, total: float, unit: str, **figures: object) -> None:
        text = f"{done:.10g} of {total:.10g}{_figures(figures)}"
        if f"{total}{unit}" != self.part:
            for task in self.bar.task_ids:
                self.bar.remove_task(task)
            self.part = f"{total}{unit}"
            self.bar.add_task(unit, total=total, text=text)
        self.bar.update(self.bar.task_ids[0], completed=done, text=text)
