"""Rotary position embeddings: what config.json says of them, in transformers 5's form or the older one, checked.

Papers: RoPE (arXiv 2104.09864), YaRN (arXiv 2309.00071), LongRoPE (arXiv 2402.13753).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgedistill.core.errors import InputError

CLOSE = 1e-6
# llama.cpp builds these into its YaRN, whatever a file says.
YARN_BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}


@dataclass(frozen=True)
class Rope:
    """The rotation of a model: `dimensions` of each head are rotated, with base `theta`, scaled as `kind` says.

    `parameters` are those of config.json; `local_theta` is the base in layers that see a window only, where the family
    has such; `original_context` the context before it was extended.
    """

    kind: str
    theta: float
    local_theta: float | None
    dimensions: int
    original_context: int
    parameters: dict[str, Any]

    @property
    def attention_factor(self) -> float:
        """What scales the rotated queries and keys of "longrope", as the paper sets it."""
        return float(self.parameters.get("attention_factor", 1.0))


def read_rope(
    config: dict[str, Any],
    *,
    types: tuple[str, ...],
    theta: float,
    local_theta: float | None,
    head_dim: int,
    context: int,
    path: Path,
) -> Rope:
    """Read the rotation of a parsed config.json; `theta` and `local_theta` hold where it names no base.

    Raises:
        InputError: the rope type is none of `types`, or has a parameter that llama.cpp does not follow.
    """
    stated = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    local = stated.get("sliding_attention") or {}
    whole = dict(stated.get("full_attention") or ({} if local else stated))
    kind = whole.get("rope_type") or whole.get("type") or "default"
    if kind in ("su", "yarn") and "longrope" in types:  # what Phi called it at first
        kind = "longrope"
    found = sorted({kind, *([local.get("rope_type", "default")] if local else [])} - set(types))
    if found:
        raise InputError(f"{path}: expected rope_type {', '.join(types)}, found {found[0]!r}")
    if local.get("rope_type", "default") != "default":
        raise InputError(
            f"{path}: expected rope_type 'default' of sliding_attention, found {local['rope_type']!r}; "
            "llama.cpp does not scale it"
        )
    share = whole.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    dimensions = int(head_dim * share)
    original = config.get("original_max_position_embeddings") or whole.get("original_max_position_embeddings")
    if local_theta is not None:
        local_theta = local.get("rope_theta") or config.get("rope_local_base_freq") or local_theta
    rope = Rope(
        kind=kind,
        theta=float(whole.get("rope_theta") or config.get("rope_theta") or theta),
        local_theta=local_theta,
        dimensions=dimensions,
        original_context=original or context,
        parameters=whole,
    )
    if share != 1.0 and "longrope" not in types:
        raise InputError(f"{path}: expected every dimension of a head rotated, found partial_rotary_factor {share}")
    return _checked(rope, context=context, path=path)


def _checked(rope: Rope, *, context: int, path: Path) -> Rope:
    """The rotation with its attention factor filled in; what llama.cpp cannot be told is refused."""
    if rope.dimensions % 2:
        raise InputError(f"{path}: expected an even number of rotated dimensions, found {rope.dimensions}")
    if rope.kind == "yarn":
        _check_yarn(rope, path=path)
    if rope.kind == "longrope":
        return _with_longrope_factor(rope, context=context, path=path)
    return rope


def _check_yarn(rope: Rope, *, path: Path) -> None:
    found = {name: rope.parameters.get(name) for name in ("mscale", "mscale_all_dim")}
    found |= {k: v for k, built_in in YARN_BETAS.items() if (v := rope.parameters.get(k)) not in (None, built_in)}
    if rope.parameters.get("truncate") is False:
        found["truncate"] = False
    usual = 0.1 * math.log(rope.parameters["factor"]) + 1.0 if rope.parameters["factor"] > 1 else 1.0
    given = rope.parameters.get("attention_factor")
    if given is not None and abs(given - usual) > CLOSE:
        found["attention_factor"] = given
    wrong = sorted(name for name, value in found.items() if value is not None)
    if wrong:
        raise InputError(
            f"{path}: expected a yarn rotation with its usual parameters, which llama.cpp builds in, found {wrong[0]} "
            f"{found[wrong[0]]}; export this model to ONNX instead"
        )


def _with_longrope_factor(rope: Rope, *, context: int, path: Path) -> Rope:
    scale = context / rope.original_context
    usual = math.sqrt(1 + math.log(scale) / math.log(rope.original_context)) if scale > 1.0 else 1.0
    given = rope.parameters.get("attention_factor")
    if given is None and (factor := rope.parameters.get("factor")) is not None:
        given = math.sqrt(1 + math.log(factor) / math.log(rope.original_context)) if factor > 1.0 else 1.0
    if given is not None and abs(given - usual) > CLOSE:
        raise InputError(
            f"{path}: expected the attention factor {usual:.4f} of a context extended {scale:g} times, found "
            f"{given:.4f}; llama.cpp's converter writes no other; export this model to ONNX instead"
        )
    for name in ("long_factor", "short_factor"):
        count = len(rope.parameters.get(name) or ())
        if count != rope.dimensions // 2:
            raise InputError(f"{path}: expected {rope.dimensions // 2} numbers in {name}, found {count}")
    return Rope(**{**vars(rope), "parameters": {**rope.parameters, "attention_factor": usual}})


def factor_tensors(rope: Rope, *, head_dim: int) -> dict[str, np.ndarray]:
    """Divisors of the rotation frequencies under their GGUF names, each `[rotated dimensions / 2]` float32."""
    if rope.kind == "llama3":
        return {"rope_freqs.weight": _llama3_factors(rope, head_dim=head_dim)}
    if rope.kind == "longrope":
        return {
            f"rope_factors_{name}.weight": np.array(rope.parameters[f"{name}_factor"], np.float32)
            for name in ("long", "short")
        }
    return {}


def _llama3_factors(rope: Rope, *, head_dim: int) -> np.ndarray:
    """Divisors of Llama 3.1's context extension, as transformers' `_compute_llama3_parameters` has it.

    Frequencies whose wavelength exceeds the original context are slowed by `factor`, short ones left alone, and those
    between interpolated.
    """
    factor, low, high = (rope.parameters[name] for name in ("factor", "low_freq_factor", "high_freq_factor"))
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    wavelengths = 2 * np.pi * np.float32(rope.theta) ** exponents
    smooth = np.clip((rope.original_context / wavelengths - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
