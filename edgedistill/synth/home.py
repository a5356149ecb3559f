"""The quickstart task: a grammar of spoken home commands, each with one right JSON action, split without overlap.

A command names one of nine devices, perhaps a room, an action, perhaps a value; its answer copies the room's words and
the value. Whatever else is said — questions, other devices, small talk — is answered with a refusal. Every utterance of
`heldout` has a sentence template that no other split has; its rooms, numbers, colours, music, other devices and
subjects are those of no other split; the same holds for `valid`. (Of the names of rooms, colours and music the single
words are known: see `home_names`.) Look at `valid` while changing anything; once results on `heldout` have been seen,
its rows belong to `valid`, and new ones have to be written.
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

TIERS = ("heldout", "valid", "gold", "prompts")
REFUSAL = '{"device":"none","room":"none","action":"refuse","value":null}'

# (device, action, phrase groups, range of its number)
INTENTS: tuple[tuple[str, str, tuple[str, ...], range | None], ...] = (
    ("light", "on", ("on",), None),
    ("light", "off", ("off",), None),
    ("light", "set", ("percent", "brightness"), range(1, 101)),
    ("light", "set", ("color",), None),
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
    ("tv", "channel", ("channel",), range(1, 121)),
    ("speaker", "on", ("on",), None),
    ("speaker", "off", ("off",), None),
    ("speaker", "play", ("play",), None),
    ("speaker", "volume", ("volume",), range(1, 101)),
    ("oven", "on", ("on",), None),
    ("oven", "off", ("off",), None),
    ("oven", "set", ("degrees",), range(50, 281, 5)),
    ("alarm", "on", ("on", "arm"), None),
    ("alarm", "off", ("off", "disarm"), None),
)
# Words as values are the hardest to learn: they are dealt twice as often, and to learners three times.
WORDED = tuple(intent for intent in INTENTS if intent[2] in (("color",), ("play",)))
DEALT = {tier: (*INTENTS, *WORDED, *(WORDED if tier in ("gold", "prompts") else ())) for tier in TIERS}
# What to leave alone is an open set, so learners are shown more of it than tests ask for.
REFUSAL_SHARE = {"gold": 0.25, "prompts": 0.25, "valid": 0.18, "heldout": 0.18}
MADE_UP_SHARE = {"gold": 0.5, "prompts": 0.8}  # of rooms, colours, music and things no home command is about
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
    """Where a split's utterances come from: its tier, its random numbers, and the words of its made-up names."""

    tier: str
    rng: random.Random
    words: Iterator[str]


@dataclass(frozen=True)
class HomeData:
    gold: tuple[Utterance, ...]
    valid: tuple[Utterance, ...]
    heldout: tuple[Utterance, ...]
    prompts: tuple[Utterance, ...]


def answer_json(device: str, room: str, action: str, value: int | str | None) -> str:
    return json.dumps({"device": device, "room": room, "action": action, "value": value}, separators=(",", ":"))


def number_tier(number: int) -> str:
    """Which split may say a number: from 20 on one in seven is kept for `heldout`, one in seven for `valid`.

    The small ones are not: without 10 every "1" and "0" ever seen would go on to a third digit.
    """
    return {3: "heldout", 5: "valid"}.get(number % 7, "gold") if number >= 20 else "gold"


def splits(seed: int, *, gold: int = 600, valid: int = 150, heldout: int = 300, prompts: int = 2000) -> HomeData:
    """Draw the four splits; equal arguments give equal utterances, and no two utterances of a result are equal.

    Raises:
        InputError: a size is negative, or the grammar has too few distinct utterances for it.
    """
    sizes = {"gold": gold, "valid": valid, "heldout": heldout, "prompts": prompts}
    seen: set[str] = set()
    made: dict[str, tuple[Utterance, ...]] = {}
    for tier in TIERS:
        if sizes[tier] < 0:
            raise InputError(f"expected {tier} to be a number of utterances, found {sizes[tier]}")
        made[tier] = tuple(_split(_draw(seed, tier), sizes[tier], seen))
    return HomeData(**made)


def _draw(seed: int, tier: str) -> Draw:
    rng = random.Random(f"{seed}/{tier}")
    return Draw(tier, rng, names.word_deck(rng))


def _split(draw: Draw, size: int, seen: set[str]) -> list[Utterance]:
    refusals = round(size * REFUSAL_SHARE[draw.tier])
    makers: list[Any] = [DEALT[draw.tier][i % len(DEALT[draw.tier])] for i in range(size - refusals)]
    makers += [(_question, _other_device, _off_topic)[i % 3] for i in range(refusals)]
    draw.rng.shuffle(makers)
    items = []
    for maker in makers:
        for _ in range(2000):
            item = maker(draw) if callable(maker) else _command(draw, *maker)
            if item.text not in seen:
                break
        else:
            raise InputError(f"the home grammar cannot make {size} distinct {draw.tier} utterances; ask for fewer")
        seen.add(item.text)
        if draw.tier == "prompts":
            item = Utterance(text=item.text, answer=None, template=item.template, fillers=item.fillers)
        items.append(item)
    return items


