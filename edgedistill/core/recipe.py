"""The recipe: everything a run depends on, in one validated TOML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, StringConstraints, field_validator, model_validator

from edgedistill.core.budget import Budget
from edgedistill.core.config import did_you_mean, load_toml, validate_overridden
from edgedistill.core.corpus import HUB, SPLITS, Data
from edgedistill.core.errors import InputError
from edgedistill.core.kinds import KINDS
from edgedistill.core.measurement import Workload
from edgedistill.core.metric import parse_quantity
from edgedistill.core.model import Noun, Positive, Size
from edgedistill.core.recipe_train import Train
from edgedistill.core.task import Task
from edgedistill.core.teacher import API_ENGINES, Teacher

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
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
    batch_size: Positive = 128
    shard_size: Positive = 512
    kept: Literal["likeliest", "drawn"] = "likeliest"
    top_k: Annotated[int, Field(ge=1, le=255)] = 64
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.999
    least_probability: Annotated[float, Field(ge=0, lt=1)] = 2.5e-3
    reasoning: Literal["strip", "keep", "off"] = "strip"
    shorten: bool = False
    judge: Judging | None = None


class Cut(Noun):
    """How the student is cut from the teacher: layers kept (a list, or how many), widths, vocabulary size.

    `layer_score` tells which layers go: by the loss without each, or by block influence, in one pass. `heads` query
    heads stay in `kv_heads` groups of like size. Under `target_parameters`, or `target_bytes` of weights on `grid`
    (such as "20 MB"; the tokenizer comes on top), sizes that are not given are searched for. In two `steps` each arm is
    trained between: with fewer layers and tokens first, then with narrower layers.
    """

    layers: tuple[int, ...] | Positive | None = None
    layer_score: Literal["loss", "influence"] = "loss"
    ffn: Positive | None = None
    heads: Positive | None = None
    kv_heads: Positive | None = None
    hidden: Positive | None = None
    vocab: Positive | None = None
    target_parameters: Positive | None = None
    target_bytes: Size | None = None
    grid: Literal["q4_0", "q8_0"] = "q4_0"
    steps: Literal[1, 2] = 1

    @model_validator(mode="after")
    def _sizes_or_one_target(self) -> Cut:
        if self.target_parameters and self.target_bytes is not None:
            raise ValueError("expected target_parameters or target_bytes, found both")
        if self.layers is None and not self.target_parameters and self.target_bytes is None:
            raise ValueError("expected layers, or a target_parameters or target_bytes to choose them by")
        return self

    @property
    def most_bytes(self) -> float | None:
        return None if self.target_bytes is None else parse_quantity(self.target_bytes, unit="bytes")


class Student(Noun):
    """The model that learns: cut from the teacher, or a model reference with the teacher's tokenizer."""

    model: str | None = None
    cut: Cut | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> Student:
        if (self.model is None) == (self.cut is None):
            raise ValueError('expected either model = "…" or a [student.cut] table')
        return self


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
            raise ValueError(f"release names {', '.join(missing)}, which variants does not build")
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

    targets: tuple[str, ...] = ("local-cpu", "mobile-class")
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


