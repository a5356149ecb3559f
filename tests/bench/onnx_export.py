"""A decoder graph as transformers.js has it: plain operators, position ids, a cache that is concatenated."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DynamicCache


class _Decoder(torch.nn.Module):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        cache = DynamicCache(zip(past[::2], past[1::2], strict=True))
        places = torch.arange(attention_mask.shape[1])
        seen = (places[None, :] <= position_ids[0][:, None]) & attention_mask.bool()
        mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]
        logits = self.model(
            input_ids=input_ids, attention_mask=mask, position_ids=position_ids, past_key_values=cache, use_cache=True
        ).logits
        return (logits, *(tensor for layer in cache.layers for tensor in (layer.keys, layer.values)))


@torch.no_grad()
def export_decoder(folder: Path, out: Path) -> None:
    """Write the Hugging Face folder's model to the file `out`: past and present of each layer, names as there."""
    decoder = _Decoder(folder)
    config = decoder.model.config
    names = [f"{i}.{part}" for i in range(config.num_hidden_layers) for part in ("key", "value")]
    past = [torch.randn(1, config.num_key_value_heads, 3, config.head_dim) for _ in names]
    example = (torch.tensor([[5, 6]]), torch.ones(1, 5, dtype=torch.int64), torch.tensor([[3, 4]]), *past)
    inputs = ["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{name}" for name in names)]
    outputs = ["logits", *(f"present.{name}" for name in names)]
    axes = {"input_ids": {1: "new"}, "position_ids": {1: "new"}, "attention_mask": {1: "all"}, "logits": {1: "new"}}
    axes |= {name: {2: "before"} for name in inputs[3:]} | {name: {2: "all"} for name in outputs[1:]}
    out.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            decoder, example, str(out), input_names=inputs, output_names=outputs, dynamic_axes=axes, dynamo=False,
            opset_version=17,
        )  # fmt: skip
