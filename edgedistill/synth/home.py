"""The quickstart task: a grammar of spoken home commands, each with one right JSON action, split without overlap.

A command names one of nine devices, perhaps a room, an action, perhaps a value; its answer copies the room's words and
the value. Whatever else is said — questions, other devices, small talk — is answered with a refusal. Every utterance of
`heldout` has a sentence template that no other split has; its rooms, numbers, colours, music, other devices and
subjects are those of no other split; the same holds for `valid`. (Of the names of rooms, colours and music the single
words are known: see `home_names`.)
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
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
# Words as values are the hardest to learn, so they are dealt twice as often.
DEALT = (*INTENTS, *(intent for intent in INTENTS if intent[2] in (("color",), ("play",))))
# What to leave alone is an open set, so learners are shown more of it than tests ask for.
REFUSAL_SHARE = {"gold": 0.25, "prompts": 0.25, "valid": 0.18, "heldout": 0.18}
MADE_UP_SHARE = {"gold": 0.3, "prompts": 0.7}  # of rooms, colours, music and things no home command is about
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
class HomeData:
    gold: tuple[Utterance, ...]
    valid: tuple[Utterance, ...]
    heldout: tuple[Utterance, ...]
    prompts: tuple[Utterance, ...]


def answer_json(device: str, room: str, action: str, value: int | str | None) -> str:
    return json.dumps({"device": device, "room": room, "action": action, "value": value}, separators=(",", ":"))


def number_tier(number: int) -> str:
    """Which split may say a number: one in seven is kept for `heldout`, one in seven for `valid`."""
    return {3: "heldout", 5: "valid"}.get(number % 7, "gold")


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
        made[tier] = tuple(_split(random.Random(f"{seed}/{tier}"), tier, sizes[tier], seen))
    return HomeData(**made)


def _split(rng: random.Random, tier: str, size: int, seen: set[str]) -> list[Utterance]:
    refusals = round(size * REFUSAL_SHARE[tier])
    makers: list[Any] = [DEALT[i % len(DEALT)] for i in range(size - refusals)]
    makers += [(_question, _other_device, _off_topic)[i % 3] for i in range(refusals)]
    rng.shuffle(makers)
    items = []
    for maker in makers:
        for _ in range(2000):
            item = maker(rng, tier) if callable(maker) else _command(rng, tier, *maker)
            if item.text not in seen:
                break
        else:
            raise InputError(f"the home grammar cannot make {size} distinct {tier} utterances; ask for fewer")
        seen.add(item.text)
        if tier == "prompts":
            item = Utterance(text=item.text, answer=None, template=item.template, fillers=item.fillers)
        items.append(item)
    return items


def _shared(table: dict[str, tuple[Any, ...]], tier: str) -> tuple[Any, ...]:
    """What an unseen split may share with the seen ones: `valid` what gold holds, `heldout` all that prompts hold."""
    return table["gold"] if tier == "valid" else table["gold"] + table["prompts"]


def _own(table: dict[str, tuple[Any, ...]], tier: str) -> tuple[Any, ...]:
    """What a tier may use of a table whose `valid` and `heldout` rows stand in no other split."""
    return table["gold"] + table["prompts"] if tier == "prompts" else table[tier]


def _number(rng: random.Random, tier: str, numbers: Iterable[int]) -> int:
    wanted = tier if tier in ("valid", "heldout") else "gold"
    return rng.choice([n for n in numbers if number_tier(n) == wanted])


def _wording(rng: random.Random, tier: str, groups: Iterable[str]) -> tuple[str, str]:
    """A command phrase and a frame; for the unseen splits at least one of the two is theirs alone."""
    tables = [phrases.PHRASES[group] for group in groups]
    own = [phrase for table in tables for phrase in _own(table, tier)]
    if tier in ("gold", "prompts"):
        phrase = rng.choice(own)
        return phrase, "!{c}" if phrase.startswith("!") else rng.choice(_own(phrases.FRAMES, tier))
    if own and rng.random() < 0.5:
        phrase = rng.choice(own)
        if phrase.startswith("!"):
            return phrase, "!{c}"
        return phrase, rng.choice((*phrases.FRAMES[tier], "{c}", "please {c}", "{c} please"))
    usual = [p for table in tables for p in _shared(table, tier) if not p.startswith("!")]
    return rng.choice(usual), rng.choice(phrases.FRAMES[tier])


def _placed(rng: random.Random, tier: str, groups: Iterable[str]) -> str:
    """A sentence template with its place: `{room}` in it or not, `{dev}` always."""
    phrase, frame = _wording(rng, tier, groups)
    if rng.random() < 0.2:
        before, noun, after = "", rng.choice(phrases.NO_ROOM["gold"] + phrases.NO_ROOM[tier]), ""
    else:
        rows = phrases.PLACES["gold"]
        before, noun, after = rng.choice(rows if tier == "gold" else rows + phrases.PLACES[tier])
    if phrase.startswith("!") and (before or after):
        before, noun, after = "", "the {dev} in the {room}", ""
    return before + frame.removeprefix("!").replace("{c}", phrase.removeprefix("!").replace("{np}", noun) + after)


def _slots(rng: random.Random, tier: str, template: str) -> dict[str, str]:
    tables = {
        "room": words.ROOMS, "color": words.COLORS, "music": words.MUSIC, "city": words.CITIES,
        "person": words.PEOPLE, "thing": words.THINGS, "task": words.TASKS,
    }  # fmt: skip
    chosen = {slot: rng.choice(_own(table, tier)) for slot, table in tables.items() if "{" + slot + "}" in template}
    share = MADE_UP_SHARE.get(tier, 0.0)
    chosen |= {slot: names.made_up(rng, slot) for slot in names.MAKERS if slot in chosen and rng.random() < share}
    if "{kdev}" in template:
        chosen["kdev"] = rng.choice(refusals.ASKED_ABOUT)
    for slot in ("n", "m"):
        if "{" + slot + "}" in template:
            chosen[slot] = str(_number(rng, tier, range(2, 100)))
    return chosen


def _command(
    rng: random.Random, tier: str, device: str, action: str, groups: tuple[str, ...], numbers: range | None
) -> Utterance:
    template = _placed(rng, tier, groups)
    fillers = _slots(rng, tier, template) | {"dev": rng.choice(words.NOUNS[device])}
    value: int | str | None = fillers.get("color") or fillers.get("music")
    if numbers is not None:
        value = _number(rng, tier, numbers)
        fillers["n"] = str(value)
    answer = answer_json(device, fillers.get("room", "any"), action, value)
    return Utterance(text=template.format(**fillers), answer=answer, template=template, fillers=fillers)


def _other_device(rng: random.Random, tier: str) -> Utterance:
    template = _placed(rng, tier, (rng.choice(UNKNOWN_GROUPS),))
    made_up = rng.random() < MADE_UP_SHARE.get(tier, 0.0)
    fillers = _slots(rng, tier, template) | {
        "dev": names.word(rng) if made_up else rng.choice(_own(words.UNKNOWN, tier))
    }
    return Utterance(text=template.format(**fillers), answer=REFUSAL, template=template, fillers=fillers)


def _sentence(rng: random.Random, tier: str, table: dict[str, tuple[str, ...]]) -> Utterance:
    template = rng.choice(_own(table, tier))
    fillers = _slots(rng, tier, template)
    return Utterance(text=template.format(**fillers), answer=REFUSAL, template=template, fillers=fillers)


def _question(rng: random.Random, tier: str) -> Utterance:
    return _sentence(rng, tier, refusals.QUESTIONS)


def _off_topic(rng: random.Random, tier: str) -> Utterance:
    return _sentence(rng, tier, refusals.OUT_OF_SCOPE)
