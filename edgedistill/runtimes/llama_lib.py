"""llama.cpp's C library, silenced and self-tested once, and its tokenizer; the session over it is in `llamacpp`."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from edgedistill.core.errors import InputError, MissingError, shortened
from edgedistill.runtimes.gguf_model import check_gguf
from edgedistill.runtimes.llama_layout import check_layout

ERROR_LEVEL = 4
_errors: deque[str] = deque(maxlen=8)


@cache
def library() -> ModuleType:
    """The low-level module `llama_cpp.llama_cpp`, its log captured and its ctypes layouts checked.

    Raises:
        MissingError: llama-cpp-python is absent, or its structures do not match the library it carries.
    """
    try:
        from llama_cpp import llama_cpp as lib
    except (ImportError, OSError, RuntimeError) as e:
        raise MissingError(
            f"expected llama-cpp-python, found none that loads ({e}); install edgedistill again"
        ) from None

    def keep_errors(level: int, text: bytes, _: object) -> None:
        if level == ERROR_LEVEL:
            _errors.append(text.decode(errors="replace").strip())

    callback = lib.llama_log_callback(keep_errors)
    lib.llama_log_set(callback, ctypes.c_void_p(0))
    lib._edgedistill_log = callback  # the C side keeps the pointer: it must outlive this function
    lib.llama_backend_init()
    check_layout(lib)
    return lib


@cache
def ggml_accessor(name: str, result: Any) -> Any:
    """A function of ggml's that takes a tensor's address, or nothing, and that llama-cpp-python does not declare."""
    function = getattr(library()._lib, name)
    function.argtypes, function.restype = ([] if name == "ggml_tensor_overhead" else [ctypes.c_void_p]), result
    return function


def why() -> str:
    """The first complaint of llama.cpp since the last call: the cause, which later ones only repeat upwards."""
    text = _errors[0].rpartition("error loading model: ")[2].rstrip(".") if _errors else "it gave no reason"
    _errors.clear()
    return shortened(text)


def load(path: Path, *, vocab_only: bool = False, repack: bool = True) -> int:
    """Load a GGUF on the CPU and return the model's pointer, to be freed with `llama_model_free`.

    `repack` lets llama.cpp copy weights into the layout its fastest kernels want (anonymous memory instead of mapped).

    Raises:
        InputError: the file is not a whole GGUF, or llama.cpp refuses it.
    """
    check_gguf(path)
    lib = library()
    parameters = lib.llama_model_default_params()
    parameters.vocab_only = vocab_only
    parameters.n_gpu_layers = 0
    parameters.use_extra_bufts = repack
    _errors.clear()
    model = lib.llama_model_load_from_file(str(path).encode(), parameters)
    if not model:
        raise InputError(f"llama.cpp cannot load {path}: {why()}; write the file again or choose another model")
    return model


def tokenize(vocab: int, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
    """Token ids of `text` as llama.cpp makes them; `vocab` is the pointer of `llama_model_get_vocab`."""
    lib = library()
    raw = text.encode()
    room = len(raw) + 8
    ids = (lib.llama_token * room)()
    count = lib.llama_tokenize(vocab, raw, len(raw), ids, room, add_special, parse_special)
    if count < 0:
        ids = (lib.llama_token * -count)()
        count = lib.llama_tokenize(vocab, raw, len(raw), ids, -count, add_special, parse_special)
    return list(ids[:count])


def tokenize_with(path: Path, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text as llama.cpp makes them with the vocabulary in `path`, specials added and parsed."""
    lib = library()
    model = load(path, vocab_only=True)
    try:
        vocab = lib.llama_model_get_vocab(model)
        return [tokenize(vocab, text) for text in texts]
    finally:
        lib.llama_model_free(model)


@dataclass(frozen=True)
class SpecialIds:
    """The BOS and EOS of a GGUF as llama.cpp has them (None for none), and whether it puts them around text."""

    bos: int | None
    eos: int | None
    add_bos: bool
    add_eos: bool


def special_ids(path: Path) -> SpecialIds:
    """What llama.cpp makes of the special tokens of the vocabulary in `path`."""
    lib = library()
    model = load(path, vocab_only=True)
    try:
        vocab = lib.llama_model_get_vocab(model)
        bos, eos = (int(i) if i >= 0 else None for i in (lib.llama_vocab_bos(vocab), lib.llama_vocab_eos(vocab)))
        return SpecialIds(bos, eos, bool(lib.llama_vocab_get_add_bos(vocab)), bool(lib.llama_vocab_get_add_eos(vocab)))
    finally:
        lib.llama_model_free(model)


def end_ids(path: Path) -> frozenset[int]:
    """Token ids at which llama.cpp ends a generation with the vocabulary in `path`."""
    lib = library()
    model = load(path, vocab_only=True)
    try:
        vocab = lib.llama_model_get_vocab(model)
        return frozenset(i for i in range(lib.llama_vocab_n_tokens(vocab)) if lib.llama_vocab_is_eog(vocab, i))
    finally:
        lib.llama_model_free(model)
