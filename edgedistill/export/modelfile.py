"""A `Modelfile` beside a GGUF file, with which `ollama create` takes it as it is.

Reference: https://docs.ollama.com/modelfile. Ollama's templates are Go's, those of tokenizers Jinja. One that puts
fixed texts around each message can be said in both; it is derived from what the Jinja template renders, and only
written where it renders the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from edgedistill.core.errors import InputError
from edgedistill.core.files import write_text
from edgedistill.core.records import Message
from edgedistill.runtimes import chat
from edgedistill.runtimes.gguf_file import read_gguf

ROLES = ("system", "user", "assistant")
# Every order of roles that a chat may have, and contents that a template might treat in its own way.
PROBES = (
    (("user", "one"),),
    (("system", "two"), ("user", "three\nfour")),
    (("user", "five"), ("assistant", "six"), ("user", "seven")),
    (("system", "eight"), ("user", "nine"), ("assistant", "ten\n\neleven"), ("user", "twelve"), ("assistant", "13")),
)


class Render(Protocol):
    """Messages `(role, content)` as text, with the beginning of an answer or without."""

    def __call__(self, messages: Sequence[tuple[str, str]], *, answering: bool) -> str: ...


def write_modelfile(*, model: Path, folder: Path, entry: str) -> None:
    """Write `Modelfile` into `folder` for its GGUF file `entry`, with the chat template and end tokens of `model`.

    Where the file says that prompts begin with the begin token, the template leaves it out. Without a template that Go
    can say Ollama looks in the GGUF file for one it knows.
    """
    tokenizer = chat.load_tokenizer(model)
    add_bos = bool(read_gguf(folder / entry).fields.get("tokenizer.ggml.add_bos_token"))
    lines = [f"FROM ./{entry}"]

    def render(messages: Sequence[tuple[str, str]], *, answering: bool) -> str:
        rows = [Message(role=role, content=content) for role, content in messages]
        text = chat.render(tokenizer, rows, template=chat.template_of(tokenizer), answering=answering)
        begin = tokenizer.bos_token or ""
        return text.removeprefix(begin) if add_bos else text

    try:
        template = go_template(render)
    except InputError:
        template = None
    if template is not None:
        lines.append(f'TEMPLATE """{template}"""')
    lines += [f'PARAMETER stop "{tokenizer.convert_ids_to_tokens(i)}"' for i in chat.end_ids(model)]
    write_text(folder / "Modelfile", "\n".join(lines) + "\n")


def go_template(render: Render) -> str | None:
    """The Go template that renders as `render` does; None where texts around messages do not say it all.

    Raises:
        InputError: `render` refuses a chat of user and assistant, with or without a system message first.
    """
    found = _texts_around(render)
    if found is None:
        return None
    opening, around, answer = found
    parts = (opening, answer, *(text for pair in around.values() for text in pair))
    if any(mark in part for part in parts for mark in ("{{", "}}", '"""')):
        return None
    if any(_joined(messages, opening, around, answer) != render(messages, answering=True) for messages in PROBES):
        return None
    branches = [f'if eq .Role "{role}" }}}}{around[role][0]}{{{{ .Content }}}}{around[role][1]}' for role in ROLES]
    body = "{{ " + "{{ else ".join(branches) + "{{ end }}"
    start = f"{{{{ if not .System }}}}{opening}{{{{ end }}}}" if opening else ""
    return f"{start}{{{{ range .Messages }}}}{body}{{{{ end }}}}{answer}"


def _texts_around(render: Render) -> tuple[str, dict[str, tuple[str, str]], str] | None:
    """What opens a chat without system message, what stands around each role's content, what opens an answer."""

    def pieces(*roles: str, answering: bool = False) -> list[str] | None:
        marks = [f"\x02{role}\x03" for role in roles]
        text, found = render(list(zip(roles, marks, strict=True)), answering=answering), []
        for mark in marks:
            before, there, text = text.partition(mark)
            if not there:
                return None
            found.append(before)
        return [*found, text]

    user, asked = pieces("user"), pieces("user", answering=True)
    answered, again = pieces("user", "assistant"), pieces("user", "assistant", "user")
    system = pieces("system", "user")
    if user is None or asked is None or answered is None or again is None or system is None:
        return None
    before_user = again[2].removeprefix(answered[2])
    around = {
        "system": (system[0], system[1].removesuffix(before_user)),
        "user": (before_user, user[1]),
        "assistant": (answered[1].removeprefix(user[1]), answered[2]),
    }
    return user[0].removesuffix(before_user), around, asked[1].removeprefix(user[1])


def _joined(messages: Sequence[tuple[str, str]], opening: str, around: dict[str, tuple[str, str]], answer: str) -> str:
    """What the Go template renders."""
    text = "" if messages[0][0] == "system" else opening
    return text + "".join(around[role][0] + content + around[role][1] for role, content in messages) + answer
