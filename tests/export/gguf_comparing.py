"""Two GGUF files held against each other, and logits against those of transformers."""

from __future__ import annotations

import random
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader

from edgedistill.runtimes.base import decode, open_session

# Ours always says the flags that theirs leaves to rules about vocabulary sizes; the name is the folder's, unpolished.
OURS_ALONE = {"tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token", "tokenizer.ggml.add_space_prefix"}
DIFFERENT = {"general.name", "GGUF.kv_count"}


def differences(ours: Path, theirs: Path) -> dict[str, Any]:
    """Every metadata key, tensor name, type, shape or bit in which two GGUF files differ."""
    a, b = GGUFReader(ours), GGUFReader(theirs)
    fields = [{key: (f.types, f.contents()) for key, f in reader.fields.items()} for reader in (a, b)]
    wrong = {
        k: [str(f.get(k))[:60] for f in fields]
        for k in sorted(fields[0] | fields[1])
        if fields[0].get(k) != fields[1].get(k)
    }
    tensors = [{t.name: t for t in reader.tensors} for reader in (a, b)]
    for name in sorted(tensors[0] | tensors[1]):
        left, right = tensors[0].get(name), tensors[1].get(name)
        if left is None or right is None:
            wrong[name] = "only in one"
        elif (left.tensor_type, tuple(left.shape)) != (right.tensor_type, tuple(right.shape)):
            wrong[name] = (left.tensor_type, left.shape, right.tensor_type, right.shape)
        elif left.data.tobytes() != right.data.tobytes():
            wrong[name] = float(np.abs(left.data.astype(np.float64) - right.data).max())
    return wrong


def some_ids(count: int) -> list[int]:
    draw = random.Random(1)
    return [draw.randrange(300, 700) for _ in range(count)]


def torch_logits(folder: Path, ids: list[int]) -> np.ndarray:
    with closing(open_session("hf", folder, threads=1, context=len(ids), dtype="float32")) as session:
        return session.logits(ids)


def deviation(found: np.ndarray, wanted: np.ndarray) -> float:
    """Squared error over the variance of the logits: what half precision makes is below 1e-4, another model 1."""
    return float(np.mean((found - wanted) ** 2) / np.var(wanted))


def llama_cpp_deviations(path: Path, wanted: np.ndarray, ids: list[int], *, context: int) -> tuple[float, float]:
    """Deviation in one pass, and token by token through the KV cache from the middle on."""
    half = len(ids) // 2
    with closing(open_session("llamacpp", path, threads=1, context=context)) as session:
        fresh, cached = session.logits(ids), decode(session, ids[half:], past=ids[:half])
    return deviation(fresh, wanted), deviation(cached, wanted[half:])
