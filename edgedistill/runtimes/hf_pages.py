"""Keys and values of many rows in pages, and attention that meets them there.

A short row takes no more than it needs, and nothing is copied from step to step (Kwon et al. 2023,
https://arxiv.org/abs/2309.06180). The query heads that share keys and values meet them in one product, which all pages
of all rows are part of.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PAGE = 32  # tokens
UNKNOWN = ("position_bias", "softcap", "s_aux")  # what attention may be asked for beside, and pages do not know
PAGED = "edgedistill_paged"


@dataclass(frozen=True)
class Step:
    """One new token of each live row: where it is kept, and whose the pages are.

    `at` are page and place in it, `[rows]` each; `owner` is the row of every page in use, `[used]`, and `mask` which of
    its places count, `[used, 1, 1, PAGE]` in float32.
    """

    at: tuple[torch.Tensor, torch.Tensor]
    owner: torch.Tensor
    mask: torch.Tensor


class PagedLayer(CacheLayerMixin):
    """A layer's keys and values, `[pages, groups, PAGE, size]` each, which all rows share; page 0 is nobody's, zeros.

    A model is handed a stand-in of the right shape, of no numbers, which `paged_attention` knows the layer by.
    """

    def __init__(self, like: CacheLayerMixin, *, pages: int) -> None:
        super().__init__()
        # Zeros: what nobody wrote is masked out, but NaN would come through; so a row that has some clears its pages.
        self.pages = [kept.new_zeros(pages, kept.shape[1], PAGE, kept.shape[3]) for kept in kept_of(like)]
        self.step: Step | None = None
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing is left to do."""

    def write(self, at: tuple[torch.Tensor, torch.Tensor], keys: torch.Tensor, values: torch.Tensor) -> None:
        """Keep `[cells, groups, size]` at these pages and places in them."""
        for pages, new in zip(self.pages, (keys, values), strict=True):
            pages[at[0], :, at[1]] = new

    def clear(self, pages: Sequence[int]) -> None:
        for kept in self.pages:
            kept[list(pages)] = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **named: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.step is not None
        self.write(self.step.at, key_states[:, :, 0], value_states[:, :, 0])
        handed = key_states.new_full((), torch.nan).expand_as(key_states)
        handed.of_layer = self  # type: ignore[attr-defined]
        return handed, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **named: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers' `sdpa`; where `key` stands in for pages, of one query position, `[rows, heads, 1, size]`.

    All pages in use are read once where they lie, in one product, as bringing a row's together takes as long again;
    what each adds to its row's answer is brought to the row's softmax (Dao et al. 2023, "Flash-Decoding"), which is in
    float32, of scores in the model's own type. `[rows, 1, heads, size]` comes back.

    Raises:
        NotImplementedError: more is asked for than queries, keys and values give.
    """
    layer: PagedLayer | None = getattr(key, "of_layer", None)
    if layer is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **named)
    if asked_for := [name for name in UNKNOWN if named.get(name) is not None]:
        raise NotImplementedError(f"attention from pages has no {', '.join(asked_for)}")
    assert layer.step is not None
    owner, used = layer.step.owner, len(layer.step.owner)
    keys, values = (pages[:used].flatten(0, 1) for pages in layer.pages)
    rows, heads, _, size = query.shape
    groups = len(keys) // used
    asked = query.view(rows, groups, heads // groups, size) * (size**-0.5 if scaling is None else scaling)
    scores = asked.index_select(0, owner).flatten(0, 1) @ keys.transpose(1, 2)
    scores = scores.float().view(used, groups, heads // groups, PAGE) + layer.step.mask
    none, highest = scores.new_zeros(rows, groups, heads // groups), scores.amax(-1)
    whose = owner[:, None, None].expand_as(highest)
    highest = none.scatter_reduce(0, whose, highest, "amax", include_self=False)
    weights = (scores - highest.index_select(0, owner)[..., None]).exp_()
    total = none.index_add(0, owner, weights.sum(-1))
    found = (weights.to(values.dtype).flatten(0, 1) @ values).float().view(used, groups, heads // groups, -1)
    found = found.new_zeros(rows, *found.shape[1:]).index_add_(0, owner, found) / total[..., None]
    return found.to(query.dtype).view(rows, 1, heads, -1), None


AttentionInterface.register(PAGED, paged_attention)
AttentionMaskInterface.register(PAGED, sdpa_mask)


@contextlib.contextmanager
def attending_in_pages(model: PreTrainedModel) -> Iterator[None]:
    """Let the parts of a model that attend by `sdpa` do so by `paged_attention`."""
    configs = {id(part.config): part.config for part in model.modules() if isinstance(part, PreTrainedModel)}
    ours = [config for config in configs.values() if config._attn_implementation_internal == "sdpa"]
    try:
        for config in ours:
            config._attn_implementation_internal = PAGED
        yield
    finally:
        for config in ours:
            config._attn_implementation_internal = "sdpa"


def kept_of(layer: CacheLayerMixin) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer's keys and values, `[rows, groups, cells, size]` each."""
    assert layer.keys is not None and layer.values is not None
    return layer.keys, layer.values
