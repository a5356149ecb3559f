"""Names made up for `gold` and, far more often, for `prompts`: rooms and colours called any number of things.

An assistant on a device knows its language but not its owner's home, so the names of `valid` and `heldout` are made of
words that learners meet as well, though never as that name: a "loft corner" is in prompts, a room called "loft" is
not. A small student copies a name that it never met only after it has copied very many.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from edgedistill.synth import home_words


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SPOTS = _split("""room hall office corner closet wing cellar house kitchen bathroom bedroom floor den area lounge shed
    garden deck""")
COLORS = _split("red blue green yellow white purple pink gold orange brown gray")
WORDS = _split("""apple bay bear bird bridge castle city cloud coal corner dream earth fire flower forest glass grass
    hill horse ice iron lake leaf lion market moon ocean paper planet rain river salt sand sky snow star stone sugar
    water wind winter wood""")


def made_up(rng: random.Random, slot: str, *, words: Iterator[str], unseen: frozenset[str]) -> str:
    """A name for `room` or `color` that is none of `unseen`, of the next of `words`."""
    while True:
        name = MAKERS[slot](rng, words)
        if name not in unseen:
            return name


def word_deck(rng: random.Random) -> Iterator[str]:
    """Every known word in random order, over and over, so that none is left out by chance."""
    while True:
        yield from rng.sample(KNOWN, len(KNOWN))


def _room(rng: random.Random, words: Iterator[str]) -> str:
    return _named(rng, next(words), alone=0.4, second=SPOTS)


def _color(rng: random.Random, words: Iterator[str]) -> str:
    return _named(rng, next(words), alone=0.8, second=COLORS)


def _named(rng: random.Random, word: str, *, alone: float, second: tuple[str, ...]) -> str:
    """`word` alone if it is a noun, and then only so often; else with a `second`."""
    return word if word in NOUNS and rng.random() < alone else f"{word} {rng.choice(second)}"


MAKERS = {"room": _room, "color": _color}
_NAMES = (*home_words.ROOMS, *home_words.COLORS)
NOUNS = frozenset({*WORDS, *(name.split()[-1] for name in _NAMES)})
KNOWN = tuple(sorted({*WORDS, *(word for name in _NAMES for word in name.split())}))
