"""Android's `adb` as a shell on a phone: one device, named or the only one, every failure one sentence.

Manual: https://developer.android.com/tools/adb. Since Android 7 `adb shell` hands the command's exit code back.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from edgedistill.bench.remote import Done
from edgedistill.bench.runner import last_line
from edgedistill.core.errors import MissingError

# What adb says when it, not the command on the phone, failed.
LOST = ("error: device", "error: no devices", "adb: device", "error: closed", "adb: no devices", "error: protocol")
STATES = {
    "unauthorized": "accept this computer's key on its screen",
    "offline": "plug it in again, or restart it",
    "no permissions": "give this user access to the USB device (udev rules)",
    "authorizing": "wait a moment and try again",
    "recovery": "start the system on it",
    "bootloader": "start the system on it",
}


class AdbShell:
    """Commands on the phone; `serial` names it."""

    def __init__(self, serial: str) -> None:
        self.name = f"phone {serial}"
        self.command = ("adb", "-s", serial)

    def run(self, script: str, *, stdin: str = "", timeout_s: float = 60.0) -> Done:
        """Run a script in the phone's shell."""
        return self._done("shell", script, stdin=stdin, timeout_s=timeout_s)

    def upload(self, source: Path, place: str) -> Done:
        return self._done("push", str(source.absolute()), place, timeout_s=3600)

    def _done(self, *words: str, timeout_s: float, stdin: str = "") -> Done:
        done = _adb(*self.command[1:], *words, stdin=stdin, timeout_s=timeout_s, name=self.name)
        if done.code != 0 and done.err.lstrip().startswith(LOST):
            raise MissingError(f"the {self.name} is gone ({done.said}); plug it in again")
        return done


def find_phone(serial: str | None) -> AdbShell:
    """The phone with this serial number, or the only one.

    Raises:
        MissingError: adb is absent, or no phone, not this one, not ready, or not one alone is connected.
    """
    if shutil.which("adb") is None:
        raise MissingError("expected Android's `adb` on PATH, found none; install the platform tools")
    listed = _adb("devices", timeout_s=60, name="adb")
    if listed.code != 0:
        raise MissingError(f"expected adb to list devices, it says: {listed.said}")
    phones = dict(_states(listed.out))
    if not phones:
        raise MissingError("expected a phone, adb finds none; connect one with USB debugging on")
    if serial is None:
        if len(phones) > 1:
            raise MissingError(
                f"expected one phone, adb finds {len(phones)} ({', '.join(sorted(phones))}); name one in "
                "connection.serial"
            )
        serial = next(iter(phones))
    if serial not in phones:
        raise MissingError(f"expected the phone {serial}, adb finds {', '.join(sorted(phones))}; connect it")
    if phones[serial] != "device":
        state = next((known for known in STATES if phones[serial].startswith(known)), "")
        advice = STATES.get(state, "connect it again")
        raise MissingError(f"expected the phone {serial} to be ready, adb says it is {phones[serial]}; {advice}")
    return AdbShell(serial)


def _adb(*words: str, timeout_s: float, name: str, stdin: str = "") -> Done:
    try:
        done = subprocess.run(("adb", *words), input=stdin.encode(), capture_output=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise MissingError(f"{name} gave no answer within {timeout_s:g} s; connect it again") from None
    return Done(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


def _states(text: str) -> list[tuple[str, str]]:
    """Serial number and state of each line of `adb devices`, after its heading; a state may have several words."""
    lines = text.partition("List of devices attached")[2].splitlines()
    pairs = [line.split(maxsplit=1) for line in lines if line.strip() and not line.startswith("*")]
    return [(pair[0], pair[1].strip() if len(pair) > 1 else "unknown") for pair in pairs]


def value_of(remote: AdbShell, script: str) -> str:
    """The last line that a command on the phone writes, empty if it fails."""
    done = remote.run(script)
    return last_line(done.out) if done.code == 0 else ""
