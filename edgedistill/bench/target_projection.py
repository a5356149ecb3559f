"""A target's anchors as cells, and a model's speed on it projected from them and from every other target's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, Literal

from edgedistill.bench.projection import Cell, Projection, project
from edgedistill.core.target import Target, all_targets, load_target

Speed = Literal["decode", "prefill"]
# Share of a device's RAM that weights and KV cache may take. An assumption: of the 8 GB phones that the anchors are
# from, none loaded a model of more than half of it; elsewhere the system takes less.
MEMORY_SHARE = {"phone": 0.5, "mobile-class": 0.9}
OTHER_SHARE = 0.8


def project_target(
    reference: str,
    *,
    engine: str,
    quant: str,
    model_bytes: float,
    backend: str = "cpu",
    weights: float | None = None,
    head_weights: float = 0.0,
    kv_bytes: float = 0.0,
    level: float = 0.9,
) -> dict[str, Any]:
    """Decode and, where the anchors have it, prefill speed of a model on a target, as JSON values.

    `model_bytes` are the bytes of weights read per token; `weights` and `head_weights` are counts, `kv_bytes` what one
    token reads of the KV cache.

    Raises:
        InputError: the target is unknown, or has no anchor of the engine, backend or quant.
    """
    target = load_target(reference)
    others = [load_target(name) for name in all_targets() if name != target.id]
    memory = target.number("memory_bytes")
    usable = memory * MEMORY_SHARE.get(target.device_class, OTHER_SHARE) if memory is not None else None

    def of(speed: Speed) -> Projection:
        return project(
            cells_of([target, *others], speed=speed),
            device=target.id,
            engine=engine,
            backend=backend,
            quant=quant,
            read_bytes=model_bytes,
            kv_bytes=kv_bytes if speed == "decode" else 0.0,
            weights=weights,
            head_weights=head_weights,
            memory_bytes=usable,
            level=level,
        )

    decode = of("decode")
    asked = (target.id, engine, backend, quant)
    timed = {(c.device, c.engine, c.backend, c.quant) for c in cells_of([target], speed="prefill")}
    return {
        "target": target.id,
        "engine": engine,
        "backend": backend,
        "quant": quant,
        "model_bytes": model_bytes,
        # Whatever reaches the target: this number was not measured on it.
        "evidence": "projected",
        "state": decode.state,
        "needed_bytes": decode.needed_bytes,
        "memory_bytes": decode.memory_bytes,
        "decode_tokens_per_s": _speed(decode),
        "prefill_tokens_per_s": _speed(of("prefill")) if asked in timed and decode.state == "fits" else None,
    }


def cells_of(targets: Iterable[Target], *, speed: Speed) -> list[Cell]:
    """The anchors that have this speed, as cells of their targets."""
    cells = []
    for target in targets:
        for anchor in target.anchors:
            tokens_per_s = anchor.decode_tokens_per_s if speed == "decode" else anchor.prefill_tokens_per_s
            if tokens_per_s is not None:
                cells.append(
                    Cell(
                        device=target.id,
                        engine=anchor.engine,
                        backend=anchor.backend,
                        model=anchor.model,
                        quant=anchor.quant,
                        seconds_per_token=1 / tokens_per_s,
                        read_bytes=anchor.read_bytes,
                        kv_bytes=anchor.kv_bytes if speed == "decode" else 0.0,
                        weights=anchor.weights,
                        head_weights=anchor.head_weights,
                    )
                )
    return cells


def _speed(projection: Projection) -> dict[str, Any] | None:
    """Estimate, band and what it rests on; None where the model does not fit."""
    if projection.state == "does-not-fit":
        return None
    whole = asdict(projection)
    return {
        name: whole[name] for name in ("tokens_per_s", "low", "high", "level", "anchors", "residuals", "extrapolated")
    }
