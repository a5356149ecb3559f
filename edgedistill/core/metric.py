"""What can be measured: one table of metrics with unit, direction and definition."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class Metric(StrEnum):
    """Id of a metric; its name carries the unit."""

    ARTIFACT_BYTES = "artifact_bytes"
    DOWNLOAD_BYTES = "download_bytes"
    LOAD_MS = "load_ms"
    WARM_LOAD_MS = "warm_load_ms"
    TTFT_MS = "ttft_ms"
    TTFT_TEXT_MS = "ttft_text_ms"
    RESPONSE_MS = "response_ms"
    TPOT_MS = "tpot_ms"
    PREFILL_TOKENS_PER_S = "prefill_tokens_per_s"
    DECODE_TOKENS_PER_S = "decode_tokens_per_s"
    REQUESTS_PER_HOUR = "requests_per_hour"
    SUSTAINED_RATIO = "sustained_ratio"
    PEAK_RSS_BYTES = "peak_rss_bytes"
    PEAK_ANON_BYTES = "peak_anon_bytes"
    PEAK_FILE_BYTES = "peak_file_bytes"
    LOAD_PEAK_BYTES = "load_peak_bytes"
    MEM_FITS = "mem_fits"
    BYTES_READ_PER_TOKEN = "bytes_read_per_token"
    BANDWIDTH_SHARE_RATIO = "bandwidth_share_ratio"
    ENERGY_PER_TOKEN_J = "energy_per_token_j"
    EXACT_MATCH_RATIO = "exact_match_ratio"
    ANSWER_SCORE_RATIO = "answer_score_ratio"
    BITS_PER_BYTE = "bits_per_byte"
    KLD_NATS = "kld_nats"
    TOP1_RATIO = "top1_ratio"


@dataclass(frozen=True)
class MetricInfo:
    """Unit, the better direction, where its samples come from, and the one-line definition."""

    unit: str
    better: Literal["lower", "higher"]
    source: Literal["artifact", "bench", "eval"]
    definition: str


METRICS: dict[Metric, MetricInfo] = {
    Metric.ARTIFACT_BYTES: MetricInfo(
        "bytes", "lower", "artifact", "Sum of the sizes of every file in the artifact's folder; teacher: fp32 weights."
    ),
    Metric.DOWNLOAD_BYTES: MetricInfo(
        "bytes", "lower", "bench", "Sum over the model's files of the smaller of a file and its gzip: what is fetched."
    ),
    Metric.LOAD_MS: MetricInfo(
        "ms", "lower", "bench", "Cold: in a fresh process, from before the engine's library is imported to ready."
    ),
    Metric.WARM_LOAD_MS: MetricInfo(
        "ms", "lower", "bench", "The model opened again where it was just closed: library and files are in memory."
    ),
    Metric.TTFT_MS: MetricInfo("ms", "lower", "bench", "From prompt token ids handed over to the first output token."),
    Metric.TTFT_TEXT_MS: MetricInfo(
        "ms", "lower", "bench", "From the prompt's text handed to the engine's own tokenizer to the first output token."
    ),
    Metric.RESPONSE_MS: MetricInfo(
        "ms", "lower", "bench", "From prompt token ids handed over to the end-of-generation token of the answer."
    ),
    Metric.TPOT_MS: MetricInfo(
        "ms", "lower", "bench", "Time of one output token after the first, fixed-length decode."
    ),
    Metric.PREFILL_TOKENS_PER_S: MetricInfo(
        "tokens/s", "higher", "bench", "Prompt tokens over the time to evaluate them, empty cache."
    ),
    Metric.DECODE_TOKENS_PER_S: MetricInfo(
        "tokens/s", "higher", "bench", "Output tokens after the first over their time, fixed length, ignoring EOS."
    ),
    Metric.REQUESTS_PER_HOUR: MetricInfo(
        "requests/h", "higher", "bench", "The task's prompts answered in an hour; streams-N: N at once on one model."
    ),
    Metric.SUSTAINED_RATIO: MetricInfo(
        "ratio", "higher", "bench", "Decode speed in the last fifth of a long run over that in its first fifth."
    ),
    Metric.PEAK_RSS_BYTES: MetricInfo(
        "bytes", "lower", "bench", "VmHWM of the fresh inference process after load and the task's prompts."
    ),
    Metric.PEAK_ANON_BYTES: MetricInfo("bytes", "lower", "bench", "Highest RssAnon seen in the memory pass."),
    Metric.PEAK_FILE_BYTES: MetricInfo("bytes", "lower", "bench", "Highest RssFile (mapped files) in the memory pass."),
    Metric.LOAD_PEAK_BYTES: MetricInfo(
        "bytes",
        "lower",
        "bench",
        "VmHWM of the fresh inference process once the model is loaded.",
    ),
    Metric.MEM_FITS: MetricInfo(
        "flag",
        "higher",
        "bench",
        "1: in the target's memory, swap off, decode is >= 0.9x as fast as outside; else 0.",
    ),
    Metric.BYTES_READ_PER_TOKEN: MetricInfo(
        "bytes", "lower", "bench", "Weights that one decoded token reads, and the KV cache at the shape's mean depth."
    ),
    Metric.BANDWIDTH_SHARE_RATIO: MetricInfo(
        "ratio",
        "higher",
        "bench",
        "Bytes read per token x decode speed, over the read bandwidth measured with it.",
    ),
    Metric.ENERGY_PER_TOKEN_J: MetricInfo(
        "J", "lower", "bench", "What the package's or device's energy counter rose by in decode, over output tokens."
    ),
    Metric.EXACT_MATCH_RATIO: MetricInfo(
        "ratio", "higher", "eval", "Held-out items whose answer equals the right one, over all items."
    ),
    Metric.ANSWER_SCORE_RATIO: MetricInfo(
        "ratio", "higher", "eval", "Mean score of the held-out answers: ROUGE-L or token F1, else 1 where right."
    ),
    Metric.BITS_PER_BYTE: MetricInfo(
        "bits/byte", "lower", "eval", "Negative log2-likelihood of plain text over its UTF-8 bytes."
    ),
    Metric.KLD_NATS: MetricInfo(
        "nats", "lower", "eval", "Mean KL(fp32 model ‖ artifact) of the next-token distribution on held-out answers."
    ),
    Metric.TOP1_RATIO: MetricInfo(
        "ratio", "higher", "eval", "Positions whose most likely token equals the fp32 model's."
    ),
}

FULL = frozenset(  # what bench.profile = "full" alone measures
    {
        *(Metric.DOWNLOAD_BYTES, Metric.WARM_LOAD_MS, Metric.TTFT_TEXT_MS, Metric.SUSTAINED_RATIO, Metric.MEM_FITS),
        *(Metric.BYTES_READ_PER_TOKEN, Metric.BANDWIDTH_SHARE_RATIO, Metric.ENERGY_PER_TOKEN_J),
    }
)

_SIZES = {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_TIMES = {"ms": 1.0, "s": 1e3, "min": 60e3, "us": 1e-3, "µs": 1e-3}


def parse_quantity(value: float | str, *, unit: str) -> float:
    """A number in `unit` from a number or a text such as `"150 MB"`, `"1e9"`, `"40 ms"`, `"85 %"`.

    Raises:
        ValueError: the text is no number with a suffix that fits the unit.
    """
    if isinstance(value, int | float):
        return float(value)
    match = re.fullmatch(r"\s*([-+]?[0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)\s*([A-Za-zµ%/]*)\s*", value)
    if match:
        number, suffix = float(match[1].replace("_", "")), match[2].lower()
        if unit == "bytes" and suffix in _SIZES:
            return number * _SIZES[suffix]
        if unit == "ms" and suffix in _TIMES:
            return number * _TIMES[suffix]
        if unit == "ratio" and suffix == "%":
            return number / 100
        if suffix in ("", unit):
            return number
    example = {"bytes": "150 MB", "ms": "40 ms", "ratio": "95 %"}.get(unit, f"12 {unit}")
    suffixes = {"bytes": "; units are B, KB, MB, GB, KiB, MiB, GiB", "ms": "; units are us, ms, s, min"}.get(unit, "")
    raise ValueError(f"expected a number or a text such as {example!r}{suffixes}")
