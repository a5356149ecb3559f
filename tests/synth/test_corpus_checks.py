"""Near duplicates, contamination, personal data, balance, diversity: each against something planted or exact."""

from __future__ import annotations

import functools
import random
from collections import Counter
from itertools import combinations

import pytest

from edgedistill.core.errors import InputError
from edgedistill.synth.balance import balanced, length_class
from edgedistill.synth.contamination import contaminated, gram_size
from edgedistill.synth.diversity import diversity, evenness, quantiles
from edgedistill.synth.duplicates import bands_for, near_duplicates
from edgedistill.synth.personal import masked, personal_data
from edgedistill.synth.textforms import folded, ngrams, shingles, word_hashes

WORDS = [f"{a}{b}{c}" for a in ("ka", "lo", "mi", "tu", "re") for b in "bdgkmnprstv" for c in ("an", "el", "ir", "os")]


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


@functools.cache
def grams(text: str) -> frozenset[str]:
    return frozenset(folded(text)[i : i + 5] for i in range(max(1, len(folded(text)) - 4)))


def exact(one: str, other: str) -> float:
    return len(grams(one) & grams(other)) / len(grams(one) | grams(other))


def test_shingles_are_the_texts_own_and_equal_where_the_text_is() -> None:
    hashes, offsets = shingles(["abcdef", "", "xabcde", "ü" * 7])
    assert offsets.tolist() == [0, 2, 3, 5, 8]
    assert hashes[0] == hashes[4] and hashes[1] != hashes[3] and len(set(hashes[5:].tolist())) == 1
    none, begins = ngrams(hashes[:3], lengths=[1, 2], size=4)
    assert len(none) == 0 and begins.tolist() == [0, 0, 0]


def test_ascii_text_is_folded_as_any_other() -> None:
    text = "".join(map(chr, range(128))) + " A_b-C\td"
    assert folded(f"{text} é") == f"{folded(text)} é" and folded("Straße ﬁx") == "strasse fix"
    codes, lengths = word_hashes(["a b a", "", "b"])
    assert lengths == [3, 0, 1] and codes[0] == codes[2] and codes[1] == codes[3] != codes[0]


def test_near_duplicates_are_those_of_an_exact_comparison_of_all_pairs() -> None:
    rng = random.Random(1)
    texts = [sentence(rng, 12) for _ in range(150)]
    for of in range(60):  # edits of one to six words, on both sides of the threshold
        words = texts[of].split()
        for place in rng.sample(range(12), 1 + of % 6):
            words[place] = rng.choice(WORDS)
        texts.append(" ".join(words))
    wanted: dict[int, int] = {}
    for earlier, later in sorted(combinations(range(len(texts)), 2), key=lambda pair: (pair[1], pair[0])):
        if earlier not in wanted and later not in wanted and exact(texts[earlier], texts[later]) >= 0.7:
            wanted[later] = earlier
    found = near_duplicates(texts, threshold=0.7)
    assert {near.row: near.of for near in found} == wanted and 10 < len(wanted) < 60
    assert all(abs(near.similarity - exact(texts[near.row], texts[near.of])) < 1e-12 for near in found)


def test_case_punctuation_and_blanks_do_not_hide_a_duplicate_and_kept_rows_are_none() -> None:
    texts = ["Turn on the lamp, please!", "turn  ON the lamp please", "TURN on the lamp; please", "???", "!!!"]
    assert [(near.row, near.of) for near in near_duplicates(texts, threshold=1.0)] == [(1, 0), (2, 0)]
    kept = near_duplicates(texts, threshold=1.0, keep=[True, True, False, False, False])
    assert [(near.row, near.of) for near in kept] == [(2, 0)]
    assert near_duplicates([], threshold=0.8) == [] and near_duplicates(["a"], threshold=0.8) == []


def test_questions_about_one_passage_are_no_duplicates_of_one_another() -> None:
    rng = random.Random(6)
    passage = sentence(rng, 80)
    asked = [sentence(rng, 6) for _ in range(12)]
    asked.append(f"{asked[3]}?")
    texts = [f"Context: {passage}\nQuestion: {question}" for question in asked]
    parts = [(passage, question) for question in asked]
    assert len(near_duplicates(texts, threshold=0.8)) == 12
    found = near_duplicates(texts, threshold=0.8, parts=parts)
    assert [(near.row, near.of, near.similarity) for near in found] == [(12, 3, 1.0)]
    unlike = near_duplicates([texts[0], texts[0]], threshold=0.8, parts=[(), parts[0]])
    assert [near.row for near in unlike] == [1]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.95, 1.0])
def test_banding_overlooks_few_pairs_of_just_the_threshold(threshold: float) -> None:
    bands, rows = bands_for(threshold)
    assert bands * rows <= 128 and (1 - threshold**rows) ** bands <= 0.002
    with pytest.raises(ValueError, match="expected a threshold above 0"):
        near_duplicates(["a", "b"], threshold=0.0)


def test_many_copies_of_one_text_leave_the_first() -> None:
    rng = random.Random(2)
    texts = [sentence(rng, 9)] * 400 + [sentence(rng, 9) for _ in range(50)]
    assert [(near.row, near.of) for near in near_duplicates(texts, threshold=0.9)] == [(i, 0) for i in range(1, 400)]


