"""A genai folder's graph run by plain onnxruntime: padded batches, and values inside of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from edgedistill.core.errors import InputError
from edgedistill.core.files import inside, read_json

PAST = "past_key_values."
ELEMENTS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
PAD = 0  # any id: what a mask hides may not count


def entry_of(folder: Path) -> Path:
    """The graph's file as genai_config.json names it.

    Raises:
        InputError: it names none, or one outside the folder.
    """
    try:
        return inside(folder, str(read_json(folder / "genai_config.json")["model"]["decoder"]["filename"]))
    except (KeyError, TypeError):
        raise InputError(
            f"expected model.decoder.filename in {folder / 'genai_config.json'}, found none; export the model again"
        ) from None


def array_of(tensor: onnx.TensorProto, *, folder: Path) -> np.ndarray:
    """A tensor's values, external ones mapped from its file, whose places `check_onnx` has looked at.

    The onnx package itself refuses files with several hard links, which a release folder's have.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    place, shape = inside(folder, entries["location"]), tuple(tensor.dims)
    return np.memmap(place, dtype, "r", offset=int(entries.get("offset", 0)), shape=shape)


def open_graph(file: Path, *, threads: int, outputs: Sequence[str] = ()) -> ort.InferenceSession:
    """The graph on the CPU; `outputs` are inner values that it gives out besides its own.

    Raises:
        InputError: onnxruntime refuses it.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    source: str | bytes = str(file)
    if outputs:
        model = onnx.load_model(str(file), load_external_data=False)
        known = {output.name for output in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs if name not in known)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(file.parent))
        source = model.SerializeToString()
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as e:  # onnxruntime's own classes share no public base
        cause = str(e).strip().rpartition(" : FAIL : ")[2].splitlines()[0][:300]
        raise InputError(f"onnxruntime cannot run {file}: {cause}; export the model again") from None


def run_graph(
    session: ort.InferenceSession,
    batch: Sequence[Sequence[int]],
    *,
    outputs: Sequence[str],
    head_size: int,
    side: Literal["left", "right"] = "right",
) -> list[np.ndarray]:
    """Run unequal sequences as one fresh batch padded on `side`; each output is `[batch, longest, …]`."""
    width = max(map(len, batch))
    ids = np.full((len(batch), width), PAD, np.int64)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(batch):
        place = slice(width - len(tokens), width) if side == "left" else slice(0, len(tokens))
        ids[row, place], mask[row, place] = tokens, 1
    feeds: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    for value in session.get_inputs():
        if value.name == "position_ids":
            feeds[value.name] = np.maximum(mask.cumsum(axis=1) - 1, 0)
        elif value.name.startswith(PAST):
            heads, wide = (size if isinstance(size, int) else head_size for size in (value.shape[1], value.shape[3]))
            feeds[value.name] = np.zeros((len(batch), heads, 0, wide), ELEMENTS[value.type])
    known = {value.name for value in session.get_inputs()}
    return session.run(list(outputs), {name: value for name, value in feeds.items() if name in known})


def padded_logits(
    folder: Path, batch: Sequence[Sequence[int]], *, threads: int
) -> tuple[dict[str, list[np.ndarray]], tuple[str, ...]]:
    """Logits `[len(ids), vocab]` of each sequence out of one padded batch, by the side of the padding.

    The second value names the sides that the graph cannot be padded on: without `position_ids` its fused attention
    counts positions from the first column.
    """
    session = open_graph(entry_of(folder), threads=threads)
    sides = ("right", "left") if any(i.name == "position_ids" for i in session.get_inputs()) else ("right",)
    found = {}
    for side in sides:
        rows = run_graph(session, batch, outputs=["logits"], head_size=head_size(folder), side=side)[0]
        starts = [rows.shape[1] - len(ids) if side == "left" else 0 for ids in batch]
        found[side] = [
            row[start : start + len(ids)].astype(np.float32)
            for row, start, ids in zip(rows, starts, batch, strict=True)
        ]
    return found, tuple(side for side in ("right", "left") if side not in sides)


def head_size(folder: Path) -> int:
    """Width of a head, as genai_config.json says; the graph itself leaves it open.

    Raises:
        InputError: it says nothing.
    """
    try:
        return int(read_json(folder / "genai_config.json")["model"]["decoder"]["head_size"])
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"expected model.decoder.head_size in {folder / 'genai_config.json'}, found none; export the model again"
        ) from None
