"""F16 GGUF to llama.cpp's own quantized types, and what a GGUF file really spends per weight."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgedistill.core.errors import InputError, StageError
from edgedistill.core.files import atomic_path
from edgedistill.runtimes.gguf_file import TENSOR_TYPES, read_gguf
from edgedistill.runtimes.gguf_model import check_gguf
from edgedistill.runtimes.llama_lib import library, why

# Scheme -> (llama.cpp's file type, the types it means to give to matrices; another one is a fallback).
SCHEMES: dict[str, tuple[str, frozenset[str]]] = {
    scheme: (f"LLAMA_FTYPE_MOSTLY_{scheme}", frozenset(types.split()))
    for scheme, types in {
        "F16": "F16",
        "Q8_0": "Q8_0",
        "Q4_0": "Q4_0 Q6_K",
        "Q2_K": "Q2_K Q3_K Q4_K Q6_K",
        "Q3_K_M": "Q3_K Q4_K Q5_K Q6_K",
        "Q4_K_S": "Q4_K Q5_K Q6_K",
        "Q4_K_M": "Q4_K Q5_K Q6_K",
        "Q5_K_S": "Q5_K Q6_K",
        "Q5_K_M": "Q5_K Q6_K",
        "Q6_K": "Q6_K",
        "IQ4_NL": "IQ4_NL Q5_K Q6_K",
        "IQ4_XS": "IQ4_XS Q5_K Q6_K",
        "IQ3_M": "IQ3_S Q4_K Q5_K Q6_K",
        "IQ3_XXS": "IQ2_S IQ3_XXS IQ3_S Q4_K Q5_K Q6_K",
    }.items()
}
NEEDS_IMATRIX = frozenset({"IQ3_XXS"})  # llama.cpp refuses to guess below 3.3 bits
TYPE_IDS = {name: identity for identity, (name, _, _) in TENSOR_TYPES.items()}
ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class WeightFigures:
    """Weights of a GGUF file: how many, real bits for each, and matrices whose type is not the scheme's."""

    parameters: int
    bits_per_weight: float
    fallback_tensors: int


def quantize_gguf(
    *,
    source: Path,
    out: Path,
    scheme: str,
    threads: int,
    importances: Mapping[str, NDArray[np.float32]] | None = None,
    types: Mapping[str, str] | None = None,
) -> None:
    """Quantize an F16 GGUF with `llama_model_quantize`; `scheme` is one of `SCHEMES` but F16.

    `importances` are mean squared inputs `[columns]` by GGUF tensor name (`Imatrix.means`); `types` give single tensors
    a type of their own, such as `{"blk.0.ffn_down.weight": "Q6_K"}`.

    Raises:
        InputError: the scheme or a type is unknown, the scheme needs importances, or `source` is not a whole GGUF file.
        StageError: llama.cpp refuses or fails; nothing is left at `out`.
    """
    if scheme not in SCHEMES or scheme == "F16":
        known = ", ".join(name for name in SCHEMES if name != "F16")
        raise InputError(f"expected a quantization scheme of {known}, found {scheme!r}")
    if scheme in NEEDS_IMATRIX and importances is None:
        raise InputError(f"expected an importance matrix for {scheme}, found none; give calibration text")
    if unknown := sorted(set((types or {}).values()) - TYPE_IDS.keys()):
        raise InputError(f"expected tensor types of {', '.join(TYPE_IDS)}, found {unknown[0]!r}")
    check_gguf(source)
    lib = library()
    parameters = lib.llama_model_quantize_default_params()
    parameters.ftype = getattr(lib, SCHEMES[scheme][0])
    parameters.nthread = threads
    # ctypes keeps no reference to what a pointer field points to: these live until the call has returned
    kept = {name: np.ascontiguousarray(values, dtype=np.float32) for name, values in (importances or {}).items()}
    entries = [
        lib.llama_model_imatrix_data(name.encode(), v.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), v.size)
        for name, v in kept.items()
    ]
    rules = [
        lib.llama_model_tensor_override(f"^{re.escape(name)}$".encode(), TYPE_IDS[kind])
        for name, kind in (types or {}).items()
    ]
    if entries:
        parameters.imatrix = (lib.llama_model_imatrix_data * (len(entries) + 1))(*entries)
    if rules:
        parameters.tt_overrides = (lib.llama_model_tensor_override * (len(rules) + 1))(*rules)
    with atomic_path(out) as temporary:
        failed = lib.llama_model_quantize(str(source).encode(), str(temporary).encode(), ctypes.byref(parameters))
        if failed:
            raise StageError(f"llama.cpp could not quantize {source} to {scheme}: {why()}; export it as f16 instead")


def check_label(path: Path, *, scheme: str) -> None:
    """Refuse a file in which most weights fell back to another type than its label says.

    Raises:
        StageError: with the share and the bits really spent; K-quants need widths in multiples of 256.
    """
    matrices = [t for t in read_gguf(path).tensors.values() if len(t.shape) > 1]
    total = sum(prod(t.shape) for t in matrices)
    meant = sum(prod(t.shape) for t in matrices if TENSOR_TYPES[t.type_id][0] in SCHEMES[scheme][1])
    if 2 * meant < total:
        bits = weight_figures(path, scheme=scheme).bits_per_weight
        raise StageError(
            f"a file called {scheme} would hold {meant / total:.0%} of its weights so and spend {bits:.2f} bits on "
            "each, because its matrices are no multiples of 256 wide; choose q4_0, q8_0, or `edgedistill quantize`"
        )


def weight_figures(path: Path, *, scheme: str, fallbacks: int | None = None) -> WeightFigures:
    """Count weights, bits and fallbacks of a GGUF file written for `scheme`; rope factors are no weights.

    `fallbacks` is their count where another plan than llama.cpp's own for the scheme says what each matrix is to be.
    """
    tensors = [tensor for name, tensor in read_gguf(path).tensors.items() if name != ROPE_FACTORS]
    count = sum(prod(tensor.shape) for tensor in tensors)
    if fallbacks is None:
        fallbacks = sum(len(t.shape) > 1 and TENSOR_TYPES[t.type_id][0] not in SCHEMES[scheme][1] for t in tensors)
    return WeightFigures(
        parameters=count,
        bits_per_weight=round(8 * sum(tensor.size for tensor in tensors) / count, 4),
        fallback_tensors=fallbacks,
    )
