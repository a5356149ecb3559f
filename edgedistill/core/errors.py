"""The errors users see: one sentence that says what was expected, what was found, and what to do; and an exit code."""

from __future__ import annotations

SHOWN_CHARACTERS = 200
OUT_OF_MEMORY = (
    "can't allocate memory", "Cannot allocate memory", "not enough memory", "out of memory", "bad_alloc",
    "bad allocation", "failed to map segment",
)  # fmt: skip

EXIT_OK = 0
EXIT_GATE_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INCONCLUSIVE = 3
EXIT_STAGE_FAILED = 4
EXIT_MISSING = 5


class EdgeDistillError(Exception):
    """Base of every error that reaches a user; printed as its one sentence, without a traceback."""

    exit_code = EXIT_STAGE_FAILED


class InputError(EdgeDistillError):
    """A file, flag or recipe value is not what was expected, or what is asked for was not run yet (exit 2)."""

    exit_code = EXIT_BAD_INPUT


class StageError(EdgeDistillError):
    """A stage ran and failed, or a measurement was invalid (exit 4)."""

    exit_code = EXIT_STAGE_FAILED


class MissingError(EdgeDistillError):
    """A package, tool, device or the network is needed and absent (exit 5)."""

    exit_code = EXIT_MISSING


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; libraries in other languages tell that only by their words."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


def shortened(text: object, *, most: int = SHOWN_CHARACTERS) -> str:
    """What a file or a library says, on one line and cut to `most` characters, fit to stand in a sentence."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"
