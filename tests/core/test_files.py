"""Files are whole or absent, JSONL errors name their line, paths stay inside their folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from edgedistill.core.errors import InputError
from edgedistill.core.files import (
    atomic_folder,
    atomic_path,
    cache_dir,
    canonical_json,
    clear_temporaries,
    digest_of,
    inside,
    read_json,
    read_jsonl,
    sha256_file,
    write_json,
    write_jsonl,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_writer_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")

    def fail() -> None:
        with atomic_path(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            assert (tmp_path / "a.txt").read_text() == "old"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"
    write_text(tmp_path / "a.txt", "new")
    assert ((tmp_path / "a.txt").read_text(), names(tmp_path)) == ("new", ["a.txt"])


def test_a_row_that_cannot_be_written_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        write_jsonl(tmp_path / "rows.jsonl", [{"a": 1}, {"a": float("nan")}])
    assert names(tmp_path) == []


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "variant"
    with atomic_folder(target) as temporary:
        (temporary / "old.bin").write_bytes(b"1")

    def fail() -> None:
        with atomic_folder(target) as temporary:
            (temporary / "new.bin").write_bytes(b"2")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (names(tmp_path), names(target)) == (["variant"], ["old.bin"])
    with atomic_folder(target) as temporary:
        (temporary / "new.bin").write_bytes(b"2")
    assert (names(tmp_path), names(target)) == (["variant"], ["new.bin"])


def test_what_killed_writers_left_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "deep" / ".variant.x1.tmp").mkdir(parents=True)
    (tmp_path / "deep" / ".variant.x1.tmp" / "weights").write_bytes(b"1")
    (tmp_path / ".a.json.x2.tmp").write_bytes(b"1")
    (tmp_path / "kept.tmp").write_bytes(b"1")
    clear_temporaries(tmp_path)
    assert (names(tmp_path), names(tmp_path / "deep")) == (["deep", "kept.tmp"], [])


def test_hashes_are_sha256_and_canonical_json_has_one_text(tmp_path: Path) -> None:
    data = bytes(range(256)) * 9000
    (tmp_path / "a").write_bytes(data)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(data).hexdigest()
    assert canonical_json({"b": [1, "ü"], "a": None}) == '{"a":null,"b":[1,"ü"]}'
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1}) != digest_of({"a": 1, "b": 3})


def test_damaged_json_is_told_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(InputError, match=r"expected a JSON file at .*found nothing there"):
        read_json(path)
    for content in (b'{"a": 1', b'"\xff"'):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a\.json is not valid JSON .*restore or delete it"):
            read_json(path)
    write_json(path, {"ü": 1})
    assert read_json(path) == {"ü": 1}


def test_a_damaged_line_is_told_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with pytest.raises(InputError, match="expected a JSONL file"):
        read_jsonl(path)
    for content, message in (
        (b'{"a":1}\n\n{"a":', "line 3: expected one JSON object, found damaged text"),
        (b'{"a":1}\n[2]\n', "line 2: expected a JSON object, found list"),
        (b"\xff\xfe\n", "line 1: expected one JSON object"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError) as e:
            read_jsonl(path)
        assert message in str(e.value)
    assert write_jsonl(path, [{"a": 1}, {"b": "\u2028"}]) == 2
    assert read_jsonl(path) == [{"a": 1}, {"b": "\u2028"}]


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "a\\b", "a\0b", "out/x"])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "out").symlink_to(tmp_path)
    with pytest.raises(InputError, match="expected a path inside"):
        inside(folder, name)
    assert inside(folder, "a/b.txt") == folder / "a" / "b.txt"


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("EDGEDISTILL_CACHE", raising=False)
    assert cache_dir() == tmp_path / "edgedistill"
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path / "mine"))
    assert cache_dir() == tmp_path / "mine"
