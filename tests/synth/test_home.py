"""The home grammar: right answers, and held-out words and sentences that training never saw."""

from __future__ import annotations

import json
import re
from collections import Counter

import jsonschema
import pytest

from edgedistill.core.errors import InputError
from edgedistill.runtimes.chat import load_tokenizer
from edgedistill.synth import home, home_deal, home_names, home_phrases, home_refusals, home_words


@pytest.fixture(scope="module")
def data() -> home.HomeData:
    return home.splits(7)


def labelled(data: home.HomeData) -> list[home.Utterance]:
    return [*data.gold, *data.valid, *data.heldout]


TABLE_OF = {"dev": "unknown", "city": "city", "person": "person", "thing": "thing", "task": "task"}


def rows_besides(table: str, row: str) -> str:
    """Every row of the grammar but this one, and what no table deals."""
    rows = [r for name, dealt in home_deal.TABLES.items() for r in dealt if (name, r) != (table, row)]
    fixed = [*home_names.KNOWN, *home_refusals.ASKED_ABOUT, *(n for nouns in home_words.NOUNS.values() for n in nouns)]
    return "\n".join(map(str, [*rows, *fixed]))


def words_in(utterances: tuple[home.Utterance, ...]) -> str:
    return "\n".join(f" {u.text} " for u in utterances)


def test_sizes_and_determinism(data: home.HomeData) -> None:
    assert [len(s) for s in (data.gold, data.valid, data.heldout, data.prompts)] == [600, 150, 300, 2000]
    assert home.splits(7) == data
    assert home.splits(8).heldout != data.heldout
    assert all(u.answer is None for u in data.prompts)
    assert all(u.answer for u in labelled(data))


def test_unseen_splits_do_not_depend_on_the_size_of_the_seen_ones(data: home.HomeData) -> None:
    other = home.splits(7, gold=50, prompts=100)
    assert (other.heldout, other.valid) == (data.heldout, data.valid)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_utterances_templates_and_fillers_are_disjoint(seed: int) -> None:
    data = home.splits(seed, valid=600, heldout=600)
    everything = [u.text for s in (data.gold, data.valid, data.heldout, data.prompts) for u in s]
    assert len(set(everything)) == len(everything)
    for unseen, others in (
        (data.heldout, (data.gold, data.prompts, data.valid)),
        (data.valid, (data.gold, data.prompts, data.heldout)),
    ):
        elsewhere = {u.template for s in others for u in s}
        assert not elsewhere & {u.template for u in unseen}
        text = "\n".join(words_in(s) for s in others)
        named = {(slot, value) for s in others for u in s for slot, value in u.fillers.items()}
        fillers = {
            (slot, value)
            for u in unseen
            for slot, value in u.fillers.items()
            if slot != "kdev" and (slot != "dev" or u.answer == home.REFUSAL)
        }
        assert len(fillers) > 40
        assert not fillers & named
        # What is not a name is not even heard, unless a row of another table has the word.
        spoken = {(slot, value) for slot, value in fillers if slot in TABLE_OF}
        assert len(spoken) > 20
        for slot, value in {(slot, value.removeprefix("the ")) for slot, value in spoken}:
            if re.search(rf"\b{re.escape(value)}\b", text):
                assert re.search(rf"\b{re.escape(value)}\b", rows_besides(TABLE_OF[slot], value)), value


def test_the_words_of_an_unseen_name_are_known(data: home.HomeData) -> None:
    heard = {word for u in data.prompts for word in u.text.split()}
    names = {u.fillers[slot] for u in (*data.heldout, *data.valid) for slot in home_names.MAKERS if slot in u.fillers}
    words = {word for name in names for word in name.split()}
    assert len(names) > 20 and words <= heard


