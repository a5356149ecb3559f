"""Train, validation and test by a hash of each row's group: a group never moves as the data grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgedistill.core.files import sha256_bytes
from edgedistill.synth.rows import Row


def split_rows(rows: Sequence[Row], shares: Mapping[str, float], *, rest: str, seed: int) -> dict[str, list[Row]]:
    """Rows by split: each of `shares` gets about its share of the groups, `rest` what remains.

    Where a group falls depends on its name, the seed and the shares before its own alone; raising a share moves groups
    from the later ones to it, and none the other way.
    """
    found: dict[str, list[Row]] = {name: [] for name in (*shares, rest)}
    for row in rows:
        place = group_place(row.group or row.prompt.id, seed=seed)
        bound = 0.0
        for name, share in shares.items():
            bound += share
            if place < bound:
                found[name].append(row)
                break
        else:
            found[rest].append(row)
    return found


def group_place(group: str, *, seed: int) -> float:
    """A place in [0, 1) that the group's name and the seed give, the same everywhere."""
    return int(sha256_bytes(f"{seed}:{group}".encode(errors="surrogatepass"))[:13], 16) / 16**13
