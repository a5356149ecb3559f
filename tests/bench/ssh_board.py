"""A real sshd on loopback with keys of its own: what stands for a board in tests of the ssh runner."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgedistill.core.target import Target

CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
PidFile {folder}/sshd.pid
AuthorizedKeysFile {folder}/user.pub
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AllowTcpForwarding no
PrintMotd no
SetEnv PATH={bin}:/usr/bin:/bin
"""


@dataclass(frozen=True)
class Board:
    """`folder` has its cache (`cache`), keys and log; commands in `bin` come first on its PATH."""

    folder: Path
    port: int

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    def target(self, *, limits: dict[str, int] | None = None, **connection: Any) -> Target:
        reached = {
            "host": "127.0.0.1",
            "port": self.port,
            "identity": str(self.folder / "user"),
            "known_hosts": str(self.folder / "known_hosts"),
            "folder": str(self.cache),
            "python": sys.executable,
            "control_master": True,  # a key exchange for each command takes longer than all else
            "max_temperature_c": 200.0,
        }
        return Target.model_validate(
            {
                "id": "board",
                "title": "sshd on loopback",
                "device_class": "sbc",
                "runner": "ssh",
                "limits": limits or {"cores": 1},
                "connection": reached | connection,
            }
        )

    def command(self, name: str, text: str) -> None:
        """Put a command on the board."""
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)

    def drop_session(self, *, timeout_s: float = 60.0) -> int:
        """Kill the sshd process of the session that runs a block, once there is one; returns the supervisor's id."""
        place = self.cache / "lock" / "pid"
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            text = place.read_text().strip() if place.is_file() else ""
            if text and psutil.pid_exists(int(text)):
                parent = psutil.Process(int(text)).parent()
                assert parent is not None and parent.name().startswith("sshd")
                parent.send_signal(signal.SIGKILL)
                return int(text)
            time.sleep(0.05)
        raise AssertionError("no block was run")


def keys(folder: Path, *names: str) -> None:
    for name in names:
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(folder / name)]
        subprocess.run(words, check=True, capture_output=True)


def know(folder: Path, port: int, *, key: str, file: str = "known_hosts") -> Path:
    """Write a known_hosts file with one key for the board."""
    kind, text, *_ = (folder / f"{key}.pub").read_text().split()
    (folder / file).write_text(f"[127.0.0.1]:{port} {kind} {text}\n")
    return folder / file


@contextmanager
def running_board(folder: Path) -> Iterator[Board]:
    """Start sshd on a free port; skips with the reason where that cannot be."""
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if sshd is None or shutil.which("ssh") is None:
        pytest.skip("no OpenSSH server and client here (Debian: apt-get install openssh-server)")
    if os.geteuid() == 0:
        # Where sshd drops privileges; its package's service makes it, and no service runs in a container.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    board = Board(folder, port)
    board.bin.mkdir(parents=True)
    keys(folder, "host", "user", "other")
    know(folder, port, key="host")
    (folder / "sshd_config").write_text(CONFIG.format(port=port, folder=folder, bin=board.bin))
    command = [sshd, "-D", "-e", "-f", str(folder / "sshd_config")]
    with (folder / "sshd.log").open("w") as log:
        process = subprocess.Popen(command, stderr=log, stdout=log, stdin=subprocess.DEVNULL)
    try:
        _wait_for(port, process, folder / "sshd.log")
        yield board
    finally:
        process.terminate()
        process.wait(timeout=20)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(100):
        if process.poll() is not None:
            pytest.skip(f"sshd does not start here: {log.read_text().strip()}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.skip(f"sshd does not answer here: {log.read_text().strip()}")
