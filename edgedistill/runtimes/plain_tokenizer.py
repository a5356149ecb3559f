"""A tokenizer as transformers builds it, kept in one file and read again without transformers and torch.

What transformers makes of a folder depends on its settings and on the classes that transformers has for them, not on
tokenizer.json alone. So the built one is kept: it gives the same ids by construction, in a sixth of the memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgedistill.core.errors import InputError
from edgedistill.core.files import canonical_json, read_json_object, sha256_file, write_text

PLAIN_FILE = "tokenizer.plain.json"
BASIS = ("tokenizer.json", "tokenizer_config.json", "config.json", "special_tokens_map.json")  # what it was built from


@dataclass(frozen=True)
class PlainTokenizer:
    """What rendering and encoding need of a tokenizer, under the names that transformers gives them."""

    backend: Any
    special_tokens_map: Mapping[str, Any]
    chat_template: str | None
    name_or_path: str

    def __call__(self, text: str, *, add_special_tokens: bool = False) -> dict[str, list[int]]:
        return {"input_ids": self.backend.encode(text, add_special_tokens=add_special_tokens).ids}


def save_plain(tokenizer: Any, folder: Path) -> None:
    """Keep a fast tokenizer of transformers in `folder`, out of whose files it was loaded."""
    kept = {
        "schema_version": 1,
        "basis": _basis(folder),
        "backend": tokenizer.backend_tokenizer.to_str(),
        "split_special_tokens": bool(tokenizer.backend_tokenizer.encode_special_tokens),
        "special_tokens_map": {name: _text(token) for name, token in tokenizer.special_tokens_map.items()},
        "chat_template": tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None,
    }
    write_text(folder / PLAIN_FILE, canonical_json(kept) + "\n")


def load_plain(folder: Path) -> PlainTokenizer | None:
    """The tokenizer kept in `folder`, None where there is none of the files that lie there now.

    Raises:
        InputError: the file is damaged.
    """
    from edgedistill.runtimes.chat import refused_as

    path = folder / PLAIN_FILE
    if not path.is_file():
        return None
    kept = read_json_object(path)
    if kept.get("basis") != _basis(folder):
        return None
    if not isinstance(kept.get("backend"), str) or not isinstance(kept.get("special_tokens_map"), dict):
        raise InputError(f"{path}: expected the tokenizer kept there, found damage; delete the file and run again")
    with refused_as(f"{path}: expected the tokenizer kept there, found none that loads; delete the file, run again"):
        from tokenizers import Tokenizer

        backend = Tokenizer.from_str(kept["backend"])
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = bool(kept.get("split_special_tokens"))
    return PlainTokenizer(backend, kept["special_tokens_map"], kept.get("chat_template"), str(folder))


def _basis(folder: Path) -> dict[str, str]:
    return {name: sha256_file(folder / name) for name in BASIS if (folder / name).is_file()}


def _text(token: Any) -> Any:
    return [str(one) for one in token] if isinstance(token, list | tuple) else str(token)
