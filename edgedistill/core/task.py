"""The recipe's `[task]`: what is asked, and how an answer is judged."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from edgedistill.core.kinds import NLI_LABELS, KindName, system_text
from edgedistill.core.model import Noun, Positive


class Task(Noun):
    """What is asked and how an answer is judged. `chat_template` replaces the teacher's own when given.

    `kind` gives the words of the request, reads the answer and compares it; `labels` are the classes. `tools` are the
    functions that may be called, as objects of `name`, `description` and `parameters` (a JSON Schema); `tool_calls`
    says whether functions and calls are text, or what APIs and templates have for them. `copied` names fields of a JSON
    answer whose text or number must stand in the prompt, each with the texts that need not.

    An answer must match all of `answer_pattern` (a regular expression), have `answer_words` (least, most) words, be in
    `language` (ISO 639-1), and be no refusal unless `refusals` says so.
    """

    kind: KindName | None = None
    labels: tuple[str, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    tool_calls: Literal["text", "native"] = "text"
    answer: Literal["json", "text"] = "text"
    answer_schema: dict[str, Any] | None = None
    answer_pattern: str | None = None
    answer_words: tuple[int, int] | None = None
    language: Annotated[str, Field(pattern="^[a-z]{2}$")] | None = None
    refusals: Literal["reject", "keep"] = "reject"
    copied: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    system: str | None = None
    chat_template: str | None = None
    max_new_tokens: Positive = 256

    def all_labels(self) -> tuple[str, ...]:
        return self.labels or (NLI_LABELS if self.kind == "nli" else ())

    def all_system(self) -> str | None:
        """What is said before each request: the recipe's own words, else the kind's."""
        if self.system is not None or self.kind is None:
            return self.system
        if self.tool_calls == "native":  # the form of a call is said by the API and by the template
            return "Call the function that the request needs."
        return system_text(self.kind, labels=self.all_labels()) or None

    @model_validator(mode="after")
    def _answers_are_of_the_kind(self) -> Task:
        if (self.kind == "function-call") != (self.answer == "json") and self.kind is not None:
            expected = "json" if self.kind == "function-call" else "text"
            raise ValueError(f'kind = "{self.kind}" expects answer = "{expected}", found {self.answer!r}')
        if self.labels and self.kind not in ("classification", "nli"):
            raise ValueError('labels expect kind = "classification" or "nli"')
        if self.tools and self.kind != "function-call":
            raise ValueError('tools expect kind = "function-call"')
        if self.tool_calls == "native" and self.kind != "function-call":
            raise ValueError('tool_calls = "native" expects kind = "function-call"')
        if unnamed := [tool for tool in self.tools if not isinstance(tool.get("name"), str)]:
            raise ValueError(f"tools: expected a name of each, found {unnamed[0]}")
        if self.answer_words and not 0 <= self.answer_words[0] <= self.answer_words[1]:
            raise ValueError(f"answer_words: expected least <= most, found {list(self.answer_words)}")
        try:
            re.compile(self.answer_pattern or "")
        except re.error as e:
            raise ValueError(f"answer_pattern = {self.answer_pattern!r} is no regular expression: {e}") from None
        return self
