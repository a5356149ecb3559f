"""Projection: what it predicts on cells whose law is known, what its band holds, and what it refuses."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from edgedistill.bench.projection import Cell, fit, half_width, log_seconds, project, transfer_residuals
from edgedistill.bench.target_projection import MEMORY_SHARE, cells_of, project_target
from edgedistill.core.errors import InputError
from edgedistill.core.target import all_targets, load_target

BITS = {"q4_0": 4.5, "q6_k": 6.5625, "q8_0": 8.5}
# Seconds for 1e9 weights of a quant, once the bytes are there: 6-bit codes cost most to unpack.
KERNEL = {"q4_0": 0.006, "q6_k": 0.016, "q8_0": 0.004}
MODELS = {"small": 0.5e9, "middle": 1.5e9, "wide": 2.2e9, "large": 4e9}
SLOWNESS = {"alpha": 1.0, "beta": 2.5, "gamma": 0.6, "delta": 1.4}
ASKED = {"device": "alpha", "engine": "llama.cpp", "quant": "q4_0", "read_bytes": 1.7e9, "weights": 3e9}


def seconds(device: str, quant: str, weights: float) -> float:
    work = 0.004 + weights / 1e9 * KERNEL[quant] + weights * BITS[quant] / 8 / 1e9 * 0.01
    return SLOWNESS[device] * work


def law(*, noise: float = 0.0, seed: int = 0, devices: tuple[str, ...] = tuple(SLOWNESS)) -> list[Cell]:
    """Every model at every quant on every device, by the law above, with log-normal noise."""
    rng = random.Random(seed)
    return [
        Cell(device, "llama.cpp", "cpu", model, quant, seconds(device, quant, weights) * math.exp(rng.gauss(0, noise)),
             read_bytes=weights * BITS[quant] / 8, weights=weights)
        for device in devices for model, weights in MODELS.items() for quant in BITS
    ]  # fmt: skip


@pytest.mark.parametrize("quant", BITS)
@pytest.mark.parametrize("device", SLOWNESS)
def test_a_known_law_is_found_from_one_anchor_per_quant(device: str, quant: str) -> None:
    cells = [cell for cell in law() if cell.device != device or cell.model == "middle"]
    found = project(
        cells, device=device, engine="llama.cpp", quant=quant, weights=3e9, read_bytes=3e9 * BITS[quant] / 8
    )
    assert found.state == "fits" and found.anchors == 1
    assert found.tokens_per_s == pytest.approx(1 / seconds(device, quant, 3e9), rel=0.02)
    assert found.low < found.tokens_per_s < found.high


def test_a_slower_device_is_slower_by_its_factor() -> None:
    once = project(law(), **ASKED)
    halved = [replace(c, seconds_per_token=2 * c.seconds_per_token) if c.device == "alpha" else c for c in law()]
    assert project(halved, **ASKED).tokens_per_s == pytest.approx(once.tokens_per_s / 2, rel=1e-6)


def test_more_bytes_and_a_longer_cache_take_longer() -> None:
    cells = law(noise=0.05)
    speeds = [project(cells, **ASKED | {"read_bytes": n}).tokens_per_s for n in (1e9, 2e9, 4e9)]
    assert speeds == sorted(speeds, reverse=True) and len(set(speeds)) == 3
    assert project(cells, **ASKED, kv_bytes=1e9).tokens_per_s < project(cells, **ASKED).tokens_per_s


def test_the_band_widens_with_its_level_and_with_the_noise() -> None:
    cells = law(noise=0.08)
    bands = [project(cells, **ASKED, level=level) for level in (0.5, 0.8, 0.9, 0.95)]
    assert [b.low for b in bands] == sorted((b.low for b in bands), reverse=True)
    assert [b.high for b in bands] == sorted(b.high for b in bands)
    assert bands[0].high < bands[-1].high
    quiet, loud = project(law(noise=0.01), **ASKED), project(law(noise=0.2), **ASKED)
    assert quiet.high / quiet.low < loud.high / loud.low


def test_the_band_holds_new_cells_as_often_as_it_says() -> None:
    """Devices drawn anew with 8 % noise, one anchor per quant: 90 % bands hold at least 85 % of the true cells."""
    held = []
    for seed in range(6):
        cells = law(noise=0.08, seed=seed)
        train = [cell for cell in cells if cell.device != "delta" or cell.model == "middle"]
        asked = [cell for cell in cells if cell.device == "delta" and cell.model != "middle"]
        half = half_width(transfer_residuals(train), level=0.9, engine="llama.cpp")
        predicted = log_seconds(fit(train), asked)
        held += [bool(abs(math.log(c.seconds_per_token) - p) <= half) for c, p in zip(asked, predicted, strict=True)]
    assert len(held) == 54
    assert 0.85 <= statistics.mean(held) < 1.0


def test_a_cell_s_own_speed_is_not_looked_at() -> None:
    train = law(noise=0.05, devices=("alpha", "beta"))
    asked = [replace(cell, seconds_per_token=factor) for cell in train[:1] for factor in (1e-6, 1.0, 1e6)]
    assert len(set(log_seconds(fit(train), asked))) == 1


def test_residuals_are_of_devices_left_with_one_model() -> None:
    cells = law(noise=0.05)
    found = transfer_residuals(cells)
    assert {device: len(errors) for device, errors in found.items()} == {device: 4 * 3 * 3 for device in SLOWNESS}
    # By hand: beta keeps "large" only.
    anchors = [c for c in cells if c.device != "beta" or c.model == "large"]
    held = [c for c in cells if c.device == "beta" and c.model != "large"]
    by_hand = [
        abs(math.log(c.seconds_per_token) - p) for c, p in zip(held, log_seconds(fit(anchors), held), strict=True)
    ]
    assert found["beta"][: len(held)] == pytest.approx(by_hand)
    assert transfer_residuals([c for c in cells if c.model == "small"]) == {}


def test_the_half_width_is_the_worst_device_s_conformal_quantile() -> None:
    tens = [float(i) for i in range(1, 11)]
    assert half_width({"a": tens}, level=0.9, engine="e") == 10.0
    assert half_width({"a": tens}, level=0.5, engine="e") == 6.0
    assert half_width({"a": tens, "b": [2 * x for x in tens]}, level=0.5, engine="e") == 12.0
    # Too few by themselves, enough together; a device with too few beside one with enough does not count.
    assert half_width({"a": tens[:5], "b": tens[5:]}, level=0.9, engine="e") == 10.0
    assert half_width({"a": tens, "b": [99.0]}, level=0.9, engine="e") == 10.0
    with pytest.raises(InputError, match="at least 9 leave-one-out residuals for a 90 % band of e, found 8"):
        half_width({"a": tens[:8]}, level=0.9, engine="e")


def test_what_does_not_fit_has_no_speed() -> None:
    found = project(law(), **ASKED, memory_bytes=1.6e9)
    assert (found.state, found.tokens_per_s, found.low, found.high) == ("does-not-fit", None, None, None)
    assert (found.needed_bytes, found.memory_bytes) == (1.7e9, 1.6e9)
    assert project(law(), **ASKED, memory_bytes=1.7e9).state == "fits"
    assert project(law(), **ASKED, kv_bytes=1e6, memory_bytes=1.7e9).state == "does-not-fit"
    # A device without anchors can still be told to be too small.
    assert project(law(), **ASKED | {"device": "omega"}, memory_bytes=1e9).state == "does-not-fit"


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"engine": "lama.cpp"}, "the engine of an anchor of alpha, found 'lama.cpp'; did you mean 'llama.cpp'?"),
        ({"quant": "q4_1"}, "the quant of an anchor of llama.cpp on alpha, found 'q4_1'; did you mean 'q4_0'?"),
        ({"quant": "zz"}, "found 'zz'; known: q4_0, q6_k, q8_0"),
        ({"backend": "npu"}, "the backend of an anchor of llama.cpp on alpha, found 'npu'; did you mean 'cpu'?"),
        ({"device": "omega"}, "expected anchors of omega, found none; add [[anchors]] to its target"),
        ({"read_bytes": 0}, "expected positive bytes per token"),
        ({"weights": -1.0}, "expected positive bytes per token"),
        ({"head_weights": 4e9}, "head weights below all weights, found 1.7e+09 bytes, 0 KV bytes, 4e+09 of"),
        ({"level": 1.0}, "expected a level between 0 and 1, found 1"),
        ({"quant": "q4_1", "memory_bytes": 1.0}, "found 'q4_1'; did you mean 'q4_0'?"),
    ],
)
def test_what_was_never_seen_is_refused_in_one_sentence(changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as e:
        project(law(), **ASKED | changed)
    assert sentence in str(e.value) and "\n" not in str(e.value)


def test_cells_of_another_engine_take_no_part() -> None:
    strange = [replace(cell, engine="other", seconds_per_token=1.0) for cell in law()]
    assert project([*law(), *strange], **ASKED) == project(law(), **ASKED)


def test_without_the_count_of_weights_bytes_serve_alone() -> None:
    stripped = [replace(cell, weights=None) for cell in law(noise=0.03)]
    blind = {name: value for name, value in ASKED.items() if name != "weights"}
    assert project(law(noise=0.03), **blind) == project(stripped, **blind)
    # Anchors that lack the count cannot be set beside a model that has it.
    assert project(stripped, **ASKED) == project(stripped, **blind)


def test_the_output_matrix_is_charged_at_its_own_type() -> None:
    """Half of the weights in llama.cpp's Q6_K head: slower than all in Q4_0, the bytes being equal."""
    heavy = project(law(), **ASKED, head_weights=1.5e9).tokens_per_s
    assert heavy < 0.9 * project(law(), **ASKED).tokens_per_s
    elsewhere = [replace(cell, engine="other") for cell in law()]
    same = [project(elsewhere, **ASKED | {"engine": "other", "head_weights": h}).tokens_per_s for h in (0, 1.5e9)]
    assert same[0] == pytest.approx(same[1])


