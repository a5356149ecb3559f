"""Names made up for `gold` and, far more often, for `prompts`: rooms, colours and music called any number of things.

An assistant on a device knows its language but not its owner's home, so the names of `valid` and `heldout` are made of
words that prompts hold as well, though never as that name: an "opera lounge" is in prompts, music called "opera" is
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
TONES = _split("light dark pale deep bright soft warm cold")
KINDS = _split("songs hits classics beats")
WORDS = _split("""actor anchor angel apple arctic arrow bar bay bean bear bell berry bird bow branch bread bridge bucket
    button castle cell chief church city clay cloud coal coast cookie corn crow delta dream earth east echo engine farm
    field fig fire flower forest fox glass grain grass harvest hill horse ice inn iron king lab lake leaf lime lion
    market mill mist moon museum nest north oat ocean orbit owl paper pine planet polar rain ridge river salt sand
    school shell shop shore signal sky snow spring star station stone storm stream sugar thorn travel vine water wave
    west wheat wind winter wolf wood""")


def made_up(rng: random.Random, slot: str, *, words: Iterator[str]) -> str:
    """A name for `room`, `color` or `music` that no unseen split has, of the next of `words`."""
    while True:
        name = MAKERS[slot](rng, words)
        if name not in UNSEEN[slot]:
            return name


def word_deck(rng: random.Random) -> Iterator[str]:
    """Every known word in random order, over and over, so that none is left out by chance."""
    while True:
        yield from rng.sample(KNOWN, len(KNOWN))


def _room(rng: random.Random, words: Iterator[str]) -> str:
    return next(words) if rng.random() < 0.3 else f"{next(words)} {rng.choice(SPOTS)}"


def _color(rng: random.Random, words: Iterator[str]) -> str:
    return next(words) if rng.random() < 0.8 else f"{rng.choice(TONES)} {rng.choice(home_words.COLORS['gold'])}"


def _music(rng: random.Random, words: Iterator[str]) -> str:
    kind = rng.random()
    return next(words) if kind < 0.7 else f"{next(words)} {rng.choice(KINDS) if kind < 0.85 else next(words)}"


MAKERS = {"room": _room, "color": _color, "music": _music}
_TABLES = {"room": home_words.ROOMS, "color": home_words.COLORS, "music": home_words.MUSIC}
UNSEEN = {slot: frozenset(table["valid"] + table["heldout"]) for slot, table in _TABLES.items()}
KNOWN = tuple(sorted({*WORDS, *(part for names in UNSEEN.values() for name in names for part in name.split())}))
