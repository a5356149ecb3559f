"""The quickstart task: a grammar of spoken home commands, each with one right JSON action, split without overlap.

A command names one of nine devices, perhaps a room, an action, perhaps a value; its answer copies the room's words and
the value. Whatever else is said — questions, other devices, small talk — is answered with a refusal. Every utterance of
`heldout` has a sentence template that no other split has; its rooms, numbers, colours, other devices and subjects are
those of no other split; the same holds for `valid`. (Of the names of rooms and colours the single words are known: see
`home_names`.) Which rows these are, the seed decides: see `home_deal`. Whatever is changed for the sake of a result is
changed under other seeds than the one whose `heldout` result is told.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from edgedistill.core.errors import InputError
from edgedistill.synth import home_names as names
from edgedistill.synth import home_phrases as phrases
from edgedistill.synth import home_refusals as refusals
from edgedistill.synth import home_words as words
from edgedistill.synth.home_deal import TIERS, Rows, deal, number_tier

REFUSAL = '{"device":"none","room":"none","action":"refuse","value":null}'

# (device, action, phrase groups, range of its number)
INTENTS: tuple[tuple[str, str, tuple[str, ...], range | None], ...] = (
    ("light", "on", ("on",), None),
    ("light", "off", ("off",), None),
    ("light", "set", ("percent", "brightness"), range(1, 101)),
    ("light", "set", ("color",), None),
    ("light", "set", ("color",), None),  # twice: the only value that is words
    ("fan", "on", ("on",), None),
    ("fan", "off", ("off",), None),
    ("fan", "set", ("percent",), range(1, 101)),
    ("heater", "on", ("on",), None),
    ("heater", "off", ("off",), None),
    ("heater", "set", ("degrees",), range(5, 33)),
    ("blinds", "open", ("open",), None),
    ("blinds", "close", ("close",), None),
    ("blinds", "set", ("percent",), range(1, 101)),
    ("lock", "lock", ("lock",), None),
    ("lock", "unlock", ("unlock",), None),
    ("tv", "on", ("on",), None),
    ("tv", "off", ("off",), None),
    ("tv", "volume", ("volume",), range(1, 101)),
    ("tv", "channel", ("channel",), range(1, 100)),
    ("speaker", "on", ("on",), None),
    ("speaker", "off", ("off",), None),
    ("speaker", "volume", ("volume",), range(1, 101)),
    ("oven", "on", ("on",), None),
    ("oven", "off", ("off",), None),
    ("oven", "set", ("degrees",), range(50, 281, 10)),
    ("alarm", "on", ("on",), None),
    ("alarm", "off", ("off",), None),
)
# What to leave alone is an open set, so learners are shown more of it than tests ask for.
REFUSAL_SHARE = {"gold": 0.25, "prompts": 0.25, "valid": 0.18, "heldout": 0.18}
MADE_UP_SHARE = {"gold": 0.6, "prompts": 0.8}  # of rooms, colours and things no home command is about
NO_ROOM_SHARE = 0.3  # of commands
PLAIN_SHARE = 0.25  # of commands that come without a frame, of places in the plainest words
SLOTS = ("room", "color", "city", "person", "thing", "task")
UNSEEN = ("heldout", "valid")
UNKNOWN_GROUPS = ("on", "off", "open", "close", "lock", "percent")

ANSWER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "device": {"enum": [*dict.fromkeys(intent[0] for intent in INTENTS), "none"]},
        "room": {"type": "string", "minLength": 1},
        "action": {"enum": [*dict.fromkeys(intent[1] for intent in INTENTS), "refuse"]},
        "value": {"type": ["integer", "string", "null"]},
    },
    "required": ["device", "room", "action", "value"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Utterance:
    """One request: its words, the right answer (absent where unlabelled), and how the grammar made it."""

    text: str
    answer: str | None
    template: str
    fillers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Draw:
    """Where a split's utterances come from: random numbers, the rows it may use, and the words of its made-up names.

    Of every table `own` holds the rows the split draws from, `usual` those that learners are shown. By slot, made-up
    names are not among `unseen`, the names of the unseen splits.
    """

    tier: str
    rng: random.Random
    own: Rows
    usual: Rows
    words: Iterator[str]
    unseen: dict[str, frozenset[str]]


@dataclass(frozen=True)
class HomeData:
    gold: tuple[Utterance, ...]
    valid: tuple[Utterance, ...]
    heldout: tuple[Utterance, ...]
    prompts: tuple[Utterance, ...]


def answer_json(device: str, room: str, action: str, value: int | str | None) -> str:
    return json.dumps({"device": device, "room": room, "action": action, "value": value}, separators=(",", ":"))


def splits(seed: int, *, gold: int = 600, valid: int = 150, heldout: int = 300, prompts: int = 2000) -> HomeData:
    """Draw the four splits; equal arguments give equal utterances, and no two utterances of a result are equal.

    Raises:
        InputError: a size is negative, or the grammar has too few distinct utterances for it.
    """
    sizes = {"gold": gold, "valid": valid, "heldout": heldout, "prompts": prompts}
    dealt = deal(seed)
    taken: set[str] = set()
    made: dict[str, tuple[Utterance, ...]] = {}
    for tier in TIERS:
        if sizes[tier] < 0:
            raise InputError(f"expected {tier} to be a number of utterances, found {sizes[tier]}")
        made[tier] = tuple(_split(_draw(seed, tier, dealt), sizes[tier], taken))
        if tier in UNSEEN:
            taken.update(item.template for item in made[tier])
    return HomeData(**made)


def _draw(seed: int, tier: str, dealt: dict[str, Rows]) -> Draw:
    rng = random.Random(f"{seed}/{tier}")
    usual = {name: dealt["gold"][name] + rows for name, rows in dealt["prompts"].items()}
    unseen = {slot: frozenset(name for other in UNSEEN for name in dealt[other][slot]) for slot in names.MAKERS}
    own = usual if tier == "prompts" else dealt[tier]
    return Draw(tier, rng, own, usual, names.word_deck(rng), unseen)


def _split(draw: Draw, size: int, taken: set[str]) -> list[Utterance]:
    """`taken`, to which the texts made here are added, holds texts and templates not to be made again."""
    refusals = round(size * REFUSAL_SHARE[draw.tier])
    makers: list[Any] = [INTENTS[i % len(INTENTS)] for i in range(size - refusals)]
    makers += [(_question, _other_device, _off_topic)[i % 3] for i in range(refusals)]
    draw.rng.shuffle(makers)
    items = []
    for maker in makers:
        for _ in range(2000):
            item = maker(draw) if callable(maker) else _command(draw, *maker)
            if item.text not in taken and item.template not in taken:
                break
        else:
            raise InputError(f"the home grammar cannot make {size} distinct {draw.tier} utterances; ask for fewer")
        taken.add(item.text)
        if draw.tier == "prompts":
            item = Utterance(text=item.text, answer=None, template=item.template, fillers=item.fillers)
        items.append(item)
    return items


def _number(draw: Draw, numbers: Iterable[int]) -> int:
    wanted = draw.tier if draw.tier in UNSEEN else "gold"
    return draw.rng.choice([n for n in numbers if number_tier(n) == wanted])


def _wording(draw: Draw, groups: Iterable[str]) -> tuple[str, str]:
    """A command phrase and a frame; for the unseen splits at least one of the two is theirs alone."""
    own = [phrase for group in groups for phrase in draw.own[f"to {group}"]]
    if draw.tier not in UNSEEN:
        phrase = draw.rng.choice(own)
        plain = phrase.startswith("!") or draw.rng.random() < PLAIN_SHARE
        frames = phrases.PLAIN_FRAMES if plain else draw.own["frame"]
    elif own and draw.rng.random() < 0.5:
        phrase = draw.rng.choice(own)
        frames = phrases.PLAIN_FRAMES + draw.own["frame"]
    else:
        phrase = draw.rng.choice([p for g in groups for p in draw.usual[f"to {g}"] if not p.startswith("!")])
        frames = draw.own["frame"]
    return phrase, "{c}" if phrase.startswith("!") else draw.rng.choice(frames)


def _placed(draw: Draw, groups: Iterable[str]) -> str:
    """A sentence template with its place: `{room}` in it or not, `{dev}` always."""
    phrase, frame = _wording(draw, groups)
    if draw.rng.random() < NO_ROOM_SHARE:
        noun, after = draw.rng.choice(phrases.NO_ROOM), ""
    else:
        own = () if draw.rng.random() < PLAIN_SHARE else draw.own["place"]
        noun, after = draw.rng.choice(_fitting(phrase, own) or _fitting(phrase, phrases.PLAIN_PLACES))
    return frame.replace("{c}", phrase.removeprefix("!").replace("{np}", noun) + after)


def _fitting(phrase: str, places: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The places that people say with `phrase`: "turn the lamp on in the den", hardly "turn the lamp in the den on"."""
    behind = phrase.partition("{np}")[2]
    loose = not behind or behind.startswith(phrases.LINKS)
    return [(noun, after) for noun, after in places if loose or not noun.endswith("{room}")]


