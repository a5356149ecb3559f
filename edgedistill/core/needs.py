"""What a stage needs that its recipe or the host does not have, told before the first stage begins, not hours later."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from edgedistill.core.errors import EdgeDistillError, InputError, MissingError
from edgedistill.core.kinds import KINDS
from edgedistill.core.model_reference import require_reference
from edgedistill.core.recipe import Recipe

GRADED_BY = ("rouge_score", "sacrebleu")


def check_needs(recipe: Recipe, stage: str) -> None:
    """Hold a recipe against what a stage will ask of it, but for what `lack_of` tells.

    Raises:
        InputError: a split or a model that the stage works on is not named, or not there.
    """
    NEEDS.get(stage, lambda recipe: None)(recipe)


def lack_of(recipe: Recipe, stage: str) -> EdgeDistillError | None:
    """Why a stage cannot run of a recipe that is sound up to it, None where it can.

    An InputError where the recipe leaves out what the stage works on, as one that is meant to stop earlier does; a
    MissingError where the stage grades answers by a package that is not installed.
    """
    return LACKS.get(stage, lambda recipe: None)(recipe)


def _data(recipe: Recipe) -> None:
    if not (recipe.data.has("gold") or recipe.data.has("prompts")):
        raise InputError(
            "expected data.gold or data.prompts for the teacher to label, found neither in the recipe; name a file, or "
            "a generator with how many"
        )


def _teacher(recipe: Recipe) -> None:
    if not recipe.teacher.is_api:
        require_reference(recipe.teacher.model, place="teacher.model")
    for split, use in (("gold", "to adapt the teacher to"), ("valid", "to hold the adapted teacher against")):
        if recipe.teacher.adapt is not None and not recipe.data.has(split):
            raise InputError(f"expected data.{split} {use}, found none; give some, or drop [teacher.adapt]")


def _synth(recipe: Recipe) -> None:
    if not (recipe.data.has("prompts") or (recipe.synth.label_gold and recipe.data.has("gold"))):
        raise InputError(
            "expected prompts for the teacher to label, found none; set data.prompts, or synth.label_gold = true"
        )
    model = recipe.teacher.model
    if recipe.teacher.engine == "llamacpp" and not (model.startswith("pypi:") or Path(model).suffix == ".gguf"):
        raise InputError(f'teacher.engine = "llamacpp" expects a GGUF teacher, found {model!r}; use engine "hf"')


def _train(recipe: Recipe) -> None:
    if recipe.student.model is not None:
        require_reference(recipe.student.model, place="student.model")
    for number, further in enumerate(recipe.train.further_teachers):
        require_reference(further.model, place=f"train.further_teachers.{number}.model")
    if recipe.train.gold and not recipe.data.has("gold"):
        raise InputError("expected data.gold with train.gold = true, found none; give some, or leave train.gold out")


def _eval(recipe: Recipe) -> EdgeDistillError | None:
    if not recipe.data.has("heldout"):
        return InputError(
            "expected held-out items to judge the models on, found none; set data.heldout, or data.split.heldout, in "
            "the recipe"
        )
    if recipe.task.kind is not None and KINDS[recipe.task.kind].graded:
        for package in GRADED_BY:
            if importlib.util.find_spec(package) is None:
                return MissingError(
                    f"expected the package {package} to grade a {recipe.task.kind}, found it not installed; "
                    "pip install 'edgedistill[metrics]'"
                )
    return None


def _bench(recipe: Recipe) -> EdgeDistillError | None:
    of_teacher = () if recipe.teacher.is_api else recipe.export.teacher_variants
    if not (recipe.export.variants or of_teacher):
        return InputError("expected export.variants to measure, found none; name some")
    return None


NEEDS: dict[str, Callable[[Recipe], None]] = {"data": _data, "teacher": _teacher, "synth": _synth, "train": _train}
LACKS: dict[str, Callable[[Recipe], EdgeDistillError | None]] = {"eval": _eval, "bench": _bench}
