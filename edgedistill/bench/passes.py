"""What a worker does with a loaded engine: the task's prompts, a fixed shape, the memory pass. Standard library only.

Samples are raw: one value per request, token or repetition, in the metric's unit, in the order measured.
"""

from __future__ import annotations

from itertools import pairwise
from time import perf_counter_ns

from edgedistill.bench.process_memory import memory_now

# Importing `typing` would cost the measured process memory that no inference needs.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from edgedistill.bench.engine import Engine

WARMUP_TOKENS = 8


class InvalidRunError(Exception):
    """The reason why what was measured must not be used."""


def run_prompts(engine: Engine, job: dict) -> dict:
    """The recipe's own prompts, one at a time, to their natural end: TTFT and response time of each request, in ms."""
    for ids in job["prompts"][: job["warmup"]]:
        _answer(engine, ids, job | {"max_new_tokens": WARMUP_TOKENS})
    first, whole, outputs = [], [], []
    for ids in job["prompts"]:
        tokens, ttft, response = _answer(engine, ids, job)
        first.append(ttft)
        whole.append(response)
        outputs.append(tokens)
    _require_finite(engine)
    _require_expected(outputs, job)
    per_hour = 3600e3 * len(whole) / sum(whole)
    samples = {"ttft_ms": first, "response_ms": whole, "requests_per_hour": [per_hour]}
    return {"workload": "prompts", "samples": samples, "outputs": outputs}


def run_shape(engine: Engine, job: dict) -> dict:
    """Prefill P tokens into an empty cache, then decode N whatever they are; each repetition starts over.

    The first of the N tokens belongs to prefill; speed and per-token times are of the N - 1 after it.
    """
    shape = job["shape"]
    ids, count = shape["ids"], shape["decode"]
    speeds: dict[str, list[float]] = {"prefill_tokens_per_s": [], "decode_tokens_per_s": [], "tpot_ms": []}
    outputs = []
    for repetition in range(-shape["warmup"], shape["repetitions"]):
        began = perf_counter_ns()
        tokens = [engine.prefill(ids, limit=count)]
        times = [perf_counter_ns()]
        while len(tokens) < count:
            tokens.append(engine.step())
            times.append(perf_counter_ns())
        if repetition < 0:
            continue
        speeds["prefill_tokens_per_s"].append(len(ids) * 1e9 / (times[0] - began))
        speeds["decode_tokens_per_s"].append((count - 1) * 1e9 / (times[-1] - times[0]))
        speeds["tpot_ms"] += [(after - before) / 1e6 for before, after in pairwise(times)]
        outputs.append(tokens)
    _require_finite(engine)
    if any(tokens != outputs[0] for tokens in outputs):
        raise InvalidRunError("repetitions of one shape made different tokens: the state was not reset between them")
    return {"workload": "shape", "samples": speeds, "outputs": outputs[:1]}


def run_memory(engine: Engine, job: dict) -> dict:
    """The recipe's own prompts in a process that does nothing else: peak resident set since before the load.

    The kernel keeps a high-water mark of the whole only; the parts are the highest seen after the load and after each
    request.
    """
    after_load = memory_now()
    seen, outputs = [after_load], []
    for ids in job["prompts"]:
        outputs.append(_answer(engine, ids, job)[0])
        seen.append(memory_now())
    _require_expected(outputs, job)
    samples = {
        "peak_rss_bytes": [float(seen[-1]["peak_rss_bytes"])],
        "peak_anon_bytes": [float(max(m["anon_bytes"] for m in seen))],
        "peak_file_bytes": [float(max(m["file_bytes"] for m in seen))],
    }
    return {
        "workload": "memory",
        "samples": samples,
        "outputs": outputs,
        "load_peak_bytes": after_load["peak_rss_bytes"],
    }


PASSES = {"prompts": run_prompts, "shape": run_shape, "memory": run_memory}


def _answer(engine: Engine, ids: list[int], job: dict) -> tuple[list[int], float, float]:
    """Token ids of a greedy answer, ms to its first token and ms to its end (an end id, or the limit)."""
    ends, limit = job["end_ids"], job["max_new_tokens"]
    began = perf_counter_ns()
    token = engine.prefill(ids, limit=0)
    first = perf_counter_ns()
    tokens = [token]
    while token not in ends and len(tokens) < limit:
        token = engine.step()
        tokens.append(token)
    return tokens, (first - began) / 1e6, (perf_counter_ns() - began) / 1e6


def _require_finite(engine: Engine) -> None:
    if not engine.finite():
        raise InvalidRunError("the logits hold NaN or infinity")


def _require_expected(outputs: list[list[int]], job: dict) -> None:
    """The same prompt must have the same answer, and answers begin as expected.

    `expected` holds first tokens by prompt, empty where nothing is expected; `expected_share` of them must be met.
    """
    answers: dict[tuple[int, ...], list[int]] = {}
    for ids, tokens in zip(job["prompts"], outputs, strict=True):
        if answers.setdefault(tuple(ids), tokens) != tokens:
            raise InvalidRunError("one prompt got two answers: the state was not reset between requests")
    pairs = [(o, e) for o, e in zip(outputs, job.get("expected") or [], strict=False) if e]
    equal = sum(tokens[: len(expected)] == expected for tokens, expected in pairs)
    if equal < job.get("expected_share", 1.0) * len(pairs):
        tokens, expected = next((o, e) for o, e in pairs if o[: len(e)] != e)
        raise InvalidRunError(
            f"{equal} of {len(pairs)} answers begin as expected; one begins {tokens[: len(expected)]}, "
            f"expected {expected}"
        )
