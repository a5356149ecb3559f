"""What a worker does with a loaded engine: the task's prompts, fixed shapes, memory, and the passes of a full profile.

Samples are raw: one value per request, token or repetition, in the metric's unit, in the order measured. Standard
library only.
"""

from __future__ import annotations

from itertools import pairwise
from time import perf_counter_ns

from edgedistill.bench.process_memory import memory_now

# Importing `typing` would cost the measured process memory that no inference needs.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from edgedistill.bench.engine import Engine

WARMUP_TOKENS = 8
WARM_WITHIN = 0.05  # two successive repetitions this close: it is warm
DEGENERATE_TOKENS = 16  # an answer of so many times the same token is none
ENERGY_S = 3.0  # the counters move once in a millisecond


class InvalidRunError(Exception):
    """The reason why what was measured must not be used."""


def run_prompts(engine: Engine, job: dict) -> dict:
    """The recipe's own prompts, one at a time, to their natural end: TTFT and response time of each request, in ms."""
    short = job | {"max_new_tokens": WARMUP_TOKENS}
    warm = warm_up(lambda: _answer(engine, job["prompts"][0], short)[2], most=job["warmup"])
    first, whole, outputs = [], [], []
    for ids in job["prompts"]:
        tokens, ttft, response = _answer(engine, ids, job)
        first.append(ttft)
        whole.append(response)
        outputs.append(tokens)
    _require_finite(engine)
    _require_one_answer(outputs, job)
    _require_expected(outputs, job)
    require_varied(outputs)
    per_hour = 3600e3 * len(whole) / sum(whole)
    samples = {"ttft_ms": first, "response_ms": whole, "requests_per_hour": [per_hour]}
    return {"workload": "prompts", "samples": samples, "outputs": outputs, "warmed": warm}


def run_shape(engine: Engine, job: dict, workload: str = "shape") -> dict:
    """Prefill P tokens into an empty cache, then decode N whatever they are; each repetition starts over.

    The first of the N tokens belongs to prefill; speed and per-token times are of the N - 1 after it. `warmup` is the
    most that may come before the first counted repetition.
    """
    shape = job["shape"] if workload == "shape" else job["shapes"][workload]
    ids, count = shape["ids"], shape["decode"]
    speeds: dict[str, list[float]] = {"prefill_tokens_per_s": [], "decode_tokens_per_s": [], "tpot_ms": []}
    outputs = []
    warm = warm_up(lambda: float(_span(_fixed(engine, ids, count)[1])), most=shape["warmup"])
    for _ in range(shape["repetitions"]):
        tokens, times = _fixed(engine, ids, count)
        speeds["prefill_tokens_per_s"].append(len(ids) * 1e9 / (times[1] - times[0]))
        speeds["decode_tokens_per_s"].append((count - 1) * 1e9 / (times[-1] - times[1]))
        speeds["tpot_ms"] += [(after - before) / 1e6 for before, after in pairwise(times[1:])]
        outputs.append(tokens)
    _require_finite(engine)
    if any(len(tokens) != count for tokens in outputs):
        raise InvalidRunError(f"asked for {count} tokens, got {sorted({len(tokens) for tokens in outputs})}")
    if any(tokens != outputs[0] for tokens in outputs):
        raise InvalidRunError("repetitions of one shape made different tokens: the state was not reset between them")
    if shape.get("natural"):  # what follows random tokens may well be one token for ever
        require_varied(outputs)
    return {"workload": workload, "samples": speeds, "outputs": outputs[:1], "warmed": warm}


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
    _require_one_answer(outputs, job)
    _require_expected(outputs, job)
    samples = {
        "peak_rss_bytes": [float(seen[-1]["peak_rss_bytes"])],
        "peak_anon_bytes": [float(max(m["anon_bytes"] for m in seen))],
        "peak_file_bytes": [float(max(m["file_bytes"] for m in seen))],
        "load_peak_bytes": [float(after_load["peak_rss_bytes"])],
    }
    return {
        "workload": "memory",
        "samples": samples,
        "outputs": outputs,
        "load_peak_bytes": after_load["peak_rss_bytes"],
    }


