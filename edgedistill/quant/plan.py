"""Which grid each matrix of a model is kept on, by the name the Hugging Face folder gives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TABLES = frozenset({EMBEDDING, HEAD})
BLOCK = 32


@dataclass(frozen=True)
class Plan:
    """Grids by tensor: `exceptions` by name, else `table` for the embedding and the head, `layers` for every other."""

    layers: str
    table: str
    exceptions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def grid(self, name: str, shape: tuple[int, ...]) -> str | None:
        """The grid of the tensor `name`; None for vectors and for rows that do not fill blocks, which stay floats."""
        if len(shape) != 2 or shape[1] % BLOCK:
            return None
        return self.exceptions.get(name, self.table if name in TABLES else self.layers)

    @property
    def grids(self) -> frozenset[str]:
        """Every grid that it may name."""
        return frozenset({self.layers, self.table, *self.exceptions.values()})
