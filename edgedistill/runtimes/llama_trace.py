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

from edgedistill.runtimes.base import check_room
from edgedistill.runtimes.llama_lib import ggml_accessor, library, load
from edgedistill.runtimes.llamacpp import LlamaContext

FLOAT_BYTES = 4


def trace_llama(path: Path, ids: Sequence[int], *, wanted: Pattern[str], threads: int) -> dict[str, np.ndarray]:
    """Run `ids` as one fresh sequence and keep every float32 node whose whole name matches: `[len(ids), width]` each.

    At most 512 ids, which llama.cpp evaluates at once.

    Raises:
        InputError: the file is damaged, llama.cpp refuses it, or the ids do not fit.
        StageError: llama.cpp failed to run them.
    """
    name_of = ggml_accessor("ggml_get_name", ctypes.c_char_p)
    data_of = ggml_accessor("ggml_get_data", ctypes.POINTER(ctypes.c_float))
    count_of = ggml_accessor("ggml_nelements", ctypes.c_int64)
    width_of = ggml_accessor("ggml_element_size", ctypes.c_size_t)
    contiguous = ggml_accessor("ggml_is_contiguous", ctypes.c_bool)
    found: dict[str, np.ndarray] = {}

    def keep(tensor: int, ask: bool, _: object) -> bool:
        name = name_of(tensor).decode()
        if wanted.fullmatch(name) is None:
            return not ask  # False would end the whole evaluation where the node has been computed
        count = count_of(tensor)
        if not ask and width_of(tensor) == FLOAT_BYTES and contiguous(tensor) and count % len(ids) == 0:
            found[name] = np.ctypeslib.as_array(data_of(tensor), (count,)).reshape(len(ids), -1).copy()
        return True

    callback = library().ggml_backend_sched_eval_callback(keep)
    model = load(path)
    try:
        context = LlamaContext(
            path, model, threads=threads, cells=len(ids), sequences=1, tokens=len(ids), callback=callback
        )
        try:
            check_room(ids, used=0, context=len(ids), vocab=context.vocab)
            context.run([(0, 0, ids, True)])  # logits of every token: otherwise the last layer keeps the last row alone
        finally:
            context.free()
    finally:
        library().llama_model_free(model)
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
