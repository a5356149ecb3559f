"""The teacher's baseline at its best: which float type, and compiled or not, measured before the first block.

Honest is a setting that is faster and answers alike: its greedy tokens must be float32's. Eager float32 stands unless
another is faster by more than the noise of so short a probe. torch.compile takes a minute or more at first and some
ten seconds in each block's fresh process, so it is tried in the full profile alone, with the float type that won.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgedistill.bench.model_shape import FP32_BYTES, ModelShape
from edgedistill.bench.rounds import Protocol, Subject, block_job
from edgedistill.core.errors import InputError
from edgedistill.core.files import digest_of, read_json, write_json
from edgedistill.core.target import Target

ENGINE = "torch"
FLOAT32: Mapping[str, Any] = {"dtype": "float32", "compiled": False}
BFLOAT16: Mapping[str, Any] = {"dtype": "bfloat16", "compiled": False}
NOT_IN_QUICK = "torch.compile takes a minute or more, so it is tried in the full profile only"
PROBE_TOKENS, REPETITIONS = 9, 3
FASTER_BY = 1.1  # less than that may be noise
EAGER_S, COMPILE_S = 120.0, 240.0
ITEM_BYTES = {"float32": 4, "bfloat16": 2}
KEPT = "torch-settings.json"
Run = Callable[..., dict[str, Any]]


def in_best_setting(
    subject: Subject,
    *,
    target: Target,
    cores: Sequence[int],
    protocol: Protocol,
    run: Run,
    folder: Path,
    device: Any,
    note: Callable[[str], None] = lambda said: None,
) -> Subject:
    """`subject` with the options that its engine is fastest with, and what its rows tell of the choice.

    Other engines than torch are returned as they are. What was found is kept in `folder` and asked for once: per
    target in the full profile; in the quick one, whose candidates need no more memory than float32, once per device.
    `device` identifies where `run` runs; `note` is told of a choice when it is made.
    """
    if subject.engine != ENGINE:
        return subject
    where = {"target": target.id, "cores": len(cores)} if protocol.full else {}
    key = digest_of([subject.digest, device, protocol.environment.get("versions"), protocol.full, where])
    kept = _kept(folder / KEPT)
    if key not in kept:
        found = choose(
            lambda options: _probe(subject, options, target=target, cores=cores, protocol=protocol, run=run),
            prompt=len(subject.shape_ids),
            answer=protocol.decode_tokens,
            compiled=protocol.full,
        )
        kept[key] = {**found, "probed_on": target.id, "threads": len(cores)}
        write_json(folder / KEPT, kept)
        note(f"{subject.name} on {target.id} runs as {found['chosen']}: {found['because']}")
    choice = {name: value for name, value in kept[key].items() if name != "options"}
    options = kept[key]["options"]
    return replace(subject, options=options, choice=choice, shape=_scaled(subject.shape, options["dtype"]))


def choose(
    probe: Callable[[Mapping[str, Any]], Mapping[str, Any]], *, prompt: int, answer: int, compiled: bool
) -> dict[str, Any]:
    """The fastest honest options for a request of `prompt` + `answer` tokens.

    Args:
        probe: options → `tokens`, `prefill_tokens_per_s` and `decode_tokens_per_s`, or `refused`, the reason.

    Returns:
        `options`, `chosen` (in words), `because`, and `tried`: each candidate with its figures or why it was refused.
    """
    tried: list[dict[str, Any]] = []

    def add(options: Mapping[str, Any]) -> None:
        found = dict(probe(options))
        tokens = found.pop("tokens", None)
        told = {"setting": words_of(options), "options": dict(options), "tokens": tokens, **found}
        if "refused" not in told:
            spent = prompt / found["prefill_tokens_per_s"] + answer / found["decode_tokens_per_s"]
            told["request_ms"] = round(1e3 * spent, 1)
            if tried and tokens != tried[0]["tokens"]:
                told["refused"] = f"it answers otherwise than {words_of(FLOAT32)}"
        tried.append(told)

    add(FLOAT32)
    if "refused" not in tried[0]:
        add(BFLOAT16)
        if compiled:
            add({**_fastest(tried)["options"], "compiled": True})
    best = _fastest(tried)
    shown = [{name: value for name, value in told.items() if name not in ("options", "tokens")} for told in tried]
    if not compiled:
        shown.append({"setting": "compiled", "refused": NOT_IN_QUICK})
    return {
        "options": best["options"],
        "chosen": best["setting"],
        "because": _because(best, tried, prompt=prompt, answer=answer),
        "tried": shown,
    }


def words_of(options: Mapping[str, Any]) -> str:
    """Options as a reader knows them: `float32, eager`."""
    return f"{options['dtype']}, {'compiled' if options['compiled'] else 'eager'}"


def _fastest(tried: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first candidate, or the fastest of those that beat it by more than noise."""
    first, *others = tried
    sound = [told for told in others if "refused" not in told and FASTER_BY * told["request_ms"] < first["request_ms"]]
    return min(sound, key=lambda told: told["request_ms"], default=first)


def _because(best: Mapping[str, Any], tried: Sequence[Mapping[str, Any]], *, prompt: int, answer: int) -> str:
    if "refused" in best:
        return f"nothing could be tried: {best['refused']}"
    others = [
        f"{told['setting']} is refused ({told['refused']})"
        if "refused" in told
        else f"{told['setting']} {told['request_ms']:.0f} ms"
        for told in tried
        if told is not best
    ]
    return f"a request of {prompt} + {answer} tokens takes {best['request_ms']:.0f} ms; {', '.join(others)}"


def _probe(
    subject: Subject, options: Mapping[str, Any], *, target: Target, cores: Sequence[int], protocol: Protocol, run: Run
) -> dict[str, Any]:
    """A short fixed shape in a fresh process, under the target's memory."""
    asked = replace(subject, options=options)
    job = block_job(asked, pair=0, workloads=("shape",), cores=cores, protocol=protocol)
    job["shape"] |= {"decode": PROBE_TOKENS, "warmup": 1, "repetitions": REPETITIONS}
    job["context"] = max(job["context"], len(subject.shape_ids) + PROBE_TOKENS)
    limit = COMPILE_S if options["compiled"] else EAGER_S
    row = run(job, memory_bytes=target.limits.memory_bytes, timeout_s=limit)["rows"][0]
    if "invalid" in row:
        return {"refused": row["invalid"]}
    speeds = {name: row["samples"][name] for name in ("prefill_tokens_per_s", "decode_tokens_per_s")}
    # The best of the repetitions: what disturbs one only makes it slower.
    return {"tokens": row["outputs"][0]} | {name: round(max(found), 2) for name, found in speeds.items()}


def _scaled(shape: ModelShape | None, dtype: str) -> ModelShape | None:
    """What the model's files say of its cost, in the float type that the engine holds weights and cache in."""
    if shape is None:
        return None
    share = ITEM_BYTES[dtype] / FP32_BYTES
    return replace(
        shape, weight_bytes=round(share * shape.weight_bytes), cache_bytes=round(share * shape.cache_bytes)
    )  # fmt: skip


def _kept(path: Path) -> dict[str, Any]:
    """What earlier probes of this run found; a damaged file is found out anew."""
    try:
        found = read_json(path) if path.is_file() else {}
    except InputError:
        return {}
    return found if isinstance(found, dict) else {}
