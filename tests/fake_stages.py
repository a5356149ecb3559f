"""Stage bodies for tests of the plan: they write small files, or fail the way real stages fail."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time

from edgedistill.core.errors import MissingError
from edgedistill.core.files import digest_of, write_text
from edgedistill.core.runfolder import StageContext


def write(context: StageContext) -> None:
    """An output that depends on the recipe's seed, and the splits of a data stage."""
    context.report.progress(1, 2, "halves", loss=0.5)
    context.report.note(f"{context.stage} writes")
    names = ("gold", "valid", "heldout", "prompts") if context.stage == "data" else ("out",)
    for name in names:
        size = getattr(context.recipe.data, name, 0)
        write_text(context.folder / f"{name}.jsonl", digest_of([context.stage, name, size, context.recipe.seed]))
    print("a library chatters on stdout")
    print("and on stderr", file=sys.stderr)
    context.figures["answer"] = 42


def grow(context: StageContext) -> None:
    """One file a block; those that are there stay."""
    bench = context.recipe.bench
    missing = [n for n in range(bench.blocks + bench.further_blocks) if not (context.folder / f"{n}.txt").is_file()]
    for number in missing:
        write_text(context.folder / f"{number}.txt", str(number))
    context.figures["measured"] = len(missing)


def fail_once(context: StageContext) -> None:
    if not (context.folder / "half.txt").is_file():
        write_text(context.folder / "half.txt", "kept")
        raise MissingError("expected a device, found none; connect one")
    write(context)


def no_space(context: StageContext) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(context.folder / "model.gguf"))


def no_space_in_rust(context: StageContext) -> None:
    raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


def no_memory_in_torch(context: StageContext) -> None:
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 8 bytes")


def no_memory(context: StageContext) -> None:
    raise MemoryError


def killed(context: StageContext) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def aborted(context: StageContext) -> None:
    os.abort()


def bug(context: StageContext) -> None:
    raise RuntimeError("shapes differ\nin many lines")


def hang(context: StageContext) -> None:
    write_text(context.folder / "pid.txt", str(os.getpid()))
    time.sleep(120)


def seeds(context: StageContext) -> None:
    """A student of each seed; those that are there stay."""
    for number in range(1, context.recipe.train.arms.seeds + 1):
        folder = context.folder / ("student" if number == 1 else f"student-s{number}")
        if not (folder / "weights").is_file():
            write_text(folder / "weights", f"{number} at {time.monotonic_ns()}")
