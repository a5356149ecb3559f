"""The importance matrix: how large what enters each weight column is on calibration text, measured in llama.cpp itself.

Kept in llama.cpp's own format, so that its tools read ours and we read theirs: GGUF of `general.type` "imatrix" with
`NAME.in_sum2` (sums of squares by column) and `NAME.counts` for each matrix.
Format: https://github.com/ggml-org/llama.cpp/blob/master/tools/imatrix/imatrix.cpp.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from edgedistill.core.errors import InputError
from edgedistill.core.files import atomic_path
from edgedistill.export.weights import stored_tensors
from edgedistill.quant.plan import EMBEDDING, HEAD
from edgedistill.runtimes.gguf_file import read_gguf
from edgedistill.runtimes.llama_watch import matmul_inputs

SUMS, COUNTS = ".in_sum2", ".counts"
CHUNK = 512  # tokens of one calibration sequence, llama.cpp's own choice


@dataclass(frozen=True)
class Imatrix:
    """By GGUF tensor name: sums of squared inputs `[columns]` and the number of tokens they were summed over."""

    sums: Mapping[str, NDArray[np.float32]]
    counts: Mapping[str, int]
    chunks: int
    chunk_size: int
    datasets: tuple[str, ...] = ()

    def means(self) -> dict[str, NDArray[np.float32]]:
        """Mean squared inputs `[columns]`: what quantizers weigh each column with."""
        return {name: sums / np.float32(max(self.counts[name], 1)) for name, sums in self.sums.items()}


class Moments(Mapping[str, NDArray[np.float32]]):
    """By Hugging Face name, mean outer products `[columns, columns]` of what enters each matrix, mapped from files."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return np.load(self._files[name], mmap_mode="r")

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def chunks_of(ids: Sequence[int], *, size: int = CHUNK) -> list[list[int]]:
    """Token ids cut into sequences of `size`; a shorter rest is left out, unless it is all there is.

    Raises:
        InputError: there are fewer than two ids.
    """
    if len(ids) < 2:
        raise InputError(f"expected calibration text of at least two tokens, found {len(ids)}; give more text")
    cut = [list(ids[at : at + size]) for at in range(0, len(ids), size)]
    return [chunk for chunk in cut if len(chunk) == size] or cut


def collect_imatrix(
    path: Path, chunks: Sequence[Sequence[int]], *, threads: int, dataset: str = "", moments: Path | None = None
) -> Imatrix:
    """Run calibration `chunks` through the GGUF `path` (F16, or Q8_0 where that is too large) and sum what enters.

    `moments` is a folder for the mean outer products too, one `.npy` file for each matrix of a layer
    (those with one input share theirs); read them with `read_moments`.

    Raises:
        InputError: the file or the ids do not fit, see `matmul_inputs`.
        StageError: llama.cpp failed.
    """
    sums: dict[str, NDArray[np.float64]] = {}
    counts: dict[str, int] = {}
    outer: dict[str, NDArray[np.float32]] = {}
    wide = {n for n, t in read_gguf(path).tensors.items() if len(t.shape) == 2 and n.startswith("blk.")}

    def take(name: str, x: NDArray[np.float32]) -> None:
        columns = x.shape[1]
        if name not in sums:
            sums[name], counts[name] = np.zeros(columns), 0
            if moments is not None and name in wide:
                place, shape = moments / f"{name}.npy", (columns, columns)
                outer[name] = np.lib.format.open_memmap(place, mode="w+", dtype=np.float32, shape=shape)
        sums[name] += np.einsum("ij,ij->j", x, x, dtype=np.float64)
        counts[name] += len(x)
        if name in outer:
            outer[name] += x.T @ x

    if moments is not None:
        moments.mkdir(parents=True, exist_ok=True)
    taken_as = matmul_inputs(path, chunks, threads=threads, take=take)
    for name, sum_of in outer.items():
        sum_of /= np.float32(counts[name])
        sum_of.flush()
    for name, first in taken_as.items():
        if first in outer and name != first and moments is not None:
            os.link(moments / f"{first}.npy", moments / f"{name}.npy")
    return Imatrix(
        sums={name: sums[first].astype(np.float32) for name, first in sorted(taken_as.items())},
        counts={name: counts[first] for name, first in sorted(taken_as.items())},
        chunks=len(chunks),
        chunk_size=max(map(len, chunks)),
        datasets=(dataset,) if dataset else (),
    )


