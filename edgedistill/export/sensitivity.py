"""What an error in a matrix costs in KL divergence, told from gradients in one pass over calibration text.

To second order the divergence that a small change of a layer's outputs makes is half its square in the Fisher metric.
With the outputs' part of it taken as independent of the inputs' and row by row (the diagonal of a K-FAC factor, Martens
& Grosse 2015, https://arxiv.org/abs/1503.05671) the error e of row r costs g_r / 2 * e H e, where g_r is the mean
squared gradient of the log-likelihood of tokens *drawn from the model*, and H the mean outer product of the inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PreTrainedModel

from edgedistill.quant.blocks import decode_blocks
from edgedistill.quant.compensate import compensate_blocks, feedback_of
from edgedistill.quant.plan import EMBEDDING

SAMPLED_ROWS = 48  # of a matrix, evenly: rows are rounded one by one, so a sample of them tells the mean error


def row_sensitivities(model: Path, chunks: Sequence[Sequence[int]], *, threads: int) -> dict[str, NDArray[np.float32]]:
    """Mean squared gradients `[rows]` at the outputs of each linear layer but the head, by its weight's name."""
    torch.set_num_threads(threads)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True).eval()
    loaded.requires_grad_(False)
    head = loaded.get_output_embeddings()
    sums: dict[str, torch.Tensor] = {}

    def watch(name: str, module: torch.nn.Linear) -> None:
        def add(_: torch.nn.Module, __: object, gradients: tuple[torch.Tensor, ...]) -> None:
            squares = gradients[0].square().sum(dim=(0, 1))
            sums[name] = sums[name] + squares if name in sums else squares

        module.register_full_backward_hook(add)

    for name, module in loaded.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            watch(f"{name}.weight", module)
    # the weights need no gradients; the embeddings' outputs do, so that there is something to go back to
    loaded.get_input_embeddings().register_forward_hook(lambda _, __, output: output.requires_grad_(True))
    generator = torch.Generator().manual_seed(0)
    for ids in chunks:
        logits = _logits(loaded, ids)
        drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
        torch.nn.functional.cross_entropy(logits, drawn, reduction="sum").backward()
    tokens = sum(map(len, chunks))
    return {name: (total / tokens).numpy() for name, total in sums.items()}


def rounding_costs(
    weights: NDArray[np.float32], *, grids: Sequence[str], moment: NDArray[np.float32], rows: NDArray[np.float32]
) -> dict[str, float]:
    """Nats per token that each grid costs a matrix `[rows, columns]`, whose rows have the sensitivities `rows`."""
    step = max(1, len(weights) // SAMPLED_ROWS)
    sample, weigh = np.asarray(weights[::step], dtype=np.float32), rows[::step].astype(np.float64)
    moment = np.asarray(moment)
    share = rows.sum(dtype=np.float64) / max(weigh.sum(), 1e-300)
    costs, feedback = {}, feedback_of(moment)
    for grid in grids:
        error = sample - decode_blocks(compensate_blocks(sample, grid=grid, moment=moment, feedback=feedback))
        costs[grid] = float(share / 2 * np.einsum("ij,ij->i", error @ moment, error) @ weigh)
    return costs


def table_costs(
    model: Path,
    tables: Mapping[str, NDArray[np.float32]],
    chunks: Sequence[Sequence[int]],
    *,
    name: str,
    threads: int,
) -> dict[str, float]:
    """Nats per token of the model with the embedding or head `name` replaced by each of `tables` `[vocab, hidden]`.

    Measured, with nothing else changed; a tied table changes as both, so what it costs there is never assumed.
    """
    torch.set_num_threads(threads)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True).eval()
    place = loaded.get_input_embeddings() if name == EMBEDDING else loaded.get_output_embeddings()
    costs = {}
    with torch.inference_mode():
        wanted = [_logits(loaded, ids) for ids in chunks]
        for grid, table in tables.items():
            place.weight.copy_(torch.from_numpy(table))
            total = 0.0
            for logits, ids in zip(wanted, chunks, strict=True):
                p, q = logits.log_softmax(-1), _logits(loaded, ids).log_softmax(-1)
                total += float((p.exp() * (p - q)).sum())
            costs[grid] = total / sum(map(len, chunks))
    return costs


def _logits(loaded: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    return loaded(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].float()
