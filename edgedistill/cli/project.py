"""Reach the benchmark's projection from the command line, by its entry as the plan reaches its stages."""

from __future__ import annotations

import importlib
from typing import Any

# Named, not imported: the command line stands above the plan, and loads a stage package only where it is used.
ENTRY = "edgedistill.bench.target_projection:project_target"


def project(target: str, **of_model: Any) -> dict[str, Any]:
    """A model's projected speed on `target` as JSON values; see the entry's docstring.

    Raises:
        InputError: the target, engine or quant has no anchor to project from.
    """
    module, _, name = ENTRY.partition(":")
    return getattr(importlib.import_module(module), name)(target, **of_model)
