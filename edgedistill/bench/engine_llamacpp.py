"""llama.cpp for the bench worker: its C library, without the Python package around it. Logits stay on the C side.

Importing `llama_cpp` brings numpy, jinja2 and the high-level class: 22 MB that no inference needs. What the interface
looks like comes with the job, read by the parent from the installed bindings (`llama_interface`).
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

LOAD_MODE_READ = 0
ALL_LAYERS = 999
ERROR_LEVEL = 4
SIMPLE = {
    kind._type_: kind
    for kind in (
        *(ctypes.c_bool, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_float, ctypes.c_double),
        *(ctypes.c_int8, ctypes.c_uint8, ctypes.c_int32, ctypes.c_uint32),
        *(ctypes.c_long, ctypes.c_ulong, ctypes.c_longlong, ctypes.c_ulonglong),
    )
}
Token = ctypes.c_int32
LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


def load_library(interface: dict) -> SimpleNamespace:
    """The functions and structures that `interface` describes, by name.

    Raises:
        MissingError: they do not match the library.
    """
    from edgedistill.runtimes.llama_layout import check_layout

    library = ctypes.CDLL(interface["library"])
    types: dict[str | None, object] = {None: None, **SIMPLE}
    for name, structure in interface["structures"].items():
        fields = [(field, types[kind]) for field, kind in structure["fields"]]
        types[name] = type(name, (ctypes.Structure,), {"_fields_": fields})
        if ctypes.sizeof(types[name]) != structure["size"]:
            raise RuntimeError(f"{name} takes {ctypes.sizeof(types[name])} bytes, the bindings say {structure['size']}")
    lib = SimpleNamespace()
    for name, (result, arguments) in interface["functions"].items():
        function = getattr(library, name)
        function.restype, function.argtypes = types[result], [types[kind] for kind in arguments]
        setattr(lib, name, function)
    check_layout(lib)
    return lib


class LlamaCppEngine:
    """One sequence of one GGUF, greedy; with `streams` room for so many at once (`streams_llamacpp`)."""

    name = "llamacpp"

    def __init__(
        self,
        model: str,
        *,
        threads: int,
        context: int,
        batch: int,
        interface: dict,
        streams: int = 1,
        device: str = "cpu",
    ) -> None:
        self.lib = lib = load_library(interface)
        self.errors: list[str] = []
        self.log = LogCallback(self._keep_error)
        lib.llama_log_set(self.log, None)
        lib.llama_backend_init()
        wanted = lib.llama_model_default_params()
        if device != "cpu" and b"CUDA" not in lib.llama_print_system_info():
            raise RuntimeError("this llama-cpp-python is built without CUDA; build it with CMAKE_ARGS=-DGGML_CUDA=on")
        wanted.n_gpu_layers = 0 if device == "cpu" else ALL_LAYERS
        # Weights repacked for the CPU's kernels are copies: read, not mapped, or both would stay resident.
        wanted.use_extra_bufts = True
        wanted.load_mode = LOAD_MODE_READ
        self.model = lib.llama_model_load_from_file(model.encode(), wanted)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {model}: {self._why()}")
        shape = lib.llama_context_default_params()
        shape.n_ctx, shape.n_batch, shape.n_ubatch = context * streams, batch, batch
        shape.n_seq_max = shape.n_outputs_max = self.streams = streams
        # Nothing may go to a GPU unasked: in a build that has one, cache and single operations would.
        shape.offload_kqv = shape.op_offload = device != "cpu"
        shape.n_threads = shape.n_threads_batch = threads
        self.context = lib.llama_init_from_model(self.model, shape)
        if not self.context:
            raise RuntimeError(f"llama.cpp cannot make a context of {context} tokens: {self._why()}")
        self.memory = lib.llama_get_memory(self.context)
        # A chain keeps its table of candidates; a bare sampler allocates it anew for each token (1 % of decode).
        self.sampler = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        lib.llama_sampler_chain_add(self.sampler, lib.llama_sampler_init_greedy())
        self.words = lib.llama_model_get_vocab(self.model)
        self.vocab = lib.llama_vocab_n_tokens(self.words)
        self.batch, self.device = batch, device
        self.last = (Token * 1)()
        self.single = lib.llama_batch_get_one(self.last, 1)

    def settings(self) -> dict[str, object]:
        lib = self.lib
        return {
            "backend": self.device,
            "gpu_build": lib.llama_supports_gpu_offload(),
            "threads": lib.llama_n_threads(self.context),
            "context": lib.llama_n_ctx(self.context),
            "batch": lib.llama_n_ubatch(self.context),
            "load_mode": "read",
            "repack": True,
            "flash_attention": "auto",
            "cache_dtype": "f16",
            "system": lib.llama_print_system_info().decode().strip(),
        }

    def prefill(self, ids: list[int], *, limit: int) -> int:
        """Empty the cache, evaluate the prompt, return the first greedy token."""
        lib = self.lib
        lib.llama_memory_clear(self.memory, False)
        tokens = (Token * len(ids))(*ids)
        size = ctypes.sizeof(Token)
        for start in range(0, len(ids), self.batch):
            count = min(self.batch, len(ids) - start)
            part = (Token * count).from_buffer(tokens, start * size)
            self._decode(lib.llama_batch_get_one(part, count))
        return self._sample()

    def step(self) -> int:
        """Evaluate the last token, return the next."""
        self._decode(self.single)
        return self._sample()

    def finite(self) -> bool:
        """Whether the last token's logits are all finite."""
        place = self.lib.llama_get_logits_ith(self.context, -1)
        logits = ctypes.cast(place, ctypes.POINTER(ctypes.c_float))
        total = sum(sum(logits[i : min(i + 1024, self.vocab)]) for i in range(0, self.vocab, 1024))
        return total - total == 0.0

    def tokenize(self, text: str) -> list[int]:
        """Token ids of rendered text, by the GGUF's own vocabulary."""
        raw = text.encode()
        tokens = (Token * (len(raw) + 8))()
        count = self.lib.llama_tokenize(self.words, raw, len(raw), tokens, len(tokens), False, True)
        if count < 0:
            raise RuntimeError(f"llama_tokenize needs room for {-count} tokens, {len(tokens)} were given")
        return tokens[:count]

    def close(self) -> None:
        """Give the model and its cache back."""
        self.lib.llama_free(self.context)
        self.lib.llama_model_free(self.model)

    def _decode(self, batch: object) -> None:
        code = self.lib.llama_decode(self.context, batch)
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}: {self._why()}")

    def _sample(self) -> int:
        token = self.lib.llama_sampler_sample(self.sampler, self.context, -1)
        self.last[0] = token
        return token

    def _keep_error(self, level: int, text: bytes, _: object) -> None:
        if level == ERROR_LEVEL:
            self.errors.append(text.decode(errors="replace").strip())

    def _why(self) -> str:
        return self.errors[0] if self.errors else "it gave no reason"


open_engine = LlamaCppEngine
