"""One arm of a comparison: the untrained student trained on the records, whole or with LoRA, as a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgedistill.core.errors import InputError
from edgedistill.core.files import atomic_folder
from edgedistill.core.runfolder import Reporter
from edgedistill.train.data import Example
from edgedistill.train.folders import TEMPLATE_FILE, copy_tokenizer, load_model, save_model
from edgedistill.train.loop import TrainResult, train_model
from edgedistill.train.lora import add_lora, factors, merge_lora
from edgedistill.train.prune import LAYER


def train_arm(
    *,
    untrained: Path,
    folder: Path,
    arm: str,
    train: Sequence[Example],
    valid: Sequence[Example],
    kd_weight: float,
    lora: Mapping[str, int] | None,
    freeze_embeddings: bool,
    first_layer: int,
    bf16: bool,
    seed: int,
    report: Reporter,
    **settings: Any,
) -> TrainResult:
    """Train the model in `untrained` and write it to `folder/arm`; checkpoints and metrics lie in `folder`.

    `lora` has `rank` and `alpha`; a head tied to frozen embeddings is frozen too, layers before `first_layer` are;
    `settings` are those of `train_model`.

    Raises:
        InputError: a checkpoint is damaged, or the model has no layer `first_layer`.
        StageError: nothing to train on, or a loss is not finite.
    """
    model = load_model(untrained, bf16=bf16 and lora is not None)
    if lora is not None:
        model = add_lora(model, **lora, seed=seed, first_layer=first_layer)
    else:
        _freeze_layers(model, before=first_layer)
    if freeze_embeddings:
        model.get_input_embeddings().weight.requires_grad_(False)
    result = train_model(
        model,
        train=train,
        valid=valid,
        arm=arm,
        checkpoints=folder / "checkpoints" / arm,
        metrics=folder / "metrics.jsonl",
        kd_weight=kd_weight,
        bf16=bf16,
        seed=seed,
        report=report,
        **settings,
    )
    if lora is not None:
        model = merge_lora(load_model(untrained), factors(model), **lora, first_layer=first_layer)
    with atomic_folder(folder / arm) as temporary:
        save_model(model, temporary)
        copy_tokenizer(untrained, temporary, template=(untrained / TEMPLATE_FILE).read_text(encoding="utf-8"))
    return result


def _freeze_layers(model: Any, *, before: int) -> None:
    if before >= model.config.num_hidden_layers:
        raise InputError(
            f"expected train.first_layer to be a layer of the student, found {before} and "
            f"{model.config.num_hidden_layers} layers; lower it"
        )
    for name, parameter in model.named_parameters():
        if (found := LAYER.match(name)) and int(found["index"]) < before:
            parameter.requires_grad_(False)
