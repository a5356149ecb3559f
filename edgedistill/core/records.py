"""Prompt, TeacherRecord, Rejected, LeftOut, EvalItem, Quality: the rows that stages hand each other."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from edgedistill.core.model import Noun


class ToolCall(Noun):
    """A function called; `id` is what its result names it by, empty where nobody said."""

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    id: str = ""


class Message(Noun):
    """What one said; what is empty of the last three is not written.

    `tools` of a system message are the functions that may be called, `tool_calls` those that the assistant calls, and
    `tool_call_id` the call whose result a message of the role `tool` is.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tools: tuple[dict[str, Any], ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""

    @property
    def extras(self) -> dict[str, Any]:
        """What there is beside role and text, as JSON values."""
        return {k: v for k, v in self.model_dump(mode="json").items() if k not in ("role", "content")}

    @model_serializer(mode="wrap")
    def _without_the_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value or name in ("role", "content")}


class Prompt(Noun):
    """One request; `answer` is the right one where gold exists. `kind` is a free tag (template family, source).

    `other_answers` are right as well. `tools` are the functions that may be called: objects of `name`, `description`
    and `parameters` (a JSON Schema).
    """

    schema_version: Literal[1] = 1
    id: str
    messages: tuple[Message, ...]
    answer: str | None = None
    other_answers: tuple[str, ...] = ()
    kind: str = ""
    tools: tuple[dict[str, Any], ...] = ()


class TeacherRecord(Noun):
    """A teacher's accepted answer to a prompt.

    `prompt_ids` and `answer_ids` are the teacher tokenizer's ids (the answer's end with its end-of-generation id);
    `logits_key` joins the row of the logits cache: the hash of ids, tokenizer, template and teacher revision. `calls`
    are the functions that the answer calls, where it was given as calls; `kind` is the prompt's. Of these two what is
    empty is not written.
    """

    schema_version: Literal[1] = 1
    id: str
    prompt_id: str
    teacher: str
    messages: tuple[Message, ...]
    answer: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    logits_key: str | None = None
    calls: tuple[ToolCall, ...] = ()
    kind: str = ""

    @model_serializer(mode="wrap")
    def _without_the_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value or name not in ("calls", "kind")}


class Rejected(Noun):
    """A teacher's answer that was not kept, and why."""

    schema_version: Literal[1] = 1
    prompt_id: str
    answer: str
    reason: str
    detail: str = ""


class LeftOut(Noun):
    """A row of the user's data that was not kept: its split, where it stands, and why."""

    schema_version: Literal[1] = 1
    split: str
    place: str
    reason: str
    detail: str = ""
    text: str = ""


class EvalItem(Noun):
    """One model's greedy answer to one held-out item; a task of a kind gives it a score in [0, 1].

    On the items whose logits are scored: the summed negative log-likelihood of the right answer's `answer_tokens`, and
    mean KL divergence and top-1 agreement with the reference where that answer is predicted (its end included).
    """

    schema_version: Literal[1] = 1
    id: str
    answer: str
    other_answers: tuple[str, ...] = ()
    output: str
    output_ids: tuple[int, ...]
    finish: Literal["stop", "length"]
    correct: bool
    answer_score_ratio: float | None = None
    kind: str = ""
    answer_tokens: int = 0
    answer_nll_nats: float | None = None
    kld_nats: float | None = None
    top1_ratio: float | None = None


class Quality(Noun):
    """One model's quality on the held-out items; `kld_nats` and `top1_ratio` are against `reference`."""

    schema_version: Literal[1] = 1
    model: str
    items: Annotated[int, Field(ge=1)]
    exact_match_ratio: float
    exact_match_low: float
    exact_match_high: float
    mean_output_tokens: float
    answer_score_ratio: float | None = None
    bits_per_byte: float | None = None
    reference: str | None = None
    kld_nats: float | None = None
    top1_ratio: float | None = None
    scored_tokens: int = 0
    extra: dict[str, Any] = Field(default_factory=dict)
