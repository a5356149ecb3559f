"""The recipe's table of the model that learns, `[student]`, and how it is cut."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from edgedistill.core.metric import parse_quantity
from edgedistill.core.model import Noun, Positive, Size, Text

Multiple = Annotated[int, Field(ge=1, multiple_of=32)]  # what a block of the grids holds
TARGETS = ("target_parameters", "target_bytes", "target_tokens_per_s")


class Cut(Noun):
    """How the student is cut from the teacher: layers kept (a list, or how many), widths, vocabulary size.

    `layer_score` tells which layers go: by the loss without each, or by block influence, in one pass. `heads` query
    heads stay in `kv_heads` groups of like size. Under `target_parameters`, or `target_bytes` of weights on `grid`
    (such as "20 MB"; the tokenizer comes on top), or for a speed of `target_tokens_per_s`, which llama.cpp decodes here
    on `grid`, sizes that are not given are searched for. In two `steps` each arm is trained between: with fewer layers
    and tokens first, then with narrower layers.
    """

    layers: tuple[int, ...] | Positive | None = None
    layer_score: Literal["loss", "influence"] = "loss"
    ffn: Multiple | None = None
    heads: Positive | None = None
    kv_heads: Positive | None = None
    hidden: Multiple | None = None
    vocab: Multiple | None = None
    target_parameters: Positive | None = None
    target_bytes: Size | None = None
    target_tokens_per_s: Annotated[float, Field(gt=0)] | None = None
    grid: Literal["q4_0", "q8_0"] = "q4_0"
    steps: Literal[1, 2] = 1

    @field_validator("layers")
    @classmethod
    def _layers_are_distinct(cls, layers: tuple[int, ...] | int | None) -> tuple[int, ...] | int | None:
        if isinstance(layers, tuple) and (not layers or min(layers) < 0 or len(set(layers)) < len(layers)):
            raise ValueError("expected distinct layers from 0 on, at least one")
        return layers

    @model_validator(mode="after")
    def _sizes_or_one_target(self) -> Cut:
        targets = [name for name in TARGETS if getattr(self, name) is not None]
        if len(targets) > 1:
            raise ValueError(f"expected one of {', '.join(TARGETS)}, found {' and '.join(targets)}")
        if self.layers is None and not targets:
            raise ValueError(f"expected layers, or one of {', '.join(TARGETS)} to choose them by")
        return self

    @property
    def most_bytes(self) -> float | None:
        return None if self.target_bytes is None else parse_quantity(self.target_bytes, unit="bytes")


class Student(Noun):
    """The model that learns: cut from the teacher, or a model reference with the teacher's tokenizer."""

    model: Text | None = None
    cut: Cut | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> Student:
        if (self.model is None) == (self.cut is None):
            raise ValueError('expected either model = "…" or a [student.cut] table')
        return self

    @property
    def is_timed(self) -> bool:
        """Whether its shape hangs on this host's speed."""
        return self.cut is not None and self.cut.target_tokens_per_s is not None
