"""Messages as the token ids a model is asked with, and the hashes that name the tokenizer and the template.

Every part that asks a model — labelling, training, evaluation, export's proof — renders here, so that none of them can
differ by a space. The template writes every special token itself; the tokenizer adds none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgedistill.core.calls import as_text, has_calls
from edgedistill.core.errors import EdgeDistillError, InputError, shortened
from edgedistill.core.files import read_json_object, sha256_bytes, sha256_file
from edgedistill.core.records import Message
from edgedistill.runtimes.tokenizer_file import check_tokenizer


def load_tokenizer(folder: Path) -> Any:
    """The fast tokenizer of a Hugging Face folder, from its files alone.

    Raises:
        InputError: the folder has no tokenizer that transformers can read.
    """
    from transformers import AutoTokenizer

    if (folder / "tokenizer.json").is_file():
        check_tokenizer(folder / "tokenizer.json")
    with refused_as(f"expected a tokenizer in {folder}, found none that loads"):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer("a")  # what its parts say of one another is found by running alone
    if not tokenizer.is_fast:
        raise InputError(f"expected a fast tokenizer (tokenizer.json) in {folder}, found a slow one; convert it first")
    return tokenizer


@contextlib.contextmanager
def refused_as(sentence: str) -> Iterator[None]:
    """Turn whatever a library raises over a file into one InputError: `sentence`, and its cause in brackets.

    Libraries raise bare exceptions of every kind for files that are not what they expect, and those in Rust a
    PanicException, which is no Exception. Memory that runs out is no fault of the file.
    """
    try:
        yield
    except (EdgeDistillError, MemoryError):
        raise
    except BaseException as e:
        if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
            raise
        cause = shortened(str(e).strip().partition("\n")[0] or type(e).__name__)
        raise InputError(f"{sentence} ({cause})") from None


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

    Functions and calls are written as the template does, as JSON text where it has nothing for them.

    Raises:
        InputError: the template refuses these messages or is no Jinja.
    """
    from jinja2 import TemplateError

    from edgedistill.runtimes.tool_chat import render_native

    try:
        if has_calls(messages):
            native = render_native(tokenizer, messages, template=template, answering=answering)
            if native is not None:
                return native
        rows = [{"role": m.role, "content": m.content} for m in as_text(messages)]
        return rendered(tokenizer, rows, template=template, add_generation_prompt=answering)
    except TemplateError as e:
        roles = ", ".join(m.role for m in messages)
        raise InputError(
            f"the chat template cannot render messages of roles {shortened(roles)}: {shortened(e)}"
        ) from None


def rendered(
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    *,
    template: str,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The text of messages as dictionaries; raises jinja2's TemplateError where the template refuses them."""
    from edgedistill.runtimes.template import render_template

    return render_template(
        template,
        messages=rows,
        add_generation_prompt=add_generation_prompt,
        names=tokenizer.special_tokens_map,
        tools=tools,
    )


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
            found = read_json_object(folder / name).get("eos_token_id")
            ids = found if isinstance(found, list) else [found]
            if ids and all(type(i) is int for i in ids):
                return tuple(ids)
    raise InputError(f"expected eos_token_id in generation_config.json or config.json of {folder}, found none")


def turn_end(tokenizer: Any, *, template: str, ends: Sequence[int]) -> int:
    """The id that ends an answer: of `ends`, the one that `template` writes after an assistant's message.

    Templates that write none leave the choice to the model's settings, which name the first of `ends`.
    """
    from jinja2 import TemplateError

    answer = "\ue000"  # a private character: no template writes it
    messages = [{"role": "user", "content": "."}, {"role": "assistant", "content": answer}]
    try:
        text = rendered(tokenizer, messages, template=template, add_generation_prompt=False)
    except TemplateError:
        return ends[0]
    after = tokenizer(text.rpartition(answer)[2], add_special_tokens=False)["input_ids"]
    return next((token for token in after if token in ends), ends[0])


def tokenizer_hash(folder: Path) -> str:
    """Hex SHA-256 of the folder's tokenizer.json."""
    return sha256_file(folder / "tokenizer.json")


def template_hash(template: str) -> str:
    return sha256_bytes(template.encode())
