"""Blocks on a board through a real sshd on loopback, and everything that can go wrong on the way."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ssh_board import Board, know, running_board

from edgedistill.bench.block import run_block
from edgedistill.bench.remote import files_of, locked, make_folder, push_tree
from edgedistill.bench.rounds import Protocol, Subject, measure_round
from edgedistill.bench.runner import open_runner
from edgedistill.bench.ssh_client import SshConnection, ssh_shell
from edgedistill.core.errors import InputError, MissingError
from edgedistill.core.files import sha256_file
from edgedistill.core.host import now

Job = Callable[..., dict[str, Any]]
LIMITS = {"memory_bytes": 0, "timeout_s": 120.0}
ADDRESS = "127.0.0.1"


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    with running_board(tmp_path_factory.mktemp("sshd")) as board:
        yield board


@pytest.fixture
def board(sshd: Board) -> Board:
    """The module's board with an empty cache and nothing but its own commands."""
    shutil.rmtree(sshd.cache, ignore_errors=True)
    for path in sshd.bin.iterdir():
        path.unlink()
    return sshd


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a client of the same name before ssh, which runs `body` with the command in "$last" for each call."""

    def install(body: str) -> Path:
        folder = tmp_path / "client"
        folder.mkdir()
        real = shutil.which("ssh")
        (folder / "ssh").write_text(f'#!/bin/sh\nreal={real}\nfor last; do :; done\n{body}\nexec "$real" "$@"\n')
        (folder / "ssh").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return folder

    return install


def is_running(pid: int) -> bool:
    """Whether a process is there and not merely waiting to be collected by whoever inherited it."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def shell_of(board: Board, **connection: Any) -> Any:
    return ssh_shell(SshConnection.model_validate(board.target(**connection).connection))


def test_a_block_on_the_board_makes_the_local_tokens(board: Board, job: Job, tiny_gguf: Path) -> None:
    wanted = job("llamacpp", tiny_gguf, workloads=["prompts", "shape", "memory"])
    local = run_block(wanted)
    with open_runner(board.target(control_master=False)) as runner:
        cores = runner.cores(threads=0)
        result = runner.run(wanted | {"cores": cores}, **LIMITS)
        assert json.loads((board.cache / "lock" / "owner").read_text())["pid"] == os.getpid()
    assert [row["workload"] for row in result["rows"]] == ["prompts", "shape", "memory"]
    assert all("invalid" not in row for row in result["rows"])
    assert [row["outputs"] for row in result["rows"]] == [row["outputs"] for row in local["rows"]]
    assert result["settings"]["cores"] == cores and result["settings"]["threads"] == 1
    assert set(result["settings"]["device_state"]) == {"before", "after"}
    device = result["environment"]["device"]
    assert device["hardware"]["cores"] == psutil.Process().cpu_affinity().__len__()
    assert {"python", "llama-cpp-python"} <= set(device["versions"]) and len(device["id"]) == 12
    assert ADDRESS not in json.dumps(result) and str(board.folder / "user") not in json.dumps(result)
    assert not (board.cache / "lock").exists(), "the lock was kept"


def test_an_onnx_folder_goes_over_whole(board: Board, job: Job, tiny_onnx: Path) -> None:
    wanted = job("onnxruntime-genai", tiny_onnx)
    with open_runner(board.target()) as runner:
        result = runner.run(wanted, **LIMITS)
    assert "invalid" not in result["rows"][0]
    assert result["rows"][0]["outputs"] == run_block(wanted)["rows"][0]["outputs"]


