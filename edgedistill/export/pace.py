"""What each grid costs in time on this host: measured on the model itself, whole, with every matrix on one grid.

Speed does not depend on what the codes say, so these files are written without calibration or search. Kept in the cache
by host, engine, threads and the model's shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgedistill.core.host import measured_once, package_versions
from edgedistill.quant.plan import FALLBACK, Plan, multiplied

Measure = Callable[[Sequence[Path], int], list[float]]  # of models and threads: nanoseconds a token of each
ENGINE_PACKAGES = {"gguf": "llama-cpp-python", "onnx": "onnxruntime-genai"}


@dataclass(frozen=True)
class Pace:
    """A budget of time a token, and what is known of the time: `whole` ns with every matrix on Q8_0.

    `more` is, by grid, what a weight multiplied on it takes beyond one on Q8_0, in ns; below zero where it is faster.
    """

    max_ns: float
    whole: float
    more: Mapping[str, float]

    def ns(self, grid: str, *, weights: int) -> float:
        return self.more[grid] * weights


def measure_pace(
    *,
    shapes: Mapping[str, tuple[int, ...]],
    grids: Sequence[str],
    form: str,
    threads: int,
    max_ns: float,
    write: Callable[[Plan, str], Path],
    measure: Measure,
) -> Pace:
    """The pace of a model of these `shapes` on this host, from the cache or measured.

    `write` makes an artifact of a plan under a name and tells its path.

    Raises:
        StageError: a speed could not be measured.
    """
    engine = ENGINE_PACKAGES[form]
    known_by = {
        "engine": engine, "version": package_versions().get(engine), "threads": threads, "grids": sorted(grids),
        "shapes": {name: list(shape) for name, shape in sorted(shapes.items())},
    }  # fmt: skip

    def found() -> dict[str, Any]:
        weights = multiplied(shapes)
        held = {g: sum(n for name, n in weights.items() if Plan(g, g).grid(name, shapes[name]) == g) for g in grids}
        plans = {grid: Plan(grid, grid) for grid in grids if held[grid]}
        times = measure([write(plan, grid) for grid, plan in plans.items()], threads)
        by_grid = dict(zip(plans, times, strict=True))
        whole = by_grid[FALLBACK]
        more = {grid: (ns - whole) / held[grid] for grid, ns in by_grid.items()}
        return {"whole_ns": whole, "more_ns_per_weight": more, "ns": by_grid}

    kept = measured_once("pace", known_by, found)
    return Pace(max_ns, kept["whole_ns"], kept["more_ns_per_weight"])
