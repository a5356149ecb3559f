"""Messages as the token ids a model is asked with, and the hashes that name the tokenizer and the template.

Every part that asks a model — labelling, training, evaluation, export's proof — renders here, so that none of them can
differ by a space. The template writes every special token itself; the tokenizer adds none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgedistill.core.errors import InputError
from edgedistill.core.files import read_json, sha256_bytes, sha256_file
from edgedistill.core.records import Message


def load_tokenizer(folder: Path) -> Any:
    """The fast tokenizer of a Hugging Face folder, from its files alone.

    Raises:
        InputError: the folder has no tokenizer that transformers can read.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as e:
        cause = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise InputError(f"expected a tokenizer in {folder}, found none that loads ({cause})") from None
    if not tokenizer.is_fast:
        raise InputError(f"expected a fast tokenizer (tokenizer.json) in {folder}, found a slow one; convert it first")
    return tokenizer


def template_of(tokenizer: Any, override: str | None = None) -> str:
    """The Jinja chat template in use: `override` where given, else the tokenizer's own.

    Raises:
        InputError: there is neither.
    """
    template = override or tokenizer.chat_template
    if not isinstance(template, str):
        raise InputError(
            f"the tokenizer of {tokenizer.name_or_path} has no single chat template; set task.chat_template"
        )
    return template


def render(tokenizer: Any, messages: Sequence[Message], *, template: str, answering: bool = True) -> str:
    """The text up to where the assistant begins to answer, or to the end of the last message.

    Raises:
        InputError: the template refuses these messages or is no Jinja.
    """
    from jinja2 import TemplateError

    rows = [{"role": m.role, "content": m.content} for m in messages]
    try:
        return tokenizer.apply_chat_template(
            rows, chat_template=template, tokenize=False, add_generation_prompt=answering
        )
    except TemplateError as e:
        roles = ", ".join(m.role for m in messages)
        raise InputError(f"the chat template cannot render messages of roles {roles}: {e}") from None


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of rendered text; the tokenizer adds no special token of its own."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def end_ids(folder: Path) -> tuple[int, ...]:
    """Ids that end an answer, as the folder's generation_config.json (else config.json) says.

    Raises:
        InputError: neither file names one.
    """
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            found = read_json(folder / name).get("eos_token_id")
            ids = found if isinstance(found, list) else [found]
            if ids and all(type(i) is int for i in ids):
                return tuple(ids)
    raise InputError(f"expected eos_token_id in generation_config.json or config.json of {folder}, found none")


def tokenizer_hash(folder: Path) -> str:
    """Hex SHA-256 of the folder's tokenizer.json."""
    return sha256_file(folder / "tokenizer.json")


def template_hash(template: str) -> str:
    return sha256_bytes(template.encode())