def _slots(draw: Draw, template: str) -> dict[str, str]:
    chosen = {slot: draw.rng.choice(draw.own[slot]) for slot in SLOTS if "{" + slot + "}" in template}
    share = MADE_UP_SHARE.get(draw.tier, 0.0)
    chosen |= {
        slot: names.made_up(draw.rng, slot, words=draw.words, unseen=draw.unseen[slot])
        for slot in names.MAKERS
        if slot in chosen and draw.rng.random() < share
    }
    if "{kdev}" in template:
        chosen["kdev"] = draw.rng.choice(refusals.ASKED_ABOUT)
    for slot in ("n", "m"):
        if "{" + slot + "}" in template:
            chosen[slot] = str(_number(draw, range(2, 100)))
    return chosen


def _command(draw: Draw, device: str, action: str, groups: tuple[str, ...], numbers: range | None) -> Utterance:
    template = _placed(draw, groups)
    fillers = _slots(draw, template) | {"dev": draw.rng.choice(words.NOUNS[device])}
    value: int | str | None = fillers.get("color")
    if numbers is not None:
        value = _number(draw, numbers)
        fillers["n"] = str(value)
    answer = answer_json(device, fillers.get("room", "any"), action, value)
    return Utterance(text=template.format(**fillers), answer=answer, template=template, fillers=fillers)


def _other_device(draw: Draw) -> Utterance:
    template = _placed(draw, (draw.rng.choice(UNKNOWN_GROUPS),))
    made_up = draw.rng.random() < MADE_UP_SHARE.get(draw.tier, 0.0)
    fillers = _slots(draw, template) | {"dev": next(draw.words) if made_up else draw.rng.choice(draw.own["unknown"])}
    return Utterance(text=template.format(**fillers), answer=REFUSAL, template=template, fillers=fillers)


def _sentence(draw: Draw, table: str) -> Utterance:
    template = draw.rng.choice(draw.own[table])
    fillers = _slots(draw, template)
    return Utterance(text=template.format(**fillers), answer=REFUSAL, template=template, fillers=fillers)


def _question(draw: Draw) -> Utterance:
    return _sentence(draw, "question")


def _off_topic(draw: Draw) -> Utterance:
    return _sentence(draw, "off topic")
