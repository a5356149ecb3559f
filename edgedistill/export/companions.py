"""The small files beside the weights, without which an artifact is not complete: tokenizer, template, generation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgedistill.core.files import read_json_object, write_json, write_text
from edgedistill.export.pretokenizer import spelled_out
from edgedistill.export.vocabulary import PLAIN_CLASSES, load_tokenizer, read_chat_template
from edgedistill.runtimes.chat import end_ids, refused_as
from edgedistill.runtimes.tokenizer_file import check_tokenizer

# What a save notes about where and how it was made, which would change bytes and point outside the folder.
CALL_NOTES = ("is_local", "local_files_only", "name_or_path", "_name_or_path", "tokenizer_file")
# transformers.js names a model's file after its dtype: "fp32" is plain model.onnx, whatever that holds.
TRANSFORMERS_JS = {"transformers.js_config": {"dtype": "fp32", "use_external_data_format": True}}


def write_companions(*, model: Path, folder: Path, entry: str) -> None:
    """Write tokenizer.json, tokenizer_config.json, chat_template.jinja and generation_config.json into `folder`.

    They are the student's, compact. An ONNX folder also gets config.json, and its tokenizer is spelled out in steps
    that onnxruntime-genai obeys; its template stands in tokenizer_config.json too, where transformers.js looks for it.

    Raises:
        InputError: the student's folder lacks a tokenizer or an end of generation.
    """
    tokenizer = check_tokenizer(model / "tokenizer.json")
    settings: dict[str, Any] = {}
    if (model / "tokenizer_config.json").is_file():
        settings = {k: v for k, v in _settings(model / "tokenizer_config.json").items() if k not in CALL_NOTES}
    template = read_chat_template(model=model, settings=settings)
    settings.pop("chat_template", None)
    if settings.get("tokenizer_class") not in PLAIN_CLASSES:
        # Which class rebuilds what depends on the config.json beside it: what it makes of this model is written.
        tokenizer = json.loads(load_tokenizer(model, settings=settings).to_str())
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if template is not None:
        write_text(folder / "chat_template.jinja", template)
    if entry.endswith(".onnx"):
        with refused_as(f"{model / 'tokenizer.json'} is not a tokenizer that can be read, restore it and run again"):
            tokenizer = spelled_out(tokenizer)
        config = _settings(model / "config.json")
        write_json(folder / "config.json", {k: v for k, v in config.items() if k not in CALL_NOTES} | TRANSFORMERS_JS)
        if template is not None:
            settings["chat_template"] = template
    write_text(folder / "tokenizer.json", json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")))
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "generation_config.json", _generation(model))


def _settings(path: Path) -> dict[str, Any]:
    return read_json_object(path, finite=True)


def _generation(model: Path) -> dict[str, Any]:
    path = model / "generation_config.json"
    settings = {k: v for k, v in _settings(path).items() if k not in CALL_NOTES} if path.is_file() else {}
    ends = list(end_ids(model))
    return {**settings, "eos_token_id": ends[0] if len(ends) == 1 else ends}
