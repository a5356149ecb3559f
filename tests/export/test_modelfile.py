"""Modelfiles for Ollama: the Go template renders what the Jinja one does, or is left out."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import pytest
from tiny_models import save_tiny_llama
from transformers import AutoTokenizer

from edgedistill.core.records import Message
from edgedistill.export.modelfile import PROBES, write_modelfile
from edgedistill.runtimes import chat

CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
BEGUN = "<|im_start|>" + ZEPHYR
TRIMMED = ZEPHYR.replace("m['content'] }}", "m['content'] | replace('\n', ' ') }}")
FIRST_ALONE = ZEPHYR.replace("<|im_end|>", "{{ loop.index }}")
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + ZEPHYR
BRACES = ZEPHYR.replace("<|im_end|>", "{{ '{{' }}")


def modelfile(tmp_path: Path, template: str, *, add_bos: bool = False) -> str:
    model = save_tiny_llama(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(model)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_add_bos_token(add_bos)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    write_modelfile(model=model, folder=tmp_path, entry="model.gguf")
    return (tmp_path / "Modelfile").read_text()


def executed(template: str, messages: tuple[tuple[str, str], ...]) -> str:
    """What Go's text/template makes of the few actions that are written."""
    begin, body, end = re.fullmatch(
        r"(?:\{\{ if not \.System \}\}(.*?)\{\{ end \}\})?\{\{ range \.Messages \}\}(.*)\{\{ end \}\}\{\{ end \}\}(.*)",
        template,
        re.DOTALL,
    ).groups()
    branches = dict(re.findall(r'if eq \.Role "(\w+)" \}\}(.*?)(?=\{\{ else |\Z)', body, re.DOTALL))
    text = "" if any(role == "system" for role, _ in messages) else begin or ""
    return text + "".join(branches[role].replace("{{ .Content }}", content) for role, content in messages) + end


@pytest.mark.parametrize(("template", "add_bos"), [(CHATML, False), (ZEPHYR, False), (BEGUN, False), (BEGUN, True)])
def test_go_renders_what_jinja_does(template: str, add_bos: bool, tmp_path: Path) -> None:
    text = modelfile(tmp_path, template, add_bos=add_bos)
    lines = re.fullmatch(r'FROM \./model\.gguf\nTEMPLATE """(.*)"""\nPARAMETER stop "<\|im_end\|>"\n', text, re.DOTALL)
    assert lines is not None, text
    tokenizer = chat.load_tokenizer(tmp_path / "model")
    for messages in (*PROBES, (("user", "a"), ("assistant", "b"), ("user", "c\n"), ("assistant", ""), ("user", "d"))):
        rows = [Message(role=role, content=content) for role, content in messages]
        wanted = chat.render(tokenizer, rows, template=template)
        assert executed(lines[1], messages) == (wanted.removeprefix("<|im_start|>") if add_bos else wanted)


@pytest.mark.parametrize("template", [TRIMMED, FIRST_ALONE, NO_SYSTEM, BRACES, "{{ messages[0]['role'] }}"])
def test_what_fixed_texts_do_not_say_is_left_to_ollama(template: str, tmp_path: Path) -> None:
    assert modelfile(tmp_path, template) == 'FROM ./model.gguf\nPARAMETER stop "<|im_end|>"\n'
