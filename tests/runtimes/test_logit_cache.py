"""The cache of teacher distributions: joined by content, read by numpy alone, damage named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgedistill.core.errors import InputError
from edgedistill.runtimes.logit_cache import (
    CacheIdentity,
    LogitRow,
    make_row,
    open_cache,
    row_key,
    write_cache,
)

IDENTITY = CacheIdentity(tokenizer="t" * 64, template="c" * 64, teacher="folder-sha256:1")
TEXTS = {"a": ([1, 2], [3, 4, 5]), "b": ([1, 2, 3], [4, 5]), "c": ([9], [8])}


def random_row(seed: int, tokens: int, *, vocab: int = 50, k: int = 4) -> tuple[LogitRow, np.ndarray]:
    logits = np.random.default_rng(seed).normal(0, 3, (tokens, vocab))
    full = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    ids = np.argsort(-full, axis=1)[:, :k]
    return make_row(ids.tolist(), np.take_along_axis(full, ids, axis=1).tolist()), full


@pytest.fixture
def cache_file(tmp_path: Path) -> Path:
    rows = {row_key(*text, identity=IDENTITY): random_row(i, len(text[1]))[0] for i, text in enumerate(TEXTS.values())}
    write_cache(tmp_path / "logits-00000.safetensors", rows, identity=IDENTITY, k=4)
    return tmp_path / "logits-00000.safetensors"


def test_rows_come_back_with_the_mass_that_was_cut_off(cache_file: Path) -> None:
    cache = open_cache([cache_file], identity=IDENTITY)
    for i, (name, (prompt, answer)) in enumerate(TEXTS.items()):
        row = cache.row(prompt_ids=prompt, answer_ids=answer, record=name)
        full = random_row(i, len(answer))[1]
        np.testing.assert_allclose(row.logprobs, np.take_along_axis(full, row.ids.astype(int), axis=1), atol=1e-6)
        kept = np.zeros(full.shape, bool)
        np.put_along_axis(kept, row.ids.astype(int), True, axis=1)
        np.testing.assert_allclose(row.tail, np.where(kept, 0, np.exp(full)).sum(axis=1), atol=1e-6)


def test_the_order_of_shards_and_rows_does_not_matter(cache_file: Path, tmp_path: Path) -> None:
    expected = open_cache([cache_file])
    paths = []
    for i, (name, (prompt, answer)) in enumerate(TEXTS.items()):
        row = expected.row(prompt_ids=prompt, answer_ids=answer, record=name)
        paths.append(tmp_path / f"{i}.safetensors")
        write_cache(paths[-1], {row_key(prompt, answer, identity=IDENTITY): row}, identity=IDENTITY, k=4)
    shuffled = open_cache([paths[2], paths[0], paths[1]])
    for name, (prompt, answer) in TEXTS.items():
        one = expected.row(prompt_ids=prompt, answer_ids=answer, record=name)
        other = shuffled.row(prompt_ids=prompt, answer_ids=answer, record=name)
        assert one.logprobs.tobytes() == other.logprobs.tobytes()


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
    raw = cache_file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    begin, end = header["logprobs"]["data_offsets"]
    flat = np.frombuffer(raw[8 + length + begin : 8 + length + end], "<f4").reshape(header["logprobs"]["shape"])
    row = open_cache([cache_file]).row(prompt_ids=[1, 2], answer_ids=[3, 4, 5], record="a")
    np.testing.assert_array_equal(flat[:3], row.logprobs)


def test_a_flipped_byte_names_the_record_and_leaves_the_others(cache_file: Path) -> None:
    raw = bytearray(cache_file.read_bytes())
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    raw[8 + length + header["tail"]["data_offsets"][0] + 4 * 3 + 1] ^= 1  # the tail of the fourth position: row b
    cache_file.write_bytes(raw)
    cache = open_cache([cache_file])
    cache.row(prompt_ids=[1, 2], answer_ids=[3, 4, 5], record="a")
    with pytest.raises(InputError, match=r"record b in .* are damaged"):
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
    write_cache(tmp_path / "empty.safetensors", {}, identity=IDENTITY, k=4)
    assert open_cache([tmp_path / "empty.safetensors"]).index == {}
    rows = {"ab" * 32: random_row(0, 5)[0]}
    for name in ("x", "y"):
        write_cache(tmp_path / name, rows, identity=IDENTITY, k=4)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


@pytest.mark.parametrize(
    ("ids", "logprobs", "message"),
    [
        ([[1, 2]], [[-1.0]], "of one shape"),
        ([[1, 2]], [[-1.0, float("nan")]], "at most 0"),
        ([[1, 2]], [[0.5, -1.0]], "at most 0"),
        ([[1, 1]], [[-1.0, -1.0]], "found one twice"),
        ([], [], "of one shape"),
    ],
)
def test_what_is_no_distribution_is_refused(ids: list, logprobs: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_row(ids, logprobs)
