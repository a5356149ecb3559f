"""transformers on torch for the bench worker: eager or compiled, in the float type and with the cache it is told.

It is the teacher's baseline, so it should run in the fastest setting that answers alike: `torch_settings` has the
candidates tried before the first block. Rows say `dtype`, `attention`, `cache` and `compiled`.
"""

from __future__ import annotations

import gc
import os

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache
from transformers.utils import logging

CACHE_TYPES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


class TorchEngine:
    """One sequence of one Hugging Face folder, greedy, with a KV cache and transformers' default attention (SDPA).

    `compiled` compiles the decode step (torch.compile, a static cache of `context` tokens, which never changes shape)
    while the model is loaded, so that the load's time has it and no request's does; prompts vary in length and are
    evaluated eagerly, as `generate` does it.
    """

    name = "torch"

    def __init__(
        self,
        model: str,
        *,
        threads: int,
        context: int,
        batch: int,
        device: str = "cpu",
        dtype: str = "float32",
        compiled: bool = False,
    ) -> None:
        torch.set_num_threads(threads)
        if torch.get_num_interop_threads() != 1:  # may be set once in a process, and a reload comes here again
            torch.set_num_interop_threads(1)
        logging.disable_progress_bar()
        self.model = (
            AutoModelForCausalLM.from_pretrained(
                model, dtype=getattr(torch, dtype), local_files_only=True, trust_remote_code=False
            )
            .to(device)
            .eval()
        )
        self.folder, self.context, self.compiled = model, context, compiled
        self.tokenizer = self.cache = None
        self.decode = self.model
        if compiled:
            from torch._inductor import config as inductor  # seconds that the eager settings need not spend

            inductor.compile_threads = 1  # a pool of processes would take the measured one's memory and cores
            self.cache = StaticCache(config=self.model.config, max_cache_len=context)
            self.decode = torch.compile(self.model, fullgraph=True)
            self.prefill([0], limit=0)
            self.step()

    def settings(self) -> dict[str, object]:
        return {
            "backend": self.model.device.type,
            "compiled": self.compiled,
            "threads": torch.get_num_threads(),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "cache_dtype": CACHE_TYPES[self.model.dtype],
            "attention": self.model.config._attn_implementation,
            "cache": "static" if self.compiled else "grows",
        }

    @torch.no_grad()
    def prefill(self, ids: list[int], *, limit: int) -> int:
        """Start over with an empty cache, evaluate the prompt, return the first greedy token."""
        if self.compiled:
            self.cache.reset()
        else:
            self.cache = DynamicCache(config=self.model.config)
        return self._next(self.model, torch.tensor([ids], device=self.model.device))

    @torch.no_grad()
    def step(self) -> int:
        """Evaluate the last token, return the next."""
        return self._next(self.decode, self.token)

    def finite(self) -> bool:
        """Whether the last token's logits are all finite."""
        return bool(torch.isfinite(self.logits).all())

    def tokenize(self, text: str) -> list[int]:
        """Token ids of rendered text, by the folder's tokenizer.json."""
        if self.tokenizer is None:
            self.tokenizer = Tokenizer.from_file(os.path.join(self.folder, "tokenizer.json"))
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def close(self) -> None:
        """Give the model and its cache back."""
        self.model = self.decode = self.cache = self.logits = None
        gc.collect()

    def _next(self, run: torch.nn.Module, ids: torch.Tensor) -> int:
        output = run(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.logits = output.logits[0, -1]
        token = self.logits.argmax()
        self.token = token.view(1, 1)
        return int(token)


open_engine = TorchEngine
