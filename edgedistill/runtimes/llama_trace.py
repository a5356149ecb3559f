"""Values inside llama.cpp's graph, by the names it gives them, through the context's evaluation callback.

The callback is asked for every node (`ask`), and called again with its values where the answer was yes. Tensors are
read through ggml's own accessors, so that no structure layout is assumed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from re import Pattern

import numpy as np

from edgedistill.core.errors import InputError, StageError
from edgedistill.runtimes.base import check_room
from edgedistill.runtimes.llama_lib import library, load, why

FLOAT_BYTES = 4


def trace_llama(path: Path, ids: Sequence[int], *, wanted: Pattern[str], threads: int) -> dict[str, np.ndarray]:
    """Run `ids` as one fresh sequence and keep every float32 node whose whole name matches: `[len(ids), width]` each.

    Raises:
        InputError: the file is damaged, llama.cpp refuses it, or the ids do not fit.
        StageError: llama.cpp failed to run them.
    """
    lib = library()
    name_of = _accessor("ggml_get_name", ctypes.c_char_p)
    data_of = _accessor("ggml_get_data", ctypes.POINTER(ctypes.c_float))
    count_of = _accessor("ggml_nelements", ctypes.c_int64)
    width_of = _accessor("ggml_element_size", ctypes.c_size_t)
    contiguous = _accessor("ggml_is_contiguous", ctypes.c_bool)
    found: dict[str, np.ndarray] = {}

    def keep(tensor: int, ask: bool, _: object) -> bool:
        name = name_of(tensor).decode()
        if wanted.fullmatch(name) is None:
            return not ask  # False would end the whole evaluation where the node has been computed
        count = count_of(tensor)
        if not ask and width_of(tensor) == FLOAT_BYTES and contiguous(tensor) and count % len(ids) == 0:
            found[name] = np.ctypeslib.as_array(data_of(tensor), (count,)).reshape(len(ids), -1).copy()
        return True

    model = load(path)
    try:
        check_room(ids, used=0, context=len(ids), vocab=lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model)))
        parameters = lib.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = len(ids)
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.cb_eval = callback = lib.ggml_backend_sched_eval_callback(keep)
        context = lib.llama_init_from_model(model, parameters)
        if not context:
            raise InputError(f"llama.cpp cannot run {path} with {len(ids)} tokens: {why()}; give shorter text")
        try:
            _decode(context, ids)
        finally:
            lib.llama_free(context)
        del callback  # the context held its pointer until here
    finally:
        lib.llama_model_free(model)
    return found


def neighbour_rotation(path: Path) -> bool:
    """Whether llama.cpp rotates dimensions 2i and 2i + 1 of a head together, not i and i + half as transformers does.

    Raises:
        InputError: the file is damaged or llama.cpp refuses it.
    """
    lib = library()
    model = load(path, vocab_only=True)
    try:
        return lib.llama_model_rope_type(model) == lib.LLAMA_ROPE_TYPE_NORM
    finally:
        lib.llama_model_free(model)


def _accessor(name: str, result: type) -> ctypes._NamedFuncPointer:
    function = getattr(library()._lib, name)
    function.argtypes, function.restype = [ctypes.c_void_p], result
    return function


def _decode(context: int, ids: Sequence[int]) -> None:
    """One batch with logits of every token: otherwise the last layer keeps the last row alone."""
    lib = library()
    batch = lib.llama_batch_init(len(ids), 0, 1)
    try:
        batch.n_tokens = len(ids)
        for at, token in enumerate(ids):
            batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.logits[at] = token, at, 1, True
            batch.seq_id[at][0] = 0
        if code := lib.llama_decode(context, batch):
            raise StageError(f"llama.cpp failed to run {len(ids)} tokens (code {code}: {why()}); give shorter text")
    finally:
        lib.llama_batch_free(batch)
