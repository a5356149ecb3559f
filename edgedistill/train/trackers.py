"""Metric trackers that follow a run through accelerate: TensorBoard, MLflow, Weights & Biases."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from edgedistill.core.errors import MissingError

PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "mlflow": ("mlflow",), "wandb": ("wandb",)}


def require_trackers(names: Sequence[str]) -> None:
    """Say at once that a tracker is not installed, before anything is trained.

    Raises:
        MissingError: none of its packages is there.
    """
    for name in names:
        if not any(importlib.util.find_spec(package) for package in PACKAGES[name]):
            raise MissingError(
                f"expected the package {PACKAGES[name][0]} for train.trackers, found it not installed; run "
                f"`pip install {PACKAGES[name][0]}`, or leave {name} out"
            )
