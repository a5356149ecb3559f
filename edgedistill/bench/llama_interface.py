"""llama.cpp's C interface as plain data, read from the installed bindings, for a worker that does not import them.

Importing the bindings' module (5,400 lines) doubles a worker's load time and takes 2 MB that no inference needs.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

STRUCTURES = ("llama_model_params", "llama_context_params", "llama_model_quantize_params", "llama_batch",
              "llama_sampler_chain_params")  # fmt: skip
FUNCTIONS = (
    "llama_backend_init",
    "llama_batch_get_one",
    "llama_context_default_params",
    "llama_decode",
    "llama_free",
    "llama_get_logits_ith",
    "llama_get_memory",
    "llama_init_from_model",
    "llama_log_set",
    "llama_memory_clear",
    "llama_memory_seq_rm",
    "llama_model_default_params",
    "llama_model_free",
    "llama_model_get_vocab",
    "llama_model_load_from_file",
    "llama_model_quantize_default_params",
    "llama_n_ctx",
    "llama_n_threads",
    "llama_n_ubatch",
    "llama_print_system_info",
    "llama_sampler_chain_add",
    "llama_sampler_chain_default_params",
    "llama_sampler_chain_init",
    "llama_sampler_init_greedy",
    "llama_sampler_sample",
    "llama_supports_gpu_offload",
    "llama_tokenize",
    "llama_vocab_n_tokens",
)


@cache
def llama_interface() -> dict[str, Any]:
    """`library` (path), `structures` (name to [field, type] in order, and size) and `functions` (name to types).

    A type is the letter of a ctypes simple type, `P` for any pointer, the name of a structure, or null for void.

    Raises:
        MissingError: llama-cpp-python is absent, or its structures do not match its library.
    """
    from edgedistill.runtimes.llama_lib import library

    lib = library()
    structures = {}
    for name in STRUCTURES:
        structure = getattr(lib, name)
        fields = [[field, _letter(kind)] for field, kind in structure._fields_]
        structures[name] = {"size": ctypes.sizeof(structure), "fields": fields}
    functions = {}
    for name in FUNCTIONS:
        function = getattr(lib, name)
        functions[name] = [_letter(function.restype), [_letter(kind) for kind in function.argtypes]]
    return {"library": str(Path(lib._lib._name)), "structures": structures, "functions": functions}


def _letter(kind: Any) -> str | None:
    if kind is None:
        return None
    if issubclass(kind, ctypes.Structure):
        return kind.__name__
    if issubclass(kind, ctypes._Pointer | ctypes._CFuncPtr):
        return "P"
    return kind._type_
