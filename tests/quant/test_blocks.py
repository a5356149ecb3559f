"""The shared grids: ggml's own codes, taken apart and put together; what they hold exactly, and what they refuse."""

from __future__ import annotations

import ctypes
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest
import torch

from edgedistill.quant.blocks import decode_blocks, encode_blocks, join_blocks, split_blocks
from edgedistill.quant.fake import fake_quantize, round_activations
from edgedistill.quant.grids import GRIDS
from edgedistill.quant.search import search_blocks, weighted_error

EVERY = sorted(GRIDS)
GGML_SEARCHES = {"Q6_K", "IQ4_NL"}  # its encoders of these are searches of its own


def matrix(rows: int = 6, columns: int = 96, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def hard_matrix() -> np.ndarray:
    """Zeros, equal largest weights of both signs, subnormal and huge values, blocks of one value."""
    weights = matrix(9, 512)
    weights[0] = 0
    weights[1, :32] = [1.5, -1.5] * 16
    weights[2, :32] = -0.25
    weights[3, 32:64] *= 1e-7
    weights[4, 32:64] *= 1e4
    weights[5, :16] = 0
    weights[6] = np.abs(weights[6]) + 3
    weights[7, 64:96] *= 1e-39
    return weights


def quantized_by_ggml(weights: np.ndarray, kind: int, importance: np.ndarray | None = None) -> np.ndarray:
    """ggml's own bytes `[rows, blocks, bytes]` of `weights`, as the C library makes them."""
    (path,) = (Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.so")
    function = ctypes.CDLL(str(path)).ggml_quantize_chunk
    floats = ctypes.POINTER(ctypes.c_float)
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_int, floats, ctypes.c_void_p, *[ctypes.c_int64] * 3, floats]
    rows, columns = weights.shape
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    out = np.empty(rows * columns // block * size, dtype=np.uint8)
    given = None if importance is None else importance.ctypes.data_as(floats)
    written = function(kind, weights.ctypes.data_as(floats), out.ctypes.data, 0, rows, columns, given)
    assert written == out.size
    return out.reshape(rows, columns // block, size)


@pytest.mark.parametrize("grid", sorted(GRIDS.keys() - GGML_SEARCHES))
def test_the_bytes_are_ggml_s(grid: str) -> None:
    weights = matrix(64, 512, seed=3)
    assert np.array_equal(join_blocks(encode_blocks(weights, grid=grid)), quantized_by_ggml(weights, GRIDS[grid].kind))


@pytest.mark.parametrize("grid", EVERY)
def test_bytes_taken_apart_go_together_again_and_mean_what_ggml_means(grid: str) -> None:
    assert GRIDS[grid].bytes == len(_empty(grid)) == gguf.GGML_QUANT_SIZES[GRIDS[grid].kind][1]
    stored = np.random.default_rng(2).integers(0, 256, size=(4, 3, GRIDS[grid].bytes), dtype=np.uint8)
    stored[..., -1 if grid == "Q6_K" else 1] &= 0x7B  # finite scales
    if GRIDS[grid].has_minimum:
        stored[..., 3] &= 0x7B
    blocks = split_blocks(stored, grid=grid)
    assert np.array_equal(join_blocks(blocks), stored)
    meant = gguf.quants.dequantize(stored.reshape(4, -1), GRIDS[grid].kind)
    assert np.array_equal(decode_blocks(blocks), meant)


def _empty(grid: str) -> np.ndarray:
    return join_blocks(encode_blocks(np.zeros((1, GRIDS[grid].block)), grid=grid))[0, 0]


def test_weights_on_the_4_bit_grid_come_back_exactly() -> None:
    rng = np.random.default_rng(1)
    codes = rng.integers(-8, 8, size=(4, 3, 32))
    codes[..., 0] = -8
    scales = 2.0 ** rng.integers(-6, 3, size=(4, 3, 1))
    weights = (codes * scales).reshape(4, 96).astype(np.float32)
    blocks = encode_blocks(weights, grid="Q4_0")
    assert np.array_equal(blocks.codes, codes) and np.array_equal(decode_blocks(blocks), weights)


def test_8_bits_err_by_half_a_step_at_most() -> None:
    weights = matrix()
    blocks = encode_blocks(weights, grid="Q8_0")
    error = np.abs(decode_blocks(blocks) - weights).reshape(blocks.codes.shape)
    assert (error <= blocks.scales[..., None] * 0.57).all()  # half a step, and the scale's own rounding
    assert np.abs(blocks.codes).max() == 127


@pytest.mark.parametrize("encode", [encode_blocks, search_blocks])
@pytest.mark.parametrize("grid", EVERY)
def test_blocks_of_zeros_stay_zero(grid: str, encode) -> None:
    weights = matrix(columns=512)
    weights[2] = 0
    decoded = decode_blocks(encode(weights, grid=grid))
    assert not decoded[2].any() and np.isfinite(decoded).all()


@pytest.mark.parametrize("encode", [encode_blocks, search_blocks])
def test_refuses_what_the_grid_cannot_hold(encode) -> None:
    with pytest.raises(ValueError, match=r"expected a grid of Q4_0, .*, Q6_K, IQ4_NL, found 'Q3_K'"):
        encode(matrix(), grid="Q3_K")
    with pytest.raises(ValueError, match="expected columns in multiples of 32, found 40"):
        encode(matrix(columns=40), grid="Q8_0")
    with pytest.raises(ValueError, match="expected columns in multiples of 256, found 320"):
        encode(matrix(columns=320), grid="Q6_K")
    weights = matrix()
    weights[1, 1] = np.nan
    with pytest.raises(ValueError, match="expected finite weights"):
        encode(weights, grid="Q4_0")


@pytest.mark.parametrize("grid", EVERY)
def test_training_sees_the_stored_block_bit_for_bit(grid: str) -> None:
    for weights in (matrix(64, 512, seed=3), hard_matrix()):
        seen = fake_quantize(torch.from_numpy(weights), grid=grid).numpy()
        assert np.array_equal(seen, decode_blocks(encode_blocks(weights, grid=grid)))


def test_the_gradient_passes_straight_through() -> None:
    weight = torch.from_numpy(matrix()).requires_grad_()
    wanted = torch.from_numpy(matrix(seed=1))
    (fake_quantize(weight, grid="Q4_0") * wanted).sum().backward()
    assert torch.equal(weight.grad, wanted)
    x = torch.from_numpy(matrix().reshape(2, 3, 96))
    assert round_activations(x).shape == x.shape and 0 < (round_activations(x) - x).abs().max() < 0.02
    with pytest.raises(ValueError, match="expected columns in multiples of 32, found 40"):
        fake_quantize(torch.zeros(2, 40), grid="Q4_0")


@pytest.mark.parametrize("grid", EVERY)
def test_a_searched_block_is_never_worse_and_4_bits_get_better(grid: str) -> None:
    for weights in (matrix(64, 512, seed=3), hard_matrix()):
        plain, found = encode_blocks(weights, grid=grid), search_blocks(weights, grid=grid)
        squares = [np.square(weights - decode_blocks(b), dtype=np.float64) for b in (plain, found)]
        errors = [square.reshape(plain.codes.shape).sum(-1) for square in squares]
        assert (errors[1] <= errors[0] * (1 + 1e-5)).all()
        assert found.codes.min() >= GRIDS[grid].low and found.codes.max() <= GRIDS[grid].high
    weights = matrix(64, 512, seed=3)
    gain = 1 - weighted_error(weights, search_blocks(weights, grid=grid)) / weighted_error(
        weights, encode_blocks(weights, grid=grid)
    )
    assert gain > {"Q4_0": 0.1, "Q4_1": 0.2, "Q5_0": 0.1, "Q5_1": 0.2, "Q8_0": 0.1, "Q6_K": 0.1, "IQ4_NL": 0.1}[grid]


@pytest.mark.parametrize("grid", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q6_K", "IQ4_NL"])
@pytest.mark.parametrize("tails", [None, 4])
def test_a_search_by_importance_beats_ggml_s_own(grid: str, tails: int | None) -> None:
    """On weights of an even spread, and on some with the long tails that trained ones have."""
    source = np.random.default_rng(5)
    weights = source.normal(size=(64, 512)) if tails is None else source.standard_t(tails, size=(64, 512))
    weights = (weights * 0.03).astype(np.float32)
    importance = np.exp(np.random.default_rng(6).normal(size=512)).astype(np.float32)
    ours = weighted_error(weights, search_blocks(weights, grid=grid, importance=importance), importance=importance)
    stored = quantized_by_ggml(weights, GRIDS[grid].kind, importance)
    theirs = weighted_error(weights, split_blocks(stored, grid=grid), importance=importance)
    assert ours < theirs


def test_importance_is_one_number_a_column() -> None:
    for wrong in (np.ones(95), -np.ones(96), np.full(96, np.nan)):
        with pytest.raises(ValueError, match="expected 96 finite importances of at least 0"):
            search_blocks(matrix(), grid="Q4_0", importance=wrong)


def test_a_block_that_nothing_weighs_keeps_the_reference_s_codes() -> None:
    importance = np.ones(96)
    importance[32:64] = 0
    found, plain = (
        search_blocks(matrix(), grid="Q4_1", importance=importance),
        encode_blocks(matrix(), grid="Q4_1"),
    )
    assert np.array_equal(found.codes[:, 1], plain.codes[:, 1])
