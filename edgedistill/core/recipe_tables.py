"""The recipe's tables of labelling, export, evaluation, benchmark and gate."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from edgedistill.core.metric import parse_quantity
from edgedistill.core.model import Noun, Positive, Size
from edgedistill.core.teacher import Teacher

VARIANTS = ("gguf-f16", "gguf-q8_0", "gguf-q4_0", "onnx-fp32", "onnx-int8", "onnx-int4")
Variant = Literal[
    "gguf-f16", "gguf-q8_0", "gguf-q4_0", "onnx-fp32", "onnx-int8", "onnx-int4",
    "gguf-q6_k", "gguf-q5_k_m", "gguf-q4_k_m", "gguf-q3_k_m", "gguf-iq4_xs", "gguf-iq4_nl", "gguf-iq3_m",
    "gguf-mixed", "onnx-mixed",
]  # fmt: skip


class Judging(Noun):
    """A teacher that scores each answer that is kept so far from 0 to 10; it stays from `threshold` on.

    `rubric` ends the sentence "Judge the answer: …".
    """

    teacher: Teacher
    threshold: Annotated[int, Field(ge=0, le=10)] = 7
    rubric: str = "whether it is right, complete and to the point"

    @model_validator(mode="after")
    def _one_teacher_that_says_its_own(self) -> Judging:
        if not self.teacher.is_api or self.teacher.further or self.teacher.top_logprobs:
            raise ValueError('expected a teacher of engine "openai" or "anthropic", without further and top_logprobs')
        return self


class Synth(Noun):
    """How the teacher labels: batched, in shards, with the log-probs of the likeliest tokens at each answer token.

    At most `top_k` are kept, no more than hold `top_p` of the mass, and none below `least_probability`; or, with
    `kept = "drawn"`, `top_k` tokens are drawn from the whole distribution, which leaves forward-kl without bias.

    The rest is for teachers behind an API. `reasoning` before an answer is dropped (`strip`), learnt as `<think>…` text
    (`keep`), or the answer is rejected (`off`). With `shorten` the teacher is asked again for a shorter answer, which
    stands for the first where both say the same. A `judge` scores answers.
    """

    label_gold: bool = True
    batch_size: Positive = 512
    shard_size: Positive = 512
    kept: Literal["likeliest", "drawn"] = "likeliest"
    top_k: Annotated[int, Field(ge=1, le=255)] = 64
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.999
    least_probability: Annotated[float, Field(ge=0, lt=1)] = 2.5e-3
    reasoning: Literal["strip", "keep", "off"] = "strip"
    shorten: bool = False
    judge: Judging | None = None


class Export(Noun):
    """Variants to build; `release` are those that ship and that budgets apply to; the teacher merely quantized.

    A teacher behind an API has no variants.

    `calibrate` chooses the student's codes with error feedback from its records, both formats' alike.
    Variants called mixed have a grid for each matrix, chosen on those records, within `max_bytes` of all that ships in
    each (such as "60 MB"), and one code set.
    """

    variants: tuple[Variant, ...] = VARIANTS
    release: tuple[Variant, ...] = ("gguf-q4_0", "onnx-int4")
    teacher_variants: tuple[Literal["gguf-q8_0", "gguf-q4_0"], ...] = ("gguf-q4_0",)
    parity_texts: Positive = 16
    calibrate: bool = False
    max_bytes: Size | None = None

    @property
    def mixed(self) -> tuple[Variant, ...]:
        return tuple(name for name in self.variants if name.endswith("-mixed"))

    @property
    def most_bytes(self) -> int | None:
        return None if self.max_bytes is None else int(parse_quantity(self.max_bytes, unit="bytes"))

    @model_validator(mode="after")
    def _mixed_has_its_budget(self) -> Export:
        if self.mixed and self.max_bytes is None:
            raise ValueError(f'expected max_bytes, such as "60 MB", for the variant {self.mixed[0]}, found none')
        if self.max_bytes is not None and not self.mixed:
            raise ValueError("expected gguf-mixed or onnx-mixed in variants, which max_bytes is for, found neither")
        return self

    @model_validator(mode="after")
    def _release_is_built(self) -> Export:
        missing = sorted(set(self.release) - set(self.variants))
        if missing:
            raise ValueError(
                f"release names {', '.join(missing)}, which variants does not build; set release to some of "
                f"{', '.join(self.variants) or 'them'}, or to []"
            )
        return self


class Eval(Noun):
    """Quality on held-out: items, and an optional plain text file for bits per byte (default: shipped text)."""

    text: str | None = None
    kld_items: Positive = 32


class Bench(Noun):
    """What is measured where: targets by name, interleaved blocks, task prompts a block, one fixed shape.

    `quick` takes speed and memory; `full` adds the three fixed shapes, loads, text, a long run, streams, energy and
    bandwidth. `further_blocks` come after `blocks`; `gate --settle` raises them, and those there are never measured
    again.
    """

    targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("local-cpu", "mobile-class")
    profile: Literal["quick", "full"] = "quick"
    blocks: Positive = 6
    further_blocks: Annotated[int, Field(ge=0)] = 0
    prompts_per_block: Positive = 6
    teacher_prompts_per_block: Positive = 2
    prefill_tokens: Positive = 64
    decode_tokens: Positive = 32
    sustained_s: Annotated[float, Field(gt=0)] = 20.0


class Gate(Noun):
    """How budgets are judged: confidence, the most further blocks `gate --settle` may measure, the stored baseline.

    With `settle_blocks` each look at the measurements is stricter, so that all looks together err no more often.
    `require_terms` lets no answer of an API train a model unless `[teacher.terms]` say that it may.
    """

    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    settle_blocks: Annotated[int, Field(ge=0)] = 0
    baseline: str | None = None
    require_terms: bool = False