def run_text(engine: Engine, job: dict) -> dict:
    """TTFT of the prompts as text: the engine's own tokenizer, loaded beforehand, then prefill."""
    engine.tokenize(job["texts"][0])
    times = []
    for text, ids in zip(job["texts"], job["prompts"], strict=True):
        began = perf_counter_ns()
        found = engine.tokenize(text)
        engine.prefill(found, limit=0)
        times.append((perf_counter_ns() - began) / 1e6)
        if found != ids:
            place = next((i for i, pair in enumerate(zip(found, ids, strict=False)) if pair[0] != pair[1]), len(ids))
            raise InvalidRunError(f"the engine's tokenizer gives other ids than the model's from token {place} on")
    return {"workload": "text", "samples": {"ttft_text_ms": times}}


def run_reload(engine: Engine, job: dict, reopen: Callable[[], Engine]) -> dict:
    """Close the model and open it again, `reloads` times: what a load costs when library and files are in memory."""
    times, tokens = [], []
    for _ in range(job["reloads"]):
        engine.close()
        began = perf_counter_ns()
        engine = reopen()
        times.append((perf_counter_ns() - began) / 1e6)
        tokens.append(engine.prefill(job["prompts"][0], limit=0))
    if len(set(tokens)) > 1:
        raise InvalidRunError(f"the same model, opened again, answers differently: first tokens {tokens}")
    return {"workload": "reload", "samples": {"warm_load_ms": times}}


def run_sustained(engine: Engine, job: dict) -> dict:
    """Decode without a rest for `sustained_s`: speed in the last fifth of its tokens over that in the first."""
    shape, tpot = job["shape"], []
    _fixed(engine, shape["ids"], shape["decode"])
    began = perf_counter_ns()
    while perf_counter_ns() - began < job["sustained_s"] * 1e9 or len(tpot) < 50:
        _, times = _fixed(engine, shape["ids"], shape["decode"])
        tpot += [(after - before) / 1e6 for before, after in pairwise(times[1:])]
    _require_finite(engine)
    fifth = len(tpot) // 5
    ratio = sum(tpot[:fifth]) / sum(tpot[-fifth:])
    return {"workload": "sustained", "samples": {"sustained_ratio": [ratio], "tpot_ms": tpot}}


def run_energy(engine: Engine, job: dict) -> dict:
    """Decode for some seconds between two readings of the energy counter; prefill is left out."""
    from edgedistill.bench.energy import open_meter

    meter = open_meter(str(engine.settings().get("backend")), **job.get("meter", {}))
    if isinstance(meter, str):
        return {"workload": "energy", "not_measured": meter}
    shape, tokens, joules = job["shape"], 0, 0.0
    _fixed(engine, shape["ids"], shape["decode"])
    began = perf_counter_ns()
    while perf_counter_ns() - began < job.get("energy_s", ENERGY_S) * 1e9:
        engine.prefill(shape["ids"], limit=shape["decode"])
        before = meter.joules()
        for _ in range(shape["decode"] - 1):
            engine.step()
        joules += meter.joules() - before
        tokens += shape["decode"] - 1
    _require_finite(engine)
    if joules <= 0:
        raise InvalidRunError(f"{meter.source} did not move in {tokens} tokens")
    return {"workload": "energy", "samples": {"energy_per_token_j": [joules / tokens]}, "energy_source": meter.source}


