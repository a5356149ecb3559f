"""One arm of a comparison: the untrained student trained on the records, whole or with LoRA, as a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgedistill.core.errors import InputError
from edgedistill.core.files import atomic_folder
from edgedistill.core.runfolder import Reporter
from edgedistill.quant.plan import plan_of
from edgedistill.runtimes.chat import end_ids
from edgedistill.train.checkpoint import copy_weights
from edgedistill.train.data import Example
from edgedistill.train.divergence import Divergence
from edgedistill.train.folders import TEMPLATE_FILE, copy_tokenizer, load_model, read_shape, save_model
from edgedistill.train.loop import TrainResult, train_model
from edgedistill.train.lora import add_lora, factors, merge_lora
from edgedistill.train.matching import Matching, pair_layers
from edgedistill.train.online import LiveMixture, load_live
from edgedistill.train.prune import LAYER
from edgedistill.train.sampling import OnPolicy
from edgedistill.train.shards import is_sharded, whole
from edgedistill.train.student import shared_ids


def train_arm(
    *,
    untrained: Path,
    folder: Path,
    arm: str,
    train: Sequence[Example],
    valid: Sequence[Example],
    kd_weight: float,
    how: Mapping[str, Any],
    lora: Mapping[str, int] | None,
    qat: Mapping[str, Any] | None,
    freeze_embeddings: bool,
    first_layer: int,
    bf16: bool,
    seed: int,
    report: Reporter,
    teacher: Path | None = None,
    further: Sequence[str] = (),
    match: Mapping[str, Any] | None = None,
    on_policy: float = 0.0,
    max_new_tokens: int = 256,
    **settings: Any,
) -> TrainResult:
    """Train the model in `untrained` and write it to `folder/arm`; checkpoints and metrics lie in `folder`.

    `how` has what `Divergence` has, `lora` `rank` and `alpha`, `qat` what the recipe's table has; a head tied to
    frozen embeddings is frozen too, layers before `first_layer` are. A `teacher` is loaded beside the student, and
    `further` ones by folder, whose parts are each example's `shares`; `match` has what `Matching` has and, of a
    student cut from its teacher, the layers `kept`; a share `on_policy` of the steps learns from the student's own
    answers. `settings` are those of `train_model`.

    Raises:
        InputError: a checkpoint is damaged, the model has no layer `first_layer`, or the teacher does not fit.
        StageError: nothing to train on, a loss is not finite, or memory ran out.
    """
    model = load_model(untrained, bf16=bf16 and lora is not None)
    if lora is not None:
        model = add_lora(model, **lora, seed=seed, first_layer=first_layer)
    else:
        _freeze_layers(model, before=first_layer)
    if freeze_embeddings:
        model.get_input_embeddings().weight.requires_grad_(False)
    if qat is not None:
        grid = {"plan": plan_of(qat["grid"]), "grid_share": qat["share"], "round_activations": qat["activations"]}
        settings |= grid
    if teacher is not None:
        settings |= _beside(teacher, further, untrained=untrained, bf16=bf16, match=match)
        if on_policy:
            settings["on_policy"] = OnPolicy(
                on_policy, max_new_tokens, tuple(end_ids(untrained)), known=settings["live"].known
            )
    result = train_model(
        model,
        train=train,
        valid=valid,
        arm=arm,
        checkpoints=folder / "checkpoints" / arm,
        metrics=folder / "metrics.jsonl",
        kd_weight=kd_weight,
        how=Divergence(**how),
        bf16=bf16,
        seed=seed,
        report=report,
        **settings,
    )
    trained = whole(factors(model)) if lora is not None or is_sharded(model) else {}
    if not _is_first_process():
        return result
    if lora is not None:
        model = merge_lora(load_model(untrained), trained, **lora, first_layer=first_layer)
    elif trained:
        model = load_model(untrained)
        copy_weights(trained, into={name: p for name, p in model.named_parameters() if name in trained})
    with atomic_folder(folder / arm) as temporary:
        save_model(model, temporary)
        copy_tokenizer(untrained, temporary, template=(untrained / TEMPLATE_FILE).read_text(encoding="utf-8"))
    return result


def _beside(
    teacher: Path,
    further: Sequence[str],
    *,
    untrained: Path,
    bf16: bool,
    match: Mapping[str, Any] | None,
) -> dict[str, Any]:
    folders = [teacher, *map(Path, further)]
    shapes = [read_shape(folder) for folder in (untrained, *folders)]
    maps = [
        shared_ids(teacher=folder, student=untrained, rows=shape["vocab_size"])
        for folder, shape in zip(folders, shapes[1:], strict=True)
    ]
    teachers = tuple(load_live(folder, id_map=id_map, bf16=bf16) for folder, id_map in zip(folders, maps, strict=True))
    found: dict[str, Any] = {"live": LiveMixture(teachers) if further else teachers[0]}
    if match is not None:
        depths = [shape["num_hidden_layers"] for shape in shapes[:2]]
        pairs = pair_layers(match["layers"], student=depths[0], teacher=depths[1], kept=match.get("kept", ()))
        found["matching"] = Matching(match["hidden"], match["attention"], pairs, match["positions"])
    return found


def _is_first_process() -> bool:
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


def _freeze_layers(model: Any, *, before: int) -> None:
    if before >= model.config.num_hidden_layers:
        raise InputError(
            f"expected train.first_layer to be a layer of the student, found {before} and "
            f"{model.config.num_hidden_layers} layers; lower it"
        )
    for name, parameter in model.named_parameters():
        if (found := LAYER.match(name)) and int(found["index"]) < before:
            parameter.requires_grad_(False)
