"""PyTorch through transformers behind `Session`, with a greedy batch loop over the model's own forward and KV cache."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from edgedistill.core.errors import InputError
from edgedistill.runtimes import hf_batch
from edgedistill.runtimes.base import (
    Generation,
    check_batch,
    check_room,
    drawn_logprobs,
    finished,
    shared_length,
    top_logprobs,
)
from edgedistill.runtimes.chat import refused_as
from edgedistill.runtimes.hf_pages import attending_in_pages
from edgedistill.runtimes.memory import freed_memory_kept
from edgedistill.runtimes.sources import check_folder

KEPT_INSIDE = ("recurrent_gemma",)  # types of models whose states lie in their modules, of whatever came last
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def open_hf(path: Path, *, threads: int, context: int, dtype: str = "float32") -> HfSession:
    """Load a Hugging Face folder on the CPU for sequences of at most `context` tokens.

    Raises:
        InputError: the folder is damaged, transformers does not know its architecture, or `dtype` is unknown.
    """
    if dtype not in DTYPES:
        raise InputError(f"expected a dtype of {', '.join(DTYPES)}, found {dtype!r}; choose one of these")
    check_folder(path)
    torch.set_num_threads(threads)
    with refused_as(f"transformers cannot load the model in {path}, check its config.json"):
        model, report = AutoModelForCausalLM.from_pretrained(
            path, dtype=DTYPES[dtype], output_loading_info=True, local_files_only=True, trust_remote_code=False
        )
    if absent := report["missing_keys"]:
        raise InputError(
            f"the weights in {path} lack {len(absent)} tensors its config.json asks for, first {min(absent)!r}; "
            "fetch or save the model again"
        )
    return HfSession(model, context=context)


class HfSession:
    """A causal LM in memory; see `Session`. Takes a loaded model too, so that a trained one need not be saved first."""

    def __init__(self, model: PreTrainedModel, *, context: int) -> None:
        self.model = model.eval()
        self.context = context
        self.vocab = model.get_output_embeddings().weight.shape[0]
        self.settings = {
            "threads": torch.get_num_threads(),
            "context": context,
            "dtype": str(model.dtype).removeprefix("torch."),
        }
        known = inspect.signature(model.forward).parameters
        self._keeps = "logits_to_keep" in known
        self._kept_in = None if model.config.model_type in KEPT_INSIDE else _cache_argument(known)
        self._cache, self._fed = DynamicCache(config=model.config), 0
        self._pages: bool | None = None  # whether the model answers as well from pages, once it was tried

    def reset(self) -> None:
        self._cache, self._fed = DynamicCache(config=self.model.config), 0

    @torch.inference_mode()
    def feed(self, ids: Sequence[int]) -> np.ndarray:
        check_room(ids, used=self._fed, context=self.context, vocab=self.vocab)
        # Some models begin their states anew where several tokens come after others.
        pieces = [list(ids)] if not self._fed or _keeps_no_states(self._cache) else [[token] for token in ids]
        for piece in pieces:
            logits = self._last(torch.tensor([piece]), past_key_values=self._cache)
        self._fed += len(ids)
        return logits[0].float().numpy()

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> np.ndarray:
        check_room(ids, used=0, context=self.context, vocab=self.vocab)
        self.reset()
        return self.model(torch.tensor([list(ids)]), use_cache=False).logits[0].float().numpy()

    @torch.inference_mode()
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
        answers: list[list[int]] = [[] for _ in batch]
        tops: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in batch]
        look = drawn_logprobs if drawn else top_logprobs

        def take(logits: torch.Tensor, whose: Sequence[int]) -> torch.Tensor:
            logits = logits.float()
            top = look(logits.numpy(), top_k_logprobs) if top_k_logprobs else None
            tokens = torch.from_numpy(top[0][:, 0].astype(np.int64)) if top and not drawn else logits.argmax(-1)
            for row, (prompt, token) in enumerate(zip(whose, tokens.tolist(), strict=True)):
                answers[prompt].append(token)
                if top:
                    tops[prompt].append((top[0][row], top[1][row]))
            return tokens

        how = {"take": take, "ends": torch.tensor(sorted(eos_ids), dtype=torch.long), "max_new_tokens": max_new_tokens}
        with freed_memory_kept():
            if batch and self._pages_fit(max(map(len, batch)) + max_new_tokens):
                with attending_in_pages(self.model):
                    hf_batch.Refilled(self.model, forward=self._last, **how).run(batch)
            else:
                self._in_turns(batch, **how)
        return [finished(answer, top, eos_ids=eos_ids) for answer, top in zip(answers, tops, strict=True)]

    def close(self) -> None:
        del self.model, self._cache

    def _pages_fit(self, cells: int) -> bool:
        if not hf_batch.keeps_all(self.model, cells=cells):
            return False
        if self._pages is None:
            self._pages = hf_batch.pages_fit(self.model, self._last)
        return self._pages

    def _last(self, input_ids: torch.Tensor, *, past_key_values: Cache, **inputs: Any) -> torch.Tensor:
        """Logits of each row's last position, `[rows, vocab]`.

        Raises:
            InputError: the model keeps what it was fed in a cache of its own kind.
        """
        if self._kept_in is None:
            raise InputError(
                "expected a model that keeps what it was fed in transformers' Cache, found "
                f"{type(self.model).__name__}; choose another model"
            )
        keep = {"logits_to_keep": 1} if self._keeps else {}
        return self.model(input_ids, use_cache=True, **{self._kept_in: past_key_values}, **keep, **inputs).logits[:, -1]

    def _in_turns(
        self, batch: Sequence[list[int]], *, take: hf_batch.Take, ends: torch.Tensor, max_new_tokens: int
    ) -> None:
        """Batch after batch, for models that keep more than keys and values: rows that end leave, none comes in.

        What may grow longer than rotary frequencies are alike is answered alone.
        """
        order = sorted(range(len(batch)), key=lambda i: -len(batch[i]))
        alike = hf_batch.cells_alike(self.model.config.get_text_config(decoder=True))
        while order:
            cells = len(batch[order[0]]) + max_new_tokens
            if cells > alike:
                first = order.pop(0)
                self._alone(first, batch[first], take=take, ends=ends, max_new_tokens=max_new_tokens, alike=alike)
                continue
            rows = max(1, min(hf_batch.BATCH_ROWS, hf_batch.PREFILL_TOKENS // cells))
            whose, order = order[:rows], order[rows:]
            cache, prompts = DynamicCache(config=self.model.config), [batch[i] for i in whose]
            shared = shared_length(prompts) if _repeats(cache) else 0
            if shared:
                self._last(torch.tensor([prompts[0][:shared]]), past_key_values=cache)
                cache.batch_repeat_interleave(len(whose))
            inputs = hf_batch.padded(prompts, shared=shared)
            for _ in range(max_new_tokens):
                tokens = take(self._last(**inputs, past_key_values=cache), whose)
                stay = torch.isin(tokens, ends, invert=True).nonzero()[:, 0]
                if not len(stay):
                    break
                if len(stay) < len(whose):
                    cache.reorder_cache(stay)
                    inputs = {name: value[stay] for name, value in inputs.items()}
                    whose, tokens = [whose[row] for row in stay.tolist()], tokens[stay]
                inputs = {
                    "input_ids": tokens[:, None],
                    "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1),
                    "position_ids": inputs["position_ids"][:, -1:] + 1,
                }
                if self._kept_in == "cache_params":  # states have left the padding behind; a mask is of new tokens
                    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])

    def _alone(
        self,
        number: int,
        prompt: Sequence[int],
        *,
        take: hf_batch.Take,
        ends: torch.Tensor,
        max_new_tokens: int,
        alike: float,
    ) -> None:
        """One prompt's answer; what is longer than `alike` is read again once, as all that is cached changes there."""
        cache, known, fed = DynamicCache(config=self.model.config), list(prompt), list(prompt)
        for _ in range(max_new_tokens):
            token = int(take(self._last(torch.tensor([fed]), past_key_values=cache), [number]))
            if token in ends:
                return
            known.append(token)
            fed = [token]
            if len(known) - 1 <= alike < len(known):
                cache, fed = DynamicCache(config=self.model.config), known


def _cache_argument(known: Mapping[str, inspect.Parameter]) -> str | None:
    """What a model's forward calls its cache: state-space models have another name for it, a few another class."""
    if "past_key_values" in known:
        return "past_key_values"
    given = known.get("cache_params")
    return "cache_params" if given is not None and Cache in get_args(given.annotation) else None


def _keeps_no_states(cache: DynamicCache) -> bool:
    """Whether a model's layers keep keys and values alone, of all tokens or of a window."""
    return all(isinstance(layer, DynamicLayer) for layer in cache.layers)


def _repeats(cache: DynamicCache) -> bool:
    """Whether what is cached of a common beginning can be that of many rows, with padding after it.

    Keys and values can; states cannot, and a window would count the padding.
    """
    return all(type(layer) is DynamicLayer for layer in cache.layers)
