"""One of several training processes: `accelerate launch … --module edgedistill.train.worker FOLDER/launch`."""

from __future__ import annotations

import json
import os
import stat
import sys
import threading
from pathlib import Path

from edgedistill.core.errors import EdgeDistillError
from edgedistill.core.runfolder import Reporter, SilentReporter
from edgedistill.train.launch import as_error, read_order


class LineReporter:
    """Writes notes and progress to standard output, as one JSON object a line."""

    def note(self, message: str) -> None:
        _send({"event": "note", "message": message})

    def progress(self, done: float, total: float, unit: str, **figures: object) -> None:
        _send({"event": "progress", "done": done, "total": total, "unit": unit, "figures": figures})


def main() -> None:
    """Train the arm that the folder in `argv` describes; only the first of all processes reports and writes."""
    threading.Thread(target=_end_with_stage, daemon=True).start()
    try:
        from edgedistill.train.arms import train_arm

        order = read_order(Path(sys.argv[1]))
        report: Reporter = LineReporter() if os.environ.get("RANK", "0") == "0" else SilentReporter()
        train_arm(**order, report=report)
    except EdgeDistillError as e:
        _send(as_error(e))
        sys.exit(1)


def _send(event: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(event, default=float) + "\n")
    sys.stdout.flush()


def _end_with_stage() -> None:
    """Block until standard input closes, which it does when the stage is gone, then end at once.

    On another machine nobody holds it open: there the launcher ends its processes.
    """
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        while os.read(0, 1):
            pass
        os._exit(1)


if __name__ == "__main__":
    main()
