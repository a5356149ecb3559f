"""The shared grids: ggml's own codes, taken apart; what they hold exactly, and what they refuse."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from edgedistill.quant.blocks import GRIDS, decode_blocks, encode_blocks


def matrix(rows: int = 6, columns: int = 96) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_codes_mean_what_ggml_means(bits: int) -> None:
    weights = matrix()
    ggml = gguf.quants.dequantize(gguf.quants.quantize(weights, GRIDS[bits]), GRIDS[bits])
    assert np.array_equal(decode_blocks(encode_blocks(weights, bits=bits)), ggml)


def test_weights_on_the_4_bit_grid_come_back_exactly() -> None:
    rng = np.random.default_rng(1)
    codes = rng.integers(-8, 8, size=(4, 3, 32))
    codes[..., 0] = -8
    scales = 2.0 ** rng.integers(-6, 3, size=(4, 3, 1))
    weights = (codes * scales).reshape(4, 96).astype(np.float32)
    blocks = encode_blocks(weights, bits=4)
    assert np.array_equal(blocks.codes, codes) and np.array_equal(decode_blocks(blocks), weights)


def test_8_bits_err_by_half_a_step_at_most() -> None:
    weights = matrix()
    blocks = encode_blocks(weights, bits=8)
    error = np.abs(decode_blocks(blocks) - weights).reshape(blocks.codes.shape)
    assert (error <= blocks.scales[..., None] * 0.57).all()  # half a step, and the scale's own rounding
    assert np.abs(blocks.codes).max() == 127


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_of_zeros_stay_zero(bits: int) -> None:
    weights = matrix()
    weights[2] = 0
    decoded = decode_blocks(encode_blocks(weights, bits=bits))
    assert not decoded[2].any() and np.isfinite(decoded).all()


def test_refuses_what_the_grid_cannot_hold() -> None:
    with pytest.raises(ValueError, match="expected 4 or 8 bits, found 5"):
        encode_blocks(matrix(), bits=5)
    with pytest.raises(ValueError, match="expected columns in multiples of 32, found 40"):
        encode_blocks(matrix(columns=40), bits=8)
    weights = matrix()
    weights[1, 1] = np.nan
    with pytest.raises(ValueError, match="expected finite weights"):
        encode_blocks(weights, bits=4)
