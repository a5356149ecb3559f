"""onnxruntime-genai behind `Session`: a genai folder, run token by token or in batches of equal length."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import onnxruntime_genai as genai

from edgedistill.core.errors import InputError, shortened
from edgedistill.core.files import read_json
from edgedistill.runtimes.base import Generation, check_batch, check_room, drawn_logprobs, finished, top_logprobs
from edgedistill.runtimes.onnx_file import check_genai_folder

BATCH_ROWS = 32


def open_onnx(path: Path, *, threads: int, context: int) -> OnnxSession:
    """Load a genai folder on the CPU for sequences of at most `context` tokens.

    Raises:
        InputError: the folder is damaged or onnxruntime-genai refuses it.
    """
    check_genai_folder(path)
    model = read_json(path / "genai_config.json")["model"]
    vocab, ends = model["vocab_size"], model["eos_token_id"]
    end_ids = frozenset(ends if isinstance(ends, list) else [ends])
    decoder = {"session_options": {"intra_op_num_threads": threads, "log_severity_level": 4}}
    try:
        config = genai.Config(str(path))
        # genai masks every pad id inside a batch's prompts, and chat models pad with the id that ends each turn
        config.overlay(json.dumps({"model": {"pad_token_id": -1, "decoder": decoder}}))
        session = OnnxSession(genai.Model(config), threads=threads, context=context, vocab=vocab, end_ids=end_ids)
        session.feed([0])  # shapes that do not fit one another are found by running alone
        session.reset()
    except RuntimeError as e:
        cause = shortened(str(e).strip().rpartition(" : FAIL : ")[2].splitlines()[0].rstrip("."))
        raise InputError(f"onnxruntime-genai cannot run {path}: {cause}; export the model again") from None
    return session


class OnnxSession:
    """A decoder loaded by onnxruntime-genai; see `Session`."""

    def __init__(self, model: genai.Model, *, threads: int, context: int, vocab: int, end_ids: frozenset[int]) -> None:
        self._model, self.context, self.vocab, self._end_ids = model, context, vocab, end_ids
        self.settings = {"threads": threads, "context": context, "device": model.device_type}
        self._one = self._generator(rows=1, length=context)

    def _generator(self, *, rows: int, length: int) -> genai.Generator:
        parameters = genai.GeneratorParams(self._model)
        parameters.set_search_options(max_length=length, batch_size=rows, do_sample=False)
        return genai.Generator(self._model, parameters)

    def reset(self) -> None:
        self._one.rewind_to(0)

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        check_room(ids, used=self._one.token_count(), context=self.context, vocab=self.vocab)
        self._one.append_tokens(np.asarray(ids, np.int32))
        return self._one.get_logits()[0, -1].astype(np.float32)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        check_room(ids, used=0, context=self.context, vocab=self.vocab)
        self.reset()
        self._one.append_tokens(np.asarray(ids, np.int32))
        rows = self._one.get_output("logits")[0].astype(np.float32)
        self.reset()
        return rows

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
        ask = {"max_new_tokens": max_new_tokens, "eos_ids": eos_ids, "top_k": top_k_logprobs, "drawn": drawn}
        if not self._end_ids <= eos_ids:  # a batch stops at the folder's own ends, asked for or not
            return [self._answer_alone(prompt, **ask) for prompt in batch]
        done: dict[int, Generation] = {}
        order = sorted(range(len(batch)), key=lambda i: len(batch[i]))
        for _, group in groupby(order, key=lambda i: len(batch[i])):  # unequal rows would need padding
            same = list(group)
            for at in range(0, len(same), BATCH_ROWS):
                rows = same[at : at + BATCH_ROWS]
                done.update(zip(rows, self._answer_together([batch[i] for i in rows], **ask), strict=True))
        return [done[i] for i in range(len(batch))]

    def close(self) -> None:
        del self._one, self._model

    def _answer_alone(
        self, prompt: list[int], *, max_new_tokens: int, eos_ids: frozenset[int], top_k: int, drawn: bool
    ) -> Generation:
        answer: list[int] = []
        tops: list[tuple[np.ndarray, np.ndarray]] = []
        self.reset()
        while not _ended(answer, eos_ids) and len(answer) < max_new_tokens:
            logits = self.feed(answer[-1:] or prompt)
            if top_k:
                best, values = (drawn_logprobs if drawn else top_logprobs)(logits[None], top_k)
                tops.append((best[0], values[0]))
            answer.append(int(logits.argmax()))
        return finished(answer, tops, eos_ids=eos_ids)

    def _answer_together(
        self, prompts: list[list[int]], *, max_new_tokens: int, eos_ids: frozenset[int], top_k: int, drawn: bool
    ) -> list[Generation]:
        """One batch of prompts of one length; begun anew with the rows still running once half of them have ended."""
        length = len(prompts[0]) + max_new_tokens
        answers: list[list[int]] = [[] for _ in prompts]
        tops: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in prompts]
        rows = list(range(len(prompts)))
        generator = self._begin([prompts[row] for row in rows], length=length)
        look = drawn_logprobs if drawn else top_logprobs
        for _ in range(max_new_tokens):
            top = look(generator.get_logits()[:, -1].astype(np.float32), top_k) if top_k else None
            generator.generate_next_token()
            chosen = generator.get_next_tokens()
            for at, row in enumerate(rows):
                if not _ended(answers[row], eos_ids):
                    answers[row].append(int(chosen[at]))
                    if top:
                        tops[row].append((top[0][at], top[1][at]))
            live = [row for row in rows if not _ended(answers[row], eos_ids)]
            if not live:
                break
            if len(live) * 2 <= len(rows) and len(answers[live[0]]) < max_new_tokens:
                rows = live
                generator = self._begin([prompts[row] + answers[row] for row in rows], length=length)
        return [finished(answer, top, eos_ids=eos_ids) for answer, top in zip(answers, tops, strict=True)]

    def _begin(self, sequences: list[list[int]], *, length: int) -> genai.Generator:
        generator = self._generator(rows=len(sequences), length=length)
        tokens = np.asarray(sequences, np.int32)
        generator.append_tokens(tokens if len(sequences) > 1 else tokens[0])
        return generator


def _ended(answer: list[int], eos_ids: frozenset[int]) -> bool:
    return bool(answer) and answer[-1] in eos_ids
