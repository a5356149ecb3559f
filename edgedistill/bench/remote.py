"""Files and a lock on a device that is reached through a shell: pushed once, named by their SHA-256, verified there.

A folder on the device has `objects/<sha256>` (whole, verified files), `trees/<digest>/` (what an engine opens: the
objects under their own names) and `lock/` (one host measures at a time).
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shlex
import socket
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgedistill.bench.runner import last_line
from edgedistill.core.errors import InputError, MissingError
from edgedistill.core.files import digest_of, inside, sha256_bytes, sha256_file
from edgedistill.core.host import now

quote = shlex.quote
ATTEMPTS = 3  # uploads of one file before the link is called broken


@dataclass(frozen=True)
class Done:
    """What a remote command came to."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """The last line of its complaint, else of its output, else its exit code."""
        return last_line(self.err) or last_line(self.out) or f"exit code {self.code}"


class Remote(Protocol):
    """A POSIX shell on the device."""

    name: str

    def run(self, script: str, *, stdin: str = "", timeout_s: float = 60.0) -> Done:
        """Run a script there.

        Raises:
            MissingError: the device cannot be reached, or not any longer.
        """

    def upload(self, source: Path, place: str) -> Done:
        """Write a file to a path there.

        Raises:
            MissingError: the device cannot be reached, or not any longer.
        """


def make_folder(remote: Remote, folder: str) -> str:
    """Make the cache folder and return its absolute path.

    Raises:
        MissingError: it cannot be made.
    """
    root = quote(folder)
    done = remote.run(f"umask 077; mkdir -p {root}/objects {root}/trees && cd {root} && pwd")
    place = last_line(done.out)
    if done.code != 0 or not place.startswith("/"):
        raise MissingError(f"expected to make {folder} on {remote.name}, it says: {done.said}; name another folder")
    return place


def push_bytes(remote: Remote, root: str, data: bytes, *, scratch: Path) -> str:
    """Path on the device of `data`; uploaded only if it is not there whole."""
    digest = sha256_bytes(data)
    source = scratch / digest
    source.write_bytes(data)
    push_objects(remote, root, {digest: source})
    return f"{root}/objects/{digest}"


def push_objects(remote: Remote, root: str, objects: Mapping[str, Path]) -> int:
    """Upload those of `objects` (SHA-256 to file) that are not on the device whole; returns the bytes sent.

    What is there is hashed there, so that a file that went bad is sent again and none is opened unverified.

    Raises:
        MissingError: the device is gone or full, or what arrives is not what was sent.
    """
    there = _hashes(remote, root, list(objects))
    sent = 0
    for digest, path in objects.items():
        if there.get(digest) == digest:
            continue
        for attempt in range(1, ATTEMPTS + 1):
            temporary = f"{root}/objects/.{digest}.{uuid.uuid4().hex}.part"
            done = remote.upload(path, temporary)
            arrived = _keep(remote, temporary, f"{root}/objects/{digest}", digest)
            sent += path.stat().st_size
            if arrived == digest:
                break
            if done.code != 0:
                raise MissingError(
                    f"expected to write {path.stat().st_size} bytes of {path.name} on {remote.name}, it says: "
                    f"{done.said}; make room in {root}"
                )
            if attempt == ATTEMPTS:
                raise MissingError(
                    f"expected {path.name} to arrive on {remote.name} with SHA-256 {digest[:12]}…, found "
                    f"{arrived[:12] or 'none'}… {ATTEMPTS} times; check the link and the storage"
                )
    return sent


def push_tree(remote: Remote, root: str, source: Path) -> tuple[str, int]:
    """Put a model, a file or a folder, on the device; returns the path to open and the bytes sent.

    Raises:
        InputError: a file of the folder lies outside it.
        MissingError: as `push_objects`.
    """
    files = files_of(source)
    digests = {name: sha256_file(path) for name, path in files.items()}
    sent = push_objects(remote, root, {digests[name]: path for name, path in files.items()})
    tree = f"{root}/trees/{digest_of(digests)}"
    lines = ["set -e", f"mkdir -p {quote(tree)}"]
    for name, digest in digests.items():
        place, kept = quote(f"{tree}/{name}"), quote(f"{root}/objects/{digest}")
        if "/" in name:
            lines.append(f"mkdir -p {quote(f'{tree}/{name}'.rpartition('/')[0])}")
        # A link costs nothing; file systems without them get a copy.
        lines.append(f"ln -f {kept} {place} 2>/dev/null || cp {kept} {place}")
    done = remote.run("\n".join(lines))
    if done.code != 0:
        raise MissingError(f"expected to make {tree} on {remote.name}, it says: {done.said}; make room there")
    return f"{tree}/{source.name}" if source.is_file() else tree, sent


def files_of(source: Path) -> dict[str, Path]:
    """Relative name to file of a folder's files, or of one file.

    Raises:
        InputError: nothing is there, or a link leads outside.
    """
    if source.is_file():
        return {source.name: source}
    names = sorted(path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file())
    if not names:
        raise InputError(f"expected a model at {source}, found no file; export it again")
    return {name: inside(source, name) for name in names}


@contextlib.contextmanager
def locked(remote: Remote, root: str) -> Iterator[None]:
    """Hold the device's lock; one that a dead process of this host left is taken over.

    Raises:
        MissingError: another run holds it.
    """
    lock = f"{root}/lock"
    mine = {"who": f"{getpass.getuser()}@{socket.gethostname()}", "where": _where(), "pid": os.getpid(), "since": now()}
    owner = quote(json.dumps(mine, sort_keys=True))
    take = f"mkdir {quote(lock)} 2>/dev/null && printf %s {owner} > {quote(lock + '/owner')}"
    if remote.run(take).code != 0:
        found = _owner(remote, lock)
        if not _is_dead(found):
            raise MissingError(
                f"expected {remote.name} to be free, found its lock held by {found.get('who', 'someone')} since "
                f"{found.get('since', 'an unknown time')}; wait for that run, or if it is dead remove {lock} there"
            )
        aside = quote(f"{lock}.{uuid.uuid4().hex}")
        if remote.run(f"mv {quote(lock)} {aside} && rm -rf {aside} && {take}").code != 0:
            raise MissingError(f"expected {remote.name} to be free, found its lock taken this moment; try again")
    try:
        yield
    finally:
        # A device that is gone keeps its lock; the next run of this host takes it over.
        with contextlib.suppress(MissingError):
            remote.run(f'if [ "$(cat {quote(lock)}/owner)" = {owner} ]; then rm -rf {quote(lock)}; fi')


def _owner(remote: Remote, lock: str) -> dict[str, object]:
    try:
        found = json.loads(remote.run(f"cat {quote(lock + '/owner')}").out)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_dead(owner: Mapping[str, object]) -> bool:
    """Whether the owner is known to be gone: a process of this very boot and process namespace that is no more."""
    pid = owner.get("pid")
    return owner.get("where") == _where() and isinstance(pid, int) and not Path(f"/proc/{pid}").exists()


def _where() -> str:
    """Names this boot and process namespace without naming the machine; empty where there is no such thing."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        return digest_of([boot, os.readlink("/proc/self/ns/pid")])[:16]
    except OSError:
        return ""


def _keep(remote: Remote, temporary: str, place: str, digest: str) -> str:
    """Hash what arrived, give it its name if it is what was sent, remove it if not; returns the hash found."""
    arrived = quote(temporary)
    script = (
        f"h=$(sha256sum {arrived}) && h=${{h%% *}} && echo $h && [ $h = {digest} ] && mv -f {arrived} {quote(place)}"
        f" || rm -f {arrived}"
    )
    return last_line(remote.run(script, timeout_s=600).out)


def _hashes(remote: Remote, root: str, digests: list[str]) -> dict[str, str]:
    """Name to hash of the objects that are there."""
    names = " ".join(digests)
    script = f"cd {quote(root)}/objects && for f in {names}; do [ -f $f ] && sha256sum $f; done; true"
    found = {}
    for line in remote.run(script, timeout_s=600).out.splitlines():
        digest, _, name = line.partition(" ")
        found[name.strip(" *")] = digest
    return found
