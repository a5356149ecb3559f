"""A model within a byte budget: bytes kept, both formats from one code set, better than one grid, refusals."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
from export_builders import corpus, save_byte_level, save_llama

from edgedistill.core.artifact import load_artifact
from edgedistill.core.errors import InputError
from edgedistill.core.runfolder import SilentReporter
from edgedistill.export.precision import GGUF_ALONE, choose_precision, grids_for, grouped, stored_bytes
from edgedistill.export.quantize_model import quantize_model
from edgedistill.quant.plan import EMBEDDING, HEAD, Plan
from edgedistill.runtimes.gguf_file import TENSOR_TYPES, read_gguf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_byte_level(folder, vocab=512)
    return save_llama(folder, rows=512, hidden_size=128, intermediate_size=256, num_hidden_layers=3)


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(corpus()), encoding="utf-8")
    return path


def test_gguf_fits_its_budget_and_spends_it(model: Path, calibration: Path, tmp_path: Path) -> None:
    klds = []
    for budget in (480_000, 560_000):
        found = quantize_model(
            str(model), max_bytes=budget, calibration=calibration, out=tmp_path / f"{budget}", formats=("gguf",),
            threads=1, report=SilentReporter(),
        )["gguf-mixed"]  # fmt: skip
        artifact = load_artifact(tmp_path / f"{budget}" / "gguf-mixed")
        assert 0.93 * budget < artifact.total_bytes == found["bytes"] <= budget
        assert sum(found["grids"].values()) == 1 + 3 * 7 and found["candidates"] >= 1
        assert found["kld_low"] <= found["kld_nats"] <= found["kld_high"]
        assert {path.name for path in (tmp_path / f"{budget}").iterdir()} == {"gguf-mixed"}
        klds.append(found["kld_nats"])
    assert klds[1] < klds[0]
    types = [
        TENSOR_TYPES[t.type_id][0]
        for t in read_gguf(tmp_path / "480000" / "gguf-mixed" / "model.gguf").tensors.values()
    ]
    assert len(set(types) - {"F32"}) > 1 and "Q6_K" in types  # of down_proj alone


def test_both_formats_fit_and_hold_one_code_set(model: Path, calibration: Path, tmp_path: Path) -> None:
    found = quantize_model(
        str(model), max_bytes=640_000, calibration=calibration, out=tmp_path / "both", threads=1,
        report=SilentReporter(),
    )  # fmt: skip
    assert found.keys() == {"gguf-mixed", "onnx-mixed"}
    assert max(figures["bytes"] for figures in found.values()) <= 640_000
    assert found["gguf-mixed"]["grids"] == found["onnx-mixed"]["grids"]
    assert found["gguf-mixed"]["grids"].keys() == {"Q4_0", "Q8_0"}
    assert found["gguf-mixed"]["kld_nats"] == pytest.approx(found["onnx-mixed"]["kld_nats"], rel=0.2)


def test_a_budget_below_the_smallest_is_refused_with_what_would_fit(
    model: Path, calibration: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        InputError, match=r"expected at least \d[\d,]* bytes, .* found a budget of 100,000; allow [\d.]+ MB"
    ):
        quantize_model(
            str(model), max_bytes=100_000, calibration=calibration, out=tmp_path / "out", formats=("gguf",), threads=1,
            report=SilentReporter(),
        )  # fmt: skip
    assert not (tmp_path / "out" / ".work.tmp").exists()


def test_bad_input_is_one_sentence(model: Path, calibration: Path, tmp_path: Path) -> None:
    def attempt(**changes: object) -> None:
        settings = {"max_bytes": 10**6, "calibration": calibration, "out": tmp_path / "o", "formats": ("gguf",)}
        settings |= {"model": str(model)} | changes
        quantize_model(**settings, threads=1, report=SilentReporter())

    with pytest.raises(InputError, match="expected formats of gguf, onnx, found coreml"):
        attempt(formats=("coreml",))
    with pytest.raises(InputError, match=r"expected calibration text at .*, found no such file"):
        attempt(calibration=tmp_path / "none.txt", model="no such model")
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(InputError, match="expected calibration text of at least 1024 tokens"):
        attempt(calibration=tmp_path / "short.txt")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    with pytest.raises(InputError, match="expected an empty folder at"):
        attempt(out=tmp_path / "full")
    (tmp_path / "left" / ".work.tmp").mkdir(parents=True)
    with pytest.raises(InputError, match=r"found .work.tmp in it, of a call that runs or was killed; wait for it or"):
        attempt(out=tmp_path / "left")


def test_bytes_are_those_of_the_format_and_grids_those_that_the_rows_fill() -> None:
    for name in GGUF_ALONE:
        weights, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
        assert stored_bytes(name, weights=512, form="gguf") == 512 // weights * size
    assert stored_bytes("Q6_K", weights=256, form="gguf") == 210
    assert [stored_bytes(name, weights=32, form="onnx") for name in ("Q4_0", "Q8_0")] == [20, 36]
    assert grids_for((8, 512), formats=("gguf",)) == GGUF_ALONE
    assert set(GGUF_ALONE) - set(grids_for((8, 576), formats=("gguf",))) == {"Q6_K"}
    assert grids_for((8, 512), formats=("gguf", "onnx")) == ("Q4_0", "Q8_0")


SHAPES = {
    EMBEDDING: (512, 64),
    "model.norm.weight": (64,),
    **{f"model.layers.0.self_attn.{m}_proj.weight": (64, 64) for m in "qkv"},
    "model.layers.0.mlp.down_proj.weight": (64, 96),
    "model.layers.0.odd.weight": (64, 80),
}


def test_stacked_matrices_share_a_grid_and_odd_ones_have_none() -> None:
    assert len(grouped(SHAPES, stacked=False)) == 5
    groups = grouped(SHAPES, stacked=True)
    assert len(groups) == 3 and len(groups["model.layers.0.self_attn.qkv"]) == 3


def test_the_best_measured_candidate_wins_and_a_costly_table_is_kept_wide() -> None:
    costs = {
        name: {"Q4_0": 0.1, "IQ4_NL": 0.09, "Q4_1": 0.08, "Q5_0": 0.03, "Q5_1": 0.02, "Q8_0": 0.001} for name in SHAPES
    }
    costs[EMBEDDING] = {grid: 90 * cost for grid, cost in costs[EMBEDDING].items()}
    seen: list[Plan] = []

    def attempt(plan: Plan) -> tuple[int, float, float]:
        seen.append(plan)
        return 40_000, 5.0 - len(seen), 0.0

    found = choose_precision(
        shapes=SHAPES, costs=costs, formats=("gguf",), max_bytes=50_000, overhead=500, attempt=attempt
    )
    assert found.best.plan is seen[-1] and found.measured == len(seen) <= 3
    assert found.best.plan.grid(EMBEDDING, (512, 64)) == found.best.plan.grid(HEAD, (512, 64)) == "Q8_0"
