"""How fast and how surely the data stage finds near duplicates and leaks of the evaluation set, on planted ones.

Usage: python benchmarks/corpus_checks.py [--rows N] [--rounds N]

Texts of 20 to 120 words are drawn from a Zipf vocabulary. Planted are copies in which up to 5 % of the words are
changed, and case and punctuation besides; texts that share half of their words with another, which are no duplicates;
and training texts with a run of 13 to 25 words of an evaluation text. Every check of the stage runs, on one core: its
affinity is set and the library's threads are. A pair called near duplicates is held against sets of strings, made
without the hashes of ours. The last line printed is one JSON object; the worst of all rounds, which use other seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import sys
import time
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from edgedistill.core.files import write_json
from edgedistill.core.host import environment
from edgedistill.core.records import Message
from edgedistill.synth.checks import check_rows
from edgedistill.synth.rows import Row, make_prompt
from edgedistill.synth.textforms import folded

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "corpus_checks.json"
SIMILARITY = 0.8
VOCABULARY = 30_000
EDITED = 0.05  # of the words of a planted copy, at most
SYLLABLES = ("ba", "ce", "di", "fo", "gu", "ha", "je", "ki", "lo", "mu", "na", "pe", "ri", "so", "tu", "ve", "wi", "zo")


class Corpus(NamedTuple):
    """Texts to check, and what was planted: text → the text that it copies, text → the evaluation text it leaks."""

    training: list[str]
    evaluation: list[str]
    copies: dict[int, int]
    leaks: dict[int, int]


def corpus(rows: int, *, seed: int) -> Corpus:
    """`rows` training texts, one in twenty a near copy, one in a hundred a leak; and a fiftieth as many to evaluate."""
    rng = random.Random(seed)
    words = _vocabulary(rng)
    weights = list(accumulate(1 / rank for rank in range(1, len(words) + 1)))

    def draw(count: int) -> list[str]:
        return rng.choices(words, cum_weights=weights, k=count)

    evaluation = [" ".join(draw(rng.randint(20, 60))) for _ in range(rows // 50)]
    plain = rows - rows // 20 - rows // 20 - rows // 100
    found = Corpus([" ".join(draw(rng.randint(20, 120))) for _ in range(plain)], evaluation, {}, {})
    for _ in range(rows // 20):
        of = rng.randrange(plain)
        found.copies[len(found.training)] = of
        found.training.append(_copied(found.training[of].split(), rng, draw))
    for _ in range(rows // 20):
        half = found.training[rng.randrange(plain)].split()
        found.training.append(" ".join([*half[: len(half) // 2], *draw(len(half) - len(half) // 2)]))
    for _ in range(rows // 100):
        item = rng.randrange(len(found.evaluation))
        leaked = found.evaluation[item].split()
        size = rng.randint(13, min(25, len(leaked)))
        begin = rng.randint(0, len(leaked) - size)
        found.leaks[len(found.training)] = item
        found.training.append(" ".join([*draw(rng.randint(5, 50)), *leaked[begin : begin + size], *draw(20)]))
    return found


def measured(rows: int, *, seed: int) -> dict[str, Any]:
    """One round: seconds of all checks, recall and precision of both, and the process's peak memory."""
    planted = corpus(rows, seed=seed)
    held = {"prompts": _rows(planted.training, "train"), "heldout": _rows(planted.evaluation, "eval")}
    asked = {row.place: i for i, row in enumerate(held["prompts"])}
    began, worked = time.perf_counter(), time.process_time()
    checked = check_rows(held, near="drop", similarity=SIMILARITY, contamination="drop", personal="report",
                         balance_by="length")  # fmt: skip
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - worked
    dropped = {reason: {asked[row.place]: row.detail for row in checked.left_out if row.reason == reason}
               for reason in ("near-duplicate", "contamination")}  # fmt: skip
    near, leaks = dropped["near-duplicate"], dropped["contamination"]
    pairs = {row: asked[detail.rpartition(": ")[2]] for row, detail in near.items()}
    similar = [_jaccard(planted.training[row], planted.training[of]) >= SIMILARITY for row, of in pairs.items()]
    found = [row in near or of in near for row, of in planted.copies.items() if row not in leaks and of not in leaks]
    return {
        "seed": seed,
        "rows": rows,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "dup_recall": sum(found) / len(found),
        "dup_precision": sum(similar) / len(similar),
        "dup_planted_share": sum(row in planted.copies for row in pairs) / len(pairs),
        "contamination_recall": sum(row in leaks for row in planted.leaks) / len(planted.leaks),
        "contamination_precision": sum(row in planted.leaks for row in leaks) / len(leaks),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def summary(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The worst of the rounds."""
    worst: dict[str, Any] = {name: max(r[name] for r in rounds) for name in ("seconds", "cpu_seconds", "peak_rss_mb")}
    names = ("dup_recall", "dup_precision", "contamination_recall", "contamination_precision")
    return worst | {name: min(r[name] for r in rounds) for name in names} | {"rows": rounds[0]["rows"]}


def _vocabulary(rng: random.Random) -> list[str]:
    words: dict[str, None] = {}
    while len(words) < VOCABULARY:
        words["".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) + rng.choice(("", "n", "s", "r"))] = None
    return list(words)


def _copied(words: list[str], rng: random.Random, draw: Any) -> str:
    for place in rng.sample(range(len(words)), rng.randint(1, max(1, int(EDITED * len(words))))):
        words[place] = draw(1)[0]
    if rng.random() < 0.5:
        words = [word.capitalize() if rng.random() < 0.2 else word for word in words]
    return " ".join(words) + rng.choice(("", ".", "!"))


def _rows(texts: Sequence[str], name: str) -> list[Row]:
    return [Row(make_prompt([Message(role="user", content=text)]), f"{name} {i}") for i, text in enumerate(texts)]


def _jaccard(one: str, other: str) -> float:
    a, b = ({text[i : i + 5] for i in range(len(text) - 4)} for text in (folded(one), folded(other)))
    return len(a & b) / len(a | b)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    os.environ["RAYON_NUM_THREADS"] = "1"  # rensa's threads, which begin with its first call
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rounds = []
    for seed in range(options.rounds):
        rounds.append(measured(options.rows, seed=seed))
        print(json.dumps(rounds[-1]), file=sys.stderr)
    figures = summary(rounds)
    settings = {"similarity": SIMILARITY, "edited": EDITED, "vocabulary": VOCABULARY, "cores": 1}
    result = {"schema_version": 1, "settings": settings, "environment": environment(), **figures, "rounds": rounds}
    if options.rows == 100_000:
        write_json(RESULT, result)
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