class Recipe(Noun):
    """Everything a run depends on. `threads = 0` means every core this process may use."""

    schema_version: Literal[1] = 1
    name: Name
    seed: int = 0
    threads: Annotated[int, Field(ge=0)] = 0
    task: Task = Task()
    data: Data
    teacher: Teacher
    synth: Synth = Synth()
    student: Student
    train: Train = Train()
    export: Export = Export()
    eval: Eval = Eval()
    bench: Bench = Bench()
    gate: Gate = Gate()
    budget: dict[Name, Budget] = Field(default_factory=dict)

    @field_validator("budget")
    @classmethod
    def _ids_are_lower_case(cls, budget: dict[str, Budget]) -> dict[str, Budget]:
        return dict(sorted(budget.items()))

    @model_validator(mode="after")
    def _what_is_cut_again_is_on_no_grid(self) -> Recipe:
        if self.train.qat is not None and self.student.cut is not None and self.student.cut.steps > 1:
            raise ValueError("expected student.cut.steps = 1 with [train.qat]: cutting again leaves the grid")
        return self

    @model_validator(mode="after")
    def _codes_of_training_are_not_chosen_anew(self) -> Recipe:
        found = "export.calibrate" if self.export.calibrate else next(iter(self.export.mixed), None)
        if found and self.train.qat is not None:
            raise ValueError(f"expected either {found} or [train.qat]: export writes the codes that training ended on")
        return self

    @model_validator(mode="after")
    def _draws_are_linear(self) -> Recipe:
        train = self.train
        learns = train.teacher == "cached" and train.kd_weight > 0
        if self.synth.kept == "drawn" and learns and (train.divergence, train.temperature) != ("forward-kl", 1.0):
            raise ValueError(
                'expected train.divergence = "forward-kl" and train.temperature = 1 with synth.kept = "drawn", found '
                f'"{train.divergence}" and {train.temperature:g}: of draws only that one has no bias'
            )
        return self

    @model_validator(mode="after")
    def _an_arm_on_gold_has_gold(self) -> Recipe:
        if self.train.arms.gold and not self.data.gold:
            raise ValueError("expected data.gold with train.arms.gold = true, found none; give some, or drop that arm")
        return self

    @model_validator(mode="after")
    def _what_is_asked_beside_needs_an_api(self) -> Recipe:
        synth, usual = self.synth, Synth()
        changed = [n for n in ("reasoning", "shorten", "judge") if getattr(synth, n) != getattr(usual, n)]
        if changed and not self.teacher.is_api:
            raise ValueError(
                f'expected teacher.engine "openai" or "anthropic" with synth.{changed[0]}, found '
                f'"{self.teacher.engine}"'
            )
        if synth.shorten and self.task.answer == "text" and (self.task.kind is None or KINDS[self.task.kind].graded):
            raise ValueError(
                "expected a task.kind with right answers, or JSON answers, with synth.shorten, found none: whether two "
                "texts say the same cannot be told"
            )
        if self.teacher.mix == "judged" and synth.judge is None:
            raise ValueError('expected [synth.judge] with teacher.mix = "judged", found none')
        return self

    @model_validator(mode="after")
    def _an_api_teacher_leaves_only_text(self) -> Recipe:
        if not self.teacher.is_api:
            return self
        if self.student.model is None:
            raise ValueError(
                f'expected student.model with teacher.engine = "{self.teacher.engine}", found [student.cut], which '
                "needs the teacher's weights"
            )
        doubtful = [t.terms for t in self.teacher.all if t.terms is None or t.terms.training_allowed is not True]
        if self.gate.require_terms and doubtful:
            found = "no [teacher.terms]" if doubtful[0] is None else f"{doubtful[0].training_allowed!r}"
            raise ValueError(
                f"expected teacher.terms.training_allowed = true, because gate.require_terms is, found {found}; ask "
                "the provider, or take another teacher"
            )
        if self.train.teacher == "online":
            raise ValueError(
                f'expected train.teacher = "cached" with teacher.engine = "{self.teacher.engine}", found "online", '
                "which needs the teacher's weights"
            )
        for identity, budget in self.budget.items():
            relative = budget.max_ratio is not None or budget.min_ratio is not None
            if relative and (budget.against == "teacher" or budget.against.startswith("teacher-")):
                raise ValueError(
                    f"budget.{identity}.against: expected a model that is measured here, found {budget.against!r}, "
                    "which answers through an API; name another, such as 'untrained'"
                )
        return self

    @model_validator(mode="after")
    def _budgets_name_what_exists(self) -> Recipe:
        for identity, budget in self.budget.items():
            if budget.target is not None and budget.target not in self.bench.targets:
                _require_targets(self.bench.targets)  # or a misspelt one would be blamed on the budget
                near = did_you_mean(budget.target, self.bench.targets)
                raise ValueError(f"budget.{identity}.target = {budget.target!r} is not in bench.targets{near}")
            if budget.workload is not None and budget.workload not in get_args(Workload):
                near = did_you_mean(budget.workload, get_args(Workload))
                raise ValueError(f"budget.{identity}.workload = {budget.workload!r} is no workload{near}")
            for artifact in budget.artifacts:
                if artifact not in self.export.variants:
                    near = did_you_mean(artifact, self.export.variants)
                    raise ValueError(f"budget.{identity}.artifacts: {artifact!r} is not in export.variants{near}")
        if self.bench.further_blocks > self.gate.settle_blocks:
            raise ValueError(
                f"expected bench.further_blocks <= gate.settle_blocks, found {self.bench.further_blocks} and "
                f"{self.gate.settle_blocks}"
            )
        return self


def _require_targets(references: tuple[str, ...]) -> None:
    from edgedistill.core.target import all_targets

    known = all_targets()
    for reference in references:
        if not reference.endswith(".toml") and reference not in known:
            raise ValueError(f"bench.targets: {reference!r} is no target{did_you_mean(reference, known)}")


def shipped_recipes() -> dict[str, Path]:
    """Recipes that come with the package, by name."""
    folder = Path(__file__).resolve().parents[1] / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find_recipe(reference: str) -> Path:
    """Path of a recipe given as a TOML path or a shipped name.

    Raises:
        InputError: neither a file nor a shipped recipe.
    """
    path = Path(reference)
    if path.suffix == ".toml" or path.is_file():
        if not path.is_file():
            raise InputError(f"expected a recipe at {path}, found no such file")
        return path
    shipped = shipped_recipes()
    if reference not in shipped and ("/" in reference or path.suffix):
        raise InputError(f"expected a recipe, a run's folder or a model at {reference}, found none there")
    if reference not in shipped:
        raise InputError(f"expected a recipe file or name, found {reference!r}{did_you_mean(reference, shipped)}")
    return shipped[reference]


def load_recipe(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read, override and validate a recipe; data paths and models that are local become absolute.

    They are looked up relative to the recipe's folder.

    Raises:
        InputError: listing every error of the file.
    """
    return validate_overridden(
        Recipe, load_toml(path), overrides, source=str(path), prepare=lambda data: _absolute(data, path.parent)
    )


def _absolute(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`data` with its local paths looked up in `folder`; a model that is no path there stays a reference."""
    for table, names in (("data", SPLITS), ("eval", ("text",)), ("gate", ("baseline",))):
        section = data.get(table)
        for name in names if isinstance(section, dict) else ():
            if name in section:
                section[name] = _resolved(section[name], folder)
    train = data.get("train")
    further = train.get("further_teachers") if isinstance(train, dict) else None
    for section in (data.get("teacher"), data.get("student"), *(further if isinstance(further, list) else ())):
        if not isinstance(section, dict) or section.get("engine") in API_ENGINES:
            continue  # an API's name of a model is no path
        if isinstance(section.get("model"), str):
            local = folder / section["model"]
            section["model"] = str(local.resolve()) if local.exists() else section["model"]
    return data


def _resolved(value: Any, folder: Path) -> Any:
    """A path, or each of a list, looked up in `folder`; a data set of a hub and what is no text stay."""
    if isinstance(value, list):
        return [_resolved(one, folder) for one in value]
    return str((folder / value).resolve()) if isinstance(value, str) and not value.startswith(HUB) else value