def write_imatrix(imatrix: Imatrix, out: Path) -> None:
    """Write llama.cpp's GGUF form of an importance matrix, whole or not at all."""
    with atomic_path(out) as temporary:
        writer = gguf.GGUFWriter(temporary, "")  # it belongs to no architecture
        writer.add_type(gguf.GGUFType.IMATRIX)
        writer.add_array(gguf.Keys.IMatrix.DATASETS, list(imatrix.datasets) or [""])
        writer.add_uint32(gguf.Keys.IMatrix.CHUNK_COUNT, imatrix.chunks)
        writer.add_uint32(gguf.Keys.IMatrix.CHUNK_SIZE, imatrix.chunk_size)
        for name, sums in imatrix.sums.items():
            writer.add_tensor(f"{name}{SUMS}", sums.reshape(1, -1).astype(np.float32))
            writer.add_tensor(f"{name}{COUNTS}", np.array([[imatrix.counts[name]]], dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def read_imatrix(path: Path) -> Imatrix:
    """Read an importance matrix that this project or llama.cpp wrote.

    Raises:
        InputError: it is no whole GGUF, no imatrix, or sums and counts do not belong together.
    """
    file = read_gguf(path)
    if file.fields.get("general.type") != "imatrix":
        found = file.fields.get("general.type", "none")
        raise InputError(f"expected an imatrix in {path}, found a GGUF of type {found}; compute one with llama-imatrix")
    sums, counts = {}, {}
    for name in sorted(n.removesuffix(SUMS) for n in file.tensors if n.endswith(SUMS)):
        pair = [file.tensors.get(f"{name}{suffix}") for suffix in (SUMS, COUNTS)]
        if any(t is None or t.type_id != 0 for t in pair) or pair[1].shape[0] != 1 or len(_values(path, pair[1])) != 1:
            raise InputError(f"{path}: expected float32 sums and one count of {name!r}, found others; compute it again")
        sums[name], count = (_values(path, tensor) for tensor in pair)
        counts[name] = int(count[0])
        if not np.isfinite(sums[name]).all() or (sums[name] < 0).any() or counts[name] < 1:
            raise InputError(f"{path}: expected finite sums of squares of {name!r}, found others; compute it again")
    if not sums:
        raise InputError(f"{path} is an imatrix without entries; compute it again")
    return Imatrix(
        sums=sums,
        counts=counts,
        chunks=int(file.fields.get(gguf.Keys.IMatrix.CHUNK_COUNT, 0)),
        chunk_size=int(file.fields.get(gguf.Keys.IMatrix.CHUNK_SIZE, 0)),
        datasets=tuple(text for text in file.fields.get(gguf.Keys.IMatrix.DATASETS, ()) if text),
    )


def hugging_face_names(path: Path, *, model: Path) -> dict[str, str]:
    """GGUF name by Hugging Face name, of the tensors of the folder `model` that the GGUF `path` holds under one name.

    A tied head has the name of the embedding.
    """
    file = read_gguf(path)
    architecture = file.fields["general.architecture"]
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, file.fields[f"{architecture}.block_count"])
    found = {name: names.get_name(name, try_suffixes=(".weight", ".bias")) for name in stored_tensors(model)}
    known = {name: target for name, target in found.items() if target in file.tensors}
    if HEAD not in known and EMBEDDING in known:
        known[HEAD] = known[EMBEDDING]
    return known


def importances_of(imatrix: Imatrix, names: Mapping[str, str]) -> dict[str, NDArray[np.float32]]:
    """Mean squared inputs `[columns]` by Hugging Face name (of `hugging_face_names`), for `CodeSet`."""
    means = imatrix.means()
    return {name: means[target] for name, target in names.items() if target in means}


def read_moments(folder: Path, *, names: Mapping[str, str]) -> Moments:
    """The mean outer products that `collect_imatrix` left in `folder`, by Hugging Face name."""
    places = {name: folder / f"{target}.npy" for name, target in names.items()}
    return Moments({name: place for name, place in places.items() if place.is_file()})


def _values(path: Path, tensor: Any) -> NDArray[np.float32]:
    return np.fromfile(path, dtype="<f4", count=tensor.size // 4, offset=tensor.start)
