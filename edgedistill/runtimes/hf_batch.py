"""Answers of many prompts at once from a transformers model on the CPU: rows are refilled, keys and values are paged.

Rows that end make room for prompts that wait (continuous batching, Yu et al. 2022, "Orca", OSDI), so that the matrix
products stay as large as they can be; keys and values are those of `hf_pages`.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.configuration_utils import PreTrainedConfig

from edgedistill.runtimes.base import shared_length
from edgedistill.runtimes.hf_pages import PAGE, PagedLayer, Step, attending_in_pages, kept_of

BATCH_ROWS = 128  # prompts answered together; a matrix product of 128 rows is within a tenth of the CPU's bf16 peak
PREFILL_TOKENS = 16_384  # padded ones, that one pass over new prompts may take
FEW_TOKENS = 512  # up to which a pass over prompts of any lengths is one
CACHE_BYTES = 1 << 30  # of keys and values, so that long prompts are fewer at a time; or this share of the weights'
CACHE_SHARE = 0.5
LEAST_NEW = 8  # new rows come in when they are one for so many that are there
ALIKE = 0.1  # of the logits' spread: bf16 in another order makes 0.03 of it

Forward = Callable[..., torch.Tensor]  # the model's inputs to the logits of each row's last position, [rows, vocab]
Take = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]  # logits and whose they are to the tokens that are chosen


def keeps_all(model: PreTrainedModel, *, cells: int) -> bool:
    """Whether the model attends by `sdpa` to the keys and values of all `cells` tokens: no states, no windows.

    Nor may a row's rotary frequencies depend on the longest beside it.
    """
    layers = DynamicCache(config=model.config).layers
    text = model.config.get_text_config(decoder=True)
    return (
        model.config._attn_implementation == "sdpa"
        and len(layers) == text.num_hidden_layers
        and cells <= cells_alike(text)
        and all(
            type(layer) is DynamicLayer or (type(layer) is DynamicSlidingWindowLayer and layer.sliding_window >= cells)
            for layer in layers
        )
    )


def cells_alike(config: PreTrainedConfig) -> float:
    """Up to how many tokens rotary frequencies are always the same; beyond, they are those of a batch's longest row."""
    given = getattr(config, "rope_parameters", None) or {}
    ropes = [rope for rope in (given, *given.values()) if isinstance(rope, dict)]
    kinds: dict[str, Callable[[dict[str, Any]], int]] = {
        "longrope": lambda rope: rope["original_max_position_embeddings"],
        "dynamic": lambda rope: config.max_position_embeddings - 1,
    }
    return min((kinds[rope["rope_type"]](rope) for rope in ropes if rope.get("rope_type") in kinds), default=math.inf)


