"""Hugging Face folders as stages write them: float32 safetensors, tokenizer, chat template, generation settings."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from edgedistill.core.errors import InputError
from edgedistill.core.files import fsync_dir, read_json, write_json, write_text

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model")
TEMPLATE_FILE = "chat_template.jinja"


def load_model(folder: Path, *, bf16: bool = False) -> Any:
    """The causal language model in `folder`, in float32 or bfloat16, from its files alone.

    Raises:
        InputError: transformers cannot load it.
    """
    import torch
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if bf16 else torch.float32
    try:
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as e:
        cause = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise InputError(f"expected a causal language model in {folder}, found none that loads ({cause})") from None


def save_model(model: Any, folder: Path) -> None:
    """Write weights, configuration and generation settings of `model` into the existing `folder`."""
    model.config.dtype = next(model.parameters()).dtype
    model.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)


def copy_tokenizer(source: Path, folder: Path, *, template: str) -> None:
    """Copy the tokenizer's files, byte for byte but for the template, which becomes `template`."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    settings = folder / "tokenizer_config.json"
    if settings.is_file() and "chat_template" in (content := read_json(settings)):
        del content["chat_template"]
        write_json(settings, content)
    write_text(folder / TEMPLATE_FILE, template)


def copy_settings(source: Path, folder: Path) -> None:
    """Copy the configuration and the generation settings of the model in `source`, without its weights."""
    for name in ("config.json", "generation_config.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def link_model(source: Path, folder: Path) -> None:
    """Put the weights and configuration of `source` into `folder`, as hard links where the file system allows."""
    names = ("config.json", "generation_config.json", "model.safetensors.index.json")
    for path in sorted(p for p in source.iterdir() if p.suffix == ".safetensors" or p.name in names):
        target = folder / path.name
        if path.suffix != ".safetensors":
            shutil.copyfile(path, target)
            continue
        try:
            os.link(path.resolve(), target)
        except OSError:
            shutil.copyfile(path, target)


def publish(temporary: Path, folder: Path) -> None:
    """Move the files of `temporary` into `folder`, `config.json` last: where it stands, the model is whole."""
    for path in sorted(temporary.iterdir(), key=lambda p: p.name == "config.json"):
        with path.open("rb") as f:
            os.fsync(f.fileno())
        path.replace(folder / path.name)
    temporary.rmdir()
    fsync_dir(folder)


def token_texts(folder: Path) -> dict[str, int]:
    """Id of every token of `tokenizer.json`."""
    parsed = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = parsed["model"]["vocab"]
    if isinstance(vocab, list):  # Unigram: [text, score] in the order of ids
        vocab = {text: identity for identity, (text, _) in enumerate(vocab)}
    return vocab | {token["content"]: token["id"] for token in parsed.get("added_tokens") or []}


def read_shape(folder: Path) -> dict[str, int]:
    """The sizes that describe a model, as its configuration says.

    Raises:
        InputError: there is no configuration, or it lacks one.
    """
    config = read_json(folder / "config.json")
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings")
    missing = [name for name in names if not isinstance(config.get(name), int)]
    if missing:
        raise InputError(f"expected {', '.join(missing)} in {folder / 'config.json'}, found no such number")
    return {name: config[name] for name in names}
