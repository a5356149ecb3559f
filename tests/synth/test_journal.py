"""The journal: what is on the disk counts, what is torn never happened, and what was in flight is paid for."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import time
from pathlib import Path

import pytest

from edgedistill.core.errors import InputError, StageError
from edgedistill.core.files import sha256_bytes
from edgedistill.synth import journal as journals
from edgedistill.synth.journal import Failure, Journal, Reply, read_past


def ident(number: int) -> str:
    return sha256_bytes(str(number).encode())


def reply(text: str, tokens: tuple[int, int] | None = (3, 2)) -> Reply:
    return Reply(text, "stop", "m", tokens)


async def fill(journal: Journal, numbers: range) -> None:
    for i in numbers:
        journal.sent(ident(i), (10, 5))
    await asyncio.gather(*(journal.answer(ident(i), reply(f"answer {i}"), ms=7) for i in numbers))


def test_answers_are_found_again_and_counted(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    asyncio.run(fill(journal, range(50)))
    journal.sent(ident(50), (10, 5))
    journal.failed(ident(50), Failure("timeout", "no answer", "again"), None)
    journal.sent(ident(50), (10, 5))
    journal.failed(ident(50), Failure("bad-request", "400", "never"), (0, 0))
    journal.sent(ident(51), (100, 50))
    journal.close()
    again = Journal(tmp_path)
    assert [again.reply(ident(i)) for i in range(50)] == [reply(f"answer {i}") for i in range(50)]
    assert not again.answered(ident(50)) and not again.answered(ident(99)) and again.reply(ident(99)) is None
    past = again.past
    assert (past.sent, past.answered, past.in_flight, past.answer_ms) == (53, 50, 1, 350)
    assert past.failures == {ident(50): Failure("bad-request", "400", "never")}
    assert past.reasons == {"timeout": 1, "bad-request": 1}
    # 50 as billed, a timeout of unknown use at its most, a refusal for nothing, one in flight at its most
    assert past.tokens == (50 * 3 + 10 + 0 + 100, 50 * 2 + 5 + 0 + 50)


def test_half_a_character_of_a_reply_is_kept_as_a_question_mark(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.sent(ident(0), (10, 5))
    asyncio.run(journal.answer(ident(0), reply("a \ud83d b"), ms=7))
    journal.close()
    assert Journal(tmp_path).reply(ident(0)) == reply("a ? b")


@pytest.mark.parametrize("lost", range(1, 60, 7))
def test_a_torn_last_line_never_happened(tmp_path: Path, lost: int) -> None:
    journal = Journal(tmp_path)
    asyncio.run(fill(journal, range(3)))
    journal.close()
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:-lost])
    again = Journal(tmp_path)
    assert [again.answered(ident(i)) for i in range(3)] == [True, True, False]
    assert again.past.in_flight == 1
    asyncio.run(again.answer(ident(2), reply("answer 2"), ms=7))
    again.close()
    assert journal.path.read_bytes() == whole
    for line in journal.path.read_text().splitlines():
        json.loads(line)


def test_damage_before_the_last_line_is_named(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    asyncio.run(fill(journal, range(3)))
    journal.close()
    lines = journal.path.read_bytes().splitlines(keepends=True)
    for damaged in (b'{"answer":\n', b'{"nothing":"x"}\n', b"[]\n", b'{"answer":"' + ident(9).encode() + b'"}\n'):
        journal.path.write_bytes(b"".join([*lines[:3], damaged, *lines[4:]]))
        with pytest.raises(InputError, match=r"answers.jsonl line 4: expected a line of the journal, found damage"):
            read_past(journal.path)


def test_two_ids_with_one_beginning_are_told_apart(tmp_path: Path) -> None:
    ours, twin = ident(1), ident(1)[:16] + ident(2)[16:]
    journal = Journal(tmp_path)
    journal.sent(twin, (1, 1))
    asyncio.run(journal.answer(twin, reply("of the twin"), ms=1))
    journal.close()
    again = Journal(tmp_path)
    assert not again.answered(ours) and again.answered(twin)
    again.sent(ours, (1, 1))
    asyncio.run(again.answer(ours, reply("of ours"), ms=1))
    again.close()
    both = Journal(tmp_path)
    assert (both.reply(ours), both.reply(twin)) == (reply("of ours"), reply("of the twin"))


def test_an_answer_counts_only_after_the_fsync_and_many_share_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(journals.os, "fsync", lambda fd: (real(fd), synced.append(os.fstat(fd).st_size)))

    async def one(i: int) -> int:
        await journal.answer(ident(i), reply(f"answer {i}"), ms=0)
        return synced[-1]

    async def all_of_them() -> list[int]:
        return await asyncio.gather(*(one(i) for i in range(40)))

    sizes = asyncio.run(all_of_them())
    lines = journal.path.read_bytes().splitlines(keepends=True)
    ends = {json.loads(line)["answer"]: sum(map(len, lines[: n + 1])) for n, line in enumerate(lines)}
    assert all(size >= ends[ident(i)] for i, size in enumerate(sizes))
    assert len(synced) < 10


def test_answers_that_keep_coming_go_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of many writers writes again as soon as it may: they must not come to wait for one fsync each."""
    journal = Journal(tmp_path)
    flushes = 0
    real = os.fsync

    def slow(fd: int) -> None:
        nonlocal flushes
        flushes += 1
        time.sleep(0.002)
        real(fd)

    monkeypatch.setattr(journals.os, "fsync", slow)

    async def writer(number: int) -> None:
        for i in range(10):
            await journal.answer(ident(100 * number + i), reply("x"), ms=0)

    async def all_of_them() -> None:
        await asyncio.gather(*(writer(n) for n in range(30)))

    asyncio.run(all_of_them())
    assert flushes <= 40 and len(journal.path.read_bytes().splitlines()) == 300


