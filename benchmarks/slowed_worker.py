"""The bench worker with a decode step that takes longer: the real slowdown that `gate_power.py` injects.

`EDGEDISTILL_SLOWDOWN=0.1` makes every step spin for a tenth of its own time; the product's worker knows no such thing.
"""

from __future__ import annotations

import importlib
import os
from time import perf_counter_ns
from types import SimpleNamespace
from typing import Any

from edgedistill.bench import worker

VARIABLE = "EDGEDISTILL_SLOWDOWN"


def slowed(engine: Any, share: float) -> Any:
    """The engine, each of whose steps spins for `share` of the time it took."""
    step = engine.step

    def slow_step() -> int:
        began = perf_counter_ns()
        token = step()
        end = perf_counter_ns()
        end += int(share * (end - began))
        while perf_counter_ns() < end:
            pass
        return token

    engine.step = slow_step
    return engine


def engine_module(name: str) -> SimpleNamespace:
    """The engine's module as the worker sees it: it only opens engines."""
    module, share = importlib.import_module(name), float(os.environ.get(VARIABLE, "0"))
    return SimpleNamespace(open_engine=lambda *args, **named: slowed(module.open_engine(*args, **named), share))


if __name__ == "__main__":
    worker.importlib = SimpleNamespace(import_module=engine_module)
    worker.main()
