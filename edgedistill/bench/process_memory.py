"""This process's memory as the kernel counts it, in bytes. Standard library only: the worker imports it."""

from __future__ import annotations

STATUS = "/proc/self/status"
FIELDS = {"VmHWM": "peak_rss_bytes", "VmRSS": "rss_bytes", "RssAnon": "anon_bytes", "RssFile": "file_bytes"}


def reset_peak() -> bool:
    """Set VmHWM back to what is resident now; False where the kernel does not allow it (proc(5), clear_refs)."""
    try:
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")
    except OSError:
        return False
    return True


def memory_now() -> dict[str, int]:
    """Peak and present resident set, and its anonymous and file-mapped parts.

    `ru_maxrss` is no substitute: it survives fork and exec, so a small child reports its big parent.

    Raises:
        OSError: the kernel has no /proc/self/status.
    """
    found = {}
    with open(STATUS) as f:
        for line in f:
            name, _, value = line.partition(":")
            if name in FIELDS:
                found[FIELDS[name]] = int(value.split()[0]) * 1024
    return found


def thread_count() -> int:
    with open(STATUS) as f:
        return next(int(line.split()[1]) for line in f if line.startswith("Threads:"))
