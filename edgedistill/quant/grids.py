"""What a number grid is: which multiples of a scale a weight may be, and how many weights share the scale.

All are ggml's. Layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import gguf

BLOCK = 32  # columns come in multiples of this on every grid, or of more
TINY = 1e-30  # weights below are zero on any grid: no half-precision scale is so small, and their inverse overflows
STEPS = (-128, 127)  # least and most of the whole numbers that scale the parts of a block


@dataclass(frozen=True)
class Grid:
    """A type of ggml's. A weight is scale * code, or minimum + scale * code; codes are in `[low, high]`.

    `block` weights share a scale in half precision. Where `part` is less, each part of a block has a whole number
    beside, and its scale is the block's times that. `values` are the codes that there are, if not every one is.
    """

    name: str
    bits: int
    low: int
    high: int
    has_minimum: bool = False
    block: int = BLOCK
    part: int = BLOCK
    values: tuple[int, ...] | None = None

    @property
    def kind(self) -> gguf.GGMLQuantizationType:
        import gguf

        return gguf.GGMLQuantizationType[self.name]

    @property
    def bytes(self) -> int:
        """Of one block, scales and all."""
        minimum, parts = 2 * self.has_minimum, self.block // self.part if self.has_steps else 0
        return self.block * self.bits // 8 + 2 + minimum + parts

    @property
    def has_steps(self) -> bool:
        return self.part < self.block

    @property
    def between(self) -> NDArray[np.float32]:
        """Where the nearest of `values` changes, `[values - 1]`."""
        values = np.array(self.values, dtype=np.float32)
        return (values[:-1] + values[1:]) / 2

    def nearest(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """The codes nearest to `x`, weights over their scale."""
        if self.values is None:
            return np.clip(np.rint(x), self.low, self.high)
        # all of `between` are halves, so doubled and rounded up a number lies on the same side of them
        return _nearest_of_halves(self)[np.clip(np.ceil(2 * x), -256, 255).astype(np.int16) + 256]


@cache
def _nearest_of_halves(grid: Grid) -> NDArray[np.float32]:
    """The nearest of `values` to each half from -128 up, `[512]`; of two as near the lower."""
    halves = np.arange(-256, 256, dtype=np.float32) / 2
    return np.array(grid.values, dtype=np.float32)[np.searchsorted(grid.between, halves)]


GRIDS = {
    grid.name: grid
    for grid in (
        Grid("Q4_0", 4, -8, 7),
        Grid("Q4_1", 4, 0, 15, has_minimum=True),
        Grid("Q5_0", 5, -16, 15),
        Grid("Q5_1", 5, 0, 31, has_minimum=True),
        Grid("Q8_0", 8, -127, 127),
        Grid("Q6_K", 6, -32, 31, block=256, part=16),
        Grid(
            "IQ4_NL", 4, -127, 113,
            values=(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113),
        ),
    )
}  # fmt: skip


def grid_named(name: str) -> Grid:
    """The grid that ggml calls so.

    Raises:
        ValueError: there is none.
    """
    if name not in GRIDS:
        raise ValueError(f"expected a grid of {', '.join(GRIDS)}, found {name!r}")
    return GRIDS[name]