def run_streams(engine: Engine, job: dict, workload: str) -> dict:
    """The recipe's prompts, several at a time on one model: requests an hour, and each one's response time."""
    from edgedistill.bench.streams_llamacpp import answer_all

    if getattr(engine, "streams", 1) < 2:
        return {"workload": workload, "not_measured": f"{engine.name} answers one request at a time"}
    prompts = job["prompts"] * job.get("stream_requests", 1)
    ends, limit = job["end_ids"], job["max_new_tokens"]
    answer_all(engine, prompts[: engine.streams], end_ids=ends, limit=WARMUP_TOKENS)
    outputs, times, whole = answer_all(engine, prompts, end_ids=ends, limit=limit)
    # The kernels of a batch may break a tie otherwise than those of one request: a share must agree, not every token.
    _require_expected(outputs[: len(job["prompts"])], job)
    require_varied(outputs)
    samples = {"requests_per_hour": [3600e3 * len(prompts) / whole], "response_ms": times}
    return {"workload": workload, "samples": samples, "outputs": outputs[: len(job["prompts"])]}


def run_pass(workload: str, engine: Engine, job: dict, reopen: Callable[[], Engine]) -> dict:
    """Run one workload by its name.

    Raises:
        InvalidRunError: what was measured must not be used.
    """
    plain = {
        "prompts": run_prompts, "shape": run_shape, "memory": run_memory, "text": run_text,
        "sustained": run_sustained, "energy": run_energy,
    }  # fmt: skip
    if workload in plain:
        return plain[workload](engine, job)
    if workload == "reload":
        return run_reload(engine, job, reopen)
    if workload.startswith("streams-"):
        return run_streams(engine, job, workload)
    return run_shape(engine, job, workload)


def warm_up(once: Callable[[], float], *, most: int) -> dict:
    """Call `once` until two successive times agree or it was called `most` times: `repetitions` and `settled`."""
    last = None
    for n in range(1, most + 1):
        took = once()
        if last is not None and abs(took - last) <= WARM_WITHIN * last:
            return {"repetitions": n, "settled": True}
        last = took
    return {"repetitions": most, "settled": False}


def require_varied(outputs: list[list[int]]) -> None:
    """Refuse answers most of which are one token over and over: the model or its kernels are broken."""
    long = [tokens for tokens in outputs if len(tokens) >= DEGENERATE_TOKENS]
    same = [tokens[0] for tokens in long if len(set(tokens)) == 1]
    if long and 2 * len(same) > len(long):
        raise InvalidRunError(f"{len(same)} of {len(long)} answers are degenerate: token {same[0]} over and over")


def _fixed(engine: Engine, ids: list[int], count: int) -> tuple[list[int], list[int]]:
    """Tokens of one repetition, and the ns at its begin and at each token's end."""
    times = [perf_counter_ns()]
    tokens = [engine.prefill(ids, limit=count)]
    times.append(perf_counter_ns())
    for _ in range(count - 1):
        tokens.append(engine.step())
        times.append(perf_counter_ns())
    return tokens, times


def _span(times: list[int]) -> int:
    return times[-1] - times[0]


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


def _require_one_answer(outputs: list[list[int]], job: dict) -> None:
    answers: dict[tuple[int, ...], list[int]] = {}
    for ids, tokens in zip(job["prompts"], outputs, strict=True):
        if answers.setdefault(tuple(ids), tokens) != tokens:
            raise InvalidRunError("one prompt got two answers: the state was not reset between requests")


def _require_expected(outputs: list[list[int]], job: dict) -> None:
    """Answers begin as expected.

    `expected` holds first tokens by prompt, empty where nothing is expected; `expected_share` of them must be met.
    """
    pairs = [(o, e) for o, e in zip(outputs, job.get("expected") or [], strict=False) if e]
    equal = sum(tokens[: len(expected)] == expected for tokens, expected in pairs)
    if equal < job.get("expected_share", 1.0) * len(pairs):
        tokens, expected = next((o, e) for o, e in pairs if o[: len(e)] != e)
        raise InvalidRunError(
            f"{equal} of {len(pairs)} answers begin as expected; one begins {tokens[: len(expected)]}, "
            f"expected {expected}"
        )
