"""Which grid each matrix of a model is kept on, by the name the Hugging Face folder gives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType

from edgedistill.quant.grids import BLOCK, grid_named

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TABLES = frozenset({EMBEDDING, HEAD})
FALLBACK = "Q8_0"  # llama.cpp's, where the columns do not fill Q6_K's blocks of 256
TABLE_GRID = "Q8_0"  # of embedding and head, which cost most when they err, in every quantized variant of both formats
GRIDS_OF_LAYERS = {"q8_0": "Q8_0", "int8": "Q8_0", "q4_0": "Q4_0", "int4": "Q4_0"}  # both formats' names for one


@dataclass(frozen=True)
class Plan:
    """Grids by tensor: `exceptions` by name, else `table` for the embedding and the head, `layers` for every other."""

    layers: str
    table: str
    exceptions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def grid(self, name: str, shape: tuple[int, ...]) -> str | None:
        """The grid of the tensor `name`; None for vectors and for rows that do not fill blocks, which stay floats.

        Where they fill blocks, but not those of the grid that is meant, it is `FALLBACK`.

        Raises:
            ValueError: the grid that is meant does not exist.
        """
        if len(shape) != 2 or shape[1] % BLOCK:
            return None
        meant = self.meant(name)
        return FALLBACK if shape[1] % grid_named(meant).block else meant

    def fallbacks(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """How many of the matrices among `shapes` are on another grid than is meant, or on none."""
        matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2}
        return sum(shape[1] % grid_named(self.meant(name)).block != 0 for name, shape in matrices.items())

    def meant(self, name: str) -> str:
        """The grid of the tensor `name` if it is a matrix whose rows fill that grid's blocks."""
        return self.exceptions.get(name, self.table if name in TABLES else self.layers)


def multiplied(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Weights by matrix that every token is multiplied by: all but an embedding beside a head of its own."""
    return {
        name: prod(shape)
        for name, shape in shapes.items()
        if len(shape) == 2 and (name != EMBEDDING or HEAD not in shapes)
    }


def plan_of(precision: str) -> Plan:
    """The plan of a variant's precision, as GGUF or ONNX names it: q4_0 and int4 are one.

    Raises:
        KeyError: a precision that is no grid, such as f16.
    """
    return Plan(layers=GRIDS_OF_LAYERS[precision], table=TABLE_GRID)
