"""`python -m edgedistill.bench.bandwidth CORES BYTES`: the read bandwidth that the given cores reach together.

Each core streams through its part of memory that no cache holds, by the C library's memchr for a byte that is not
there: vector loads, nothing stored. One JSON line: bytes per second of each repetition. Standard library only.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from time import perf_counter_ns

REPETITIONS = 5
TOTAL_BYTES = 512 << 20  # well above any last-level cache's share of few cores
ABSENT = 1


def read_bandwidth(cores: Sequence[int], *, total_bytes: int = TOTAL_BYTES) -> list[float]:
    """Bytes per second of each repetition, measured in a process of its own on `cores`.

    Raises:
        OSError: the process failed; its last words.
    """
    command = [sys.executable, "-P", "-m", "edgedistill.bench.bandwidth", ",".join(map(str, cores)), str(total_bytes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise OSError(f"the read bandwidth could not be measured: {done.stderr.strip()[-200:]}")
    return json.loads(done.stdout)


def stream(cores: Sequence[int], total_bytes: int) -> list[float]:
    """Read `total_bytes` split over one thread per core, `REPETITIONS` times after one that maps the pages."""
    size = total_bytes // len(cores)
    parts = [ctypes.create_string_buffer(size) for _ in cores]
    for part in parts:
        ctypes.memset(part, 0, size)  # or every page would be the kernel's one page of zeros
    memchr = ctypes.CDLL(None).memchr
    memchr.restype, memchr.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    spans: list[tuple[int, int]] = []
    barrier = threading.Barrier(len(cores))

    failures: list[Exception] = []

    def read(core: int, part: ctypes.Array) -> None:
        try:
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, {core})  # of this thread alone
            for _ in range(REPETITIONS + 1):
                barrier.wait()
                began = perf_counter_ns()
                memchr(part, ABSENT, size)
                spans.append((began, perf_counter_ns()))
                barrier.wait()
        except Exception as e:  # or the others would wait for this thread for ever
            failures.append(e)
            barrier.abort()

    threads = [threading.Thread(target=read, args=pair) for pair in zip(cores, parts, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    rounds = [spans[i : i + len(cores)] for i in range(0, len(spans), len(cores))][1:]
    return [size * len(cores) * 1e9 / (max(e for _, e in r) - min(b for b, _ in r)) for r in rounds]


if __name__ == "__main__":
    print(json.dumps(stream([int(core) for core in sys.argv[1].split(",")], int(sys.argv[2]))))