def test_a_second_push_sends_nothing(board: Board, tiny_onnx: Path, client: Callable[[str], Path]) -> None:
    folder = client('case "$last" in *"cat > "*) echo "$last" >> "$(dirname "$0")/uploads";; esac')
    with shell_of(board) as shell:
        root = make_folder(shell, str(board.cache))
        tree, sent = push_tree(shell, root, tiny_onnx)
        sizes = {sha256_file(path): path.stat().st_size for path in files_of(tiny_onnx).values()}
        assert sent == sum(sizes.values()) > 0
        uploads = (folder / "uploads").read_text().splitlines()
        assert len(uploads) == len(sizes) and all(".part" in line for line in uploads)
        assert push_tree(shell, root, tiny_onnx) == (tree, 0)
        assert (folder / "uploads").read_text().splitlines() == uploads
    assert {p.relative_to(tree).as_posix() for p in Path(tree).rglob("*") if p.is_file()} == set(files_of(tiny_onnx))
    assert {p.name for p in (board.cache / "objects").iterdir()} == set(sizes)


def test_a_file_that_went_bad_on_the_board_is_sent_again(board: Board, tiny_gguf: Path) -> None:
    with shell_of(board) as shell:
        root = make_folder(shell, str(board.cache))
        tree, sent = push_tree(shell, root, tiny_gguf)
        kept = board.cache / "objects" / sha256_file(tiny_gguf)
        kept.write_bytes(kept.read_bytes()[:-1] + b"?")
        assert sha256_file(Path(tree)) != sha256_file(tiny_gguf)
        assert push_tree(shell, root, tiny_gguf) == (tree, sent)
    assert sha256_file(Path(tree)) == sha256_file(tiny_gguf)


CORRUPT = """case "$last" in
  *"cat > "*) {when} {{ echo x >> "$(dirname "$0")/tries"; (head -c 100; printf X) | "$real" "$@"; exit; }};;
esac"""


@pytest.mark.parametrize("times", [1, 3])
def test_a_corrupted_upload_is_noticed(
    board: Board, tiny_gguf: Path, client: Callable[[str], Path], times: int
) -> None:
    folder = client(CORRUPT.format(when=f'[ "$(cat "$(dirname "$0")/tries" 2>/dev/null | wc -l)" -lt {times} ] &&'))
    with shell_of(board) as shell:
        root = make_folder(shell, str(board.cache))
        if times == 1:
            tree, sent = push_tree(shell, root, tiny_gguf)
            assert sha256_file(Path(tree)) == sha256_file(tiny_gguf) and sent == 2 * tiny_gguf.stat().st_size
        else:
            with pytest.raises(MissingError, match=r"expected model\.gguf to arrive on 127\.0\.0\.1 with SHA-256 .* 3"):
                push_tree(shell, root, tiny_gguf)
    assert (folder / "tries").read_text().count("x") == times
    assert [p.name for p in (board.cache / "objects").iterdir()] == [sha256_file(tiny_gguf)] * (times == 1)


def test_a_full_board_is_said(board: Board, tiny_gguf: Path) -> None:
    board.command("cat", "#!/bin/sh\necho 'cat: write error: No space left on device' >&2\nexit 1\n")
    with (
        shell_of(board) as shell,
        pytest.raises(MissingError, match=r"bytes of model\.gguf on .*No space left on device; make room in"),
    ):
        push_tree(shell, make_folder(shell, str(board.cache)), tiny_gguf)
    assert not list((board.cache / "objects").iterdir())


@pytest.mark.parametrize(("key", "found"), [("other", "another"), (None, "none that matches")])
def test_a_wrong_or_unknown_host_key_is_refused(board: Board, tmp_path: Path, key: str | None, found: str) -> None:
    known = know(board.folder, board.port, key=key, file="wrong") if key else tmp_path / "empty"
    before = known.read_text() if known.is_file() else None
    with pytest.raises(MissingError) as error, open_runner(board.target(known_hosts=str(known))):
        pass
    assert error.value.exit_code == 5
    assert str(error.value).startswith(f"expected the host key of {ADDRESS} in {known}, found {found}; compare the key")
    assert "\n" not in str(error.value)
    assert (known.read_text() if known.is_file() else None) == before, "a key was accepted"
    assert not board.cache.exists()


