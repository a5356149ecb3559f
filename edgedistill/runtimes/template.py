"""Chat templates as untrusted code: rendered in Jinja's sandbox, with an end to the time and the memory they can take.

transformers' sandbox keeps a template from Python's internals, but lets it loop, multiply and pad without end. Filters,
tests and globals here are transformers' own, so that text is the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

from jinja2 import Template, TemplateError, Undefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from edgedistill.core.errors import InputError, shortened

SECONDS = 2.0  # of one rendering; an honest one takes milliseconds
MOST_TEMPLATE = 2**20  # characters
MOST = 2**26  # characters or items of any value
MOST_BITS = 4096  # of a whole number
MOST_WIDTH = 1000  # characters that a text is padded or indented to
ELSEWHERE = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
INTERNALS = re.compile(r"__[a-z]+(_[a-z]+)*__")
PADDING = frozenset({
    "center", "ljust", "rjust", "zfill", "expandtabs", "indent", "wordwrap", "truncate", "batch", "slice", "round",
})  # fmt: skip
WIDE = re.compile(r"\d{4,}|\*")


class _Overtime(Exception):
    """Raised in the rendering thread when its time is up."""


def check_template(template: str, *, source: str) -> None:
    """Refuse what no rendering needs: a template that is no Jinja, loads files, or names Python's internals.

    Raises:
        InputError: the template does one of these; `source` says where it stands.
    """
    try:
        _refuse(template)
    except (TemplateError, RecursionError, ValueError) as e:
        raise InputError(f"{source}: expected a chat template that is safe to render, found that {_said(e)}") from None


def _refuse(template: str) -> None:
    if len(template) > MOST_TEMPLATE:
        raise TemplateError(f"it has {len(template):,} characters, expected at most {MOST_TEMPLATE:,}")
    for node in _environment().parse(template).find_all(nodes.Node):
        if isinstance(node, ELSEWHERE):
            raise SecurityError("it loads another template")
        name = node.attr if isinstance(node, nodes.Getattr) else None
        text = node.value if isinstance(node, nodes.Const) and isinstance(node.value, str) else None
        if (name or "").startswith("_") or INTERNALS.search(text or ""):
            raise SecurityError(f"it reaches for {shortened(name or text, most=60)!r}, which leaves the sandbox")


def render_template(
    template: str,
    *,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool,
    names: Mapping[str, Any],
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The text of a conversation; `names` are the tokenizer's special tokens, which templates use by name.

    `tools` are the functions that may be called, in OpenAI's form.

    Raises:
        TemplateError: the template refuses the messages, is no Jinja, leaves the sandbox, or takes more time or memory
            than any honest one.
    """
    variables = {"tools": [dict(tool) for tool in tools] or None, "documents": None, **names}
    try:
        with _deadline(SECONDS):
            pieces = _compiled(template).generate(
                messages=[dict(m) for m in messages], add_generation_prompt=add_generation_prompt, **variables
            )
            return _Bounded.concat(pieces)
    except TemplateError:
        raise
    except _Overtime:
        raise TemplateError(f"it takes longer than {SECONDS:g} s") from None
    except Exception as e:  # whatever the template's own operations raise: a sum of texts and numbers, no memory, …
        raise TemplateError(_said(e)) from None


class _Bounded(ImmutableSandboxedEnvironment):
    """A sandbox in which no single operation makes a value beyond `MOST`."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            _bound_format(left)
        elif operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            _bound(bits, MOST_BITS)
        elif operator == "*":
            times = left if isinstance(left, int) else right
            _bound((_size(left) or _size(right)) * times if isinstance(times, int) else 0)
        elif operator == "+":
            _bound(_size(left) + _size(right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        if isinstance(text := getattr(function, "__self__", None), str):
            _bound_work(getattr(function, "__name__", ""), text, *args, *kwargs.values())
        return super().call(context, function, *args, **kwargs)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        raise SecurityError(f"access to attribute {attribute!r} of {type(obj).__name__!r} object is unsafe")

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _bound_format(value.__self__)
        return wrapped

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        total, kept = 0, []
        for piece in pieces:
            total += len(piece)
            _bound(total)
            kept.append(piece)
        return "".join(kept)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Joins().visit(super()._parse(source, name, filename))


class _Joins(NodeTransformer):
    """`a ~ b` becomes a filter that counts first."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        parts = nodes.List(node.nodes).set_environment(node.environment)
        return nodes.Filter(parts, "_joined", [], [], None, None).set_lineno(node.lineno)


def _joined(parts: Sequence[Any]) -> str:
    return _Bounded.concat(map(str, parts))


def _join(value: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    from jinja2.filters import make_attrgetter

    get = make_attrgetter(_environment(), attribute) if attribute is not None else lambda item: item
    pieces = [str(get(item)) for item in value]
    _bound(sum(map(len, pieces)) + len(pieces) * len(str(d)))
    return str(d).join(pieces)


def _bounded(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, which first holds what it is given against what it could make of it."""

    @functools.wraps(original)  # with what Jinja has noted on it
    def filtered(*args: Any, **kwargs: Any) -> Any:
        _bound_work(name, *args, *kwargs.values())
        return original(*args, **kwargs)

    return filtered


def _bound_work(name: str, text: Any, *values: Any) -> None:
    """Hold a text's length times those of the values against `MOST`, as `replace` may reach, and widths alone."""
    if name == "format" and isinstance(text, str):
        _bound_format(text)
    if name == "join":
        for parts in values:
            _bound(sum(_size(part) + _size(text) for part in parts) if isinstance(parts, list | tuple) else 0)
        return
    for value in values if name in PADDING else ():
        _bound(value if isinstance(value, int) else 0, MOST_WIDTH)
    _bound((_size(text) + 1) * (1 + sum(map(_size, values))) if values else 0, 4 * MOST)


def _bound_format(pattern: str) -> None:
    if WIDE.search(pattern):
        raise SecurityError("it formats a text to a width of thousands")


def _bound(size: int, most: int = MOST) -> None:
    if size > most:
        raise SecurityError(f"it makes a value of size {size if size < 2**63 else 'beyond 2^63'}, over {most}")


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple | dict) else 0


@cache
def _environment() -> _Bounded:
    """transformers' settings, filters and globals in a bounded sandbox."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    theirs = _compile_jinja_template("").environment
    ours = _Bounded(
        trim_blocks=theirs.trim_blocks,
        lstrip_blocks=theirs.lstrip_blocks,
        extensions=[type(extension) for extension in theirs.extensions.values()],
    )
    ours.filters = {name: _bounded(name, filter_) for name, filter_ in theirs.filters.items()}
    ours.filters |= {"_joined": _joined, "join": _join}
    ours.globals, ours.tests, ours.policies = theirs.globals, theirs.tests, theirs.policies
    return ours


@lru_cache(maxsize=32)
def _compiled(template: str) -> Template:
    _refuse(template)
    return _environment().from_string(template)


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raise `_Overtime` in this thread unless the block ends in time; works in any thread, between Python's steps."""
    thread, over, lock = ctypes.c_ulong(threading.get_ident()), [False], threading.Lock()

    def strike() -> None:
        with lock:
            if not over[0]:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(_Overtime))

    timer = threading.Timer(seconds, strike)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            over[0] = True
        timer.cancel()


def _said(error: BaseException) -> str:
    return shortened(f"{error}" if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}")
