"""What a student's shape costs in time on this host: a few untrained models are timed, and shapes between foretold.

A token takes some time whatever the model, some for each layer, and some for each weight it is multiplied by, which is
another for the head, whose grid is another. How fast a model is does not depend on what its weights say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from edgedistill.core.host import measured_once, package_versions
from edgedistill.quant.codes import CodeSet
from edgedistill.quant.plan import TABLES, Plan, multiplied
from edgedistill.train.folders import TEMPLATE_FILE, copy_tokenizer, save_model

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Times:
    """Nanoseconds of a token: `start`, and for each layer, weight of a layer's matrices, and weight of the head."""

    start: float
    per_layer: float
    per_weight: float
    per_head_weight: float

    def ns(self, shapes: Shapes, *, layers: int) -> float:
        """Of a model of so many `layers` whose tensors have these `shapes`."""
        return float(np.dot([*asdict(self).values()], _counts(shapes, layers=layers)))

    def scaled(self, factor: float) -> Times:
        return Times(*(factor * value for value in asdict(self).values()))


@dataclass(frozen=True)
class Clock:
    """Decodes models on this host, written as GGUF files on `plan`, on so many `threads`.

    `write` and `measure` are `export.gguf.export_gguf_codes` and `bench.decode_speed.decode_times`.
    """

    write: Callable[..., Any]
    measure: Callable[..., list[float]]
    plan: Plan
    threads: int

    def ns(self, models: Iterable[Any], *, tokenizer: Path) -> list[float]:
        """Nanoseconds a token of each model, taken one at a time, with the tokenizer in that folder.

        Raises:
            InputError: GGUF files of the architecture cannot be written.
            StageError: a speed could not be measured.
        """
        template = (tokenizer / TEMPLATE_FILE).read_text(encoding="utf-8")
        with TemporaryDirectory(prefix=".speed.", suffix=".tmp", dir=tokenizer) as work:
            files = []
            for number, model in enumerate(models):
                with TemporaryDirectory(dir=work) as folder:
                    save_model(model, Path(folder))
                    copy_tokenizer(tokenizer, Path(folder), template=template)
                    files.append(Path(work) / f"{number}.gguf")
                    self.write(model=Path(folder), out=files[-1], codes=CodeSet(self.plan), name="untrained")
            return self.measure(files, threads=self.threads)

    def times(self, probes: Sequence[tuple[int, Shapes]], *, models: Iterable[Any], tokenizer: Path) -> Times:
        """What the tokens of `models` took, of so many layers and of shapes as `probes` tell; kept by host and shapes.

        Raises:
            InputError: as `ns`.
            StageError: as `ns`.
        """
        known_by = {
            "engine": "llama-cpp-python", "version": package_versions().get("llama-cpp-python"),
            "threads": self.threads, "plan": [self.plan.layers, self.plan.table],
            "shapes": [{name: list(shape) for name, shape in shapes.items()} for _, shapes in probes],
        }  # fmt: skip
        found = measured_once("shapes", known_by, lambda: self.ns(models, tokenizer=tokenizer))
        return fitted([_counts(shapes, layers=layers) for layers, shapes in probes], found)


def fitted(counts: Sequence[Sequence[float]], ns: Sequence[float]) -> Times:
    """The times, none below zero, that leave the least squares of relative errors; `counts` are those of each model."""
    rows = np.asarray(counts, np.float64) / np.asarray(ns, np.float64)[:, None]
    scale = rows.max(axis=0)
    best, least = np.zeros(rows.shape[1]), np.inf
    for size in range(1, rows.shape[1] + 1):
        for kept in map(list, combinations(range(rows.shape[1]), size)):
            found = np.linalg.lstsq(rows[:, kept] / scale[kept], np.ones(len(rows)))[0] / scale[kept]
            error = float(((rows[:, kept] @ found - 1) ** 2).sum())
            if (found >= 0).all() and error < least:
                best, least = np.zeros(rows.shape[1]), error
                best[kept] = found
    return Times(*best.tolist())


def _counts(shapes: Shapes, *, layers: int) -> tuple[int, int, int, int]:
    """What each of the fields of `Times` is multiplied by."""
    weights = multiplied(shapes)
    head = sum(count for name, count in weights.items() if name in TABLES)
    return 1, layers, sum(weights.values()) - head, head