def pages_fit(model: PreTrainedModel, forward: Forward) -> bool:
    """Whether pages give what the model's own cache does, tried by a step of rows of one page and of two.

    A model may do what none foresaw: what fails in pages does not fit, and is logged.
    """
    vocab = model.config.get_text_config(decoder=True).vocab_size
    long = [number * vocab // (PAGE + 8) for number in range(1, PAGE + 8)]
    prompts, expected, seen = [long, long[-7:]], {}, {}
    for number, prompt in enumerate(prompts):
        own = DynamicCache(config=model.config)
        forward(input_ids=torch.tensor([prompt]), past_key_values=own)
        expected[number] = forward(input_ids=torch.tensor([long[:1]]), past_key_values=own)[0]

    def take(logits: torch.Tensor, whose: Sequence[int]) -> torch.Tensor:
        seen.update(zip(whose, logits, strict=True))
        return torch.full((len(whose),), long[0])

    try:
        with attending_in_pages(model):
            none = torch.zeros(0, dtype=torch.long)
            Refilled(model, forward=forward, take=take, ends=none, max_new_tokens=2).run(prompts)
    except Exception as e:
        logging.getLogger(__name__).info("%s cannot answer from pages: %r", type(model).__name__, e)
        return False
    return all(_alike(seen[number], expected[number]) for number in expected)


def _alike(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether logits are alike, but for a constant, which means nothing."""
    found, expected = (logits.float() - logits.float().mean() for logits in (found, expected))
    return bool((found - expected).norm() <= ALIKE * expected.norm())


@dataclass
class Row:
    """Which prompt a live row answers, the pages that it has, and how many it may come to have."""

    prompt: int
    pages: list[int]
    most: int


class Refilled:
    """Greedy answers of one model to all prompts, longest first, so that those padded together are of like length.

    `forward` gives the logits of each row's last position; `take` is told whose they are and gives the chosen tokens.
    An answer ends with one of `ends` or after `max_new_tokens`.
    """

    def __init__(
        self, model: PreTrainedModel, *, forward: Forward, take: Take, ends: torch.Tensor, max_new_tokens: int
    ) -> None:
        self.model, self.forward, self.take = model, forward, take
        self.ends, self.max_new_tokens = ends, max_new_tokens
        self.layers: list[PagedLayer] = []
        self.free: list[int] = []  # a heap of pages: the lowest are taken first, as all up to the last used are read
        self.unclaimed = 0  # pages that no live row may come to need
        self.rows: list[Row] = []
        self.lengths = self.tokens = self.left = torch.zeros(0, dtype=torch.long)  # cells, last token, tokens to come

    def run(self, prompts: Sequence[list[int]]) -> None:
        """Answer `prompts`; nothing is returned, `take` has had it all."""
        waiting = deque(sorted(range(len(prompts)), key=lambda i: -len(prompts[i])))
        shared, begun = self._begin(prompts)
        while waiting or self.rows:
            room = self._room(prompts, waiting)
            if room and (room == len(waiting) or room * LEAST_NEW >= len(self.rows)):
                while self._room(prompts, waiting):
                    self._admit(prompts, waiting, shared=shared, begun=begun)
            if self.rows:
                self._step()

    def _begin(self, prompts: Sequence[list[int]]) -> tuple[int, DynamicCache]:
        """How many tokens all prompts begin with, and the cache after them; of one token where they share none."""
        begun, shared = DynamicCache(config=self.model.config), shared_length(list(prompts))
        self.forward(input_ids=torch.tensor([prompts[0][: max(1, shared)]]), past_key_values=begun)
        bytes_of_page = PAGE * sum(
            kept.shape[1] * kept.shape[3] * kept.element_size() for layer in begun.layers for kept in kept_of(layer)
        )
        needs = sorted(map(self._need, prompts), reverse=True)
        weights = sum(kept.numel() * kept.element_size() for kept in self.model.parameters())
        most = max(CACHE_BYTES, CACHE_SHARE * weights) // bytes_of_page
        pages = min(sum(needs[:BATCH_ROWS]), max(needs[0], int(most)))
        self.layers = [PagedLayer(layer, pages=pages + 1) for layer in begun.layers]
        self.free, self.unclaimed = list(range(1, pages + 1)), pages
        return shared, begun

    def _need(self, prompt: Sequence[int]) -> int:
        """Pages for a prompt and an answer of full length."""
        return -(-(len(prompt) + self.max_new_tokens) // PAGE)

    def _room(self, prompts: Sequence[list[int]], waiting: deque[int]) -> int:
        """How many of the prompts that wait may come in."""
        room, left = 0, self.unclaimed
        for prompt in waiting:
            left -= self._need(prompts[prompt])
            if left < 0 or len(self.rows) + room == BATCH_ROWS:
                break
            room += 1
        return room

    def _admit(self, prompts: Sequence[list[int]], waiting: deque[int], *, shared: int, begun: DynamicCache) -> None:
        """Read the next prompts, take the first token of their answers, and give rows to those that go on."""
        room, widest = self._room(prompts, waiting), len(prompts[waiting[0]]) - shared
        chosen = [waiting.popleft()]
        while len(chosen) < room and _goes_with(len(prompts[waiting[0]]) - shared, widest, of=len(chosen)):
            chosen.append(waiting.popleft())
        cache = DynamicCache(config=self.model.config)
        if shared:
            for number, layer in enumerate(begun.layers):
                cache.update(*(kept.expand(len(chosen), -1, -1, -1) for kept in kept_of(layer)), number)
        inputs = padded([prompts[i] for i in chosen], shared=shared)
        tokens = self.take(self.forward(**inputs, past_key_values=cache), chosen)
        going = torch.isin(tokens, self.ends, invert=True) & (self.max_new_tokens > 1)
        new = [self._row(i, prompts[i]) for i, goes in zip(chosen, going.tolist(), strict=True) if goes]
        lengths = torch.tensor([len(prompts[row.prompt]) for row in new], dtype=torch.long)
        if new:
            read = (inputs["attention_mask"].bool() & going[:, None]).flatten()
            cells = [_cells(row.pages, length) for row, length in zip(new, lengths.tolist(), strict=True)]
            pages, places = (torch.cat(parts) for parts in zip(*cells, strict=True))
            for layer, found in zip(self.layers, cache.layers, strict=True):
                layer.write((pages, places), *(kept.transpose(1, 2).flatten(0, 1)[read] for kept in kept_of(found)))
        self.rows += new
        self.lengths = torch.cat([self.lengths, lengths])
        self.tokens = torch.cat([self.tokens, tokens[going]])
        self.left = torch.cat([self.left, torch.full_like(lengths, self.max_new_tokens - 1)])

    def _row(self, number: int, prompt: Sequence[int]) -> Row:
        most = self._need(prompt)
        self.unclaimed -= most
        return Row(number, [heappop(self.free) for _ in range(-(-len(prompt) // PAGE))], most)

    def _step(self) -> None:
        """One token more for every live row."""
        step = self._next()
        for layer in self.layers:
            layer.step = step
        # Pages have their own masks, and transformers makes none beside a mask of four dimensions.
        nothing = torch.zeros(len(self.rows), 1, 1, 1, dtype=self.model.dtype)
        logits = self.forward(
            input_ids=self.tokens[:, None], attention_mask=nothing, position_ids=self.lengths[:, None],
            past_key_values=Cache(layers=list(self.layers)),
        )  # fmt: skip
        self.tokens = self.take(logits, [row.prompt for row in self.rows])
        self.lengths, self.left = self.lengths + 1, self.left - 1
        stay = torch.isin(self.tokens, self.ends, invert=True) & (self.left > 0)
        if stay.all():
            return
        gone = (~stay).nonzero()[:, 0]
        for number, sound in zip(gone.tolist(), logits[gone].isfinite().all(-1).tolist(), strict=True):
            self._release(self.rows[number], clear=not sound)
        self.rows = [row for row, stays in zip(self.rows, stay.tolist(), strict=True) if stays]
        self.lengths, self.tokens, self.left = (kept[stay] for kept in (self.lengths, self.tokens, self.left))

    def _release(self, row: Row, *, clear: bool) -> None:
        self.unclaimed += row.most
        for page in row.pages:
            heappush(self.free, page)
        if clear:
            for layer in self.layers:
                layer.clear(row.pages)

    def _next(self) -> Step:
        """Make room for one token more of each row, and say who looks where."""
        lengths = self.lengths.tolist()
        for row, length in zip(self.rows, lengths, strict=True):
            if length == len(row.pages) * PAGE:
                row.pages.append(heappop(self.free))
        pages = torch.tensor([page for row in self.rows for page in row.pages])
        owner, counting = torch.zeros(2, int(pages.max()) + 1, dtype=torch.long)
        owner[pages] = torch.tensor([number for number, row in enumerate(self.rows) for _ in row.pages])
        at = torch.tensor([row.pages[-1] for row in self.rows]), self.lengths % PAGE
        counting[pages] = PAGE  # all but the last page of a row are full
        counting[at[0]] = at[1] + 1
        mask = torch.zeros(len(owner), 1, 1, PAGE)
        mask.masked_fill_(torch.arange(PAGE) >= counting[:, None, None, None], -torch.inf)
        return Step(at, owner, mask)


def _cells(pages: Sequence[int], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Page and place in it of each of a row's `count` first cells."""
    return torch.tensor(pages).repeat_interleave(PAGE)[:count], torch.arange(count) % PAGE


def _goes_with(length: int, widest: int, *, of: int) -> bool:
    """Whether one prompt more, of so many tokens to be read, may be padded to the longest of a pass over `of`."""
    tokens = (of + 1) * widest
    return tokens <= FEW_TOKENS or (tokens <= PREFILL_TOKENS and length * 8 >= widest * 7)


def padded(prompts: Sequence[list[int]], *, shared: int) -> dict[str, torch.Tensor]:
    """The model's inputs for what follows the `shared` first tokens, padded on the left: `[rows, width - shared]`."""
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width - shared, dtype=torch.long)
    mask = torch.ones(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        gap = width - len(prompt)
        ids[row, gap:] = torch.tensor(prompt[shared:])
        mask[row, shared : shared + gap] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, shared:]
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
