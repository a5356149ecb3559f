"""What is supervised, how ids are mapped, and the order of batches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny_training import random_examples

from edgedistill.core.errors import InputError, StageError
from edgedistill.core.records import Message, Prompt, TeacherRecord
from edgedistill.runtimes.chat import load_tokenizer
from edgedistill.runtimes.logit_cache import CacheIdentity, make_row, open_cache, row_key, write_cache
from edgedistill.train.data import (
    Example,
    collate,
    collate_rows,
    epoch_batches,
    fitting,
    gold_records,
    micro_batches,
    oddities,
    pack,
    record_examples,
    split_examples,
    untaught,
)

IDENTITY = CacheIdentity(tokenizer="t", template="c", teacher="r")


def example(ids: list[int], start: int, name: str = "e") -> Example:
    return Example(name, np.array(ids), start)


def test_every_answer_token_is_learnt_at_the_position_before_it():
    batch = collate([example([5, 6, 7, 8, 2], 3), example([9, 4, 2], 1)], pad_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 2], [9, 4, 2, 0, 0]]
    assert batch.index.tolist() == [2, 3, 5, 6]
    assert batch.targets.tolist() == [8, 2, 4, 2]
    assert not batch.taught.any()


def test_packed_rows_restart_their_positions():
    rows = [[example([5, 6, 7, 8, 2], 3), example([9, 4, 2], 1)], [example([1, 2], 1)]]
    batch = collate_rows(rows)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 2, 9, 4, 2], [1, 2, 0, 0, 0, 0, 0, 0]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 0, 1, 2, 3, 4, 5]]
    assert batch.index.tolist() == [2, 3, 5, 6, 8]
    assert batch.targets.tolist() == [8, 2, 4, 2, 2]


def test_rows_are_packed_no_longer_than_the_longest_sequence():
    examples = random_examples(60, low=4, high=40)
    longest = max(len(e.ids) for e in examples)
    rows = pack(examples)
    assert sorted(e.id for row in rows for e in row) == sorted(e.id for e in examples)
    lengths = [sum(len(e.ids) for e in row) for row in rows]
    assert max(lengths) == longest and sum(lengths) > 0.9 * longest * len(rows)


def test_packing_is_chosen_where_it_saves_a_tenth():
    alike = [example([1] * 9 + [2], 4, f"a{i}") for i in range(8)]
    assert micro_batches(alike, most_tokens=1000) == [[[e] for e in alike]]
    mixed = [*alike, *(example([1, 2], 1, f"b{i}") for i in range(8))]
    (rows,) = micro_batches(mixed, most_tokens=1000)
    assert len(rows) == 10
    (padded,) = micro_batches(mixed, most_tokens=1000, packing=False)
    assert all(len(row) == 1 for row in padded)


def test_gold_is_rendered_as_it_will_be_asked(tiny_llama):
    tokenizer = load_tokenizer(tiny_llama)
    prompt = Prompt(id="p", messages=(Message(role="user", content="turn on the fan"),), answer='{"device":"fan"}')
    (found,) = record_examples(gold_records([prompt], tokenizer=tokenizer, template=tokenizer.chat_template, end_id=2))
    text = "<|im_start|>user\nturn on the fan<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(found.ids[: found.start]) == text
    assert tokenizer.decode(found.ids[found.start :]) == '{"device":"fan"}<|im_end|>'
    with pytest.raises(InputError, match="found none with prompt p"):
        gold_records([prompt.model_copy(update={"answer": None})], tokenizer=tokenizer, template="", end_id=2)


def record(prompt_ids: tuple[int, ...], answer_ids: tuple[int, ...], *, taught: bool = True) -> TeacherRecord:
    key = row_key(prompt_ids, answer_ids, identity=IDENTITY) if taught else None
    return TeacherRecord(
        id="rec", prompt_id="p", teacher="r", messages=(), answer="", prompt_ids=prompt_ids, answer_ids=answer_ids,
        logits_key=key,
    )  # fmt: skip


def test_teacher_rows_follow_their_text_into_the_smaller_vocabulary(tmp_path):
    one, other = record((10, 11), (12, 2)), record((10,), (11, 2))
    rows = {
        one.logits_key: make_row([[12, 13], [2, 10]], np.log([[0.7, 0.2], [0.9, 0.05]])),
        other.logits_key: make_row([[11, 12], [2, 13]], np.log([[0.6, 0.3], [0.8, 0.1]])),
    }
    write_cache(tmp_path / "c.safetensors", rows, identity=IDENTITY)
    cache = open_cache([tmp_path / "c.safetensors"])
    id_map = np.full(20, -1)
    id_map[[2, 10, 11, 12]] = [0, 1, 2, 3]
    b, a = record_examples([other, one], id_map=id_map, cache=cache)
    assert a.ids.tolist() == [1, 2, 3, 0] and a.start == 2
    assert a.top_ids.tolist() == [[3, -1], [0, 1]]
    assert b.top_ids.tolist() == [[2, 3], [0, -1]]
    np.testing.assert_allclose(np.exp(b.top_logprobs), [[0.6, 0.3], [0.8, 0.1]], rtol=0.02)
    assert (a.lost, b.lost) == pytest.approx((0.2, 0.1), rel=0.02)
    batch = collate([a, b, example([1, 2, 0], 1)])
    assert batch.taught.tolist() == [True] * 4 + [False] * 2
    assert batch.teacher_ids.tolist() == [[3, -1], [0, 1], [2, 3], [0, -1], [-1, -1], [-1, -1]]
    with pytest.raises(StageError, match="token 13, which the student's vocabulary does not have"):
        record_examples([record((13,), (2,), taught=False)], id_map=id_map, cache=cache)
    with pytest.raises(InputError, match="distributions for record rec, found none"):
        record_examples([one.model_copy(update={"answer_ids": (12, 11)})], cache=cache)
    with pytest.raises(InputError, match="expected the distributions of another for record rec, found those of r "):
        record_examples([one.model_copy(update={"teacher": "another"})], cache=cache)


def test_one_text_of_two_teachers_has_the_distributions_of_each(tmp_path):
    one, paths = record((10, 11), (12, 2)), []
    for place, identity in enumerate((IDENTITY, replace(IDENTITY, teacher="s"))):
        key = row_key(one.prompt_ids, one.answer_ids, identity=identity)
        paths.append(tmp_path / str(place))
        write_cache(paths[-1], {key: make_row([[12 + place], [2]], np.log([[0.9], [0.8]]))}, identity=identity)
    cache = open_cache(paths, teachers={"s"})
    examples = record_examples([one.model_copy(update={"teacher": name}) for name in "sr"], cache=cache)
    assert [e.top_ids.tolist() for e in examples] == [[[13], [2]], [[12], [2]]]


def test_records_that_are_learnt_from_text_alone_are_counted_by_teacher():
    records = [record((10,), (n, 2)).model_copy(update={"teacher": "ab"[n % 2]}) for n in range(5)]
    plain = [example([10, n, 2], 1) for n in range(5)]
    taught = [replace(e, top_ids=np.zeros((2, 1)), top_logprobs=np.zeros((2, 1))) for e in plain]
    assert untaught(records, taught) == []
    (said,) = untaught(records, [*taught[:1], *plain[1:2], *taught[2:]])
    assert said.startswith("4 of 5 records have their teacher's distributions (3 of 3 of a, 1 of 2 of b), the others")
    (said,) = untaught(records[::2], plain[::2])
    assert said.startswith("0 of 3 records have their teacher's distributions, the others are learnt from")


def test_order_depends_on_seed_and_epoch_alone_and_covers_everything():
    lengths = [len(e.ids) for e in random_examples(100)]
    first = epoch_batches(lengths, batch_size=8, seed=1, epoch=0)
    assert sorted(i for batch in first for i in batch) == list(range(100))
    assert first == epoch_batches(lengths, batch_size=8, seed=1, epoch=0)
    assert first != epoch_batches(lengths, batch_size=8, seed=1, epoch=1)
    assert first != epoch_batches(lengths, batch_size=8, seed=2, epoch=0)
    padded = sum(len(b) * max(lengths[i] for i in b) for b in first)
    assert padded < 1.15 * sum(lengths)


def test_micro_batches_hold_every_example_within_the_bound():
    examples = random_examples(50)
    for packing in (True, False):
        parts = micro_batches(examples, most_tokens=40, packing=packing)
        assert sorted(e.id for part in parts for row in part for e in row) == sorted(e.id for e in examples)
        places = [len(part) * max(sum(len(e.ids) for e in row) for row in part) for part in parts]
        assert max(places) <= 40


def test_split_and_length_limit_are_reported():
    examples = random_examples(40)
    train, valid = split_examples(examples, share=0.1, seed=0)
    assert len(valid) == 4 and len(train) == 36
    assert {e.id for e in valid} == {e.id for e in split_examples(examples[::-1], share=0.1, seed=0)[1]}
    kept, left_out = fitting(
        [example([1] * 9, 3, "long"), example([1, 2], 1, "fits"), example([1, 2], 2, "empty")], longest=8
    )
    assert [e.id for e in kept] == ["fits"] and left_out == ["long", "empty"]


def test_odd_records_are_told_by_count_and_name():
    long = [example([1] * 9, 3, f"long{i}") for i in range(5)]
    found = oddities(
        [*long, example([1, 2], 1, "a"), example([1, 2], 2, "none"), example([1, 2], 1, "b"), example([3, 2], 1, "c")],
        longest=8,
    )
    assert found == [
        "1 of 9 records with nothing to learn, left out: none",
        "5 of 9 records longer than the student's 8 tokens, left out: long0, long1, long2, …",
        "1 of 9 records of the same text as another, kept: b as a",
    ]
    assert oddities([example([1, 2], 1)], longest=8) == []


def test_what_the_student_s_vocabulary_lacks_of_the_distributions_is_told():
    tops = np.zeros((2, 1)), np.zeros((2, 1), np.float32)
    named = {"whole": 0.0, "little": 0.1, "much": 0.35}
    whole, little, much = (
        Example(name, np.arange(4) + place, 2, *tops, lost=lost) for place, (name, lost) in enumerate(named.items())
    )
    told = "of whose teacher's probability tokens that the student lacks have a part (7.5 % of all), learnt as one sum"
    assert oddities([whole, little, much, example([1, 2], 1)], longest=8) == [f"2 of 4 records {told}: much, little"]
    assert oddities([whole, replace(little, lost=5e-4)], longest=8) == []