def test_a_model_beyond_every_anchor_s_size_is_marked() -> None:
    sizes = [cell.read_bytes for cell in law()]
    marks = [project(law(), **ASKED | {"read_bytes": n}).extrapolated for n in (min(sizes), max(sizes))]
    assert marks == [False, False]
    marks = [project(law(), **ASKED | {"read_bytes": n}).extrapolated for n in (min(sizes) - 1, max(sizes) + 1)]
    assert marks == [True, True]


def test_nothing_cannot_be_fitted() -> None:
    with pytest.raises(ValueError, match="expected at least one cell"):
        fit([])


def test_shipped_anchors_project_every_quant_that_they_have() -> None:
    phones = ("dimensity-8400", "snapdragon-8-gen-2", "snapdragon-8-elite-gen-5")
    quants = {name: sorted({anchor.quant for anchor in load_target(name).anchors}) for name in phones}
    assert [len(found) for found in quants.values()] == [8, 8, 8]
    for name, quant in [("dimensity-8400", q) for q in quants["dimensity-8400"]] + [(n, "q8_0") for n in phones[1:]]:
        found = project_target(name, engine="llama.cpp", quant=quant, model_bytes=1.2e9)
        speed = found["decode_tokens_per_s"]
        assert found["evidence"] == "projected" and speed["low"] < speed["tokens_per_s"] < speed["high"]
        assert found["prefill_tokens_per_s"]["tokens_per_s"] > speed["tokens_per_s"]
        assert json.loads(json.dumps(found)) == found


