"""Plain onnxruntime for the bench worker, for decoder graphs that onnxruntime-genai does not load.

The KV cache stays in OrtValues: what a step puts out is bound to the next one's inputs (IO binding,
https://onnxruntime.ai/docs/api/python/api_summary.html#iobinding), and of the logits the last position is read where it
lies. The cache grows by a token a step, so a graph copies it each time, where genai can write into one long buffer.
Its Python module brings numpy, 14 MB that the engines with a C interface do not have in their memory figures.
"""

from __future__ import annotations

import ctypes
import gc

import numpy as np
import onnxruntime as ort

from edgedistill.bench.engine_genai import SESSION
from edgedistill.bench.onnx_folder import beside, geometry, the_graph
from edgedistill.bench.process_memory import thread_count

TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}
PAST, PRESENT = "past_key_values.", "present."
# Besides the cache. The last is how newer exports of transformers ask for the last position's logits alone.
INPUTS = ("input_ids", "attention_mask", "position_ids", "num_logits_to_keep")


class OnnxEngine:
    """One sequence of one decoder graph, greedy, with a cache that every `prefill` begins anew."""

    name = "onnxruntime"

    def __init__(self, model: str, *, threads: int, context: int, batch: int, device: str = "cpu") -> None:
        if device != "cpu":
            raise RuntimeError(f"graphs that onnxruntime-genai does not load are run on the CPU only, not on {device}")
        self.graph = the_graph(model)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        for name, value in SESSION.items():
            setattr(options, name, value)
        before = thread_count()
        self.session = ort.InferenceSession(self.graph, options, providers=["CPUExecutionProvider"])
        self.spawned = thread_count() - before
        self.threads = threads
        self.inputs = {value.name: _type_of(value) for value in self.session.get_inputs()}
        self.past = [name for name in self.inputs if name.startswith(PAST)]
        self.present = [PRESENT + name.removeprefix(PAST) for name in self.past]
        self._require_decoder()
        self.logits_type = next(_type_of(value) for value in self.session.get_outputs() if value.name == "logits")
        # Ones for every position: a step shows the graph as many of them as there are tokens.
        self.ones = np.ones((1, context), self.inputs.get("attention_mask", np.int64))
        self.places = np.arange(context, dtype=self.inputs.get("position_ids", np.int64))[None]
        shape = geometry(self.graph)
        self.empty = [1, shape["kv_heads"], 0, shape["width"]]
        self.binding = self.session.io_binding()
        self.tokenizer = None

    def settings(self) -> dict[str, object]:
        # The pool cannot be asked for its size, so threads are counted: all but the caller's.
        return {
            "backend": "cpu",
            "threads": self.spawned + 1,
            "graph": self.graph.rpartition("/")[2],
            "cache": "grows, bound by IO binding",
            "cache_dtype": f"f{8 * np.dtype(self.inputs[self.past[0]]).itemsize}",
            **SESSION,
        }

    def prefill(self, ids: list[int], *, limit: int) -> int:
        """Start over with an empty cache, evaluate the prompt, return the first greedy token."""
        self.length = 0
        kind = self.inputs[self.past[0]]
        nothing = ort.OrtValue.ortvalue_from_shape_and_type(self.empty, kind, "cpu")
        return self._run(ids, [nothing] * len(self.past))

    def step(self) -> int:
        """Evaluate the last token, return the next."""
        return self._run([self.token], self.cache)

    def finite(self) -> bool:
        """Whether the last token's logits are all finite."""
        return bool(np.isfinite(self._last_logits()).all())

    def tokenize(self, text: str) -> list[int]:
        """Token ids of rendered text, by the folder's tokenizer.json."""
        if self.tokenizer is None:
            from tokenizers import Tokenizer

            self.tokenizer = Tokenizer.from_file(beside(self.graph, "tokenizer.json"))
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def close(self) -> None:
        """Give the model and its cache back."""
        self.session = self.binding = self.cache = self.logits = None
        gc.collect()

    def _run(self, ids: list[int], cache: list[ort.OrtValue]) -> int:
        binding, end = self.binding, self.length + len(ids)
        given = {
            "input_ids": np.array([ids], self.inputs["input_ids"]),
            "attention_mask": self.ones[:, :end],
            "position_ids": self.places[:, self.length : end],
            "num_logits_to_keep": np.array(1, self.inputs.get("num_logits_to_keep", np.int64)),
        }
        for name in self.inputs.keys() & given.keys():
            binding.bind_cpu_input(name, given[name])  # read where it lies, so `given` lives to the end of the run
        for name, value in zip(self.past, cache, strict=True):
            binding.bind_ortvalue_input(name, value)
        # Bound anew each time: what a step put out is the cache now, and must not be written over.
        for name in ("logits", *self.present):
            binding.bind_output(name, "cpu")
        self.session.run_with_iobinding(binding)
        self.logits, *self.cache = binding.get_outputs()
        self.length = end
        self.token = int(self._last_logits().argmax())
        return self.token

    def _last_logits(self) -> np.ndarray:
        """Logits of the last position `[vocab]`, where onnxruntime has them."""
        *_, positions, vocab = self.logits.shape()
        size = np.dtype(self.logits_type).itemsize * vocab
        place = self.logits.data_ptr() + size * (positions - 1)
        return np.frombuffer((ctypes.c_char * size).from_address(place), self.logits_type)

    def _require_decoder(self) -> None:
        outputs = {value.name for value in self.session.get_outputs()}
        strange = [name for name in self.inputs if name not in INPUTS and name not in self.past]
        missing = [name for name in ("logits", *self.present) if name not in outputs]
        if strange or missing or not self.past or "input_ids" not in self.inputs:
            what = f"also asks for {', '.join(strange)}" if strange else f"has no {', '.join(missing) or 'past'}"
            raise RuntimeError(
                f"expected a decoder with {PAST}N.key and .value in, {PRESENT}N.key and .value and logits out; "
                f"{self.graph} {what}"
            )


def _type_of(value: ort.NodeArg) -> type:
    if value.type not in TYPES:
        raise RuntimeError(f"expected {value.name} to be of {', '.join(TYPES)}, found {value.type}")
    return TYPES[value.type]


open_engine = OnnxEngine
