"""What a loaded engine offers the worker's passes; each `engine_*.py` has a class of this shape as `open_engine`."""

from __future__ import annotations

from typing import Protocol


class Engine(Protocol):
    """One sequence of one model, decoded greedily, with a KV cache that every `prefill` begins anew."""

    name: str

    def __init__(self, model: str, *, threads: int, context: int, batch: int) -> None:
        """Load the model for prompts and answers of `context` tokens together, evaluated `batch` tokens at a time."""

    def settings(self) -> dict[str, object]:
        """What it really got: `threads`, `backend` (cpu, cuda) and everything else that moves speed or memory."""

    def prefill(self, ids: list[int], *, limit: int) -> int:
        """Empty the cache, evaluate the prompt, return the first token.

        With `limit` > 0 so many tokens will be made, whatever they are.
        """

    def step(self) -> int:
        """Evaluate the last token, return the next."""

    def finite(self) -> bool:
        """Whether the last token's logits are all finite."""

    def tokenize(self, text: str) -> list[int]:
        """Token ids of rendered text by the engine's own tokenizer, which the first call loads."""

    def close(self) -> None:
        """Give the model and its cache back; nothing else may be called afterwards."""
