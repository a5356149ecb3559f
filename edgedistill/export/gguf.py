"""Hugging Face folder to GGUF, in half precision or from a code set, tensor by tensor.

Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Matrices become F16 or blocks of codes,
vectors F32; a tied head is left out. What differs from one family to another stands in `architectures`.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

import gguf
import numpy as np

from edgedistill.core.errors import InputError
from edgedistill.core.files import atomic_path
from edgedistill.export.architectures import ModelShape, expected_shapes, read_shape
from edgedistill.export.gguf_keys import name_for_llama_cpp, write_shape, write_vocabulary
from edgedistill.export.rope import factor_tensors
from edgedistill.export.vocabulary import read_vocabulary
from edgedistill.export.weights import StoredTensor, stored_tensors
from edgedistill.quant.blocks import join_blocks
from edgedistill.quant.codes import CodeSet
from edgedistill.quant.grids import Grid, grid_named
from edgedistill.quant.plan import HEAD
from edgedistill.runtimes.sources import check_folder


def export_gguf_f16(*, model: Path, out: Path, name: str | None = None) -> None:
    """Write a Hugging Face folder of a known architecture as one F16 GGUF file; `name` becomes `general.name`.

    Raises:
        InputError: the architecture, rope type, activation, tokenizer or a tensor is not what this export knows.
    """
    _export(model=model, out=out, name=name, codes=None)


def export_gguf_codes(*, model: Path, out: Path, codes: CodeSet, name: str | None = None) -> int:
    """Write a Hugging Face folder of a known architecture as one GGUF file whose matrices are those of a code set.

    A matrix whose width is no multiple of a block stays F16, or where only Q6_K's blocks are too wide becomes Q8_0;
    returned is how many did.

    Raises:
        InputError: as `export_gguf_f16`.
    """
    return _export(model=model, out=out, name=name, codes=codes)


def _export(*, model: Path, out: Path, name: str | None, codes: CodeSet | None) -> int:
    check_folder(model)
    shape = read_shape(model)
    vocabulary = read_vocabulary(model=model, rows=shape.vocab)
    tensors = _named_tensors(shape=shape, stored=stored_tensors(model), source=model)
    factors = factor_tensors(shape.rope, head_dim=shape.head_dim)
    grids = {target: _grid(tensor, codes) for target, tensor in tensors.items()}
    name = name_for_llama_cpp(name or model.name, strips_right=vocabulary.kind.strips_right)
    with atomic_path(out) as temporary:
        writer = gguf.GGUFWriter(temporary, shape.architecture.name)
        # the converter counts the tables of factors too
        count = sum(prod(tensor.shape) for tensor in (*tensors.values(), *factors.values()))
        write_shape(writer, shape=shape, name=name, parameters=count)
        writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{codes.plan.layers if codes is not None else 'F16'}"])
        write_vocabulary(writer, vocabulary=vocabulary)
        for target, table in factors.items():
            writer.add_tensor_info(target, table.shape, table.dtype, table.nbytes)
        for target, tensor in tensors.items():
            _announce(writer, target, tensor, grid=grids[target])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for table in factors.values():
            writer.write_tensor_data(table)
        for target, tensor in tensors.items():
            grid = grids[target]
            if codes is None or grid is None:
                data = _converted(target, tensor, shape=shape)
            else:
                data = _encoded(target, tensor, shape=shape, codes=codes)
            writer.write_tensor_data(data)
        writer.close()
    return 0 if codes is None else codes.plan.fallbacks({tensor.name: tensor.shape for tensor in tensors.values()})


def _named_tensors(*, shape: ModelShape, stored: dict[str, StoredTensor], source: Path) -> dict[str, StoredTensor]:
    """Stored tensors under their GGUF names, checked against config.json."""
    expected = expected_shapes(shape)
    surplus = sorted(n for n in stored if n not in expected and n != HEAD and not n.endswith("rotary_emb.inv_freq"))
    missing = sorted(expected.keys() - stored.keys())
    if surplus or missing:
        what = f"{missing[0]!r} is missing" if missing else f"{surplus[0]!r} is not one of {shape.architecture.family}"
        raise InputError(
            f"expected in {source} the {len(expected)} tensors that its config.json describes, found that {what}"
        )
    for name, size in expected.items():
        if stored[name].shape != size:
            raise InputError(f"expected {name!r} in {source} of shape {size}, found {stored[name].shape}")
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[shape.architecture.name], shape.layers)
    return {names.get_name(name, try_suffixes=(".weight", ".bias")): stored[name] for name in expected}


def _written_dtype(tensor: StoredTensor) -> np.dtype:
    return np.dtype(np.float16 if len(tensor.shape) > 1 else np.float32)


def _announce(writer: gguf.GGUFWriter, name: str, tensor: StoredTensor, *, grid: Grid | None) -> None:
    if grid is None:
        dtype = _written_dtype(tensor)
        writer.add_tensor_info(name, tensor.shape, dtype, prod(tensor.shape) * dtype.itemsize)
        return
    width = gguf.quant_shape_to_byte_shape(tensor.shape, grid.kind)
    writer.add_tensor_info(name, width, np.dtype(np.uint8), prod(width), raw_dtype=grid.kind)


def _converted(name: str, tensor: StoredTensor, *, shape: ModelShape) -> np.ndarray:
    with np.errstate(over="ignore"):  # refused below with the tensor's name
        data = tensor.read().astype(_written_dtype(tensor), copy=False)
    if not np.isfinite(data).all():
        raise InputError(f"expected finite values that float16 can hold in {tensor.path}, found others in {name!r}")
    if tensor.name.endswith("norm.weight"):
        data = data + np.float32(shape.architecture.norm_offset)
    return np.ascontiguousarray(_rotated(name, data, shape=shape))


def _grid(tensor: StoredTensor, codes: CodeSet | None) -> Grid | None:
    name = None if codes is None else codes.plan.grid(tensor.name, tensor.shape)
    return None if name is None else grid_named(name)


def _encoded(name: str, tensor: StoredTensor, *, shape: ModelShape, codes: CodeSet) -> np.ndarray:
    """The matrix's blocks as bytes `[rows, bytes]`; each row has its own, so that rows can change places."""
    try:
        blocks = codes.blocks(tensor.name, tensor.read())
    except ValueError as e:
        raise InputError(f"{tensor.path}: {tensor.name!r} cannot be encoded: {e}") from None
    stored = join_blocks(blocks)
    return np.ascontiguousarray(_rotated(name, stored.reshape(len(stored), -1), shape=shape))


def _rotated(name: str, data: np.ndarray, *, shape: ModelShape) -> np.ndarray:
    if not shape.architecture.permuted:
        return data
    if ".attn_q." in name:
        return to_neighbour_rotation(data, heads=shape.heads)
    return to_neighbour_rotation(data, heads=shape.kv_heads) if ".attn_k." in name else data


def to_neighbour_rotation(data: np.ndarray, *, heads: int) -> np.ndarray:
    """Reorder the rows of a query or key weight or bias, `[heads * head_dim, ...]`.

    Rows i and i + head_dim/2, rotated together by transformers, become rows 2i and 2i + 1.
    """
    half = data.shape[0] // heads // 2
    split = data.reshape(heads, 2, half, *data.shape[1:])
    return np.moveaxis(split, 1, 2).reshape(data.shape)
