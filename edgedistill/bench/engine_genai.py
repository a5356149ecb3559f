"""onnxruntime-genai for the bench worker: its C API through ctypes, because its Python module brings numpy (14 MB).

C API: https://onnxruntime.ai/docs/genai/api/c.html. Handles are opaque and no structure is shared, so there is no
layout to check.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import json
import os
from ctypes import byref, c_bool, c_char_p, c_double, c_int32, c_size_t, c_void_p

from edgedistill.bench.process_memory import thread_count

# Buffers are freed when done with instead of being kept in an arena: 1-2 MB less at the peak, no time on small models.
SESSION = {"enable_cpu_mem_arena": False, "enable_mem_pattern": False, "inter_op_num_threads": 1}


def load_library() -> ctypes.CDLL:
    """libonnxruntime-genai, and before it the libonnxruntime that it opens by `ORT_LIB_PATH`.

    Raises:
        ImportError: one of the two packages, or its library, is not installed.
    """
    paths = {}
    for package, folder, prefix in (
        ("onnxruntime", "capi", "libonnxruntime."),
        ("onnxruntime_genai", "", "libonnxruntime-genai."),
    ):
        spec = importlib.machinery.PathFinder.find_spec(package)
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError(f"{package} is not installed")
        place = os.path.join(next(iter(spec.submodule_search_locations)), folder)
        found = sorted(name for name in os.listdir(place) if name.startswith(prefix))
        if not found:
            raise ImportError(f"expected {prefix}* in {place}, found none")
        paths[package] = os.path.join(place, found[0])
    os.environ["ORT_LIB_PATH"] = paths["onnxruntime"]
    ctypes.CDLL(paths["onnxruntime"])
    return ctypes.CDLL(paths["onnxruntime_genai"])


class GenaiEngine:
    """One sequence of one onnxruntime-genai folder, greedy; a new generator (and so a new cache) for each request."""

    name = "onnxruntime-genai"

    def __init__(self, model: str, *, threads: int, context: int, batch: int, device: str = "cpu") -> None:
        self.lib = load_library()
        self.lib.OgaResultGetError.restype = c_char_p
        self.lib.OgaResultGetError.argtypes = [c_void_p]
        self.lib.OgaGenerator_IsDone.restype = c_bool
        self.lib.OgaGenerator_IsDone.argtypes = [c_void_p]
        for kind in ("Config", "Generator", "GeneratorParams", "Model", "Sequences", "Tensor", "Tokenizer"):
            getattr(self.lib, f"OgaDestroy{kind}").argtypes = [c_void_p]
        self.lib.OgaTensorGetData.argtypes = [c_void_p, c_void_p]
        self.generate = self.lib.OgaGenerator_GenerateNextToken
        self.next = self.lib.OgaGenerator_GetNextTokens
        for function in (self.generate, self.next):
            function.restype = c_void_p
        self.generate.argtypes = [c_void_p]
        self.next.argtypes = [c_void_p, c_void_p, c_void_p]
        self.threads, self.context, self.device = threads, context, device
        config, self.model, self.params = c_void_p(), c_void_p(), c_void_p()
        self._call("OgaCreateConfig", model.encode(), byref(config))
        session = SESSION | {"intra_op_num_threads": threads}
        overlay = {"model": {"decoder": {"session_options": session}}, "search": {"max_length": context}}
        self._call("OgaConfigOverlay", config, json.dumps(overlay).encode())
        if device != "cpu":
            self._call("OgaConfigClearProviders", config)
            self._call("OgaConfigAppendProvider", config, device.encode())
        before = thread_count()
        self._call("OgaCreateModelFromConfig", config, byref(self.model))
        self.spawned = thread_count() - before
        self.lib.OgaDestroyConfig(config)
        self._call("OgaCreateGeneratorParams", self.model, byref(self.params))
        self._call("OgaGeneratorParamsSetSearchBool", self.params, b"do_sample", c_bool(False))
        self._call("OgaGeneratorParamsSetSearchNumber", self.params, b"max_length", c_double(context))
        self.generator, self.tokenizer = c_void_p(), c_void_p()
        device = c_char_p()
        self._call("OgaModelGetDeviceType", self.model, byref(device))
        self.device = (device.value or b"unknown").decode().lower()
        self.token, self.count = ctypes.POINTER(c_int32)(), c_size_t()
        self.out = byref(self.token), byref(self.count)

    def settings(self) -> dict[str, object]:
        # The pool cannot be asked for its size, so threads are counted: all but the caller's, and one of genai's own.
        # Other devices bring threads of their own, which do no work of a pool.
        right = self.spawned - self.threads in (-1, 0) or self.device != "cpu"
        threads = self.threads if right else self.spawned
        return {"backend": self.device, "threads": threads, "context": self.context, **SESSION}

    def prefill(self, ids: list[int], *, limit: int) -> int:
        """Start over with an empty cache, evaluate the prompt, return the first greedy token.

        `limit` > 0 keeps end-of-generation tokens out until so many tokens are made.
        """
        if self.generator:
            self.lib.OgaDestroyGenerator(self.generator)
            self.generator = c_void_p()
        least = len(ids) + limit if limit else 0
        self._call("OgaGeneratorParamsSetSearchNumber", self.params, b"min_length", c_double(least))
        self._call("OgaCreateGenerator", self.model, self.params, byref(self.generator))
        tokens = (c_int32 * len(ids))(*ids)
        self._call("OgaGenerator_AppendTokens", self.generator, tokens, c_size_t(len(ids)))
        return self.step()

    def step(self) -> int:
        """Evaluate the last token (the prompt was evaluated when it was appended), return the next."""
        failed = self.generate(self.generator)
        if failed:
            raise RuntimeError(self._why(failed))
        failed = self.next(self.generator, *self.out)
        if failed:
            raise RuntimeError(self._why(failed))
        return self.token[0]

    def finite(self) -> bool:
        """Whether the last token's logits are all finite."""
        logits, rank, data = c_void_p(), c_size_t(), ctypes.POINTER(ctypes.c_float)()
        self._call("OgaGenerator_GetLogits", self.generator, byref(logits))
        self._call("OgaTensorGetShapeRank", logits, byref(rank))
        shape = (ctypes.c_int64 * rank.value)()
        self._call("OgaTensorGetShape", logits, shape, rank)
        self._call("OgaTensorGetData", logits, byref(data))
        count = 1
        for size in shape:
            count *= size
        total = sum(data[:count])
        self.lib.OgaDestroyTensor(logits)
        return total - total == 0.0

    def tokenize(self, text: str) -> list[int]:
        """Token ids of rendered text, by the folder's tokenizer as onnxruntime-genai reads it."""
        lib, sequences = self.lib, c_void_p()
        if not self.tokenizer:
            self._call("OgaCreateTokenizer", self.model, byref(self.tokenizer))
            lib.OgaSequencesGetSequenceCount.restype = c_size_t
            lib.OgaSequencesGetSequenceCount.argtypes = [c_void_p, c_size_t]
            lib.OgaSequencesGetSequenceData.restype = ctypes.POINTER(c_int32)
            lib.OgaSequencesGetSequenceData.argtypes = [c_void_p, c_size_t]
        self._call("OgaCreateSequences", byref(sequences))
        self._call("OgaTokenizerEncode", self.tokenizer, text.encode(), sequences)
        count = lib.OgaSequencesGetSequenceCount(sequences, 0)
        ids = lib.OgaSequencesGetSequenceData(sequences, 0)[:count]
        lib.OgaDestroySequences(sequences)
        return ids

    def close(self) -> None:
        """Give the model and its cache back."""
        for kind in ("Generator", "Tokenizer", "GeneratorParams", "Model"):
            handle = {"GeneratorParams": "params"}.get(kind, kind.lower())
            if getattr(self, handle):
                getattr(self.lib, f"OgaDestroy{kind}")(getattr(self, handle))
            setattr(self, handle, c_void_p())

    def _call(self, name: str, *arguments: object) -> None:
        function = getattr(self.lib, name)
        function.restype = c_void_p
        if failed := function(*arguments):
            raise RuntimeError(f"{name}: {self._why(failed)}")

    def _why(self, result: int) -> str:
        return self.lib.OgaResultGetError(result).decode(errors="replace")


open_engine = GenaiEngine
