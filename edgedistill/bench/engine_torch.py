"""transformers on torch for the bench worker: float32 on the CPU, uncompiled; what artifacts are held against."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils import logging


class TorchEngine:
    """One sequence of one Hugging Face folder, greedy, with a KV cache and transformers' default attention (SDPA)."""

    name = "torch"

    def __init__(self, model: str, *, threads: int, context: int, batch: int, device: str = "cpu") -> None:
        torch.set_num_threads(threads)
        torch.set_num_interop_threads(1)
        logging.disable_progress_bar()
        self.model = (
            AutoModelForCausalLM.from_pretrained(
                model, dtype=torch.float32, local_files_only=True, trust_remote_code=False
            )
            .to(device)
            .eval()
        )

    def settings(self) -> dict[str, object]:
        return {
            "threads": torch.get_num_threads(),
            "device": str(self.model.device),
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

    def _next(self, ids: torch.Tensor) -> int:
        output = self.model(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.logits = output.logits[0, -1]
        token = self.logits.argmax()
        self.token = token.view(1, 1)
        return int(token)


open_engine = TorchEngine
