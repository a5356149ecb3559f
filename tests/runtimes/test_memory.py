"""Freed blocks are reused while training and given back afterwards."""

from __future__ import annotations

import ctypes
import sys

import psutil
import pytest

from edgedistill.runtimes.memory import freed_memory_kept

BLOCK = 64 << 20


def used_after_freeing() -> int:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    block = libc.malloc(ctypes.c_size_t(BLOCK))
    ctypes.memset(block, 1, BLOCK)
    libc.free(block)
    return psutil.Process().memory_info().rss


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone has mallopt")
def test_freed_blocks_stay_inside_and_go_back_outside():
    before = used_after_freeing()
    with freed_memory_kept():
        inside = used_after_freeing()
    after = psutil.Process().memory_info().rss
    assert inside - before > BLOCK // 2
    assert after - before < BLOCK // 2
