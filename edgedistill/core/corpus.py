"""The recipe's `[data]`: where prompts come from, in which form, and what is checked before the teacher is asked."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from edgedistill.core.model import Noun

SPLITS = ("gold", "valid", "heldout", "prompts")
HUB = "hf:"
Form = Literal["auto", "prompt", "messages", "alpaca", "sharegpt", "fields"]
Source = int | str | tuple[str, ...]


class Split(Noun):
    """Shares of `data.gold` that become `valid` and `heldout`, by a hash of each row's group.

    A group is what `data.group` names, else the request itself; it never moves as the data grows.
    """

    valid: Annotated[float, Field(ge=0, lt=1)] = 0.0
    heldout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _something_is_left(self) -> Split:
        if self.valid + self.heldout >= 1:
            raise ValueError(f"expected valid + heldout below 1, found {self.valid:g} + {self.heldout:g}")
        return self


class Checks(Noun):
    """What is looked for in prompts and gold, and whether such rows are dropped or only told of.

    `similarity` is the Jaccard similarity of character shingles from which two texts are near duplicates. `overlap` is
    the share of an evaluation text's word n-grams that a training text must have to be contaminated: 0 for any one.
    """

    near_duplicates: Literal["report", "drop", "off"] = "report"
    similarity: Annotated[float, Field(gt=0, le=1)] = 0.8
    contamination: Literal["report", "drop"] = "drop"
    overlap: Annotated[float, Field(ge=0, le=1)] = 0.0
    personal: Literal["report", "drop"] = "report"


class Balance(Noun):
    """Rows of a split drawn so that classes have the shares of `target`, or equal ones; the rest is left out.

    `by`: the right answer, the row's `kind`, its length in words, or the file it came from.
    """

    split: Literal["gold", "prompts"] = "prompts"
    by: Literal["answer", "kind", "length", "source"]
    target: Literal["equal"] | dict[str, Annotated[float, Field(ge=0)]] = "equal"

    @model_validator(mode="after")
    def _some_weight(self) -> Balance:
        if isinstance(self.target, dict) and not any(self.target.values()):
            raise ValueError('expected target = "equal" or a table of shares above 0')
        return self


class Data(Noun):
    """Where prompts come from: a built-in generator with sizes, or files (relative to the recipe), one or a list.

    A file is JSONL, JSON, CSV or Parquet; `hf:NAME`, `hf:NAME@REVISION#SPLIT` is a Hugging Face data set. `columns`
    maps the names that the form or the task's kind expects to those of the file; `group` is the column whose rows stay
    together in a split.
    """

    generator: Literal["home-commands"] | None = None
    gold: Source = 0
    valid: Source = 0
    heldout: Source = 0
    prompts: Source = 0
    form: Form = "auto"
    columns: dict[str, str] = Field(default_factory=dict)
    group: str | None = None
    split: Split | None = None
    checks: Checks = Checks()
    balance: Balance | None = None

    def sources(self, name: str) -> tuple[str, ...]:
        """The files of a split, none for a count."""
        value = getattr(self, name)
        return () if isinstance(value, int) else (value,) if isinstance(value, str) else value

    def has(self, name: str) -> bool:
        """Whether a split has rows to come from: a count, files, or a share of gold."""
        return bool(getattr(self, name) or (self.split and getattr(self.split, name, 0.0)))

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        for name in SPLITS:
            value = getattr(self, name)
            if self.generator and not isinstance(value, int):
                raise ValueError(f"{name} = {value!r}: expected a count, because generator = {self.generator!r}")
            if not self.generator and isinstance(value, int) and value:
                raise ValueError(f"{name} = {value!r}: expected a JSONL path, because no generator is named")
        return self

    @model_validator(mode="after")
    def _a_generator_has_no_columns(self) -> Data:
        if self.generator and (self.form != "auto" or self.columns or self.group):
            raise ValueError(f"form, columns and group are those of files, found generator = {self.generator!r}")
        return self

    @model_validator(mode="after")
    def _split_has_a_whole(self) -> Data:
        if self.split is None:
            return self
        if not self.sources("gold"):
            raise ValueError("[data.split] expects data.gold to name files, because it divides them")
        for name in ("valid", "heldout"):
            if getattr(self.split, name) and self.sources(name):
                raise ValueError(f"expected either data.{name} or data.split.{name}, found both")
        return self
