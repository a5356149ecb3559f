"""The float type of training and labelling: bf16 where the hardware multiplies bf16 matrices faster, else float32."""

from __future__ import annotations

import time
from typing import Literal

from edgedistill.core.host import measured_once

Dtype = Literal["auto", "bf16", "fp32"]

WORTH = 1.25  # times as fast as float32, at least, to give up its digits
ROUNDS, SHAPE = 16, (256, 512, 1024)  # of the product that is timed: rows, inner, columns


def uses_bf16(wanted: Dtype) -> bool:
    """Whether `wanted` means bf16 on this machine.

    `auto` does on a GPU that has it, and on a CPU that has instructions for it and was measured to be faster with them;
    to have them is not enough, some CPUs take half the time of a float32 product with AVX-512's and some twice. What
    was measured is kept in the cache.
    """
    if wanted != "auto":
        return wanted == "bf16"
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if not any(name.endswith("bf16") and there for name, there in torch.cpu.get_capabilities().items()):
        return False
    return measured_once("bf16", {"torch": torch.__version__, "shape": SHAPE}, bf16_speedup) >= WORTH


def session_dtype(wanted: Dtype) -> str:
    """The `dtype` option of `open_session` that `wanted` means here."""
    return "bfloat16" if uses_bf16(wanted) else "float32"


def bf16_speedup() -> float:
    """Time of a float32 product of matrices by that of the same in bf16, the shortest of rounds in turns."""
    import torch

    rows, inner, columns = SHAPE
    least = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    for _ in range(ROUNDS):
        for dtype in least:
            left, right = torch.ones(rows, inner, dtype=dtype), torch.ones(columns, inner, dtype=dtype)
            began = time.perf_counter()
            left @ right.T
            least[dtype] = min(least[dtype], time.perf_counter() - began)
    return least[torch.float32] / least[torch.bfloat16]
