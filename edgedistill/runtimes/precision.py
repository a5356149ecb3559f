"""The float type of training and labelling: bf16 where the hardware multiplies bf16 matrices faster, else float32."""

from __future__ import annotations

from typing import Literal

Dtype = Literal["auto", "bf16", "fp32"]


def uses_bf16(wanted: Dtype) -> bool:
    """Whether `wanted` means bf16 on this machine; `auto` does on a GPU that has it and on a CPU with AMX tiles.

    A CPU whose only bf16 instruction is AVX-512's dot product needs about twice as long for a bf16 product as for a
    float32 one, so having the data type is not enough.
    """
    if wanted != "auto":
        return wanted == "bf16"
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


def session_dtype(wanted: Dtype) -> str:
    """The `dtype` option of `open_session` that `wanted` means here."""
    return "bfloat16" if uses_bf16(wanted) else "float32"
