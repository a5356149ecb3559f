"""llama.cpp behind `Session`: one running sequence, and many parallel ones that are refilled as they end."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgedistill.core.errors import InputError, StageError
from edgedistill.runtimes.base import (
    Generation,
    check_batch,
    check_room,
    drawn_logprobs,
    finished,
    shared_length,
    top_logprobs,
)
from edgedistill.runtimes.llama_lib import library, load, why

LEAST_SHARED = 8  # tokens: below, what is saved is less than the batch of its own that it costs
PARALLEL = 32  # sequences decoded together; more only add masked cells to every row of the unified cache
LOGITS_CHUNK = 128  # rows of logits that the library holds at once


def open_llamacpp(path: Path, *, threads: int, context: int, repack: bool = True) -> LlamaSession:
    """Load a GGUF on the CPU for sequences of at most `context` tokens.

    Raises:
        InputError: the file is damaged or llama.cpp refuses it.
    """
    return LlamaSession(path, model=load(path, repack=repack), threads=threads, context=context)


class LlamaContext:
    """A llama_context with a batch of its own, written through numpy views.

    `callback` is called for every node that is evaluated (`ggml_backend_sched_eval_callback`).
    """

    def __init__(
        self,
        path: Path,
        model: Any,
        *,
        threads: int,
        cells: int,
        sequences: int,
        tokens: int,
        callback: Any = None,
    ) -> None:
        self.lib = library()
        parameters = self.lib.llama_context_default_params()
        parameters.n_ctx = cells * sequences
        parameters.n_batch = tokens
        parameters.n_ubatch = min(tokens, 512)
        parameters.n_seq_max = sequences
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.kv_unified = True
        if callback is not None:
            parameters.cb_eval = callback
            self._callback = callback  # the C side keeps the pointer
        self.pointer = self.lib.llama_init_from_model(model, parameters)
        if not self.pointer:
            raise InputError(
                f"llama.cpp cannot run {path} with a context of {cells} for {sequences} sequences: {why()}; "
                "choose a smaller context"
            )
        self.memory = self.lib.llama_get_memory(self.pointer)
        self.vocab = self.lib.llama_vocab_n_tokens(self.lib.llama_model_get_vocab(model))
        self.cells, self.sequences, self.tokens = cells, sequences, tokens
        self.batch = self.lib.llama_batch_init(tokens, 0, 1)
        view = np.ctypeslib.as_array
        self._token, self._pos = view(self.batch.token, (tokens,)), view(self.batch.pos, (tokens,))
        self._wanted = view(self.batch.logits, (tokens,))
        view(self.batch.n_seq_id, (tokens,))[:] = 1
        self._sequence = [view(self.batch.seq_id[i], (1,)) for i in range(tokens)]

    def run(self, parts: list[tuple[int, int, Sequence[int], bool]]) -> np.ndarray:
        """Decode parts of (sequence, first position, ids, all logits or the last only); the wanted rows, in order.

        The rows are a view of the library's buffer, valid until the next call.
        """
        at = rows = 0
        for sequence, position, ids, every in parts:
            end = at + len(ids)
            self._token[at:end] = ids
            self._pos[at:end] = range(position, position + len(ids))
            self._wanted[at:end] = every
            self._wanted[end - 1] = True
            for i in range(at, end):
                self._sequence[i][0] = sequence
            rows += len(ids) if every else 1
            at = end
        self.batch.n_tokens = at
        code = self.lib.llama_decode(self.pointer, self.batch)
        if code != 0:
            raise StageError(f"llama.cpp failed to decode {at} tokens (code {code}: {why()}); run with a smaller batch")
        pointer = self.lib.llama_get_logits(self.pointer)
        return np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (rows, self.vocab))

    def copy(self, source: int, sequence: int, length: int) -> None:
        """Let `sequence` begin with the first `length` tokens of `source`, whose cells it shares."""
        self.lib.llama_memory_seq_cp(self.memory, source, sequence, 0, length)

    def forget(self, sequence: int) -> None:
        self.lib.llama_memory_seq_rm(self.memory, sequence, -1, -1)

    def free(self) -> None:
        self.lib.llama_batch_free(self.batch)
        self.lib.llama_free(self.pointer)


@dataclass
class _Slot:
    """A running answer: which prompt it belongs to, its next position, and what came so far."""

    index: int
    position: int
    ids: list[int] = field(default_factory=list)
    tops: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)


class LlamaSession:
    """A GGUF loaded by llama.cpp; see `Session`."""

    def __init__(self, path: Path, *, model: Any, threads: int, context: int) -> None:
        self._path, self._model, self._threads, self.context = path, model, threads, context
        self._one = self._context(cells=context, sequences=1, tokens=min(context, 512))
        self._many: LlamaContext | None = None
        self._used = 0
        self.vocab = self._one.vocab
        lib, pointer = self._one.lib, self._one.pointer
        self.settings = {
            "threads": lib.llama_n_threads(pointer),
            "context": lib.llama_n_ctx(pointer),
            "batch": lib.llama_n_batch(pointer),
            "ubatch": lib.llama_n_ubatch(pointer),
            "system": lib.llama_print_system_info().decode().strip(),
        }

    def _context(self, *, cells: int, sequences: int, tokens: int) -> LlamaContext:
        return LlamaContext(
            self._path, self._model, threads=self._threads, cells=cells, sequences=sequences, tokens=tokens
        )

    def reset(self) -> None:
        self._one.forget(0)
        self._used = 0

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        check_room(ids, used=self._used, context=self.context, vocab=self.vocab)
        step = self._one.tokens
        for at in range(0, len(ids), step):
            rows = self._one.run([(0, self._used, ids[at : at + step], False)])
            self._used += len(ids[at : at + step])
        return rows[-1].copy()

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        check_room(ids, used=0, context=self.context, vocab=self.vocab)
        self.reset()
        step = min(self._one.tokens, LOGITS_CHUNK)
        rows = [self._one.run([(0, at, ids[at : at + step], True)]).copy() for at in range(0, len(ids), step)]
        self.reset()
        return np.concatenate(rows)

    def batch_logits(self, batch: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Logits `[len(ids), vocab]` of each of several fresh sequences that one batch decodes together.

        Raises:
            InputError: the sequences do not fit one batch, or the vocabulary.
        """
        for ids in batch:
            check_room(ids, used=0, context=self.context, vocab=self.vocab)
        context = self._parallel(cells=-(-max(map(len, batch)) // 32) * 32, sequences=len(batch))
        if (count := sum(map(len, batch))) > context.tokens:
            raise InputError(f"{count} tokens do not fit a batch of {context.tokens}; give fewer or shorter sequences")
        rows = context.run([(sequence, 0, ids, True) for sequence, ids in enumerate(batch)]).copy()
        for sequence in range(len(batch)):
            context.forget(sequence)
        return np.split(rows, np.cumsum([len(ids) for ids in batch])[:-1])

    def generate(
        self,
        batch: list[list[int]],
        *,
        max_new_tokens: int,
        eos_ids: frozenset[int],
        top_k_logprobs: int = 0,
        drawn: bool = False,
    ) -> list[Generation]:
        check_batch(batch, max_new_tokens=max_new_tokens, context=self.context, vocab=self.vocab)
        self.reset()
        if not batch:
            return []
        cells = -(-(max(map(len, batch)) + max_new_tokens) // 32) * 32
        shared = shared_length(batch)
        shared = shared if shared >= LEAST_SHARED else 0
        context = self._parallel(cells=cells, sequences=min(PARALLEL, len(batch)) + bool(shared))
        waiting = sorted(range(len(batch)), key=lambda i: len(batch[i]))  # equal lengths prefill together
        running: dict[int, _Slot] = {}
        free = list(range(context.sequences))
        done: dict[int, Generation] = {}
        if shared:  # what all prompts begin with is computed once, in a sequence of its own
            first = free.pop()
            context.run([(first, 0, batch[0][:shared], False)])
        while waiting or running:
            parts = [(s, slot.position, slot.ids[-1:], False) for s, slot in running.items()]
            room = context.tokens - len(parts)
            while waiting and free and len(batch[waiting[-1]]) - shared <= room:
                index = waiting.pop()
                sequence = free.pop()
                if shared:
                    context.copy(first, sequence, shared)
                parts.append((sequence, shared, batch[index][shared:], False))
                running[sequence] = _Slot(index=index, position=shared)
                room -= len(batch[index]) - shared
            rows = context.run(parts)
            best = rows.argmax(axis=1)
            look = drawn_logprobs if drawn else top_logprobs
            tops = look(rows, top_k_logprobs) if top_k_logprobs else None
            for row, (sequence, _, fed, _) in enumerate(parts):
                slot = running[sequence]
                slot.position += len(fed)
                slot.ids.append(int(best[row]))
                if tops:
                    slot.tops.append((tops[0][row], tops[1][row]))
                if slot.ids[-1] in eos_ids or len(slot.ids) == max_new_tokens:
                    done[slot.index] = finished(slot.ids, slot.tops, eos_ids=eos_ids)
                    context.forget(sequence)
                    free.append(sequence)
                    del running[sequence]
        if shared:
            context.forget(first)
        return [done[i] for i in range(len(batch))]

    def _parallel(self, *, cells: int, sequences: int) -> LlamaContext:
        if self._many is None or self._many.cells < cells or self._many.sequences < sequences:
            if self._many is not None:
                self._many.free()
            self._many = None
            self._many = self._context(cells=cells, sequences=sequences, tokens=max(512, cells + sequences))
        return self._many

    def close(self) -> None:
        for context in (self._one, self._many):
            if context is not None:
                context.free()
        self._many = None
        self._one.lib.llama_model_free(self._model)