def test_a_shipped_anchor_is_projected_near_itself() -> None:
    anchor = next(a for a in load_target("raspberry-pi-5").anchors if a.quant == "q8_0")
    found = project_target(
        "raspberry-pi-5", engine="llama.cpp", quant="q8_0", model_bytes=anchor.read_bytes, weights=anchor.weights,
        head_weights=anchor.head_weights, kv_bytes=anchor.kv_bytes,
    )  # fmt: skip
    assert found["decode_tokens_per_s"]["tokens_per_s"] == pytest.approx(anchor.decode_tokens_per_s, rel=0.01)


def test_a_phone_gives_a_model_half_of_its_memory() -> None:
    of = lambda n: project_target("iphone-15", engine="llama.cpp", quant="q4_0", model_bytes=n)  # noqa: E731
    assert MEMORY_SHARE["phone"] == 0.5
    found = of(3 * 2**30 + 1)
    assert (found["state"], found["decode_tokens_per_s"], found["prefill_tokens_per_s"]) == ("does-not-fit", None, None)
    with pytest.raises(InputError, match="expected anchors of iphone-15, found none"):
        of(3 * 2**30)


def test_an_engine_with_too_few_cells_gets_no_band_and_so_no_number() -> None:
    with pytest.raises(InputError, match="residuals for a 90 % band of LiteRT-LM, found 0"):
        project_target("snapdragon-8-gen-3", engine="LiteRT-LM", quant="int4", model_bytes=5e8)


def test_cells_keep_what_anchors_say() -> None:
    targets = [load_target(name) for name in all_targets()]
    counted: Callable[[Any], int] = lambda speed: len(cells_of(targets, speed=speed))  # noqa: E731
    assert (counted("decode"), counted("prefill")) == (48, 46)
    pi = cells_of([load_target("raspberry-pi-5")], speed="decode")
    assert [(c.device, c.engine, round(1 / c.seconds_per_token, 3)) for c in pi] == [
        ("raspberry-pi-5", "llama.cpp", 5.793)
    ]
