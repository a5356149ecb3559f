"""The cache of teacher distributions: joined by content, read by numpy alone, damage named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgedistill.core.errors import InputError
from edgedistill.runtimes.base import drawn_logprobs
from edgedistill.runtimes.logit_cache import CacheIdentity, make_row, open_cache, row_key, write_cache
from edgedistill.runtimes.logit_codes import LogitRow, decode_row, encode_row

IDENTITY = CacheIdentity(tokenizer="t" * 64, template="c" * 64, teacher="folder-sha256:1")
TEXTS = {"a": ([1, 2], [3, 4, 5]), "b": ([1, 2, 3], [4, 5]), "c": ([9], [8])}


def random_row(seed: int, tokens: int, *, vocab: int = 50, k: int = 4) -> tuple[LogitRow, np.ndarray]:
    logits = np.random.default_rng(seed).normal(0, 3, (tokens, vocab))
    full = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    ids = np.argsort(-full, axis=1)[:, :k]
    return make_row(ids.tolist(), np.take_along_axis(full, ids, axis=1).tolist()), full


def by_id(row: LogitRow) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(row.ids, axis=1)
    return np.take_along_axis(row.ids, order, axis=1), np.take_along_axis(row.logprobs, order, axis=1)


@pytest.fixture
def cache_file(tmp_path: Path) -> Path:
    rows = {row_key(*text, identity=IDENTITY): random_row(i, len(text[1]))[0] for i, text in enumerate(TEXTS.values())}
    write_cache(tmp_path / "logits-00000.safetensors", rows, identity=IDENTITY)
    return tmp_path / "logits-00000.safetensors"


def test_rows_come_back_with_the_mass_that_was_cut_off(cache_file: Path) -> None:
    cache = open_cache([cache_file], identity=IDENTITY)
    for i, (name, (prompt, answer)) in enumerate(TEXTS.items()):
        row = cache.row(prompt_ids=prompt, answer_ids=answer, record=name)
        full = random_row(i, len(answer))[1]
        wanted = np.take_along_axis(full, row.ids.astype(int), axis=1)
        np.testing.assert_allclose(row.logprobs, wanted, atol=0.01 + 0.02 * np.abs(wanted).max())
        kept = np.zeros(full.shape, bool)
        np.put_along_axis(kept, row.ids.astype(int), True, axis=1)
        np.testing.assert_allclose(row.tail, np.where(kept, 0, np.exp(full)).sum(axis=1), rtol=3e-4)
        np.testing.assert_allclose(np.exp(row.logprobs).sum(1) + row.tail, 1, atol=1e-6)


@pytest.mark.parametrize("span", [1, 2, 255, 256, 49152, 151936])
def test_any_row_of_bytes_is_read_as_it_was_written(span: int) -> None:
    rng = np.random.default_rng(span)
    counts = rng.integers(0, min(span, 255) + 1, 20)
    ids = np.full((20, max(1, int(counts.max()))), -1, np.int32)
    logprobs = np.zeros(ids.shape, np.float32)
    for row, n in enumerate(counts):
        ids[row, :n] = np.sort(rng.choice(span, n, replace=False))
        logprobs[row, :n] = np.log(rng.dirichlet(np.ones(n)) * 0.9 + 1e-9) if n else []
    tail = np.where(counts == 0, 1, 1 - (np.exp(logprobs) * (ids >= 0)).sum(1)).astype(np.float32)
    raw = encode_row(LogitRow(ids, logprobs, tail), span=span)
    back = decode_row(np.frombuffer(raw, np.uint8), positions=20, span=span)
    np.testing.assert_array_equal(back.ids, ids)
    np.testing.assert_allclose(back.tail, tail, rtol=3e-4)
    np.testing.assert_allclose(np.exp(back.logprobs) * (ids >= 0), np.exp(logprobs) * (ids >= 0), atol=6e-3)
    for damaged in (raw[:-1], b""):
        with pytest.raises(ValueError, match="expected 20 positions"):
            decode_row(np.frombuffer(damaged, np.uint8), positions=20, span=span)


def test_a_position_without_a_tail_keeps_all_mass() -> None:
    row = LogitRow(np.array([[1, 3]]), np.log([[0.25, 0.75]]), np.zeros(1))
    back = decode_row(np.frombuffer(encode_row(row, span=4), np.uint8), positions=1, span=4)
    assert back.tail[0] == 0 and back.ids.tolist() == [[1, 3]]
    np.testing.assert_allclose(np.exp(back.logprobs), [[0.25, 0.75]], atol=6e-3)


def test_what_is_kept_is_the_least_that_holds_enough() -> None:
    ids, probabilities = [[7, 5, 9, 2]] * 2, [[0.6, 0.3, 0.06, 0.03], [0.97, 0.02, 0.006, 0.003]]
    row = make_row(ids, np.log(probabilities), top_p=0.95, least=0.01)
    assert row.ids.tolist() == [[7, 5, 9], [7, -1, -1]]
    np.testing.assert_allclose(row.tail, [0.04, 0.03], atol=1e-6)
    assert make_row(ids, np.log(probabilities), least=0.02).ids.tolist() == [[7, 5, 9, 2], [7, 5, -1, -1]]
    assert make_row(ids, np.log(probabilities), least=0.99).ids.tolist() == [[7], [7]]


def test_drawn_tokens_come_back_with_their_exact_shares(tmp_path: Path) -> None:
    logits = np.random.default_rng(3).normal(0, 3, (7, 500)).astype(np.float32)
    drawn = LogitRow(*drawn_logprobs(logits, 255), np.zeros(7, np.float32))
    identity = replace(IDENTITY, draws=255)
    text = ([1], list(range(7)))
    write_cache(tmp_path / "l.safetensors", {row_key(*text, identity=identity): drawn}, identity=identity)
    row = open_cache([tmp_path / "l.safetensors"], identity=identity).row(
        prompt_ids=text[0], answer_ids=text[1], record="a"
    )
    assert all(np.array_equal(a, b) for a, b in zip(by_id(row), by_id(_narrow(drawn)), strict=True))
    assert not row.tail.any()
    with pytest.raises(InputError, match="is stale: expected distributions of draws '0', found '255'"):
        open_cache([tmp_path / "l.safetensors"], identity=IDENTITY)


def _narrow(row: LogitRow) -> LogitRow:
    widest = int((row.ids >= 0).sum(1).max())
    return LogitRow(row.ids[:, :widest], row.logprobs[:, :widest], row.tail)


def test_draws_that_do_not_add_up_are_damaged() -> None:
    row = LogitRow(*drawn_logprobs(np.zeros((2, 9), np.float32), 20), np.zeros(2, np.float32))
    order = np.argsort(np.where(row.ids < 0, 99, row.ids), axis=1)
    ids, logprobs = (np.take_along_axis(x, order, axis=1) for x in (row.ids, row.logprobs))
    raw = np.frombuffer(encode_row(LogitRow(ids, logprobs, row.tail), span=9, draws=20), np.uint8)
    assert np.exp(decode_row(raw, positions=2, span=9, draws=20).logprobs[0][:2]).sum() <= 1
    with pytest.raises(ValueError, match="expected 21 draws at each position"):
        decode_row(raw, positions=2, span=9, draws=21)


def test_shares_of_draws_have_no_bias_and_depend_on_the_row_alone() -> None:
    """The mean of many estimates lies within 4.5 standard errors of every probability."""
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 2, 40)
    p = np.exp(scores) / np.exp(scores).sum()
    many = (scores + rng.normal(0, 1, (20_000, 1))).astype(np.float32)
    ids, logs = drawn_logprobs(many, 8)
    total = np.zeros(41)
    np.add.at(total, ids, np.where(ids >= 0, np.exp(logs), 0))
    np.testing.assert_allclose(np.where(ids >= 0, np.exp(logs), 0).sum(1), 1, atol=1e-6)
    error = np.abs(total[:40] / len(many) - p) / np.sqrt(p * (1 - p) / (8 * len(many)))
    assert error.max() < 4.5
    again = drawn_logprobs(many[[5, 3]], 8)
    assert np.array_equal(again[0], ids[[5, 3]]) and np.array_equal(again[1], logs[[5, 3]])


def test_the_order_of_shards_and_rows_does_not_matter(cache_file: Path, tmp_path: Path) -> None:
    expected = open_cache([cache_file])
    paths = []
    for i, (name, (prompt, answer)) in enumerate(TEXTS.items()):
        row = expected.row(prompt_ids=prompt, answer_ids=answer, record=name)
        paths.append(tmp_path / f"{i}.safetensors")
        write_cache(paths[-1], {row_key(prompt, answer, identity=IDENTITY): row}, identity=IDENTITY)
    shuffled = open_cache([paths[2], paths[0], paths[1]])
    for name, (prompt, answer) in TEXTS.items():
        one = expected.row(prompt_ids=prompt, answer_ids=answer, record=name)
        other = shuffled.row(prompt_ids=prompt, answer_ids=answer, record=name)
        (one_ids, one_values), (other_ids, other_values) = by_id(one), by_id(other)
        np.testing.assert_array_equal(one_ids, other_ids)
        np.testing.assert_array_equal(one_values, other_values)


OTHER = replace(IDENTITY, teacher="folder-sha256:2")


def test_each_teacher_s_rows_are_its_own(cache_file: Path, tmp_path: Path) -> None:
    """Both teachers gave the first text, with other distributions; each alone gave one of the others."""
    paths = [cache_file, tmp_path / "logits-00000-1.safetensors"]
    texts = [TEXTS["a"], ([7], [3, 3])]
    write_cache(paths[1], {row_key(*t, identity=OTHER): random_row(9, len(t[1]))[0] for t in texts}, identity=OTHER)
    with pytest.raises(InputError, match=r"00000-1\.safetensors is stale: expected distributions of teacher"):
        open_cache(paths, identity=IDENTITY)
    cache = open_cache(paths, identity=IDENTITY, teachers={IDENTITY.teacher, OTHER.teacher})

    def row(text: tuple[list[int], list[int]], teacher: str | None) -> LogitRow:
        return cache.row(prompt_ids=text[0], answer_ids=text[1], record="r-1", teacher=teacher)

    for identity, path in ((IDENTITY, paths[0]), (OTHER, paths[1])):
        alone = open_cache([path]).row(prompt_ids=texts[0][0], answer_ids=texts[0][1], record="r-1")
        assert np.array_equal(row(texts[0], identity.teacher).ids, alone.ids)
    assert not np.array_equal(row(texts[0], None).ids, row(texts[0], OTHER.teacher).ids)
    said = "expected the distributions of folder-sha256:{} for record r-1, found those of folder-sha256:{} for its text"
    with pytest.raises(InputError, match=said.format(1, 2)):
        row(texts[1], None)
    with pytest.raises(InputError, match=said.format(2, 1)):
        row(TEXTS["b"], OTHER.teacher)
    with pytest.raises(InputError, match="distributions for record r-1, found none for its text"):
        row(([7], [3, 4]), OTHER.teacher)


def test_a_file_that_names_another_teacher_than_its_rows_gives_none(tmp_path: Path) -> None:
    key = row_key(*TEXTS["a"], identity=IDENTITY)
    write_cache(tmp_path / "c", {key: random_row(0, 3)[0]}, identity=OTHER)
    cache = open_cache([tmp_path / "c"], identity=IDENTITY, teachers=[OTHER.teacher])
    with pytest.raises(InputError, match="sha256:1 for record a, found those of folder-sha256:2"):
        cache.row(prompt_ids=TEXTS["a"][0], answer_ids=TEXTS["a"][1], record="a")


def test_ids_of_a_large_vocabulary_come_back(tmp_path: Path) -> None:
    row = make_row(
        [[70_000, 5], [151_935, 65_535], [5, 6]], np.log([[0.75, 0.25], [0.5, 0.25], [0.9, 1e-3]]), least=0.1
    )
    write_cache(tmp_path / "c", {row_key([1], [2, 3, 4], identity=IDENTITY): row}, identity=IDENTITY)
    back = open_cache([tmp_path / "c"]).row(prompt_ids=[1], answer_ids=[2, 3, 4], record="a")
    assert back.ids.tolist() == [[70_000, 5], [151_935, 65_535], [5, -1]]


def test_a_position_that_keeps_fewer_tokens_than_its_neighbour_has_no_others(tmp_path: Path) -> None:
    row = make_row([[7, 5], [9, 8]], np.log([[0.6, 0.3], [0.9, 1e-3]]), least=0.1)
    write_cache(tmp_path / "c", {row_key([1], [2, 3], identity=IDENTITY): row}, identity=IDENTITY)
    back = open_cache([tmp_path / "c"]).row(prompt_ids=[1], answer_ids=[2, 3], record="a")
    assert back.ids.tolist() == [[7, 5], [9, -1]] and back.logprobs[1, 1] == 0


@pytest.mark.parametrize(("prompt", "answer"), [([1, 2], [3, 4, 6]), ([1, 2, 3], [4, 5, 2]), ([1], [2, 3, 4, 5])])
def test_other_text_finds_no_row_even_if_its_ids_join_to_the_same_line(
    cache_file: Path, prompt: list[int], answer: list[int]
) -> None:
    with pytest.raises(InputError, match="distributions for record r7, found none for its text"):
        open_cache([cache_file]).row(prompt_ids=prompt, answer_ids=answer, record="r7")


@pytest.mark.parametrize("name", ["tokenizer", "template", "teacher"])
def test_another_tokenizer_template_or_teacher_is_stale(cache_file: Path, name: str) -> None:
    other = CacheIdentity(**{**IDENTITY.__dict__, name: "another"})
    with pytest.raises(InputError, match=f"is stale: expected distributions of {name} 'another'"):
        open_cache([cache_file], identity=other)


def test_numpy_alone_reads_the_file(cache_file: Path) -> None:
    """As the module describes it, with nothing of ours."""
    raw = cache_file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    part = {n: raw[8 + length :][slice(*h["data_offsets"])] for n, h in header.items() if n != "__metadata__"}
    tokens, positions = np.frombuffer(part["tokens"], "<u2"), np.frombuffer(part["positions"], "<u4")
    row = np.frombuffer(part["body"], np.uint8)[: np.frombuffer(part["sizes"], "<u4")[0]]
    counts, codes = row[: positions[0]], row[3 * positions[0] : 3 * positions[0] + row[: positions[0]].sum()]
    bits = "".join(f"{byte:08b}"[::-1] for byte in row[3 * positions[0] + len(codes) :])
    widths = [max(0, (len(tokens) // int(n)).bit_length() - 2) for n in counts for _ in range(n)]
    ids, at, high = [], -(-sum(widths) // 8) * 8, 0
    starts = set(np.cumsum([0, *counts]).tolist())
    for number, width in enumerate(widths):
        low = bits[sum(widths[:number]) :][:width]
        one = bits.index("1", at)
        high = one - at + (0 if number in starts else high)
        ids.append(int(tokens[high << width | int(low[::-1] or "0", 2)]))
        at = one + 1
    ours = open_cache([cache_file]).row(prompt_ids=[1, 2], answer_ids=[3, 4, 5], record="a")
    plain = np.exp(-16 * (codes.reshape(3, 4) / 255) ** 2)
    tail = np.exp(np.frombuffer(row[positions[0] : 3 * positions[0]].tobytes(), "<u2") / -2048)
    scaled = plain / plain.sum(1, keepdims=True) * (1 - tail[:, None])
    order = np.argsort(np.reshape(ids, (3, 4)), axis=1)
    wanted = [np.take_along_axis(x, order, axis=1) for x in (np.reshape(ids, (3, 4)), scaled)]
    found_ids, found_logprobs = by_id(ours)
    np.testing.assert_array_equal(found_ids, wanted[0])
    np.testing.assert_allclose(np.exp(found_logprobs), wanted[1], rtol=1e-5)


def test_a_flipped_byte_names_the_record_and_leaves_the_others(cache_file: Path) -> None:
    raw = bytearray(cache_file.read_bytes())
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    begin = 8 + length + header["sizes"]["data_offsets"][0]
    first = int.from_bytes(raw[begin : begin + 4], "little")
    raw[8 + length + header["body"]["data_offsets"][0] + first + 4] ^= 1  # in the second row
    cache_file.write_bytes(raw)
    cache = open_cache([cache_file])
    cache.row(prompt_ids=[1, 2], answer_ids=[3, 4, 5], record="a")
    with pytest.raises(InputError, match=r"record b in .* are damaged \(CRC-32 differs\)"):
        cache.row(prompt_ids=[1, 2, 3], answer_ids=[4, 5], record="b")


def test_truncated_foreign_and_absent_files_are_refused(cache_file: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "foreign.safetensors")
    with pytest.raises(InputError, match="is no whole file of teacher distributions"):
        open_cache([tmp_path / "foreign.safetensors"])
    cache_file.write_bytes(cache_file.read_bytes()[:-10])
    with pytest.raises(InputError, match="is not a whole safetensors file"):
        open_cache([cache_file])
    with pytest.raises(InputError, match="expected at least one file of teacher distributions"):
        open_cache([], identity=IDENTITY)


def test_an_empty_shard_and_equal_bytes(tmp_path: Path) -> None:
    write_cache(tmp_path / "empty.safetensors", {}, identity=IDENTITY)
    assert open_cache([tmp_path / "empty.safetensors"]).index == {}
    rows = {"ab" * 32: random_row(0, 5)[0]}
    for name in ("x", "y"):
        write_cache(tmp_path / name, rows, identity=IDENTITY)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


@pytest.mark.parametrize(
    ("ids", "logprobs", "message"),
    [
        ([[1, 2]], [[-1.0]], "of one shape"),
        ([[1, 2]], [[-1.0, float("nan")]], "at most 0"),
        ([[1, 2]], [[0.5, -1.0]], "at most 0"),
        ([[1, 1]], [[-1.0, -1.0]], "distinct token ids"),
        ([], [], "of one shape"),
    ],
)
def test_what_is_no_distribution_is_refused(ids: list, logprobs: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_row(ids, logprobs)
