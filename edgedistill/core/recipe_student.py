"""The recipe's table of the model that learns, `[student]`, and how it is cut."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from edgedistill.core.metric import parse_quantity
from edgedistill.core.model import Noun, Positive


class Cut(Noun):
    """How the student is cut from the teacher: layers kept (a list, or how many), widths, vocabulary size.

    `layer_score` tells which layers go: by the loss without each, or by block influence, in one pass. `heads` query
    heads stay in `kv_heads` groups of like size. Under `target_parameters`, or `target_bytes` of weights on `grid`
    (such as "20 MB"; the tokenizer comes on top), sizes that are not given are searched for. In two `steps` each arm is
    trained between: with fewer layers and tokens first, then with narrower layers.
    """

    layers: tuple[int, ...] | Positive | None = None
    layer_score: Literal["loss", "influence"] = "loss"
    ffn: Positive | None = None
    heads: Positive | None = None
    kv_heads: Positive | None = None
    hidden: Positive | None = None
    vocab: Positive | None = None
    target_parameters: Positive | None = None
    target_bytes: float | str | None = None
    grid: Literal["q4_0", "q8_0"] = "q4_0"
    steps: Literal[1, 2] = 1

    @model_validator(mode="after")
    def _sizes_or_one_target(self) -> Cut:
        if self.target_parameters and self.target_bytes is not None:
            raise ValueError("expected target_parameters or target_bytes, found both")
        if self.target_bytes is not None and self.most_bytes <= 0:
            raise ValueError(f"target_bytes = {self.target_bytes!r}: expected more than nothing")
        if self.layers is None and not self.target_parameters and self.target_bytes is None:
            raise ValueError("expected layers, or a target_parameters or target_bytes to choose them by")
        return self

    @property
    def most_bytes(self) -> float | None:
        return None if self.target_bytes is None else parse_quantity(self.target_bytes, unit="bytes")


class Student(Noun):
    """The model that learns: cut from the teacher, or a model reference with the teacher's tokenizer."""

    model: str | None = None
    cut: Cut | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> Student:
        if (self.model is None) == (self.cut is None):
            raise ValueError('expected either model = "…" or a [student.cut] table')
        return self
