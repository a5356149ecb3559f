"""What asking costs: the most one request can use, held back before it is sent, so that no budget is ever overrun."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from edgedistill.core.files import canonical_json
from edgedistill.core.records import Message
from edgedistill.synth.journal import Tokens

MESSAGE_TOKENS = 16  # role, separators and the end of a message, of any chat template known
REQUEST_TOKENS = 64  # what a server's template puts before and after all of them

TOOLS_TOKENS = 600  # what providers say of functions to the model, by Anthropic's own table at most 530


@dataclass(frozen=True)
class Rates:
    """Price of a million input and output tokens."""

    input: float
    output: float

    def cost(self, tokens: Tokens) -> float:
        return (tokens[0] * self.input + tokens[1] * self.output) / 1e6


def most_tokens(messages: Sequence[Message], *, max_output_tokens: int) -> Tokens:
    """The most tokens a request can be billed for: every token has at least one byte of its text."""
    least = REQUEST_TOKENS + (TOOLS_TOKENS if any(m.tools for m in messages) else 0)
    return bytes_of(messages) + MESSAGE_TOKENS * len(messages) + least, max_output_tokens


def bytes_of(messages: Sequence[Message]) -> int:
    """UTF-8 bytes of what is said, functions and calls included."""
    return sum(len(m.content.encode()) + (len(canonical_json(x).encode()) if (x := m.extras) else 0) for m in messages)


class Purse:
    """Tokens used and held back, against limits in tokens and money; what is used never passes a limit.

    `margin` grows where a server bills more input than `most_tokens` foresaw, such as a system text of its own: from
    then on every request holds it back too.
    """

    def __init__(self, *, used: Tokens, rates: Rates | None, money: float | None, tokens: int | None) -> None:
        self.used = used
        self.held: Tokens = (0, 0)
        self.rates, self.money, self.tokens = rates, money, tokens
        self.margin = 0
        self._settled = asyncio.Condition()

    @property
    def cost(self) -> float | None:
        return self.rates.cost(self.used) if self.rates else None

    async def hold(self, most: Tokens) -> Tokens | None:
        """What is held back for a request; None where the limits have no room and nothing in flight can make any."""
        async with self._settled:
            while not self._fits(wanted := (most[0] + self.margin, most[1])):
                if self.held == (0, 0):
                    return None
                await self._settled.wait()
            self.held = _add(self.held, wanted)
            return wanted

    def hold_now(self, most: Tokens) -> Tokens | None:
        """As `hold`, without waiting for what is in flight."""
        wanted = (most[0] + self.margin, most[1])
        if not self._fits(wanted):
            return None
        self.held = _add(self.held, wanted)
        return wanted

    async def settle(self, held: Tokens, billed: Tokens) -> None:
        """Replace what was held back by what was billed."""
        async with self._settled:
            self.held = (self.held[0] - held[0], self.held[1] - held[1])
            self.used = _add(self.used, billed)
            self.margin += max(0, billed[0] - held[0])
            self._settled.notify_all()

    def release(self, tokens: Tokens, *, hold: bool = False) -> None:
        """Take back what the journal counts as used because it was in flight; `hold` it instead, if it still is."""
        self.used = (self.used[0] - tokens[0], self.used[1] - tokens[1])
        self.held = _add(self.held, tokens) if hold else self.held

    def _fits(self, wanted: Tokens) -> bool:
        total = _add(_add(self.used, self.held), wanted)
        if self.tokens is not None and sum(total) > self.tokens:
            return False
        return self.money is None or self.rates is None or self.rates.cost(total) <= self.money


def _add(a: Tokens, b: Tokens) -> Tokens:
    return a[0] + b[0], a[1] + b[1]
