"""Names made up for `gold` and, far more often, for `prompts`: rooms and colours called any number of things.

An assistant on a device knows its language but not its owner's home, so the names of `valid` and `heldout` are made of
words that learners meet as well, though never as that name: a "den corner", an "ocean den" and a light that is "den"
are in prompts, a room called "den" is not. A small student copies a name that it never met only after it has copied
very many, and a word that it has only met with another behind it is copied with another behind it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from edgedistill.synth import home_words


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SPOTS = _split("""room hall office corner closet wing cellar house kitchen bathroom bedroom floor den area lounge shed
    garden deck""")


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
    """A noun alone, or behind another word, or in front of a spot; other words only in front of a spot."""
    word, chance = next(words), rng.random()
    if word in NOUNS and chance < 0.5:
        return word
    return f"{next(words)} {word}" if word in NOUNS and chance < 0.75 else f"{word} {rng.choice(SPOTS)}"


def _color(rng: random.Random, words: Iterator[str]) -> str:
    return next(word for word in words if word in NOUNS)


MAKERS = {"room": _room, "color": _color}
_NAMES = (*home_words.ROOMS, *home_words.COLORS)
NOUNS = frozenset(name.split()[-1] for name in _NAMES)
KNOWN = tuple(sorted({word for name in _NAMES for word in name.split()}))
