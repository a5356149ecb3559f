"""F16 GGUF to llama.cpp's own quantized types, and what a GGUF file really spends per weight."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from math import prod
from pathlib import Path

from edgedistill.core.errors import InputError, StageError
from edgedistill.core.files import atomic_path
from edgedistill.runtimes.gguf_file import TENSOR_TYPES, read_gguf
from edgedistill.runtimes.gguf_model import check_gguf
from edgedistill.runtimes.llama_lib import library, why

# Scheme -> (llama.cpp's file type, the types it means to give to matrices; another one is a fallback).
SCHEMES: dict[str, tuple[str, frozenset[str]]] = {
    "F16": ("LLAMA_FTYPE_MOSTLY_F16", frozenset({"F16"})),
    "Q8_0": ("LLAMA_FTYPE_MOSTLY_Q8_0", frozenset({"Q8_0"})),
    "Q4_0": ("LLAMA_FTYPE_MOSTLY_Q4_0", frozenset({"Q4_0", "Q6_K"})),
}
ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class WeightFigures:
    """Weights of a GGUF file: how many, real bits for each, and matrices whose type is not the scheme's."""

    parameters: int
    bits_per_weight: float
    fallback_tensors: int


def quantize_gguf(*, source: Path, out: Path, scheme: str, threads: int) -> None:
    """Quantize an F16 GGUF with `llama_model_quantize`; `scheme` is Q8_0 or Q4_0.

    Raises:
        InputError: the scheme is unknown, or `source` is not a whole GGUF file.
        StageError: llama.cpp refuses or fails; nothing is left at `out`.
    """
    if scheme not in SCHEMES or scheme == "F16":
        known = ", ".join(name for name in SCHEMES if name != "F16")
        raise InputError(f"expected a quantization scheme of {known}, found {scheme!r}")
    check_gguf(source)
    lib = library()
    parameters = lib.llama_model_quantize_default_params()
    parameters.ftype = getattr(lib, SCHEMES[scheme][0])
    parameters.nthread = threads
    with atomic_path(out) as temporary:
        failed = lib.llama_model_quantize(str(source).encode(), str(temporary).encode(), ctypes.byref(parameters))
        if failed:
            raise StageError(f"llama.cpp could not quantize {source} to {scheme}: {why()}; export it as f16 instead")


def weight_figures(path: Path, *, scheme: str, meant: frozenset[str] | None = None) -> WeightFigures:
    """Count weights, bits and fallbacks of a GGUF file written for `scheme`; rope factors are no weights.

    `meant` are the types its matrices were to have, where they are not those that llama.cpp gives them.
    """
    tensors = [tensor for name, tensor in read_gguf(path).tensors.items() if name != ROPE_FACTORS]
    count = sum(prod(tensor.shape) for tensor in tensors)
    meant = meant or SCHEMES[scheme][1]
    fallback = sum(len(t.shape) > 1 and TENSOR_TYPES[t.type_id][0] not in meant for t in tensors)
    return WeightFigures(
        parameters=count,
        bits_per_weight=round(8 * sum(tensor.size for tensor in tensors) / count, 4),
        fallback_tensors=fallback,
    )
