"""How many requests are in flight: one more a round trip while all is well, half as many on overload.

Additive increase, multiplicative decrease (Chiu & Jain 1989), as TCP does it: failures of requests that were sent
before the last decrease say nothing new. A server that says when to come back is left alone until then; one that fails
window after window is left alone for longer each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque

START = 4.0
BASE_S, LONGEST_S = 0.5, 30.0


def backoff_s(attempt: int, *, rng: random.Random) -> float:
    """Seconds before attempt number `attempt` (from 1) is repeated: exponential with full jitter."""
    return rng.uniform(0, min(LONGEST_S, BASE_S * 2**attempt))


class Pace:
    """Lets at most `limit` requests be in flight at once, `limit` between 1 and `most`.

    `bad_windows` counts windows without one success in a row.
    """

    def __init__(self, most: int, *, rng: random.Random) -> None:
        self.most, self.limit = most, min(float(most), START)
        self.in_flight = 0
        self.bad_windows = 0
        self._window = 0
        self._closed_until = 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._rng = rng
        self._stopped = asyncio.Event()

    async def enter(self) -> int:
        """Wait for a place, or for `stop`; returns the window that the request belongs to."""
        while not self._stopped.is_set():
            if (seconds := self._closed_until - time.monotonic()) > 0:
                await self.pause(seconds)
            elif self.in_flight >= int(self.limit):
                place = asyncio.get_running_loop().create_future()
                self._waiting.append(place)
                await place
            else:
                break
        self.in_flight += 1
        return self._window

    async def pause(self, seconds: float) -> None:
        """Sleep, unless `stop` comes first."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), seconds)

    def stop(self) -> None:
        """Let everybody in at once: there is nothing to wait for any more."""
        self._stopped.set()
        for place in self._waiting:
            if not place.done():
                place.set_result(None)

    def leave(self, window: int, *, good: bool, overloaded: bool = False, retry_after_s: float = 0.0) -> None:
        """Give the place back. `good`: answered; `overloaded`: refused, failed or not answered in time."""
        self.in_flight -= 1
        if good:
            self.bad_windows = 0
            self.limit = min(self.most, self.limit + 1 / self.limit)
        elif window == self._window:
            self._window += 1
            self.bad_windows += 1
            if overloaded:
                self.limit = max(1.0, self.limit / 2)
                repeated = backoff_s(self.bad_windows, rng=self._rng) if self.bad_windows > 1 else 0.0
                self.close_for(max(retry_after_s, repeated))
        self.close_for(retry_after_s)
        self.wake()

    def withdraw(self) -> None:
        """Give back a place in which nothing was sent."""
        self.in_flight -= 1
        self.wake()

    def close_for(self, seconds: float) -> None:
        self._closed_until = max(self._closed_until, time.monotonic() + seconds)

    def wake(self) -> None:
        """Let as many of those that wait look again as there are places."""
        free = int(self.limit) - self.in_flight
        while self._waiting and free > 0:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                free -= 1