def test_a_name_that_is_held_out_is_copied_token_by_token(smollm2) -> None:
    tokenizer = load_tokenizer(smollm2.folder)
    for word in home_names.KNOWN:
        in_sentence, in_json = (tokenizer.encode(text, add_special_tokens=False) for text in (f" {word}", f'"{word}'))
        assert len(in_sentence) == 1 and len(in_json) == 2, word


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_row_is_dealt_once_in_the_shares_of_the_tiers(seed: int) -> None:
    dealt = home_deal.deal(seed)
    for name, table in home_deal.TABLES.items():
        assert len(set(table)) == len(table), name
        usual = home_deal.USUAL.get(name, ())
        assert sorted(row for rows in dealt.values() for row in rows[name]) == sorted(table + usual)
        assert dealt["gold"][name] and set(usual) <= set(dealt["gold"][name])
        for tier, share in home_deal.SHARES.items():
            owned = len(dealt[tier][name]) - (len(usual) if tier == "gold" else 0)
            assert owned == pytest.approx(len(table) * share, abs=1)


def test_a_row_is_held_out_by_chance_alone() -> None:
    rooms = home_words.ROOMS
    times = Counter(room for seed in range(200) for room in home_deal.deal(seed)["heldout"]["room"])
    assert min(times[room] for room in rooms) > 5 and max(times.values()) < 50
    assert home_deal.deal(3) == home_deal.deal(3)
    for plain in (*home_phrases.PLAIN_FRAMES, *home_phrases.PLAIN_PLACES):
        assert plain not in (*home_phrases.FRAMES, *home_phrases.PLACES)


def test_every_answer_is_valid_and_follows_from_the_words(data: home.HomeData) -> None:
    validator = jsonschema.Draft202012Validator(home.ANSWER_SCHEMA)
    for u in labelled(data):
        answer = json.loads(u.answer or "")
        validator.validate(answer)
        assert list(answer) == ["device", "room", "action", "value"]
        assert " " not in re.sub(r'"[^"]*"', "", u.answer or "")
        if u.answer == home.REFUSAL:
            continue
        assert u.fillers["dev"] in home_words.NOUNS[answer["device"]]
        assert f"{u.fillers['dev']}" in u.text
        if answer["room"] == "any":
            assert "room" not in u.fillers and not re.search(r"\bin the\b", u.text)
        else:
            assert re.search(rf"\b{re.escape(answer['room'])}\b", u.text)
        if answer["value"] is None:
            assert not re.search(r"\d", u.text)
        else:
            assert re.search(rf"\b{answer['value']}\b", u.text)


def test_equal_words_never_have_two_answers() -> None:
    answers: dict[str, set[str]] = {}
    for seed in range(5):
        for u in labelled(home.splits(seed)):
            answers.setdefault(u.text, set()).add(u.answer or "")
    assert [text for text, found in answers.items() if len(found) > 1] == []


def test_every_intent_and_the_refusal_share_in_every_labelled_split(data: home.HomeData) -> None:
    wanted = {(intent[0], intent[1]) for intent in home.INTENTS}
    for split, share in ((data.gold, 0.25), (data.valid, 0.18), (data.heldout, 0.18)):
        found = Counter((a["device"], a["action"]) for a in (json.loads(u.answer or "") for u in split))
        refused = found.pop(("none", "refuse"))
        assert set(found) == wanted
        assert refused / len(split) == pytest.approx(share, abs=0.01)


def test_prompts_are_wider_than_gold(data: home.HomeData) -> None:
    rooms = {u.fillers["room"] for u in data.prompts if "room" in u.fillers}
    assert len(rooms) >= 60
    assert len({u.template for u in data.prompts}) > 2.5 * len({u.template for u in data.gold})


def test_no_name_of_an_unknown_thing_or_room_holds_a_device() -> None:
    devices = {word for nouns in home_words.NOUNS.values() for noun in nouns for word in noun.split()}
    others = [n for table in (home_words.UNKNOWN, home_words.ROOMS) for n in table]
    allowed = {"window"}  # a window is no device here; the window blinds are
    assert not [n for n in others if set(n.split()) & (devices - allowed - {"alarm", "system", "ceiling"})]


def test_an_impossible_size_is_refused() -> None:
    with pytest.raises(InputError, match="distinct heldout utterances; ask for fewer"):
        home.splits(0, heldout=20_000)
    with pytest.raises(InputError, match="expected gold to be a number of utterances, found -1"):
        home.splits(0, gold=-1)
