"""Rendering: one template, no special token added twice, end ids from the model's own files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgedistill.core.errors import InputError
from edgedistill.core.records import Message
from edgedistill.runtimes import chat

ASK = [Message(role="user", content="turn on the fan")]


def test_rendered_text_has_each_special_token_once(tiny_llama: Path) -> None:
    tokenizer = chat.load_tokenizer(tiny_llama)
    text = chat.render(tokenizer, ASK, template=chat.template_of(tokenizer))
    assert text == "<|im_start|>user\nturn on the fan<|im_end|>\n<|im_start|>assistant\n"
    ids = chat.encode(tokenizer, text)
    assert (ids.count(1), ids.count(2)) == (2, 1)
    assert tokenizer.decode(ids) == text


def test_the_recipes_template_replaces_the_tokenizers(tiny_llama: Path) -> None:
    tokenizer = chat.load_tokenizer(tiny_llama)
    template = chat.template_of(tokenizer, "{{ messages[0]['content'] }}>")
    assert chat.render(tokenizer, ASK, template=template) == "turn on the fan>"
    assert chat.template_hash(template) != chat.template_hash(tokenizer.chat_template)
    tokenizer.chat_template = None
    with pytest.raises(InputError, match=r"has no single chat template; set task.chat_template"):
        chat.template_of(tokenizer)


def test_a_template_that_refuses_or_is_broken_is_said(tiny_llama: Path) -> None:
    tokenizer = chat.load_tokenizer(tiny_llama)
    for template in ("{{ raise_exception('no users') }}", "{% for %}", "{{ ''.__class__.__mro__ }}"):
        with pytest.raises(InputError, match="the chat template cannot render messages of roles user: "):
            chat.render(tokenizer, ASK, template=template)


def test_end_ids_come_from_the_generation_config_first(tiny_llama: Path, tmp_path: Path) -> None:
    assert chat.end_ids(tiny_llama) == (2,)
    for name, value in (("config.json", 7), ("generation_config.json", [3, 4])):
        (tmp_path / name).write_text(json.dumps({"eos_token_id": value}))
    assert chat.end_ids(tmp_path) == (3, 4)
    (tmp_path / "generation_config.json").write_text("{}")
    assert chat.end_ids(tmp_path) == (7,)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"expected eos_token_id in generation_config.json or config.json"):
        chat.end_ids(tmp_path)


def test_a_folder_without_a_tokenizer_is_said(tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_llama / "config.json", tmp_path)
    with pytest.raises(InputError, match="expected a tokenizer in"):
        chat.load_tokenizer(tmp_path)