def test_a_board_that_refuses_or_is_off_is_said(board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    for changed, sentence in (
        ({"identity": str(board.folder / "other")}, "127.0.0.1 refused every key; put yours there (ssh-copy-id) or"),
        ({"port": 1}, "the connection to 127.0.0.1 failed (ssh: connect to host 127.0.0.1 port 1: Connection refused)"),
        ({"host": "no-such-board.invalid"}, "the connection to no-such-board.invalid failed (ssh: Could not resolve"),
    ):
        with pytest.raises(MissingError) as error, open_runner(board.target(**changed)):
            pass
        assert str(error.value).startswith(sentence) and "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"expected connection\.identity to be a private key"):
        open_runner(board.target(identity=str(tmp_path / "none"))).__enter__()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match="expected OpenSSH's client `ssh` on PATH, found none"):
        open_runner(board.target()).__enter__()


@pytest.mark.parametrize(
    ("connection", "sentence"),
    [
        ({"host": "-oProxyCommand=evil"}, "host: found '-oProxyCommand=evil'"),
        ({"user": "a b"}, "user: found 'a b'"),
        ({"folder": "../elsewhere"}, "folder: found '../elsewhere'"),
        ({"folder": "a;b"}, "folder: found 'a;b'"),
        ({"python": "-c"}, "python: found '-c'"),
        ({"known_host": "x"}, "known_host: unknown name; did you mean 'known_hosts'?"),
    ],
)
def test_a_connection_table_is_checked(board: Board, connection: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as error, open_runner(board.target(**connection)):
        pass
    assert sentence in str(error.value) and "[connection] of target board" in str(error.value)


def test_names_with_shell_characters_stay_names(board: Board, tmp_path: Path) -> None:
    odd = tmp_path / "a model'; touch $(echo pwned) & #"
    odd.mkdir()
    (odd / "x $(y) `z`.bin").write_bytes(b"weights")
    with shell_of(board) as shell:
        root = make_folder(shell, str(board.cache))
        tree, _ = push_tree(shell, root, odd)
    assert (Path(tree) / "x $(y) `z`.bin").read_bytes() == b"weights"
    assert not list(board.folder.rglob("pwned*")) and not (Path.home() / "pwned").exists()
    (odd / "out").symlink_to("/etc/hostname")
    with pytest.raises(InputError, match="which points outside it"):
        files_of(odd)


def test_a_held_lock_is_one_sentence(board: Board) -> None:
    with shell_of(board) as shell:
        root = make_folder(shell, str(board.cache))
        with locked(shell, root), pytest.raises(MissingError) as error, open_runner(board.target()):
            pass
        sentence = str(error.value)
        assert sentence.startswith(f"expected {ADDRESS} to be free, found its lock held by ")
        assert sentence.endswith(f"wait for that run, or if it is dead remove {root}/lock there")
        assert not (board.cache / "lock").exists()


@pytest.mark.parametrize(("where", "taken_over"), [("here", True), ("another machine", False)])
def test_only_a_lock_known_to_be_dead_is_taken_over(board: Board, where: str, taken_over: bool) -> None:
    with shell_of(board) as shell:
        root = make_folder(shell, str(board.cache))
        with locked(shell, root):
            owner = json.loads((board.cache / "lock" / "owner").read_text())
        (board.cache / "lock").mkdir()
        stale = owner | {"pid": 2**22 + 1, "who": "ann@desk"} | ({} if where == "here" else {"where": where})
        (board.cache / "lock" / "owner").write_text(json.dumps(stale))
        if taken_over:
            with locked(shell, root):
                assert json.loads((board.cache / "lock" / "owner").read_text())["pid"] == os.getpid()
            assert not list(board.cache.glob("lock*"))
        else:
            with pytest.raises(MissingError, match="held by ann@desk since "), locked(shell, root):
                pass
            assert json.loads((board.cache / "lock" / "owner").read_text()) == stale


@pytest.mark.parametrize(
    ("python", "sentence"),
    [
        ("python-of-nowhere", "expected python-of-nowhere on 127.0.0.1, found none; install Python >= 3.10 there or"),
        (
            "bare-python",
            "on 127.0.0.1, found llama-cpp-python is not installed; onnxruntime and onnxruntime_genai are ",
        ),
        ("old-python", "on 127.0.0.1 to run the worker, it says: expected Python >= 3.10, found 3.7.1"),
    ],
)
def test_a_board_without_python_or_engine_is_said(board: Board, python: str, sentence: str) -> None:
    # Without `site` there is nothing but the standard library.
    board.command("bare-python", f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n')
    board.command("old-python", "#!/bin/sh\necho 'expected Python >= 3.10, found 3.7.1' >&2\nexit 1\n")
    with pytest.raises(MissingError) as error, open_runner(board.target(python=python)):
        pass
    assert sentence in str(error.value) and "\n" not in str(error.value)
    assert not (board.cache / "lock").exists()


def test_an_engine_the_board_lacks_is_an_invalid_row(board: Board, job: Job, tiny_gguf: Path) -> None:
    with open_runner(board.target()) as runner:
        runner.board["engines"]["torch"] = {"missing": "torch is not installed"}
        result = runner.run(job("torch", tiny_gguf), **LIMITS)
    assert result["rows"] == [
        {"workload": "prompts", "invalid": f"torch is not installed on {ADDRESS}; install it there"}
    ]
    assert not (board.cache / "trees").exists() or not list((board.cache / "trees").iterdir()), "it was pushed anyway"


def test_a_throttled_board_s_rows_do_not_count(board: Board, job: Job, tiny_gguf: Path) -> None:
    board.command("vcgencmd", "#!/bin/sh\necho throttled=0x4\n")
    with open_runner(board.target()) as runner:
        (row,) = runner.run(job("llamacpp", tiny_gguf), **LIMITS)["rows"]
    assert row["invalid"] == "throttled: vcgencmd reports throttling before the block"


def test_a_lost_connection_is_an_invalid_row_and_the_sweep_goes_on(board: Board, job: Job, tiny_gguf: Path) -> None:
    long = {"ids": list(range(60, 76)), "decode": 40, "warmup": 0, "repetitions": 100_000}
    found = []
    killer = threading.Thread(target=lambda: found.append(board.drop_session()))
    with open_runner(board.target()) as runner:
        killer.start()
        result = runner.run(job("llamacpp", tiny_gguf, workloads=["shape", "memory"], shape=long), **LIMITS)
        killer.join()
        assert [row["workload"] for row in result["rows"]] == ["shape", "memory"]
        for row in result["rows"]:
            assert row["invalid"].startswith(f"the connection to {ADDRESS} failed (")
        assert "invalid" not in runner.run(job("llamacpp", tiny_gguf), **LIMITS)["rows"][0]
        assert not is_running(found[0]), "the lost block went on beside the next"


def test_rounds_run_on_the_board_and_say_where(board: Board, tiny_gguf: Path) -> None:
    subject = Subject(
        name="tiny", engine="llamacpp", path=tiny_gguf, digest="d", slow=True, end_ids=(383,),
        rounds=(((1, 70, 80), (1, 71)),), shape_ids=tuple(range(60, 76)),
    )  # fmt: skip
    protocol = Protocol(
        requests=2, max_new_tokens=4, decode_tokens=4, environment={"host_id": "h"}, memory_rounds=frozenset({0})
    )
    target = board.target()
    with open_runner(target) as runner:
        cores = runner.cores(threads=1)
        rows = measure_round([subject], target=target, pair=0, cores=cores, protocol=protocol, run=runner.run)
    assert {row.workload for row in rows} == {"prompts", "shape", "memory"}
    assert all(row.valid and row.evidence == "measured" and row.target == "board" for row in rows)
    assert {row.environment["host_id"] for row in rows} == {"h"}
    assert all(row.environment["device"]["hardware"]["arch"] for row in rows)
    assert rows[0].started <= now()
