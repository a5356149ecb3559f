"""transformers on torch for the bench worker: uncompiled eager float32 on the CPU with SDPA and a growing cache.

It is the teacher's baseline, so it should be the fastest honest setting. On one core of a busy AVX-512 host without
AMX, the 135M teacher, 64 tokens in: eager float32 decoded 5.3 tok/s first and 4.4 last; between them bfloat16 4.7,
with a prefill a seventh as fast, and a static cache 3.9. torch.compile is left out: each block is a fresh process and
would compile first, for longer than the block takes. Rows say `dtype`, `attention` and `compiled`.
"""

from __future__ import annotations

import gc
import os

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils import logging


class TorchEngine:
    """One sequence of one Hugging Face folder, greedy, with a KV cache and transformers' default attention (SDPA)."""

    name = "torch"

    def __init__(self, model: str, *, threads: int, context: int, batch: int, device: str = "cpu") -> None:
        torch.set_num_threads(threads)
        if torch.get_num_interop_threads() != 1:  # may be set once in a process, and a reload comes here again
            torch.set_num_interop_threads(1)
        logging.disable_progress_bar()
        self.model = (
            AutoModelForCausalLM.from_pretrained(
                model, dtype=torch.float32, local_files_only=True, trust_remote_code=False
            )
            .to(device)
            .eval()
        )

        self.folder = model
        self.tokenizer = None

    def settings(self) -> dict[str, object]:
        return {
            "backend": self.model.device.type,
            "compiled": False,
            "threads": torch.get_num_threads(),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "attention": self.model.config._attn_implementation,
        }

    @torch.inference_mode()
    def prefill(self, ids: list[int], *, limit: int) -> int:
        """Start over with an empty cache, evaluate the prompt, return the first greedy token."""
        self.cache = DynamicCache(config=self.model.config)
        return self._next(torch.tensor([ids], device=self.model.device))

    @torch.inference_mode()
    def step(self) -> int:
        """Evaluate the last token, return the next."""
        return self._next(self.token)

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
        self.model = self.cache = self.logits = None
        gc.collect()

    def _next(self, ids: torch.Tensor) -> int:
        output = self.model(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.logits = output.logits[0, -1]
        token = self.logits.argmax()
        self.token = token.view(1, 1)
        return int(token)


open_engine = TorchEngine
