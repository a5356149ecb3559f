"""Students of a speed: what is timed, what is foretold of other shapes, what is chosen, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from test_stage import Notes, context, label
from tiny_models import save_tiny_llama
from tiny_training import fresh_accelerator, load

from edgedistill.bench.decode_speed import decode_times
from edgedistill.core.errors import InputError
from edgedistill.core.files import read_json, write_json
from edgedistill.core.runfolder import StageContext
from edgedistill.export.gguf import export_gguf_codes
from edgedistill.quant.plan import plan_of
from edgedistill.train.fit import probed, tensor_shapes
from edgedistill.train.folders import copy_tokenizer
from edgedistill.train.speed import Clock, Times, fitted
from edgedistill.train.stage import run, run_teacher
from edgedistill.train.width import widths_of

pytestmark = pytest.mark.usefixtures(fresh_accelerator.__name__)
HOST = Times(start=9_000.0, per_layer=4_000.0, per_weight=0.5, per_head_weight=0.8)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("speed") / "llama", layers=4, hidden=128, seed=3)


def write(*, model: Path, out: Path, codes: Any, name: str) -> None:
    """What the stand-in for the host reads: layers and shapes of a whole Hugging Face folder with its tokenizer."""
    assert codes.plan == plan_of("q4_0") and (model / "tokenizer.json").is_file()
    with safe_open(model / "model.safetensors", "numpy") as f:
        shapes = {key: f.get_slice(key).get_shape() for key in f.keys()}  # noqa: SIM118 - no mapping
    write_json(out, {"layers": read_json(model / "config.json")["num_hidden_layers"], "shapes": shapes})


def host(seen: list[int], *, slower: Sequence[float] = ()) -> Callable[..., list[float]]:
    """A stand-in that takes what `HOST` says; of single models, in turn, so many times as long."""
    factors = iter(slower)

    def measure(paths: Sequence[Path], *, threads: int) -> list[float]:
        assert threads == 1
        seen.append(len(paths))
        factor = next(factors, 1.0) if len(paths) == 1 else 1.0
        models = [json.loads(path.read_text()) for path in paths]
        return [
            factor * HOST.ns({name: tuple(shape) for name, shape in m["shapes"].items()}, layers=m["layers"])
            for m in models
        ]

    return measure


def cut_for(folder: Path, deep: Path, target: float, measure: Callable[..., list[float]], **cut: Any) -> StageContext:
    run_teacher(context(folder, "teacher", deep))
    label(context(folder, "synth", deep))
    student = {"cut": {"target_tokens_per_s": target, "layer_score": "influence", "vocab": 352, **cut}}
    train = {"epochs": 1, "batch_size": 8, "valid_share": 0.2, "dtype": "fp32"}
    made = context(folder, "train", deep, student=student, train=train)
    lent = {"write_gguf": write, "decode_times": measure}
    found = StageContext(made.recipe, made.run, "train", Notes(), {}, lent=lent)
    run(found)
    return found


def test_times_are_what_the_models_took_and_none_is_below_zero():
    counts = np.array([[1, 4, 4e5, 3e5], [1, 4, 2e5, 3e5], [1, 1, 1e5, 3e5], [1, 1, 4e4, 1e5]])
    times = counts @ [HOST.start, HOST.per_layer, HOST.per_weight, HOST.per_head_weight]
    assert np.allclose([*vars(fitted(counts, times)).values()], [*vars(HOST).values()], rtol=1e-6)
    noisy = fitted(counts, times * [1.0, 1.2, 0.9, 1.3])  # a slim model that took longer than a whole one
    assert min(vars(noisy).values()) >= 0
    assert np.allclose([noisy.scaled(2).ns({}, layers=3)], [2 * noisy.ns({}, layers=3)])


def test_a_student_of_a_speed_is_chosen_measured_and_told_of(tmp_path, deep):
    seen: list[int] = []
    whole = tensor_shapes(load(deep), widths_of(load(deep).config), layers=4, vocab=352)
    target = 1.6e9 / HOST.ns(whole, layers=4)
    ctx = cut_for(tmp_path, deep, target, host(seen))
    cut, model = ctx.figures["cut"], load(ctx.folder / "untrained")
    assert seen == [4, 1]
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    ns = HOST.ns(shapes, layers=model.config.num_hidden_layers)
    assert cut["speed"]["tokens_per_s"] == pytest.approx(1e9 / ns) and 1e9 / ns >= target
    assert cut["speed"]["foretold_tokens_per_s"] == pytest.approx(1e9 / ns, rel=1e-3)
    assert cut["speed"]["times_ns"] == pytest.approx(vars(HOST), rel=1e-3)
    assert (cut["speed"]["grid"], cut["speed"]["threads"]) == ("Q4_0", 1)
    foretold = [1e9 / candidate["size"] for candidate in cut["candidates"]]
    assert len(foretold) > 3 and target * 0.999 < min(foretold) < 1.2 * target
    assert not list((ctx.folder / "untrained").glob(".speed*"))


def test_a_host_slower_than_foretold_gets_a_smaller_student_or_none(tmp_path, deep):
    seen: list[int] = []
    deepest = {"layers": 4, "hidden": 128, "heads": 4, "kv_heads": 2}  # what is left is the feed-forward block
    first = cut_for(tmp_path / "a", deep, 4_000, host(seen), **deepest)
    slower = cut_for(tmp_path / "b", deep, 4_000, host(seen, slower=[1.3, 1.3]), **deepest)
    assert seen == [3, 1, 1, 1]  # of one width three models tell all; what shapes take is known by then
    assert [load(ctx.folder / "untrained").config.intermediate_size for ctx in (first, slower)] == [96, 32]
    assert slower.figures["cut"]["speed"]["tokens_per_s"] >= 4_000
    with pytest.raises(InputError, match=r"target_tokens_per_s = 4000, found .* with the last of 3 shapes .*; ask for"):
        cut_for(tmp_path / "c", deep, 4_000, host(seen, slower=[1.1, 1.25, 1.4]), **deepest)


def test_a_speed_out_of_reach_is_refused_with_the_best_there_is(tmp_path, deep):
    with pytest.raises(
        InputError, match=r"target_tokens_per_s of at most ([\d,.]+), which the least .* 352 tokens"
    ) as e:
        cut_for(tmp_path / "a", deep, 1e6, host([]))
    reached = float(str(e.value).split("at most ")[1].split(", which")[0].replace(",", ""))
    ctx = cut_for(tmp_path / "b", deep, 0.999 * reached, host([]))
    assert load(ctx.folder / "untrained").config.intermediate_size == 32


def test_untrained_models_are_timed_in_the_engine(tmp_path, deep):
    model = load(deep)
    copy_tokenizer(deep, tmp_path, template=load_template(deep))
    clock = Clock(export_gguf_codes, partial(decode_times, blocks=1), plan_of("q4_0"), threads=1)
    probes = probed(model, fixed={})
    assert [n for n, _ in probes] == [4, 4, 1, 1] and len({w.hidden for _, w in probes}) == 2
    from edgedistill.train.cut import _untrained

    models = (_untrained(model, *probe, keep=None) for probe in probes[:2])
    found = clock.ns(models, tokenizer=tmp_path)
    assert len(found) == 2 and all(1e3 < ns < 1e9 for ns in found)


def load_template(folder: Path) -> str:
    from edgedistill.runtimes.chat import load_tokenizer

    return load_tokenizer(folder).chat_template
