"""Target: a device class, with the provenance of every hardware figure, how it is reached, and its anchor cells."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from edgedistill.core.budget import Evidence
from edgedistill.core.config import did_you_mean, load_toml, validate
from edgedistill.core.errors import InputError
from edgedistill.core.metric import parse_quantity
from edgedistill.core.model import InBytes, Noun, some_bytes
from edgedistill.core.recipe import Name

Runner = Literal["local", "constrained", "ssh", "adb", "gpu", "projected"]
EVIDENCE_OF: dict[str, Evidence] = {
    "local": "measured",
    "constrained": "constrained",
    "ssh": "measured",
    "adb": "measured",
    "gpu": "measured",
    "projected": "projected",
}
NO_MCU = (
    "no LLM runtime fits a microcontroller (KBs of RAM, no memory map for weights), so nothing could be measured; "
    "choose server-cpu, desktop, sbc, phone, mobile-class or gpu"
)
# What a connection may not be called: how to reach a device belongs in a file that is shared, what opens it does not.
SECRET = re.compile(r"passw|passphrase|secret|token|credential|api_?key|private_?key", re.IGNORECASE)


class Figure(Noun):
    """A hardware figure: its value, how it is known, where and when it was read. A published one names its source.

    The value of one called `…_bytes` is a number of bytes or a text such as "8 GB"; others may be in words.
    """

    value: float | str
    provenance: Literal["measured", "published", "derived", "unverified", "this-host"]
    url: str | None = None
    date: str | None = None
    note: str | None = None

    @model_validator(mode="after")
    def _published_has_a_source(self) -> Figure:
        if self.provenance == "published" and not (self.url and self.date):
            raise ValueError("expected url and date of a published figure; add them, or call it unverified")
        return self


class Limits(Noun):
    """What the constrained runner applies on this host; 0 means no limit."""

    cores: Annotated[int, Field(ge=0)] = 0
    memory_bytes: Annotated[int, InBytes, Field(ge=0)] = 0


class Anchor(Noun):
    """One measured or published cell of a target: a model's speed under an engine, to fit projections on.

    `read_bytes` are the bytes of weights that decoding one token reads: the file without a table of which one row is
    looked up. `weights` counts the weights multiplied per token, `head_weights` those of them in the output matrix,
    which llama.cpp keeps in a type of its own. `kv_bytes` is what one token reads of the KV cache, averaged over the
    run.
    """

    model: str
    quant: str
    engine: str
    backend: Literal["cpu", "gpu", "npu"] = "cpu"
    threads: Annotated[int, Field(ge=1)] | None = None
    device: str | None = None
    read_bytes: Annotated[float, InBytes, Field(gt=0)]
    weights: Annotated[float, Field(gt=0)] | None = None
    head_weights: Annotated[float, Field(ge=0)] = 0
    kv_bytes: Annotated[float, InBytes, Field(ge=0)] = 0
    decode_tokens_per_s: Annotated[float, Field(gt=0)] | None = None
    prefill_tokens_per_s: Annotated[float, Field(gt=0)] | None = None
    provenance: Literal["measured", "published"] = "published"
    source: Annotated[str, Field(min_length=1)]
    date: str

    @model_validator(mode="after")
    def _has_a_speed(self) -> Anchor:
        if self.decode_tokens_per_s is None and self.prefill_tokens_per_s is None:
            raise ValueError("expected decode_tokens_per_s or prefill_tokens_per_s, found neither")
        if self.weights is not None and self.head_weights >= self.weights:
            raise ValueError("expected head_weights to be less than weights, which they are part of")
        return self


class Target(Noun):
    """One device class. `runner = "constrained"` measures this host within `limits`, never under a device's name.

    `runner = "projected"` says that nobody here has the device: its numbers come from its anchors. `connection` tells
    the runners ssh, adb and gpu where the device is (host, port, user, serial, …).
    """

    schema_version: Literal[1] = 1
    id: Name
    title: str
    device_class: Literal["server-cpu", "desktop", "sbc", "phone", "mobile-class", "gpu"]
    runner: Runner
    limits: Limits = Limits()
    connection: dict[str, str | int | float | bool] = Field(default_factory=dict)
    figures: dict[str, Figure] = Field(default_factory=dict)
    anchors: tuple[Anchor, ...] = ()
    note: str = ""

    @field_validator("device_class", mode="before")
    @classmethod
    def _no_microcontroller(cls, value: Any) -> Any:
        if isinstance(value, str) and value.removesuffix("-class") == "mcu":
            raise ValueError(NO_MCU)
        return value

    @field_validator("connection")
    @classmethod
    def _no_secret(cls, value: dict[str, str | int | float | bool]) -> dict[str, str | int | float | bool]:
        for name, held in value.items():
            if SECRET.search(name) or "PRIVATE KEY" in str(held):
                raise ValueError(f"expected no secret, found {name!r}; let the ssh agent or the adb key store hold it")
        return value

    @field_validator("figures")
    @classmethod
    def _bytes_are_bytes(cls, figures: dict[str, Figure]) -> dict[str, Figure]:
        """Words would leave a memory unknown, and every model would fit it."""
        wrong: list[InitErrorDetails] = []
        for name, figure in figures.items():
            try:
                if name.endswith("_bytes"):
                    some_bytes(figure.value)
            except ValueError as e:
                words = not re.search(r"\d", str(figure.value))
                advice = f"; give words another name, such as {name.removesuffix('_bytes')!r}" if words else ""
                said = PydanticCustomError("size", "{told}", {"told": f"{e}{advice}"})
                wrong.append(InitErrorDetails(type=said, loc=(name, "value"), input=figure.value))
        if wrong:
            raise ValidationError.from_exception_data(cls.__name__, wrong)
        return figures

    @model_validator(mode="after")
    def _reached_as_it_says(self) -> Target:
        if self.connection and self.runner not in ("ssh", "adb", "gpu"):
            raise ValueError(f"expected no connection, because the runner {self.runner} reaches no other device")
        return self

    @property
    def evidence(self) -> Evidence:
        return EVIDENCE_OF[self.runner]

    def number(self, figure: str) -> float | None:
        """The value of a figure if it is one number or, of one called `…_bytes`, such a text as "8 GB"; else None."""
        found = self.figures.get(figure)
        return None if found is None else _number(figure, found)


def _number(name: str, figure: Figure) -> float | None:
    if name.endswith("_bytes"):
        return parse_quantity(figure.value, unit="bytes")
    return None if isinstance(figure.value, str) else float(figure.value)


def target_folders() -> list[Path]:
    """Where targets are looked up: `./targets`, the source tree's, the installed package's."""
    package = Path(__file__).resolve().parents[1]
    return [Path("targets").resolve(), package.parent / "targets", package / "_targets"]


def all_targets() -> dict[str, Path]:
    """Target id → file; the first folder that has an id wins."""
    found: dict[str, Path] = {}
    for folder in target_folders():
        for path in sorted(folder.glob("*.toml")):
            found.setdefault(path.stem, path)
    return found


def measured_target(reference: str) -> Target:
    """Read a target by id or TOML path, for measuring on it.

    Raises:
        InputError: as `load_target`; or nobody here has the device.
    """
    target = load_target(reference)
    require_device(target)
    return target


def require_device(target: Target) -> None:
    """Raises InputError where nobody here has the device of `target`, so that nothing is measured on it."""
    if target.runner == "projected":
        raise InputError(
            f"expected a target that can be measured, found {target.id} with runner 'projected'; use "
            "`edgedistill targets project`, or give its file a runner that reaches the device"
        )


def load_target(reference: str) -> Target:
    """Read a target by id or TOML path.

    Raises:
        InputError: unknown id (with the nearest), or every error of the file.
    """
    if reference.endswith(".toml"):
        path = Path(reference)
    else:
        known = all_targets()
        if reference not in known:
            raise InputError(f"expected a target, found {reference!r}{did_you_mean(reference, known)}")
        path = known[reference]
    target = validate(Target, load_toml(path), source=str(path))
    if target.id != path.stem:
        raise InputError(f"{path}: expected id = {path.stem!r} as the file is named, found {target.id!r}")
    return target
