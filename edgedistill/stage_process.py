"""One stage in a process of its own, which reports to its parent through a pipe.

Its memory goes back when it ends; its thread settings and random state are its own, whether the run was interrupted or
not; a crash or an out-of-memory kill takes it alone. What libraries print goes to `logs/<stage>.log` of the run.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

from edgedistill.core.config import validate
from edgedistill.core.errors import EdgeDistillError, InputError, MissingError, StageError, out_of_memory
from edgedistill.core.files import clear_temporaries, write_json
from edgedistill.core.host import now
from edgedistill.core.recipe import Recipe
from edgedistill.core.runfolder import FOLDERS, Reporter, StageContext, run_stage

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the last: a limit on the size of files
ERRORS = {error.exit_code: error for error in (InputError, StageError, MissingError)}
# What a stage may call of packages that it never imports; loaded when it is called.
LENT = {
    "write_gguf": "edgedistill.export.gguf:export_gguf_codes",
    "decode_times": "edgedistill.bench.decode_speed:decode_times",
}
# The same hash order and single-threaded tokenizers in every run: an interrupted run must end byte for byte alike.
ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def run_in_process(
    *,
    run: Path,
    recipe: Recipe,
    stage: str,
    entry: str,
    version: int,
    parameters: Mapping[str, Any],
    inputs: Mapping[str, str],
    further: int,
    report: Reporter,
    lock: int,
    launch: str | None = None,
) -> None:
    """Run `entry` ("module:function") as `stage` of `run` in a fresh Python and wait for its end.

    `lock` is a file descriptor that the process inherits. It ends itself when this process is gone. `launch` is how
    many processes train, or an accelerate configuration.

    Raises:
        EdgeDistillError: the stage's own error, or a StageError if it crashed.
    """
    log = run / "logs" / f"{stage}.log"
    log.parent.mkdir(exist_ok=True)
    order = {
        "run": str(run), "recipe": recipe.model_dump(mode="json"), "stage": stage, "entry": entry,
        "version": version, "parameters": parameters, "inputs": inputs, "further": further, "launch": launch,
    }  # fmt: skip
    threads = {"OMP_NUM_THREADS": str(recipe.threads)} if recipe.threads else {}
    events_in, events_out = os.pipe()
    order_in, order_out = os.pipe()
    with (
        log.open("wb") as output,
        os.fdopen(events_in, encoding="utf-8") as events,
        os.fdopen(order_out, "w") as orders,
    ):
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "edgedistill.stage_process", str(order_in), str(events_out)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(order_in, events_out, lock),
                env=os.environ | ENVIRONMENT | threads,
            )
        finally:
            os.close(order_in)
            os.close(events_out)
        try:
            with contextlib.suppress(BrokenPipeError):
                orders.write(json.dumps(order) + "\n")
                orders.flush()
            error = _forward(events, report)
            code = process.wait()
        except BaseException:
            _stop(process)
            raise
    if error:
        raise ERRORS.get(error["exit_code"], StageError)(error["message"])
    if code:
        raise StageError(_crash(stage, code, log))


def _forward(events: IO[str], report: Reporter) -> dict[str, Any] | None:
    """Forward what the stage reports until it closes the pipe; returns its error, if any."""
    error = None
    for line in events:
        event = json.loads(line)
        if event["event"] == "note":
            report.note(event["message"])
        elif event["event"] == "progress":
            report.progress(event["done"], event["total"], event["unit"], **event["figures"])
        else:
            error = event
    return error


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _crash(stage: str, code: int, log: Path) -> str:
    if code == -signal.SIGKILL:
        return f"{stage} was killed, most likely because memory ran out; {_relief(stage)}, and run again"
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"{stage} ended with {name} and without a reason; what it printed is in {log}"


def _relief(stage: str) -> str:
    return f"free memory or lower {'train.micro_batch_tokens' if stage == 'train' else 'batch_size'}"


class _PipeReporter:
    """Sends notes and progress to the parent as JSON lines."""

    def __init__(self, pipe: IO[str]) -> None:
        self.pipe = pipe

    def send(self, event: str, **values: object) -> None:
        self.pipe.write(json.dumps({"event": event, **values}, default=float) + "\n")
        self.pipe.flush()

    def note(self, message: str) -> None:
        self.send("note", message=message)

    def progress(self, done: float, total: float, unit: str, **figures: object) -> None:
        self.send("progress", done=done, total=total, unit=unit, figures=figures)


def main() -> None:
    """Entry of the stage's process: `argv` has the file descriptors that orders come from and reports go to."""
    orders, events = int(sys.argv[1]), int(sys.argv[2])
    with open(orders, "rb", buffering=0, closefd=False) as f:
        order = json.loads(f.readline())
    threading.Thread(target=_end_with_parent, args=(orders,), daemon=True).start()
    with os.fdopen(events, "w", encoding="utf-8") as pipe:
        report = _PipeReporter(pipe)
        try:
            _run(order, report)
        except EdgeDistillError as e:
            report.send("error", exit_code=e.exit_code, message=str(e))
        except Exception as e:  # the edge of the process: whatever a library raises becomes one sentence and a log
            with contextlib.suppress(OSError):  # the log may lie on the disk that is full
                traceback.print_exc()
                sys.stderr.flush()
            message = _cause(order["stage"], e)
            folder = Path(order["run"]) / FOLDERS[order["stage"]]
            with contextlib.suppress(OSError):
                clear_temporaries(folder)  # what a full disk was filled with
                write_json(folder / "failed.json", {"stage": order["stage"], "error": message, "when": now()})
            report.send("error", exit_code=StageError.exit_code, message=message)
        else:
            return
    sys.exit(1)


def _run(order: Mapping[str, Any], report: Reporter) -> None:
    recipe = validate(Recipe, order["recipe"], source="recipe")
    context = StageContext(
        recipe=recipe, run=Path(order["run"]), stage=order["stage"], report=report, figures={}, launch=order["launch"],
        lent={name: partial(_call, entry) for name, entry in LENT.items()},
    )  # fmt: skip
    run_stage(
        context=context,
        version=order["version"],
        parameters=order["parameters"],
        inputs=order["inputs"],
        further=order["further"],
        body=partial(_call, order["entry"]),
    )


def _call(entry: str, *arguments: Any, **named: Any) -> Any:
    """A function by "module:function"; imported only when it is called."""
    module, _, function = entry.partition(":")
    return getattr(importlib.import_module(module), function)(*arguments, **named)


def _cause(stage: str, error: Exception) -> str:
    """One sentence; libraries in other languages tell a full disk or memory only by their words."""
    if out_of_memory(error):
        return f"{stage} failed: memory ran out; {_relief(stage)}, and run again"
    if getattr(error, "errno", None) in FULL or any(os.strerror(number) in str(error) for number in FULL):
        written = getattr(error, "filename2", None) or getattr(error, "filename", None)
        where = f", writing {written}" if written else ""
        return f"{stage} failed: the disk is full{where}; free space and run again, earlier stages stand"
    lines = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return f"{stage} failed: {said}; the traceback is in logs/{stage}.log"


def _end_with_parent(orders: int) -> None:
    """Block until the parent's end of the pipe closes, which it does when the parent is gone, then end at once."""
    os.read(orders, 1)
    os._exit(1)


if __name__ == "__main__":
    main()
