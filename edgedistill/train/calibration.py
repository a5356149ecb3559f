"""What a model loses, and what its modules see, on calibration sequences; padding is never counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from edgedistill.train.data import Batch, Example, collate
from edgedistill.train.step import step_losses

BATCH = 32  # sequences
# Takes a module's input and output `[tokens, width]`.
Watcher = Callable[[Tensor, Tensor], None]


@torch.no_grad()
def mean_loss(model: Any, examples: Sequence[Example]) -> float:
    """Cross-entropy in nats per supervised token."""
    model.eval()
    losses = (float(step_losses(model, batch, kd_weight=0.0).total) for batch, _ in _batches(examples))
    return sum(losses) / sum(e.supervised for e in examples)


@torch.no_grad()
def observe(model: Any, examples: Sequence[Example], watchers: Mapping[str, Watcher]) -> None:
    """Run the decoder of `model` over `examples`; each named module's input and output go to its watcher."""
    model.eval()
    real = torch.empty(0)

    def hook(watcher: Watcher) -> Any:
        def seen(_: Any, args: tuple[Tensor, ...], output: Any) -> None:
            watcher(args[0][real].float(), (output[0] if isinstance(output, tuple) else output)[real].float())

        return seen

    hooks = [model.get_submodule(name).register_forward_hook(hook(watcher)) for name, watcher in watchers.items()]
    try:
        for batch, real in _batches(examples):  # noqa: B007 - the hooks read it
            model.get_decoder()(input_ids=batch.input_ids, use_cache=False)
    finally:
        for handle in hooks:
            handle.remove()


def _batches(examples: Sequence[Example]) -> Iterator[tuple[Batch, Tensor]]:
    """Batches of like length, each with a bool mask `[rows, length]` of what is no padding."""
    near = sorted(examples, key=lambda e: len(e.ids))
    for begin in range(0, len(near), BATCH):
        rows = near[begin : begin + BATCH]
        batch = collate(rows)
        lengths = torch.tensor([len(e.ids) for e in rows])
        yield batch, torch.arange(batch.input_ids.shape[1]) < lengths[:, None]