def _shared(table: dict[str, tuple[Any, ...]]) -> tuple[Any, ...]:
    """What an unseen split may share with the seen ones: all that prompts hold."""
    return table["gold"] + table["prompts"]


def _own(table: dict[str, tuple[Any, ...]], tier: str) -> tuple[Any, ...]:
    """What a tier may use of a table whose `valid` and `heldout` rows stand in no other split."""
    return _shared(table) if tier == "prompts" else table[tier]


def _number(draw: Draw, numbers: Iterable[int]) -> int:
    wanted = draw.tier if draw.tier in ("valid", "heldout") else "gold"
    return draw.rng.choice([n for n in numbers if number_tier(n) == wanted])


def _wording(draw: Draw, groups: Iterable[str]) -> tuple[str, str]:
    """A command phrase and a frame; for the unseen splits at least one of the two is theirs alone."""
    tables = [phrases.PHRASES[group] for group in groups]
    own = [phrase for table in tables for phrase in _own(table, draw.tier)]
    if draw.tier in ("gold", "prompts"):
        phrase = draw.rng.choice(own)
        return phrase, "!{c}" if phrase.startswith("!") else draw.rng.choice(_own(phrases.FRAMES, draw.tier))
    if own and draw.rng.random() < 0.5:
        phrase = draw.rng.choice(own)
        if phrase.startswith("!"):
            return phrase, "!{c}"
        return phrase, draw.rng.choice((*phrases.FRAMES[draw.tier], "{c}", "please {c}", "{c} please"))
    usual = [p for table in tables for p in _shared(table) if not p.startswith("!")]
    return draw.rng.choice(usual), draw.rng.choice(phrases.FRAMES[draw.tier])


def _placed(draw: Draw, groups: Iterable[str]) -> str:
    """A sentence template with its place: `{room}` in it or not, `{dev}` always."""
    phrase, frame = _wording(draw, groups)
    if draw.rng.random() < 0.2:
        before, noun, after = "", draw.rng.choice(phrases.NO_ROOM["gold"] + phrases.NO_ROOM[draw.tier]), ""
    else:
        rows = phrases.PLACES["gold"]
        before, noun, after = draw.rng.choice(rows if draw.tier == "gold" else rows + phrases.PLACES[draw.tier])
    if phrase.startswith("!") and (before or after):
        before, noun, after = "", "the {dev} in the {room}", ""
    return before + frame.removeprefix("!").replace("{c}", phrase.removeprefix("!").replace("{np}", noun) + after)


def _slots(draw: Draw, template: str) -> dict[str, str]:
    tables = {
        "room": words.ROOMS, "color": words.COLORS, "music": words.MUSIC, "city": words.CITIES,
        "person": words.PEOPLE, "thing": words.THINGS, "task": words.TASKS,
    }  # fmt: skip
    chosen = {
        slot: draw.rng.choice(_own(table, draw.tier)) for slot, table in tables.items() if "{" + slot + "}" in template
    }
    share = MADE_UP_SHARE.get(draw.tier, 0.0)
    chosen |= {
        slot: names.made_up(draw.rng, slot, words=draw.words)
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
    value: int | str | None = fillers.get("color") or fillers.get("music")
    if numbers is not None:
        value = _number(draw, numbers)
        fillers["n"] = str(value)
    answer = answer_json(device, fillers.get("room", "any"), action, value)
    return Utterance(text=template.format(**fillers), answer=answer, template=template, fillers=fillers)


def _other_device(draw: Draw) -> Utterance:
    template = _placed(draw, (draw.rng.choice(UNKNOWN_GROUPS),))
    made_up = draw.rng.random() < MADE_UP_SHARE.get(draw.tier, 0.0)
    fillers = _slots(draw, template) | {
        "dev": next(draw.words) if made_up else draw.rng.choice(_own(words.UNKNOWN, draw.tier))
    }
    return Utterance(text=template.format(**fillers), answer=REFUSAL, template=template, fillers=fillers)


def _sentence(draw: Draw, table: dict[str, tuple[str, ...]]) -> Utterance:
    template = draw.rng.choice(_own(table, draw.tier))
    fillers = _slots(draw, template)
    return Utterance(text=template.format(**fillers), answer=REFUSAL, template=template, fillers=fillers)


def _question(draw: Draw) -> Utterance:
    return _sentence(draw, refusals.QUESTIONS)


def _off_topic(draw: Draw) -> Utterance:
    return _sentence(draw, refusals.OUT_OF_SCOPE)