def test_contamination_is_a_shared_run_of_words_with_its_place() -> None:
    rng = random.Random(3)
    evaluation = [sentence(rng, 30) for _ in range(40)]
    texts = [sentence(rng, 40) for _ in range(100)]
    planted = evaluation[7].split()[5:18]
    texts[20] = f"{sentence(rng, 5)} {' '.join(planted).upper()}, {sentence(rng, 4)}"
    texts[30] = f"{sentence(rng, 5)} {' '.join(evaluation[9].split()[:12])} {sentence(rng, 5)}"  # one word too few
    (found,) = contaminated(texts, evaluation)
    assert (found.row, found.item, found.words) == (20, 7, " ".join(planted))
    assert found.share == pytest.approx(1 / (30 - 13 + 1))
    whole = [*texts, f"{evaluation[8]} {' '.join(evaluation[3].split()[:14])}"]
    assert [(o.row, o.item, o.share) for o in contaminated(whole, evaluation, least=0.5)] == [(100, 8, 1.0)]


def test_short_evaluation_texts_count_only_as_wholes_and_boilerplate_not_at_all() -> None:
    rng = random.Random(4)
    evaluation = ["turn on the lamp", *(sentence(rng, 20) for _ in range(30))]
    assert gram_size([4, *[20] * 30]) == 13 and gram_size([3] * 9) == 8 and gram_size([]) == 13
    texts = ["Turn on the lamp!", "now turn on the lamp again", sentence(rng, 25)]
    assert [(o.row, o.item) for o in contaminated(texts, evaluation)] == [(0, 0)]
    shared = sentence(rng, 14)
    assert contaminated([f"{shared} {sentence(rng, 9)}" for _ in range(11)], [f"{shared} {evaluation[3]}"]) == []
    assert len(contaminated([f"{shared} {sentence(rng, 9)}" for _ in range(10)], [f"{shared} {evaluation[3]}"])) == 10
    assert contaminated([shared], [f"{shared} {sentence(rng, 9)}" for _ in range(11)]) == []
    assert contaminated([], evaluation) == [] and contaminated(texts, []) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("write to jane.doe+x@mail.example.org today", [("email", "ja**.***+*@****.*******.***")]),
        ("pay with 4111 1111 1111 1111", [("card", "41** **** **** ****")]),
        ("pay with 4111 1111 1111 1112", []),
        ("IBAN DE89 3704 0044 0532 0130 00.", [("iban", "DE** **** **** **** **** **")]),
        ("IBAN DE88 3704 0044 0532 0130 00.", []),
        ("from 192.168.7.13 and 127.0.0.1 and 300.1.1.1", [("ip-address", "19*.***.*.**")]),
        ("SSN 123-45-6789", [("us-ssn", "12*-**-****")]),
        ("SSN 000-45-6789", []),
        ("call +49 30 901820 or (555) 123-4567", [("phone", "+4* ** ******"), ("phone", "(5**) ***-****")]),
        ("set the oven to 180 for 25 minutes at 12:30 on 2024-05-06, version 1.2.3", []),
        ("12 + 345 * 6789 = 2342217, pi is 3.14159265358979", []),
    ],
)
def test_personal_data_is_found_by_pattern_and_check_sum(text: str, found: list[tuple[str, str]]) -> None:
    assert personal_data(text) == found
    assert all(stars in masked(text) for _, stars in found) and (found or masked(text) == text)


def test_balance_keeps_the_most_rows_that_the_shares_allow() -> None:
    classes = ["a"] * 60 + ["b"] * 30 + ["c"] * 10 + [None] * 5
    keys = [str(i) for i in range(105)]
    kept = balanced(classes, keys)
    assert [sum(k for k, c in zip(kept, classes, strict=True) if c == name) for name in ("a", "b", "c")] == [10] * 3
    assert all(kept[100:])
    shares = balanced(classes, keys, target={"a": 0.5, "b": 0.5})
    assert [sum(k for k, c in zip(shares, classes, strict=True) if c == n) for n in ("a", "b", "c")] == [30, 30, 0]
    with pytest.raises(InputError, match=r"expected rows of d, found none; there are 60 of a, 30 of b, 10 of c"):
        balanced(classes, keys, target={"a": 1, "d": 1})


def test_balance_is_stable_as_data_grows() -> None:
    classes = ["a"] * 200 + ["b"] * 50
    keys = [str(i) for i in range(250)]
    small = {k for k, kept in zip(keys, balanced(classes, keys), strict=True) if kept}
    more = {str(i): "b" for i in range(250, 260)}
    grown = balanced([*classes, *more.values()], [*keys, *more])
    assert small <= {k for k, kept in zip([*keys, *more], grown, strict=True) if kept}


def test_diversity_and_lengths() -> None:
    found = diversity(["go on", "go on", "stop it now please"], ["x", "x", "y"])
    assert found["distinct_1"] == 6 / 8 and found["distinct_2"] == 4 / 5
    assert found["openings"][0] == ("go on", 2) and found["words"]["max"] == 4
    assert evenness(Counter({"a": 3})) is None and evenness(Counter({"a": 1, "b": 1})) == pytest.approx(1.0)
    assert diversity(["a", "b"], ["x", "y"])["class_evenness"] == pytest.approx(1.0)
    assert quantiles([]) == {} and quantiles([5, 1, 3])["p50"] == 3
    assert [length_class("w " * n) for n in (0, 7, 8, 15, 16, 100)] == [
        "1-7 words", "1-7 words", "8-15 words", "8-15 words", "16-31 words", "64-127 words",
    ]  # fmt: skip
