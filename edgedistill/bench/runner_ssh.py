"""A board over ssh: worker and models pushed by hash, one host at a time, its heat and speed read around each block."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgedistill.bench.block import all_invalid
from edgedistill.bench.device_state import why_unfit
from edgedistill.bench.remote import locked, make_folder, push_bytes, push_tree, quote
from edgedistill.bench.runner import connection_of, fastest_cores, last_line
from edgedistill.bench.ssh_client import SshConnection, SshShell, ssh_shell
from edgedistill.bench.worker_zip import worker_zip
from edgedistill.core.errors import EdgeDistillError, MissingError
from edgedistill.core.files import digest_of
from edgedistill.core.target import Target

DESCRIBE_S = 120.0
# What ssh and the supervisor on the board may take on top of a block's own limit.
GRACE_S = 60.0
NO_COMMAND = 127


@dataclass
class SshRunner:
    """A board that is locked for this run, with the worker on it and what it says of itself."""

    target: Target
    connection: SshConnection
    shell: SshShell
    root: str
    worker: str
    board: dict[str, Any]
    environment: dict[str, Any]
    pushed: dict[Path, str] = field(default_factory=dict)
    orphan: bool = False

    def cores(self, *, threads: int) -> list[int]:
        """The board's fastest cores, as many as the target has, or as the recipe says."""
        speeds = {int(core): khz for core, khz in self.board["speeds"].items()}
        wanted = self.target.limits.cores or min(threads, len(speeds))
        return fastest_cores(speeds, wanted=wanted, target=self.target.id)

    def run(self, job: Mapping[str, Any], *, memory_bytes: int, timeout_s: float) -> dict[str, Any]:
        """One block on the board; a board that is lost, throttled or hot, or lacks the engine, leaves invalid rows."""
        try:
            result = self._run(job, memory_bytes=memory_bytes, timeout_s=timeout_s)
        except EdgeDistillError as e:
            result = all_invalid(job, str(e))
        return result | {"environment": self.environment}

    def _run(self, job: Mapping[str, Any], *, memory_bytes: int, timeout_s: float) -> dict[str, Any]:
        engine = self.board["engines"].get(job["engine"], {"missing": f"the worker has no engine {job['engine']}"})
        if "missing" in engine:
            return all_invalid(job, f"{engine['missing']} on {self.shell.name}; install it there")
        if self.orphan:
            self._end_orphan()
        path = Path(job["model"])
        if path not in self.pushed:
            self.pushed[path], _ = push_tree(self.shell, self.root, path)
        options = dict(job["options"])
        if "interface" in engine:
            options["interface"] = engine["interface"]
        order = {
            "job": {**job, "model": self.pushed[path], "options": options},
            "memory_bytes": memory_bytes,
            "timeout_s": timeout_s,
        }
        self.orphan = True
        # `exec` keeps the shell's process id, so the file names the supervisor.
        script = f"echo $$ > {quote(self.root + '/lock/pid')}; exec {python_on(self.connection, self.worker, 'run')}"
        done = self.shell.run(script, stdin=json.dumps(order), timeout_s=timeout_s + GRACE_S)
        self.orphan = False
        result = _json_of(done.out)
        if result is None or not {"rows", "settings", "state"} <= result.keys():
            return all_invalid(job, f"the worker on {self.shell.name} gave no result; it said: {done.said}")
        state = result.pop("state")
        slow = why_unfit(
            state["before"],
            state["after"],
            cores=job["cores"],
            max_temperature_c=self.connection.max_temperature_c,
        )
        if slow:
            result["rows"] = [{"workload": row["workload"], "invalid": slow} | row for row in result["rows"]]
        result["settings"]["device_state"] = state
        return result

    def _end_orphan(self) -> None:
        """End what a lost connection may have left running, so that it does not share the cores with the next block."""
        pid, worker = quote(self.root + "/lock/pid"), quote(self.worker)
        self.shell.run(f'p=$(cat {pid}) && grep -qF {worker} "/proc/$p/cmdline" && kill -9 "$p"; true')
        self.orphan = False


@contextmanager
def open_ssh(target: Target) -> Iterator[SshRunner]:
    """Reach the board, push the worker, ask it what the board is, and hold its lock meanwhile.

    Raises:
        InputError: the target's `[connection]` is not what it should be.
        MissingError: no client, no connection, an unknown host key, no Python or engine there, or its lock is held.
    """
    connection = connection_of(target, SshConnection)
    with ssh_shell(connection) as shell, TemporaryDirectory(prefix="edgedistill-") as scratch:
        root = make_folder(shell, connection.folder)
        with locked(shell, root):
            worker = push_bytes(shell, root, worker_zip(), scratch=Path(scratch))
            board = describe(shell, connection, worker)
            environment = {"device": device_of(board)}
            yield SshRunner(target, connection, shell, root, worker, board, environment)


def describe(shell: SshShell, connection: SshConnection, worker: str) -> dict[str, Any]:
    """What the board is, in the worker's own words.

    Raises:
        MissingError: there is no Python, an old one, or no engine at all.
    """
    done = shell.run(f"exec {python_on(connection, worker, 'describe')}", timeout_s=DESCRIBE_S)
    if done.code == NO_COMMAND:
        raise MissingError(
            f"expected {connection.python} on {shell.name}, found none; install Python >= 3.10 there or name it in "
            "connection.python"
        )
    board = _json_of(done.out)
    if done.code != 0 or board is None:
        raise MissingError(f"expected {connection.python} on {shell.name} to run the worker, it says: {done.said}")
    missing = [engine.get("missing") for engine in board["engines"].values()]
    if all(missing):
        raise MissingError(
            f"expected an engine for {connection.python} on {shell.name}, found {'; '.join(missing)}; install "
            "llama-cpp-python or onnxruntime-genai there"
        )
    return board


def python_on(connection: SshConnection, worker: str, mode: str) -> str:
    """The worker's command line on the board; every word quoted."""
    return " ".join(map(quote, (connection.python, worker, mode)))


def device_of(board: Mapping[str, Any]) -> dict[str, Any]:
    """Identity, hardware and versions of the board for a row's environment; no address and no user."""
    found = {name: board[name] for name in ("hardware", "kernel", "versions")}
    return {"id": digest_of(board["hardware"])[:12], **found}


def _json_of(text: str) -> dict[str, Any] | None:
    """The JSON object on the last line: a login may say something before it."""
    try:
        found = json.loads(last_line(text))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
