"""Work in a child process that is killed while it is at it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable


def killed(work: Callable[[], object], *, after_s: float) -> bool:
    """Whether a fork that does `work` had to be killed after `after_s` seconds; else it ended before, and well."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    deadline = time.monotonic() + after_s
    while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < deadline:
        time.sleep(0.002)
    if ended[0]:
        assert ended[1] == 0
        return False
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True
