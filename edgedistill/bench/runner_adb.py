"""A phone over adb: llama.cpp's `llama-bench` on its big cores, cool and at fixed clocks, as our rows.

No Python runs there, so the recipe's own prompts cannot be asked: such rows are absent, with the reason.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints, model_validator

from edgedistill.bench.adb_client import AdbShell, find_phone
from edgedistill.bench.block import all_invalid, unlimited
from edgedistill.bench.phone import (
    core_mask,
    describe_phone,
    fixed_performance,
    memory_of,
    memory_script,
    read_heat,
    why_hot,
)
from edgedistill.bench.phone_bench import bench_command, read_rows, speeds_of
from edgedistill.bench.remote import Done, locked, make_folder, push_objects, quote
from edgedistill.bench.runner import connection_of, fastest_cores
from edgedistill.core.errors import EdgeDistillError, InputError, MissingError, StageError
from edgedistill.core.files import digest_of, sha256_file
from edgedistill.core.model import Noun
from edgedistill.core.target import Target

FOLDER = "/data/local/tmp/edgedistill"
STEP_S = 10.0  # between two looks at a phone that cools down
KILLED = 137  # 128 + SIGKILL
TIMED_OUT = 124
GRACE_S = 60.0
NO_PROMPTS = "llama-bench on a phone takes one shape and memory; nothing else is measured there"
NO_LIMIT = "no memory limit can be set from a phone's shell"


class AdbConnection(Noun):
    """`[connection]` of a target with `runner = "adb"`: `llama-bench` as a path on the phone, or a file to push."""

    serial: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$")] | None = None
    engine: Annotated[str, StringConstraints(pattern=r"^/[^\x00\n]+$")] | None = None
    engine_file: str | None = None
    max_battery_c: Annotated[float, Field(gt=0)] = 40.0
    cooldown_s: Annotated[float, Field(ge=0)] = 300.0

    @model_validator(mode="after")
    def _one_engine(self) -> AdbConnection:
        if (self.engine is None) == (self.engine_file is None):
            raise ValueError("expected either engine (a path on the phone) or engine_file (a file to push)")
        return self


@dataclass
class AdbRunner:
    """A phone that is locked for this run, its engine, and what it says of itself."""

    target: Target
    connection: AdbConnection
    phone: AdbShell
    root: str
    engine: str
    speeds: dict[int, int]
    environment: dict[str, Any]
    unfixed: str
    pushed: dict[Path, str] = field(default_factory=dict)

    def cores(self, *, threads: int) -> list[int]:
        """The phone's big cores, as many as the target has, or as the recipe says."""
        wanted = self.target.limits.cores or min(threads, len(self.speeds))
        return fastest_cores(self.speeds, wanted=wanted, target=self.target.id)

    def run(self, job: Mapping[str, Any], *, memory_bytes: int, timeout_s: float) -> dict[str, Any]:
        """One block on the phone; whatever goes wrong there leaves invalid rows."""
        try:
            result = self._run(job, memory_bytes=memory_bytes, timeout_s=timeout_s)
        except EdgeDistillError as e:
            result = all_invalid(job, str(e))
        return result | {"environment": self.environment}

    def _run(self, job: Mapping[str, Any], *, memory_bytes: int, timeout_s: float) -> dict[str, Any]:
        if job["engine"] != "llamacpp":
            result = all_invalid(
                job, f"a phone is measured with llama-bench, which does not run {job['engine']} models"
            )
            result["rows"] = [row | {"absent": True} for row in result["rows"]]
            return result
        measured = {"shape": self._shape, "memory": self._memory}
        if not set(job["workloads"]) & set(measured):
            return {"engine": job["engine"], "settings": {}, "rows": [_no_prompts(name) for name in job["workloads"]]}
        before = self._cool_down()
        path = Path(job["model"])
        if path not in self.pushed:
            digest = sha256_file(path)
            push_objects(self.phone, self.root, {digest: path})
            self.pushed[path] = f"{self.root}/objects/{digest}"
        settings: dict[str, Any] = {"threads": job["threads"], "cores": list(job["cores"]), "tokens_checked": False}
        rows = []
        for name in job["workloads"]:
            if name not in measured:
                rows.append(_no_prompts(name))
                continue
            try:
                rows.append({"workload": name} | measured[name](job, settings, timeout_s))
            except StageError as e:
                rows.append({"workload": name, "invalid": str(e)})
        after = read_heat(self.phone)
        if hot := why_hot(after, max_battery_c=None):
            rows = [{"workload": row["workload"], "invalid": f"throttled: {hot} after the block"} | row for row in rows]
        settings |= {"heat": {"before": before, "after": after}, "fixed_performance": not self.unfixed}
        if self.unfixed:
            settings["fixed_performance_missing"] = self.unfixed
        result = {"engine": "llamacpp", "settings": settings, "rows": rows}
        return unlimited(result, memory_bytes, NO_LIMIT) if memory_bytes else result

    def _cool_down(self) -> dict[str, Any]:
        """Wait until the phone is cool, at most as long as the target says.

        Raises:
            StageError: it stayed hot.
        """
        until = time.monotonic() + self.connection.cooldown_s
        while hot := why_hot(heat := read_heat(self.phone), max_battery_c=self.connection.max_battery_c):
            left = until - time.monotonic()
            if left <= 0:
                waited = f"{self.connection.cooldown_s:g} s"
                raise StageError(f"the {self.phone.name} stayed too hot for {waited}: {hot}; let it cool down")
            time.sleep(min(STEP_S, left))
        return heat

    def _shape(self, job: Mapping[str, Any], settings: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        prompt, generate = len(job["shape"]["ids"]), job["shape"]["decode"] - 1
        repetitions = job["shape"]["repetitions"]
        tests = [(prompt, 0, 0), (0, generate, prompt)]
        commands = [self._command(job, test, repetitions=repetitions) for test in tests]
        # The phone itself ends what takes too long: a client that gives up leaves it running.
        held = f"timeout {max(1, int(timeout_s))} taskset {quote(core_mask(job['cores']))}"
        done = self.phone.run(
            " && ".join(f"{held} {command}" for command in commands), timeout_s=2 * timeout_s + GRACE_S
        )
        if done.code == TIMED_OUT:
            raise StageError(f"llama-bench gave no result on the {self.phone.name} within {timeout_s:g} s")
        self._require_end(done.code, done)
        asked = {"prompt": prompt, "generate": generate, "threads": job["threads"], "repetitions": repetitions}
        samples, said = speeds_of(read_rows(done.out), **asked)
        settings |= said
        return {"samples": samples}

    def _memory(self, job: Mapping[str, Any], settings: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """llama-bench's peak over the fixed shape: five looks a second at the kernel's high-water mark."""
        test = (len(job["shape"]["ids"]), job["shape"]["decode"] - 1, 0)
        script = memory_script(
            self._command(job, test, repetitions=1), mask=core_mask(job["cores"]), timeout_s=timeout_s
        )
        done = self.phone.run(script, timeout_s=2 * timeout_s + GRACE_S)
        samples, source, code = memory_of(done.out)
        self._require_end(code, done)
        if not samples:
            raise StageError(f"the {self.phone.name} does not say what memory llama-bench took")
        settings |= {"memory_source": source, "memory_workload": f"llama-bench -p {test[0]} -n {test[1]}"}
        return {"samples": samples}

    def _command(self, job: Mapping[str, Any], test: tuple[int, int, int], *, repetitions: int) -> str:
        prompt, generate, depth = test
        return bench_command(
            self.engine,
            model=self.pushed[Path(job["model"])],
            threads=job["threads"],
            batch=job["batch"],
            prompt=prompt,
            generate=generate,
            depth=depth,
            repetitions=repetitions,
        )

    def _require_end(self, code: int, done: Done) -> None:
        if code == KILLED or (code != 0 and "Killed" in done.err):
            raise StageError(f"llama-bench was killed on the {self.phone.name}, as Android does when memory runs out")
        if code != 0:
            raise StageError(f"llama-bench failed on the {self.phone.name} with exit code {code}; it said: {done.said}")


@contextmanager
def open_adb(target: Target) -> Iterator[AdbRunner]:
    """Find the phone, hold its lock and its fixed-performance mode, and see that llama-bench starts there.

    Raises:
        InputError: the target's `[connection]` is not what it should be.
        MissingError: no adb, no phone, not ready, not one alone, no engine, or its lock is held.
    """
    connection = connection_of(target, AdbConnection)
    phone = find_phone(connection.serial)
    root = make_folder(phone, FOLDER)
    with locked(phone, root):
        engine = _engine_on(phone, root, connection)
        device = describe_phone(phone)
        speeds = device.pop("speeds")
        environment = {"device": {"id": digest_of(device["hardware"])[:12], **device}}
        with fixed_performance(phone) as unfixed:
            yield AdbRunner(target, connection, phone, root, engine, speeds, environment, unfixed)


def _engine_on(phone: AdbShell, root: str, connection: AdbConnection) -> str:
    """Path of llama-bench on the phone, pushed where the target names a file."""
    engine = connection.engine
    if engine is None:
        source = Path(connection.engine_file or "").expanduser()
        if not source.is_file():
            raise InputError(
                f"expected connection.engine_file to be llama-bench built for the phone, found no {source}"
            )
        digest = sha256_file(source)
        push_objects(phone, root, {digest: source})
        engine = f"{root}/objects/{digest}"
        phone.run(f"chmod 700 {quote(engine)}")
    done = phone.run(f"{quote(engine)} --help")
    if done.code != 0 or "--n-depth" not in done.out + done.err:
        raise MissingError(
            f"expected llama-bench with --n-depth as {engine} on the {phone.name}, it says: {done.said}; build one for "
            "the phone"
        )
    return engine


def _no_prompts(workload: str) -> dict[str, Any]:
    return {"workload": workload, "invalid": NO_PROMPTS, "absent": True}
