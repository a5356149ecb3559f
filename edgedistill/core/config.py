"""TOML at the edge: read, override, validate; a file's errors come together, each with place, found and expected."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from edgedistill.core.errors import InputError

Model = TypeVar("Model", bound=BaseModel)


def load_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file.

    Raises:
        InputError: the file is absent, not UTF-8 or not TOML; the message carries the line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"expected a TOML file at {path}, found nothing there") from None
    except OSError as e:
        raise InputError(f"expected a readable TOML file at {path}: {e.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise InputError(f"{path} is not valid TOML: {e}") from None


def apply_overrides(data: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Apply `a.b.c=VALUE` overrides, VALUE typed as TOML, to a copy of `data`.

    Raises:
        InputError: an override has no `=`, VALUE is not TOML, or the path runs through something that is no table.
    """
    result = _deep_copy(data)
    for override in overrides:
        name, separator, text = override.partition("=")
        if not separator or not name.strip():
            raise InputError(f"expected --set NAME=VALUE, found {override!r}")
        try:
            parsed = tomllib.loads(f"v = {text}")
            value = parsed.pop("v")
        except tomllib.TOMLDecodeError:
            parsed = {"not": "TOML"}
        if parsed:
            raise InputError(
                f"--set {name.strip()}: expected a TOML value, found {text!r}; quote text as in 'name=\"text\"'"
            ) from None
        *parents, leaf = name.strip().split(".")
        table: Any = result
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise InputError(f"--set {name.strip()}: expected {parent!r} to be a table, found {table!r}")
        table[leaf] = value
    return result


def validate(model: type[Model], data: Any, *, source: str) -> Model:
    """Build `model` from plain data.

    Raises:
        InputError: lists every error, one a line: where, what was found, what is expected, the nearest known name.
    """
    try:
        return model.model_validate(data)
    except ValidationError as e:
        errors: dict[str, list[str]] = {}
        for error in e.errors(include_url=False):
            place, message = _describe(error, model=model, data=data)
            errors.setdefault(place, []).append(message)
        # A value that fits no member of a union has one error a member: one line, joined by "or".
        lines = [f"{place}{': ' if place else ''}{_joined(messages)}" for place, messages in errors.items()]
        raise InputError(f"{source} has {len(lines)} error{'s'[: len(lines) != 1]}:\n  " + "\n  ".join(lines)) from None


def validate_overridden(
    model: type[Model],
    data: Mapping[str, Any],
    overrides: Sequence[str],
    *,
    source: str,
    prepare: Callable[[dict[str, Any]], dict[str, Any]] = lambda data: data,
) -> Model:
    """Build `model` from a file's data and `--set` overrides; what only an override made wrong is blamed on it.

    `prepare` turns the data with its overrides into what is validated.

    Raises:
        InputError: as `apply_overrides` and `validate`.
    """
    wanted = prepare(apply_overrides(data, overrides))
    if _is_valid(model, wanted) or not overrides or not _is_valid(model, prepare(apply_overrides(data, ()))):
        return validate(model, wanted, source=source)
    wrong = [one for one in overrides if not _is_valid(model, prepare(apply_overrides(data, [one])))]
    return validate(model, wanted, source=" ".join(f"--set {one}" for one in wrong or overrides))


def _is_valid(model: type[BaseModel], data: Any) -> bool:
    try:
        model.model_validate(data)
    except ValidationError:
        return False
    return True


def did_you_mean(found: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known name, else `; known: a, b, c`."""
    names = sorted(known)
    near = difflib.get_close_matches(found, names, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(names)}"


def _describe(error: Any, *, model: type[BaseModel], data: Any) -> tuple[str, str]:
    location = _location_in(data, error)
    place = ".".join(location)
    if error["type"] == "extra_forbidden":
        return place, f"unknown name{did_you_mean(location[-1], _fields_at(model, location[:-1]))}"
    if error["type"] == "missing":
        return place, "expected a value, found none"
    message = error["msg"].removeprefix("Value error, ")
    message = f"{message[0].lower()}{message[1:]}"
    if isinstance(error["input"], dict | BaseModel):
        return place, message
    if error["type"] in ("enum", "literal_error") and isinstance(error["input"], str):
        nearest = did_you_mean(error["input"], re.findall(r"'([^']*)'", error["ctx"]["expected"]))
        return place, f"found {error['input']!r}{nearest}"
    return place, f"found {error['input']!r}; {message}"


def _joined(messages: Sequence[str]) -> str:
    first, *others = dict.fromkeys(messages)
    return " or ".join([first, *(other.rpartition("; ")[2] for other in others)])


def _location_in(data: Any, error: Any) -> list[str]:
    """The error's path through `data`: pydantic adds the tried member of a union and `[key]`, which no file has."""
    found, value = [], data
    for part in error["loc"]:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            if error["type"] != "missing" or part != error["loc"][-1]:
                continue
        found.append(str(part))
    return found


def _fields_at(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    """Field names of the model that `location` leads to; a table's keys and a list's places are steps of their own."""
    fields: type[BaseModel] | None = model
    steps = iter(location)
    for part in steps:
        if fields is None or part not in fields.model_fields:
            return []
        annotation = fields.model_fields[part].annotation
        fields = _model_in(annotation)
        if getattr(annotation, "__origin__", None) in (dict, list, tuple):
            next(steps, None)
    return list(fields.model_fields) if fields is not None else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if found := _model_in(argument):
            return found
    return None


def _deep_copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _deep_copy(inner) for key, inner in value.items()}
    return [_deep_copy(inner) for inner in value] if isinstance(value, list) else value
