"""What enters each weight matrix when llama.cpp runs text: inputs of its matrix products, by the eval callback.

The callback is called for every node of the graph: first asked whether its values are wanted, then with them. Fields
that ggml has no accessor for are read through `Tensor`, whose layout is held against the library first.
Structure: https://github.com/ggml-org/ggml/blob/master/include/ggml.h (`struct ggml_tensor`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgedistill.core.errors import MissingError, StageError
from edgedistill.runtimes.base import check_room
from edgedistill.runtimes.gguf_file import read_gguf
from edgedistill.runtimes.llama_lib import ggml_accessor, library, load
from edgedistill.runtimes.llamacpp import LlamaContext

DIMENSIONS, PARAMETER_BYTES, SOURCES, NAME_BYTES, OBJECT_BYTES = 4, 64, 10, 64, 32
F32, F32_BYTES = 0, 4
PRODUCT = b"MUL_MAT"
Take = Callable[[str, NDArray[np.float32]], None]


class Tensor(ctypes.Structure):
    """ggml's tensor: `ne` elements and `nb` bytes by dimension, the fastest first."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * DIMENSIONS),
        ("nb", ctypes.c_size_t * DIMENSIONS),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * (PARAMETER_BYTES // 4)),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * SOURCES),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * NAME_BYTES),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    )


def matmul_inputs(path: Path, chunks: Sequence[Sequence[int]], *, threads: int, take: Take) -> dict[str, str]:
    """Run each chunk of token ids as a sequence of its own; `take` gets a matrix's name and its inputs `[n, columns]`.

    Matrices that read the same input are taken once: returned is, for each matrix of the file that a product used, the
    name under which its inputs were taken. The arrays are views, valid until `take` returns. Every token counts in
    every layer, the last one too.

    Raises:
        InputError: the file is damaged, llama.cpp refuses it, or a chunk holds ids that it does not have.
        StageError: llama.cpp failed to run a chunk.
        MissingError: ctypes reads ggml's tensors otherwise than the library writes them.
    """
    _check_tensor()
    longest = max(map(len, chunks))
    watch = _Watch(frozenset(n for n, t in read_gguf(path).tensors.items() if len(t.shape) == 2), take)
    callback = library().ggml_backend_sched_eval_callback(watch)
    model = load(path)
    try:
        context = LlamaContext(
            path, model, threads=threads, cells=longest, sequences=1, tokens=longest, callback=callback
        )
        try:
            for ids in chunks:
                check_room(ids, used=0, context=longest, vocab=context.vocab)
                watch.begin()
                context.run([(0, 0, ids, True)])
                context.forget(0)
                if watch.error is not None:
                    raise watch.error
        finally:
            context.free()
    finally:
        library().llama_model_free(model)
    return watch.taken_as


class _Watch:
    """The callback's state: which matrices there are, and under which name the inputs of each were taken."""

    def __init__(self, matrices: frozenset[str], take: Take) -> None:
        self._matrices, self._take = matrices, take
        self._inputs: dict[int, str] = {}
        self.taken_as: dict[str, str] = {}
        self.error: BaseException | None = None

    def begin(self) -> None:
        """Forget the nodes of the last graph: the next one may use their addresses anew."""
        self._inputs.clear()

    def __call__(self, address: int, ask: bool, _: object) -> bool:
        try:
            return self._asked(address) if ask else self._computed(address)
        except BaseException as e:  # it may not pass through C; False ends the evaluation
            self.error = e
            return False

    def _asked(self, address: int) -> bool:
        if ggml_accessor("ggml_op_desc", ctypes.c_char_p)(address) != PRODUCT:
            return False
        node = Tensor.from_address(address)
        name = Tensor.from_address(node.src[0]).name.decode()
        if name not in self._matrices or Tensor.from_address(node.src[1]).type != F32:
            return False
        first = self._inputs.setdefault(node.src[1], name)
        self.taken_as[name] = first
        return first == name

    def _computed(self, address: int) -> bool:
        node = Tensor.from_address(address)
        source = Tensor.from_address(node.src[1])
        rows, columns = source.ne[1] * source.ne[2] * source.ne[3], source.ne[0]
        if source.nb[0] != F32_BYTES or source.nb[1] != columns * F32_BYTES:
            raise StageError(f"expected contiguous inputs of {self._inputs[node.src[1]]}, found another layout")
        values = np.ctypeslib.as_array(ctypes.cast(source.data, ctypes.POINTER(ctypes.c_float)), (rows, columns))
        self._take(self._inputs[node.src[1]], values)
        return True


def _check_tensor() -> None:
    size = ggml_accessor("ggml_tensor_overhead", ctypes.c_size_t)() - OBJECT_BYTES
    if size != ctypes.sizeof(Tensor):
        raise MissingError(
            f"expected ggml tensors of {ctypes.sizeof(Tensor)} bytes, found {size}; install the version of "
            "llama-cpp-python that edgedistill pins"
        )
