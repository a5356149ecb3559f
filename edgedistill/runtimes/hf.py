"""PyTorch through transformers behind `Session`, with a greedy batch loop over the model's own forward and KV cache."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from edgedistill.core.errors import InputError
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
from edgedistill.runtimes.memory import freed_memory_kept
from edgedistill.runtimes.sources import check_folder

BATCH_ROWS = 128  # prompts answered together; a matrix product of 128 rows is within a tenth of the CPU's bf16 peak
BATCH_TOKENS = (
    16_384  # cells of KV cache and prefill that one batch may take, so that long prompts come fewer at a time
)
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
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._cache = DynamicCache(config=model.config)

    def reset(self) -> None:
        self._cache = DynamicCache(config=self.model.config)

    @torch.inference_mode()
    def feed(self, ids: Sequence[int]) -> np.ndarray:
        check_room(ids, used=self._cache.get_seq_length(), context=self.context, vocab=self.vocab)
        return self._last(torch.tensor([list(ids)]), past_key_values=self._cache)[0].float().numpy()

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
        order = sorted(range(len(batch)), key=lambda i: -len(batch[i]))
        done: dict[int, Generation] = {}
        while order:
            rows = max(1, min(BATCH_ROWS, BATCH_TOKENS // (len(batch[order[0]]) + max_new_tokens)))
            chosen, order = order[:rows], order[rows:]
            with freed_memory_kept():
                answers = self._answer(
                    [batch[i] for i in chosen], max_new_tokens=max_new_tokens, eos_ids=eos_ids, top_k=top_k_logprobs,
                    drawn=drawn,
                )  # fmt: skip
            done.update(zip(chosen, answers, strict=True))
        return [done[i] for i in range(len(batch))]

    def close(self) -> None:
        del self.model, self._cache

    def _last(self, ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """Logits of each row's last position, `[rows, vocab]`."""
        keep = {"logits_to_keep": 1} if self._keeps else {}
        return self.model(ids, use_cache=True, **keep, **inputs).logits[:, -1]

    def _answer(
        self, prompts: list[list[int]], *, max_new_tokens: int, eos_ids: frozenset[int], top_k: int, drawn: bool
    ) -> list[Generation]:
        """One batch: the common beginning once, the rest left-padded; ended rows leave, an eighth at a time."""
        cache = DynamicCache(config=self.model.config)
        shared = shared_length(prompts)
        if shared:
            self._last(torch.tensor([prompts[0][:shared]]), past_key_values=cache)
            cache.batch_repeat_interleave(len(prompts))
        width = max(map(len, prompts))
        ids = torch.zeros(len(prompts), width - shared, dtype=torch.long)
        mask = torch.ones(len(prompts), width + max_new_tokens, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt[shared:])
            mask[row, shared : shared + width - len(prompt)] = 0
        positions = (mask[:, :width].cumsum(1) - 1).clamp(min=0)[:, shared:]
        rows = torch.arange(len(prompts))  # which prompt each row of the batch answers
        ends = torch.tensor(sorted(eos_ids), dtype=torch.long)
        answers: list[list[int]] = [[] for _ in prompts]
        tops: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in prompts]
        live = torch.ones(len(prompts), dtype=torch.bool)
        for step in range(max_new_tokens):
            logits = self._last(
                ids, attention_mask=mask[:, : width + step], position_ids=positions, past_key_values=cache
            ).float()
            look = drawn_logprobs if drawn else top_logprobs
            top = look(logits.numpy(), top_k) if top_k else None
            token = torch.from_numpy(top[0][:, 0].astype(np.int64)) if top and not drawn else logits.argmax(-1)
            for row, (prompt, chosen, alive) in enumerate(
                zip(rows.tolist(), token.tolist(), live.tolist(), strict=True)
            ):
                if alive:
                    answers[prompt].append(chosen)
                    if top:
                        tops[prompt].append((top[0][row], top[1][row]))
            live &= ~torch.isin(token, ends)
            left = int(live.sum())
            if not left:
                break
            ids, positions = token[:, None], positions[:, -1:] + 1
            if left <= len(live) * 7 // 8:
                keep = live.nonzero()[:, 0]
                cache.batch_select_indices(keep)
                ids, positions, mask, rows, live = ids[keep], positions[keep], mask[keep], rows[keep], live[keep]
        return [finished(answer, top, eos_ids=eos_ids) for answer, top in zip(answers, tops, strict=True)]