def test_a_full_disk_stops_everybody_and_leaves_what_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    asyncio.run(fill(journal, range(2)))
    journal.close()
    whole = journal.path.read_bytes()
    journal = Journal(tmp_path)
    real = os.write
    monkeypatch.setattr(journals.os, "write", lambda fd, data: real(fd, data[: len(data) // 2]))

    async def both() -> list[BaseException | None]:
        waits = (journal.answer(ident(i), reply(f"answer {i}"), ms=0) for i in (2, 3))
        return await asyncio.gather(*waits, return_exceptions=True)

    for error in asyncio.run(both()):
        assert isinstance(error, StageError) and os.strerror(errno.ENOSPC) in str(error)
    monkeypatch.undo()
    with pytest.raises(StageError, match="free space and run again: every answer before that is kept"):
        journal.sent(ident(4), (1, 1))
    journal.close()
    again = Journal(tmp_path)
    again.close()
    kept = journal.path.read_bytes()
    assert kept.startswith(whole) and kept.endswith(b"\n") and again.past.answered >= 2
    assert not again.answered(ident(3))


@pytest.mark.parametrize("after_s", [0.01, 0.03, 0.06])
def test_what_a_killed_writer_was_told_is_there(tmp_path: Path, after_s: float) -> None:
    """A child tells of every answer that counts through a pipe; after SIGKILL the journal has them all."""
    told_in, told_out = os.pipe()
    child = os.fork()
    if child == 0:
        journal = Journal(tmp_path)

        async def forever() -> None:
            async def one(begin: int) -> None:
                for i in range(begin, 10**6, 8):
                    journal.sent(ident(i), (1, 1))
                    await journal.answer(ident(i), reply("x" * (i % 300)), ms=0)
                    os.write(told_out, f"{i}\n".encode())

            await asyncio.gather(*(one(n) for n in range(8)))

        asyncio.run(forever())
        os._exit(1)
    os.close(told_out)
    first = os.read(told_in, 64)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    told = first
    while piece := os.read(told_in, 1 << 16):
        told += piece
    os.close(told_in)
    numbers = [int(line) for line in told.split(b"\n")[:-1]]
    journal = Journal(tmp_path)
    assert numbers and all(journal.answered(ident(i)) for i in numbers)
    assert journal.past.answered + journal.past.in_flight == journal.past.sent
