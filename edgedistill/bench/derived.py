"""Rows that the parent makes: does it fit, what is fetched, and the share of this host's memory bandwidth."""

from __future__ import annotations

import functools
import statistics
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgedistill.bench.bandwidth import TOTAL_BYTES, read_bandwidth
from edgedistill.bench.block import run_block
from edgedistill.bench.model_shape import ModelShape
from edgedistill.core.artifact import Artifact
from edgedistill.core.config import validate
from edgedistill.core.files import inside, read_json
from edgedistill.core.measurement import Measurement
from edgedistill.core.target import Target

FAST_ENOUGH = 0.9
GZIP = 31  # zlib's window bits for a gzip header
Common = Callable[[str, Mapping[str, Any]], dict[str, Any]]


def fits_row(
    job: Mapping[str, Any],
    *,
    target: Target,
    common: Common,
    run: Callable[..., dict[str, Any]] = run_block,
    timeout_s: float = 600.0,
) -> Measurement:
    """Run the shape under the target's memory and again without a limit: 1 if it ends and is nearly as fast."""
    limit = target.limits.memory_bytes
    if not limit:
        return _not_measured("fits", "the target has no memory limit", job=job, common=common)
    limited, free = (run(job, memory_bytes=bytes_, timeout_s=timeout_s) for bytes_ in (limit, 0))
    settings = free["settings"] | {"memory_limit_bytes": limited["settings"].get("memory_limit_bytes", limit)}
    row, without = limited["rows"][0], free["rows"][0]
    if missing := limited["settings"].get("memory_limit_missing"):
        return _not_measured("fits", f"the memory limit cannot be applied: {missing}", job=job, common=common)
    if limited["settings"].get("swap_limited") is False:
        return _not_measured("fits", "swap cannot be kept out of the limit on this kernel", job=job, common=common)
    if "invalid" in without or ("invalid" in row and row.get("fits") is not False):
        reason = without.get("invalid") or row["invalid"]
        return Measurement(workload="fits", valid=False, invalid_reason=reason, **common(job["engine"], settings))
    if "invalid" in row:
        settings["reason"] = row["invalid"]
        speed = 0.0
    else:
        speed = _decode(row) / _decode(without)
        settings["speed_ratio"] = round(speed, 4)
    fits = float(speed >= FAST_ENOUGH)
    return Measurement(workload="fits", valid=True, samples={"mem_fits": [fits]}, **common(free["engine"], settings))


def files_row(path: Path, *, common: Common) -> Measurement:
    """What has to be fetched for a model: every file as it is or gzipped, whichever is smaller."""
    total = float(sum(_fetched(str(file), file.stat().st_mtime_ns) for file in shipped_files(path)))
    return Measurement(workload="files", valid=True, samples={"download_bytes": [total]}, **common("gzip", {}))


def shipped_files(path: Path) -> list[Path]:
    """The files of a model: what its artifact.json lists, a lone file, or what an engine reads of a folder."""
    folder = path if path.is_dir() else path.parent
    if (folder / "artifact.json").is_file():
        artifact = validate(Artifact, read_json(folder / "artifact.json"), source=str(folder / "artifact.json"))
        return [inside(folder, entry.path) for entry in artifact.files]
    if path.is_file():
        return [path]
    skip = {"manifest.json", "started.json", "failed.json", "metrics.jsonl"}
    return sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith(".") and p.name not in skip)


def memory_speed(cores: Sequence[int], *, total_bytes: int = TOTAL_BYTES) -> list[float]:
    """Read bandwidth samples in bytes per second; none where it cannot be measured."""
    try:
        return read_bandwidth(cores, total_bytes=total_bytes)
    except OSError:
        return []


def bandwidth_rows(
    rows: Sequence[Measurement], *, subjects: Mapping[str, ModelShape | None], bandwidth: Sequence[float]
) -> list[Measurement]:
    """A row beside each `shape` row of a round: bytes a token reads, and the share of the bandwidth that takes."""
    found = []
    for row in rows:
        if row.workload != "shape":
            continue
        shape = subjects[row.model]
        fields = row.model_dump(exclude={"workload", "samples", "outputs", "valid", "invalid_reason", "not_measured"})
        if shape is None or not bandwidth or not row.valid:
            why = "the shape could not be measured" if not row.valid else "the model's files do not say its shape"
            why = why if bandwidth or not row.valid else "the read bandwidth could not be measured"
            found.append(Measurement(workload="bandwidth", valid=True, not_measured=why, **fields))
            continue
        position = row.settings["prefill_tokens"] + row.settings["decode_tokens"] / 2
        bytes_read = shape.bytes_read(position)
        # The best of the probes is the bandwidth: what disturbs one only makes it slower.
        most = max(bandwidth)
        shares = [bytes_read * speed / most for speed in row.samples["decode_tokens_per_s"]]
        fields["settings"] |= {"read_bandwidth_bytes_per_s": [round(sample) for sample in bandwidth]}
        samples = {"bytes_read_per_token": [bytes_read], "bandwidth_share_ratio": shares}
        found.append(Measurement(workload="bandwidth", valid=True, samples=samples, **fields))
    return found


def _not_measured(workload: str, why: str, *, job: Mapping[str, Any], common: Common) -> Measurement:
    return Measurement(workload=workload, valid=True, not_measured=why, **common(job["engine"], {}))


def _decode(row: Mapping[str, Any]) -> float:
    return statistics.median(row["samples"]["decode_tokens_per_s"])


@functools.cache
def _fetched(path: str, changed: int) -> int:
    """Bytes of a file or of its gzip, whichever is fewer; remembered until the file changes."""
    packer, packed, size = zlib.compressobj(6, zlib.DEFLATED, GZIP), 0, 0
    with open(path, "rb") as f:
        while piece := f.read(1 << 20):
            size += len(piece)
            packed += len(packer.compress(piece))
    return min(size, packed + len(packer.flush()))
