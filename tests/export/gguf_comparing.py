"""Two GGUF files held against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader

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
