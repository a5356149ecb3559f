"""The recipe: everything a run depends on, in one validated TOML."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, StringConstraints, field_validator, model_validator

from edgedistill.core.arms import arm_name
from edgedistill.core.budget import PREVIOUS, Budget
from edgedistill.core.config import did_you_mean, load_toml, validate_overridden
from edgedistill.core.corpus import HUB, SPLITS, Data
from edgedistill.core.errors import InputError
from edgedistill.core.kinds import KINDS
from edgedistill.core.measurement import QUICK, Workload
from edgedistill.core.metric import FULL, METRICS, Metric
from edgedistill.core.model import Noun
from edgedistill.core.recipe_student import Student
from edgedistill.core.recipe_tables import Bench, Eval, Export, Gate, Synth
from edgedistill.core.recipe_train import Train
from edgedistill.core.task import Task
from edgedistill.core.teacher import API_ENGINES, Teacher

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


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
    def _matched_layers_are_the_students(self) -> Recipe:
        cut, match = self.student.cut, self.train.match
        if match is None or cut is None or cut.layers is None:
            return self
        count = cut.layers if isinstance(cut.layers, int) else len(cut.layers)
        if beyond := [pair for pair in match.layers if not 0 <= pair[0] < count or pair[1] < 0]:
            raise ValueError(
                f"expected train.match.layers of a student's layer below {count}, as student.cut.layers leaves it, and "
                f"a teacher's from 0, found {list(beyond[0])}; correct the pair"
            )
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
            if not budget.artifacts and not self.export.release:
                raise ValueError(
                    f"budget.{identity}.artifacts: expected what is judged, found none and no export.release either"
                )
        if self.bench.further_blocks > self.gate.settle_blocks:
            raise ValueError(
                f"expected bench.further_blocks <= gate.settle_blocks, found {self.bench.further_blocks} and "
                f"{self.gate.settle_blocks}"
            )
        return self

    @model_validator(mode="after")
    def _budgets_compare_with_what_is_measured(self) -> Recipe:
        """Else the gate finds, hours later, that there is nothing to judge."""
        for identity, budget in self.budget.items():
            place, full = f"budget.{identity}", budget.metric in FULL
            if self.bench.profile == "quick" and (full or budget.workload not in (None, *QUICK)):
                what = budget.metric.value if full else f"the workload {budget.workload}"
                raise ValueError(f'{place}: expected bench.profile = "full", which measures {what}, found "quick"')
            behind_api = self.teacher.is_api and budget.against in self._of_teacher()
            if not behind_api and budget.against not in (known := (*self.models(), PREVIOUS)):
                near = did_you_mean(budget.against, known)
                raise ValueError(f"{place}.against = {budget.against!r} is no model of this run{near}")
            relative = budget.max_ratio is not None or budget.min_ratio is not None
            if relative and budget.against not in (*self.models(budget.metric), PREVIOUS):
                raise ValueError(
                    f"{place}.against: expected a model whose {budget.metric.value} is measured, such as "
                    f"{', '.join(self.models(budget.metric)[:3])}, found {budget.against!r}"
                    f"{': the teacher is behind an API' if behind_api else ''}"
                )
        return self

    def models(self, metric: Metric | None = None) -> tuple[str, ...]:
        """Names of the models that a run has, or of those whose `metric` it measures; the teacher comes first.

        A teacher behind an API is none of them.
        """
        teacher = () if self.teacher.is_api else self._of_teacher()
        artifacts = (*teacher[1:], *self.export.variants)
        if metric in (Metric.KLD_NATS, Metric.TOP1_RATIO):  # taken against the float model
            return artifacts
        if metric is not None and METRICS[metric].source == "bench":
            return (*teacher[:1], *artifacts)
        trained = {"student": True, "control": self.train.control, "gold": self.train.arms.gold}
        arms = (arm_name(arm, number + 1) for arm, there in trained.items() if there
                for number in range(self.train.arms.seeds))  # fmt: skip
        return (*teacher[:1], *artifacts, "untrained", *arms)

    def _of_teacher(self) -> tuple[str, ...]:
        return ("teacher", *(f"teacher-{name}" for name in self.export.teacher_variants))


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
            raise InputError(f"expected a recipe at {path}, found no such file; correct the path")
        return path
    shipped = shipped_recipes()
    if reference not in shipped and ("/" in reference or path.suffix):
        raise InputError(
            f"expected a recipe, a run's folder or a model at {reference}, found none there; {_advice(path)}"
        )
    if reference not in shipped:
        raise InputError(f"expected a recipe file or name, found {reference!r}{did_you_mean(reference, shipped)}")
    return shipped[reference]


def _advice(path: Path) -> str:
    """What to do about a run's folder, or anything else, that is not there."""
    if path.name not in shipped_recipes():
        return "correct the path, or run its recipe first: `edgedistill run RECIPE`"
    elsewhere = [] if path.parent == Path("runs") else ["--runs-dir", str(path.parent)]
    return f"run `{shlex.join(['edgedistill', 'run', path.name, *elsewhere])}` first"


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
        if isinstance(section.get("model"), str) and section["model"].strip():
            local = folder / section["model"]
            section["model"] = str(local.resolve()) if local.exists() else section["model"]
    return data


def _resolved(value: Any, folder: Path) -> Any:
    """A path, or each of a list, looked up in `folder`; a data set of a hub and what is no text stay."""
    if isinstance(value, list):
        return [_resolved(one, folder) for one in value]
    return str((folder / value).resolve()) if isinstance(value, str) and not value.startswith(HUB) else value
