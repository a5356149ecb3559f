"""Several requests at once on one GGUF: one model, one context, a sequence for each stream, all in one batch a step.

A stream that ends takes the next prompt at once, and its prompt is evaluated beside the others' next tokens
(continuous batching), as a server does it.
"""

from __future__ import annotations

import ctypes
from time import perf_counter_ns

TYPE_CHECKING = False  # as in `passes`
if TYPE_CHECKING:
    from edgedistill.bench.engine_llamacpp import LlamaCppEngine

FIELDS = {"token": ctypes.c_int32, "pos": ctypes.c_int32, "n_seq_id": ctypes.c_int32, "logits": ctypes.c_int8}


class Batch:
    """A llama_batch of at most `room` tokens, each of one sequence."""

    def __init__(self, engine: LlamaCppEngine, room: int) -> None:
        self.arrays = {name: (kind * room)() for name, kind in FIELDS.items()}
        self.ids = (ctypes.c_int32 * room)()
        size = ctypes.sizeof(ctypes.c_int32)
        base = ctypes.addressof(self.ids)
        self.places = (ctypes.c_void_p * room)(*(base + i * size for i in range(room)))
        self.batch = type(engine.single)()
        for name, array in self.arrays.items():
            setattr(self.batch, name, ctypes.addressof(array))
        self.batch.seq_id = ctypes.addressof(self.places)
        self.room, self.count = room, 0

    def add(self, token: int, *, position: int, sequence: int, wanted: bool) -> int:
        """Append a token; returns its place in the batch."""
        i = self.count
        values = {"token": token, "pos": position, "n_seq_id": 1, "logits": int(wanted)}
        for name, value in values.items():
            self.arrays[name][i] = value
        self.ids[i] = sequence
        self.count += 1
        return i


def answer_all(
    engine: LlamaCppEngine, prompts: list[list[int]], *, end_ids: list[int], limit: int
) -> tuple[list[list[int]], list[float], float]:
    """Answer every prompt greedily, `engine.streams` at a time.

    Returns the token ids of each answer, the ms of each from its admission to its end, and the ms of all together.
    """
    lib, batch = engine.lib, Batch(engine, engine.batch)
    lib.llama_memory_clear(engine.memory, False)
    outputs: list[list[int]] = [[] for _ in prompts]
    times = [0.0] * len(prompts)
    waiting = list(range(len(prompts)))[::-1]
    busy: dict[int, int] = {}  # stream -> request
    began: dict[int, int] = {}
    start = perf_counter_ns()
    while waiting or busy:
        batch.count = 0
        ends: dict[int, int] = {}  # stream -> place of its last token in the batch
        for stream, request in busy.items():
            position = len(prompts[request]) + len(outputs[request]) - 1
            ends[stream] = batch.add(outputs[request][-1], position=position, sequence=stream, wanted=True)
        for stream in range(engine.streams):
            if stream in busy or not waiting or batch.count + len(prompts[waiting[-1]]) > batch.room:
                continue
            busy[stream] = request = waiting.pop()
            began[request] = perf_counter_ns()
            lib.llama_memory_seq_rm(engine.memory, stream, -1, -1)
            ids = prompts[request]
            for i, token in enumerate(ids):
                ends[stream] = batch.add(token, position=i, sequence=stream, wanted=i == len(ids) - 1)
        if not batch.count:
            raise RuntimeError(f"a prompt of {len(prompts[waiting[-1]])} tokens does not fit a batch of {batch.room}")
        batch.batch.n_tokens = batch.count
        code = lib.llama_decode(engine.context, batch.batch)
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code} for {len(busy)} streams")
        for stream, place in ends.items():
            request = busy[stream]
            token = lib.llama_sampler_sample(engine.sampler, engine.context, place)
            outputs[request].append(token)
            if token in end_ids or len(outputs[request]) >= limit:
                times[request] = (perf_counter_ns() - began[request]) / 1e6
                del busy[stream]
    return outputs, times, (perf_counter_ns() - start) / 1e6
