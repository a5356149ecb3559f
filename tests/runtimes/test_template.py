"""The bounded sandbox writes what transformers writes, and ends what transformers would run for ever."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from jinja2 import TemplateError

from edgedistill.core.errors import InputError
from edgedistill.runtimes import template
from edgedistill.runtimes.chat import load_tokenizer, rendered
from edgedistill.runtimes.tokenizer_file import repeats_in_repeats

ROWS = [{"role": "system", "content": "Be\tbrief."}, {"role": "user", "content": "Füge 'a' & \"b\" hinzu.\n"}]
HONEST = (
    "{{ bos_token }}{% for m in messages %}{{ m.role ~ ':' + m['content'] | trim }}\n{% endfor %}",
    "{%- for m in messages if m.role != 'system' %}{{ loop.index0 }}{{ m | tojson(indent=2) }}{%- endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages -%}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{{ messages | map(attribute='role') | join(', ') }}{{ messages[1].content.replace('a', 'bb').split('b') }}",
    "{{ messages[0].content | upper | replace('BE', 'Was') | indent(3) }}{{ 7 * 6 }}{{ '=' * 10 }}{{ '%s!' % 'x' }}",
    "{% generation %}{{ messages[-1]['content'][:4] }}{% endgeneration %}{% if add_generation_prompt %}>{% endif %}",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content.startswith('F') }}{% endfor %}",
    "{{ messages | selectattr('role', 'equalto', 'user') | list }}{{ '{}-{:>5}'.format(1, 2) }}{{ tools }}",
)


@pytest.mark.parametrize("text", HONEST)
@pytest.mark.parametrize("prompt", [True, False])
def test_honest_templates_render_as_transformers_does(tiny_llama: Path, text: str, prompt: bool) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    template.check_template(text, source="here")
    wanted = tokenizer.apply_chat_template(ROWS, chat_template=text, tokenize=False, add_generation_prompt=prompt)
    assert rendered(tokenizer, ROWS, template=text, add_generation_prompt=prompt) == wanted


def test_time_is_bounded(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "SECONDS", 0.3)
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    began = time.monotonic()
    with pytest.raises(TemplateError, match=r"it takes longer than 0\.3 s"):
        rendered(load_tokenizer(tiny_llama), ROWS, template=endless)
    assert time.monotonic() - began < 20


def test_escapes_are_named() -> None:
    for text, why in (("{{ ''.__class__ }}", "'__class__', which leaves"), ("{% include 'x' %}", "another template")):
        with pytest.raises(InputError, match=f"here: expected a chat template that is safe to render.*{why}"):
            template.check_template(text, source="here")


def test_repeats_in_repeats() -> None:
    for pattern in ("(a+)+", "(?:(a|b*)c?)*x", "((?i:a{2,}))+", "([a-z]+)*", r"(\w+){3,}"):
        assert repeats_in_repeats(pattern), pattern
    sound = (
        r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}]*[\p{Ll}]+(?i:'s|'t)?|[(+)]+|\)+|[\])]*(a|b)+",
    )
    assert not any(repeats_in_repeats(pattern) for pattern in sound)
