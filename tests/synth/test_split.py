"""Splits by group hash: shares, and that nothing moves."""

from __future__ import annotations

from edgedistill.core.records import Message
from edgedistill.synth.rows import Row, make_prompt
from edgedistill.synth.split import split_rows

SHARES = {"heldout": 0.2, "valid": 0.1}


def rows(count: int, *, groups: int = 10**9) -> list[Row]:
    return [
        Row(make_prompt([Message(role="user", content=f"ask {i}")]), f"line {i}", group=f"g{i % groups}")
        for i in range(count)
    ]


def where(found: dict[str, list[Row]]) -> dict[str, str]:
    return {row.prompt.id: split for split, held in found.items() for row in held}


def test_each_split_gets_its_share_and_every_row_one_place() -> None:
    found = split_rows(rows(5000), SHARES, rest="gold", seed=0)
    sizes = {split: len(held) for split, held in found.items()}
    assert sum(sizes.values()) == 5000
    assert abs(sizes["heldout"] - 1000) < 120 and abs(sizes["valid"] - 500) < 90


def test_no_group_is_torn_and_none_moves_as_data_grows() -> None:
    small = split_rows(rows(500, groups=60), SHARES, rest="gold", seed=3)
    for group in {row.group for held in small.values() for row in held}:
        assert sum(any(row.group == group for row in held) for held in small.values()) == 1
    large = where(split_rows(list(reversed(rows(2000, groups=60))), SHARES, rest="gold", seed=3))
    assert all(large[row] == split for row, split in where(small).items())
    assert where(split_rows(rows(500, groups=60), SHARES, rest="gold", seed=4)) != where(small)


def test_a_greater_share_takes_and_gives_nothing_back() -> None:
    before = where(split_rows(rows(1000), {"heldout": 0.2}, rest="gold", seed=0))
    after = where(split_rows(rows(1000), {"heldout": 0.3}, rest="gold", seed=0))
    assert all(after[row] == "heldout" for row, split in before.items() if split == "heldout")


def test_rows_without_a_group_go_by_their_request() -> None:
    alone = [Row(row.prompt, row.place) for row in rows(300)]
    assert len({tuple(sorted(where(split_rows(alone, SHARES, rest="gold", seed=0)).items())) for _ in range(2)}) == 1
    assert all(split_rows(alone, SHARES, rest="gold", seed=0).values())
