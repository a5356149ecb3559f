"""The recipe's teacher: a local model or one behind an API, how it is asked, and what asking may cost."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, PositiveFloat, StringConstraints, model_validator

from edgedistill.core.model import Noun, Text

API_ENGINES = ("openai", "anthropic")
KEY_ENV = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}
API_TEACHER = "api.json"  # in the teacher's folder: the teacher has no weights here, it answers through an API

Positive = Annotated[int, Field(ge=1)]
Amount = Annotated[float, Field(gt=0)]
Rate = Annotated[float, Field(ge=0)]


def is_behind_api(folder: Path) -> bool:
    """Whether the teacher of a run, whose folder this is, has no weights here."""
    return (folder / API_TEACHER).is_file()


class Adapt(Noun):
    """LoRA adaptation of the teacher to the gold split, and the exact match on `valid` it must reach.

    Layers before `first_layer` stay as they are, which saves their part of the backward pass.
    """

    rank: Positive = 16
    alpha: Positive = 32
    first_layer: Annotated[int, Field(ge=0)] = 0
    lr: PositiveFloat = 1e-3
    epochs: PositiveFloat = 2.0
    batch_size: Positive = 16
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.05
    min_exact_match: Annotated[float, Field(ge=0, le=1)] = 0.95


class Price(Noun):
    """What a million tokens cost in `currency`, as `source` said on `date`."""

    input_per_mtok: Rate
    output_per_mtok: Rate
    currency: Text = "USD"
    date: datetime.date
    source: Text


class Terms(Noun):
    """Whether the provider's terms allow training on its answers, as `source` said on `date`."""

    training_allowed: bool | Literal["unknown"]
    source: Text
    date: datetime.date


class Limits(Noun):
    """The most that all requests of a run may cost together, in the price's currency and in input and output tokens."""

    money: Amount | None = None
    tokens: Positive | None = None


class Teacher(Noun):
    """The model that answers. `model`: Hub id, local folder, local GGUF, `pypi:PACKAGE==VERSION`, or an API's name.

    The rest is for `engine = "openai"` (any server that speaks OpenAI's chat completions) and `"anthropic"` (Messages).
    `key_env` names the environment variable of the key. `revision` tells models of one name apart: another one is asked
    anew. `accepts` names models that a reply may come from besides `model` and its dated snapshots. `temperature` is
    sent where it is set: some models take none. `extra_body` is sent as it is. `timeout_s` is for one attempt,
    `attempts` the most per request, `concurrency` the most in flight, `smoke` how many are asked and shown before the
    rest. `mode = "batch"` asks through the provider's batch API, `batch_size` requests at a time, looking every
    `poll_s` seconds; the price is then that of batches.

    `further` teachers share the work by `mix`: `tag` gives them the prompts of their `kinds`, `share` that part of the
    prompts, `vote` asks all of them and keeps what most say, `cascade` asks the next one where no answer is kept yet,
    `judged` keeps the one that the judge scores highest.
    """

    model: Text
    engine: Literal["hf", "llamacpp", "openai", "anthropic"] = "hf"
    adapt: Adapt | None = None
    base_url: str | None = None
    key_env: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    revision: str = ""
    accepts: tuple[str, ...] = ()
    max_output_tokens: Positive | None = None
    max_tokens_name: Literal["max_tokens", "max_completion_tokens"] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    extra_body: dict[str, Any] = Field(default_factory=dict)
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 16
    timeout_s: Amount = 120.0
    attempts: Positive = 8
    smoke: Annotated[int, Field(ge=0)] = 5
    mode: Literal["live", "batch"] = "live"
    batch_size: Annotated[int, Field(ge=1, le=50_000)] = 10_000
    poll_s: Amount = 60.0
    price: Price | None = None
    limits: Limits = Limits()
    terms: Terms | None = None
    mix: Literal["tag", "share", "vote", "cascade", "judged"] | None = None
    kinds: tuple[str, ...] = ()
    share: Annotated[float, Field(gt=0, lt=1)] | None = None
    further: tuple[Teacher, ...] = ()

    @property
    def all(self) -> tuple[Teacher, ...]:
        """This teacher and the further ones, in the order in which they are asked."""
        return self, *self.further

    @property
    def is_api(self) -> bool:
        return self.engine in API_ENGINES

    @property
    def key_name(self) -> str | None:
        """The variable that holds the key; None where none is needed, as for most servers of one's own."""
        return self.key_env or (KEY_ENV.get(self.engine) if self.base_url is None else None)

    def identity(self) -> dict[str, Any]:
        """Who answers behind an API, and under which terms."""
        own = self.model_dump(mode="json", include={"engine", "model", "revision", "terms"})
        return own | ({"further": [teacher.identity() for teacher in self.further]} if self.further else {})

    def answering(self) -> dict[str, Any]:
        """What the answers of an API depend on: not where it is reached, how fast, or for what money."""
        settings = {"max_output_tokens", "max_tokens_name", "temperature", "top_logprobs", "extra_body"}
        own = self.identity() | self.model_dump(mode="json", include=settings | {"mix", "kinds", "share"})
        return own | ({"further": [teacher.answering() for teacher in self.further]} if self.further else {})

    @model_validator(mode="after")
    def _settings_fit_the_engine(self) -> Teacher:
        if not self.is_api:
            # By value: a recipe read back from its lock names every setting.
            others = type(self).model_construct(**self.model_dump(include={"model", "engine"}))
            names = (name for name in type(self).model_fields if name != "adapt")
            if foreign := [name for name in names if getattr(self, name) != getattr(others, name)]:
                raise ValueError(f'expected {foreign[0]} with engine "openai" or "anthropic", found "{self.engine}"')
            if self.engine == "llamacpp" and self.adapt is not None:
                raise ValueError('expected engine "hf" with [teacher.adapt], found "llamacpp": a GGUF stays as it is')
            return self
        if self.adapt is not None:
            raise ValueError(f'expected no [teacher.adapt] with engine "{self.engine}": no weights are here to adapt')
        if self.limits.money is not None and self.price is None:
            raise ValueError("expected [teacher.price] with limits.money: without it no cost can be told")
        if self.engine == "anthropic":
            wrong = [name for name in ("top_logprobs", "max_tokens_name") if getattr(self, name)]
            if wrong:
                raise ValueError(f'expected no {wrong[0]} with engine "anthropic", whose Messages API has none')
        return self

    @model_validator(mode="after")
    def _further_teachers_have_their_part(self) -> Teacher:
        if bool(self.further) != (self.mix is not None):
            raise ValueError("expected mix and [[teacher.further]] together, found one of them")
        for teacher in self.further:
            if not teacher.is_api or teacher.further:
                raise ValueError('expected further teachers of engine "openai" or "anthropic", none with further ones')
            for name in ("tag", "share"):
                given = bool(teacher.kinds) if name == "tag" else teacher.share is not None
                if given != (self.mix == name):
                    key = "kinds" if name == "tag" else "share"
                    raise ValueError(f'expected {key} of each further teacher with mix = "{name}", and with no other')
        if self.mix == "share" and sum(teacher.share or 0 for teacher in self.further) > 1:
            raise ValueError("expected shares of at most 1 together")
        return self

    @model_validator(mode="after")
    def _url_holds_no_secret(self) -> Teacher:
        if self.base_url is None:
            return self
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url: expected http://… or https://…, found {self.base_url!r}")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("base_url: expected no user, password or query in it; name the key's variable in key_env")
        return self
