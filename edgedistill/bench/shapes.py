"""The fixed shapes: so many tokens evaluated, so many decoded, the same in every run and for every model."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from typing import Any

# Workload -> (tokens in the cache, tokens decoded). `depth` is what decode costs behind a long context.
FIXED_SHAPES = {"shape-64-64": (64, 64), "shape-512-128": (512, 128), "depth-2048-64": (2048, 64)}
SEED = 20_240_229


def fixed_shape(name: str, *, like: Mapping[str, Any]) -> dict[str, Any]:
    """The shape of a workload, its ids repeated from those of `like`; the long ones are measured once a block."""
    length, decode = FIXED_SHAPES[name]
    ids = list(itertools.islice(itertools.cycle(like["ids"]), length))
    long = length > 64
    return {
        "ids": ids,
        "decode": decode,
        "warmup": min(like["warmup"], 1 if length > 512 else 2 if long else 6),
        "repetitions": 1 if long else like["repetitions"],
        "natural": False,
    }


def seeded_ids(*, vocab: int, count: int) -> tuple[int, ...]:
    """Token ids drawn uniformly by a fixed seed, for a model whose prompts nobody knows (llama-bench does the same)."""
    draw = random.Random(SEED)
    return tuple(draw.randrange(vocab) for _ in range(count))
