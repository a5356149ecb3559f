"""A speed budget: what grids cost in time is measured once and kept, solved with bytes, and held against candidates."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path

import pytest
from export_builders import corpus, save_byte_level, save_llama

from edgedistill.core.errors import InputError
from edgedistill.core.runfolder import SilentReporter
from edgedistill.export.pace import Pace, measure_pace
from edgedistill.export.precision import GGUF_ALONE, Choice, choose_precision, stored_bytes
from edgedistill.export.quantize_model import quantize_model
from edgedistill.quant.plan import EMBEDDING, HEAD, Plan, multiplied

SHAPES = {
    EMBEDDING: (512, 64),
    "model.norm.weight": (64,),
    **{f"model.layers.{n}.mlp.{m}_proj.weight": (64, 64) for n in range(4) for m in ("up", "gate")},
}
MORE = {"Q4_0": -0.2, "IQ4_NL": 0.1, "Q4_1": -0.1, "Q5_0": 0.4, "Q5_1": 0.5, "Q6_K": 0.3, "Q8_0": 0.0}
COSTS = {"Q4_0": 0.1, "IQ4_NL": 0.08, "Q4_1": 0.07, "Q5_0": 0.03, "Q5_1": 0.02, "Q8_0": 0.001}
BASE = 50_000.0  # ns with every matrix on Q8_0


def ns_of(plan: Plan) -> float:
    return BASE + sum(MORE[plan.grid(n, s)] * prod(s) for n, s in SHAPES.items() if len(s) == 2)


def choose(*, max_ns: float, max_bytes: int | None = None, slower: float = 0.0) -> Choice:
    """On a host that is `slower` by so many ns than what was measured of it before."""

    def attempt(plan: Plan) -> tuple[int, float, float]:
        matrices = {n: s for n, s in SHAPES.items() if len(s) == 2}
        size = sum(stored_bytes(plan.grid(n, s), weights=prod(s), form="gguf") for n, s in matrices.items())
        return size + 500, sum(COSTS[plan.grid(n, s)] for n, s in matrices.items()), ns_of(plan) + slower

    return choose_precision(
        shapes=SHAPES, costs={name: COSTS for name in SHAPES}, formats=("gguf",), max_bytes=max_bytes, overhead=500,
        attempt=attempt, pace=Pace(max_ns, BASE, MORE),
    )  # fmt: skip


def test_bytes_and_speed_are_both_kept_and_each_costs_quality() -> None:
    slow, fast = choose(max_ns=80_000, max_bytes=45_000), choose(max_ns=45_000, max_bytes=45_000)
    alone = choose(max_ns=45_000)
    assert slow.best.bytes <= 45_000 and fast.best.bytes <= 45_000 and fast.best.ns <= 45_000 < slow.best.ns
    assert slow.best.kld < fast.best.kld and alone.best.kld < fast.best.kld and alone.best.bytes > 45_000


def test_a_host_slower_than_foretold_is_corrected_by_what_candidates_took() -> None:
    found = choose(max_ns=45_000, slower=2_000)
    assert found.best.ns <= 45_000 and found.measured > 1
    assert ns_of(found.best.plan) <= 43_000


def test_a_speed_that_no_grids_reach_is_refused_with_what_they_do() -> None:
    with pytest.raises(InputError, match=r"found --min-tokens-per-s 1e\+06, where .* [\d.]+ tokens per second; ask"):
        choose(max_ns=1_000)
    reached = 1e9 / ns_of(Plan("Q4_0", "Q4_0"))
    with pytest.raises(InputError, match=rf"reach {reached:.1f} tokens per second"):
        choose(max_ns=1_000)


def test_only_what_every_token_is_multiplied_by_takes_time() -> None:
    assert multiplied(SHAPES)[EMBEDDING] == 512 * 64 and "model.norm.weight" not in multiplied(SHAPES)
    assert EMBEDDING not in multiplied({**SHAPES, HEAD: (512, 64)})


def test_times_are_measured_once_for_a_host_and_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path))
    written: list[str] = []

    def write(plan: Plan, name: str) -> Path:
        written.append(name)
        assert plan == Plan(name, name)
        return tmp_path / name

    def measure(paths: Sequence[Path], threads: int) -> list[float]:
        assert threads == 2
        return [ns_of(Plan(path.name, path.name)) for path in paths]

    grids = [grid for grid in GGUF_ALONE if grid != "Q6_K"]
    for max_ns in (1.0, 2.0):
        pace = measure_pace(
            shapes=SHAPES, grids=GGUF_ALONE, form="gguf", threads=2, max_ns=max_ns, write=write, measure=measure
        )
        assert (
            pace.max_ns == max_ns
            and pace.whole == BASE
            and pace.more == pytest.approx({grid: MORE[grid] for grid in grids})
        )
    assert written == grids
    measure_pace(shapes={EMBEDDING: (512, 64)}, grids=grids, form="gguf", threads=2, max_ns=1.0, write=write,
                 measure=measure)  # fmt: skip
    assert written == grids * 2


def test_a_model_is_quantized_for_speed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path / "cache"))
    model, text, seen = tmp_path / "model", tmp_path / "text.txt", list[str]()
    save_byte_level(model, vocab=512)
    save_llama(model, rows=512, num_hidden_layers=1)
    text.write_text("\n".join(corpus()), encoding="utf-8")

    def measure(paths: Sequence[Path], threads: int) -> list[float]:
        seen.extend(path.parent.name for path in paths)
        return [float(path.stat().st_size) for path in paths]

    def quantize(**changes: object) -> dict:
        settings = {"calibration": text, "formats": ("gguf",), "threads": 1, "measure": measure} | changes
        return quantize_model(str(model), report=SilentReporter(), **settings)

    found = quantize(min_tokens_per_s=1e9 / 110_000, out=tmp_path / "out")["gguf-mixed"]
    assert found["tokens_per_s"] >= 1e9 / 110_000 and seen[-1] == "candidate"
    with pytest.raises(InputError, match="expected --max-bytes, --min-tokens-per-s or both, found neither"):
        quantize(out=tmp_path / "none")
    with pytest.raises(InputError, match="expected one format with --min-tokens-per-s, found two"):
        quantize(out=tmp_path / "two", min_tokens_per_s=1.0, formats=("gguf", "onnx"))
