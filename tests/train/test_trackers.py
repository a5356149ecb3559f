"""Trackers follow the metrics; one that is not installed is said before anything is trained."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from accelerate.tracking import GeneralTracker
from test_loop import settings
from test_stage import context, label
from tiny_models import save_tiny_llama
from tiny_training import fresh_accelerator, load, random_examples

from edgedistill.core.errors import MissingError
from edgedistill.core.files import read_jsonl
from edgedistill.train.loop import train_model
from edgedistill.train.stage import run, run_teacher
from edgedistill.train.trackers import PACKAGES, require_trackers

pytestmark = pytest.mark.usefixtures(fresh_accelerator.__name__)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_tracker_that_is_not_installed_is_said(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(MissingError, match=rf"expected the package {name} for train.trackers, .*pip install {name}"):
        require_trackers([name])


def test_it_is_said_before_anything_is_made(tmp_path, monkeypatch):
    deep = save_tiny_llama(tmp_path / "deep", layers=3, seed=5)
    run_teacher(context(tmp_path, "teacher", deep))
    label(context(tmp_path, "synth", deep))
    ctx = context(tmp_path, "train", deep, train={"trackers": ["mlflow"]})
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "mlflow" else find(name, *rest)
    )
    with pytest.raises(MissingError):
        run(ctx)
    assert not (ctx.folder / "untrained").exists()


class Recorder(GeneralTracker):
    """A tracker as accelerate knows them, which keeps what it gets."""

    name = "recorder"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.rows: list[tuple[int | None, dict[str, Any]]] = []

    @property
    def tracker(self) -> list[tuple[int | None, dict[str, Any]]]:
        return self.rows

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    def log(self, values: dict[str, Any], step: int | None = None, **_: object) -> None:
        self.rows.append((step, values))


def test_every_metric_goes_to_the_trackers_with_its_step(tiny_llama, tmp_path):
    recorder, examples = Recorder(), random_examples(8)
    train_model(
        load(tiny_llama), train=examples, trackers=[recorder], **settings(tmp_path, valid=examples[:2], epochs=2)
    )
    assert recorder.config == {"lr": 3e-3, "epochs": 2, "batch_size": 4, "seed": 0}
    steps = [(step, row) for step, row in recorder.rows if "loss" in row]
    assert [step for step, _ in steps] == [1, 2, 3, 4]
    assert all({"ce", "kl", "lr", "grad_norm", "tok_s"} <= row.keys() for _, row in steps)
    assert [step for step, row in recorder.rows if "valid_loss" in row] == [2, 4]
    kept = read_jsonl(tmp_path / "metrics.jsonl")
    assert [row["loss"] for row in kept if "loss" in row] == [row["loss"] for _, row in steps]
