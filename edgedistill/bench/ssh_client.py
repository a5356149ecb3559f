"""OpenSSH's client as a shell on a board: host keys always checked, nothing asked, every failure one sentence.

Manuals: https://man.openbsd.org/ssh and https://man.openbsd.org/ssh_config.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from pydantic import Field, StringConstraints, field_validator

from edgedistill.bench.remote import Done
from edgedistill.bench.runner import last_line
from edgedistill.core.errors import InputError, MissingError
from edgedistill.core.model import Noun

LOST = 255  # ssh's own exit code
PathText = Annotated[str, StringConstraints(pattern=r'^[^\x00\n"-][^\x00\n"]*$')]
OPTIONS = {
    "BatchMode": "yes",
    "StrictHostKeyChecking": "yes",
    "UpdateHostKeys": "no",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "ClearAllForwardings": "yes",
    "PermitLocalCommand": "no",
    "ConnectTimeout": "15",
    "ServerAliveInterval": "15",
    "ServerAliveCountMax": "4",
    "LogLevel": "ERROR",
}


class SshConnection(Noun):
    """`[connection]` of a target with `runner = "ssh"`. Passwords are not taken: ssh uses the user's agent and keys.

    `folder` is relative to the login folder; `python` is a command or a path on the board.
    """

    host: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:-]{0,252}$")]
    user: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$")] | None = None
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    identity: PathText | None = None
    known_hosts: PathText | None = None
    control_master: bool = False
    folder: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._/][A-Za-z0-9._/-]*$")] = ".cache/edgedistill"
    python: PathText = "python3"
    max_temperature_c: Annotated[float, Field(gt=0)] = 80.0

    @field_validator("folder")
    @classmethod
    def _folder_stays_where_it_is(cls, folder: str) -> str:
        if ".." in folder.split("/"):
            raise ValueError("expected a path without '..'")
        return folder


class SshShell:
    """Commands on the board, each in a session of its own."""

    def __init__(self, connection: SshConnection, *, control_path: str = "") -> None:
        self.name = connection.host
        self.connection = connection
        self.command = _command(connection, control_path=control_path)

    def run(self, script: str, *, stdin: str = "", timeout_s: float = 60.0) -> Done:
        """Run a POSIX script on the board, whatever the login shell is."""
        return self._done(["exec", "sh", "-c", script], data=stdin.encode(), timeout_s=timeout_s)

    def upload(self, source: Path, place: str) -> Done:
        """Write a file there, readable for its owner alone."""
        script = f"umask 077; exec cat > {shlex.quote(place)}"
        with source.open("rb") as f:
            return self._done(["exec", "sh", "-c", script], file=f.fileno(), timeout_s=3600)

    def _done(self, words: list[str], *, timeout_s: float, data: bytes = b"", file: int | None = None) -> Done:
        source = {"stdin": file} if file is not None else {"input": data}
        # ssh joins its words with spaces for the login shell, so each is quoted for it.
        command = [*self.command, " ".join([words[0], *map(shlex.quote, words[1:])])]
        try:
            done = subprocess.run(command, capture_output=True, timeout=timeout_s, env=_environment(), **source)
        except subprocess.TimeoutExpired:
            raise MissingError(f"{self.name} gave no answer within {timeout_s:g} s; check the board") from None
        out, err = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
        if done.returncode == LOST:
            raise MissingError(_why_lost(err, self.connection))
        return Done(done.returncode, out, err)


@contextmanager
def ssh_shell(connection: SshConnection) -> Iterator[SshShell]:
    """A shell on the board, sessions over one connection where `control_master` says so.

    Raises:
        MissingError: there is no ssh client.
    """
    if shutil.which("ssh") is None:
        raise MissingError("expected OpenSSH's client `ssh` on PATH, found none; install openssh-client")
    if not connection.control_master:
        yield SshShell(connection)
        return
    with TemporaryDirectory(prefix="edgedistill-") as folder:
        shell = SshShell(connection, control_path=f"{folder}/control")
        try:
            yield shell
        finally:
            subprocess.run([*shell.command[:-2], "-O", "exit", *shell.command[-2:]], capture_output=True, timeout=30)


def _command(connection: SshConnection, *, control_path: str) -> list[str]:
    options = dict(OPTIONS)
    if connection.known_hosts:
        options |= {"UserKnownHostsFile": _path_value(connection.known_hosts), "GlobalKnownHostsFile": "/dev/null"}
    if control_path:
        options |= {"ControlMaster": "auto", "ControlPath": _path_value(control_path), "ControlPersist": "60"}
    words = ["ssh", "-T", *(f"-o{name}={value}" for name, value in options.items())]
    if connection.port:
        words += ["-p", str(connection.port)]
    if connection.user:
        words += ["-l", connection.user]
    if connection.identity:
        identity = Path(connection.identity).expanduser()
        if not identity.is_file():
            raise InputError(f"expected connection.identity to be a private key, found no file {identity}")
        words += ["-oIdentitiesOnly=yes", f"-oIdentityFile={_path_value(connection.identity)}"]
    return [*words, "--", connection.host]


def _path_value(path: str) -> str:
    """A path as ssh's options take it: quoted, because they split on spaces, and without %-tokens."""
    full = str(Path(path).expanduser().absolute()).replace("%", "%%")
    return f'"{full}"'


def _environment() -> dict[str, str]:
    """The user's, without what would have ssh ask for a password in a window, and with messages that can be read."""
    dropped = ("DISPLAY", "SSH_ASKPASS", "WAYLAND_DISPLAY")
    return {name: value for name, value in os.environ.items() if name not in dropped} | {"LC_ALL": "C"}


def _why_lost(said: str, connection: SshConnection) -> str:
    host, where = connection.host, connection.known_hosts or "~/.ssh/known_hosts"
    if "IDENTIFICATION HAS CHANGED" in said or "Host key verification failed" in said or "host key is known" in said:
        kind = "another" if "CHANGED" in said else "none that matches"
        return (
            f"expected the host key of {host} in {where}, found {kind}; compare the key on the board itself "
            "(ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then put it there"
        )
    if "Permission denied" in said:
        return f"{host} refused every key; put yours there (ssh-copy-id) or name it in connection.identity"
    reason = last_line(said).rstrip(".") or "it gave no reason"
    return f"the connection to {host} failed ({reason}); check that it is on and reachable"
