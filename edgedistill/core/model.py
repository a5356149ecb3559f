"""The base of every noun: frozen, strict about names, versioned; and the numbers that many of them have."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from edgedistill.core.metric import parse_quantity


def some_bytes(value: float | str) -> float | str:
    """The size as it is written.

    Raises:
        ValueError: it is no number of bytes from 1, and no text such as "150 MB".
    """
    if parse_quantity(value, unit="bytes") < 1:
        raise ValueError("expected at least one byte, such as '150 MB'")
    return value


def _bytes_of(value: Any) -> Any:
    """Whole bytes: "1.2 GiB" is none by itself."""
    return int(parse_quantity(value, unit="bytes")) if isinstance(value, str) else value


Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Size = Annotated[float | str, AfterValidator(some_bytes)]  # kept as it is written: stages depend on that
InBytes = BeforeValidator(_bytes_of)  # lets a number of bytes be written as "150 MB", too


class Noun(BaseModel):
    """A frozen value; unknown names are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
