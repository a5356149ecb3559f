"""Every family that is exported, cut in all its widths: what was unused by construction goes, and nothing changes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_builders import FAMILIES
from gguf import GGUFReader
from gguf_comparing import deviation, llama_cpp_deviations, some_ids, torch_logits

from edgedistill.core.errors import InputError
from edgedistill.core.files import read_json
from edgedistill.export.gguf import export_gguf_codes, export_gguf_f16
from edgedistill.export.onnx import export_onnx
from edgedistill.quant.codes import CodeSet
from edgedistill.quant.plan import plan_of
from edgedistill.runtimes.base import open_session
from edgedistill.train.data import Example
from edgedistill.train.fit import Limit, model_size
from edgedistill.train.folders import TEMPLATE_FILE, copy_tokenizer, load_model, save_model
from edgedistill.train.width import Widths, cut_widths, measure_activity, narrow_model, shape_notes, widths_of

# Sizes that each may have: hidden is a multiple of heads, and all that the heads are wide where llama.cpp or the
# factors of a long rope want it.
CUTS = {
    "llama3": {"ffn": 128, "kv_heads": 1, "hidden": 96},
    "smollm2": {"ffn": 96, "kv_heads": 1, "heads": 1, "hidden": 64},
    "smollm3": {"ffn": 128, "heads": 2, "hidden": 96},
    "qwen2": {"ffn": 128, "heads": 2, "hidden": 64},
    "qwen3": {"ffn": 128, "kv_heads": 1, "heads": 1, "hidden": 96},
    "phi3-4k": {"ffn": 128, "kv_heads": 3, "hidden": 96},
    "phi3-128k": {"ffn": 96, "kv_heads": 2, "hidden": 64},
    "phi4-mini": {"ffn": 128, "heads": 2, "hidden": 128},
    "gemma3": {"ffn": 128, "heads": 2, "hidden": 96},
}


def calibration() -> list[Example]:
    rng = np.random.default_rng(1)
    return [Example(f"c{i}", rng.integers(3, 500, 20 + i), 10) for i in range(4)]


def survivors(rng: np.random.Generator, count: int, *, of: int) -> np.ndarray:
    return np.sort(rng.choice(of, count, replace=False))


def silence(model: Any, *, after: Widths) -> None:
    """Zero what writes or reads all but as many heads and channels as `after` has, other ones in each layer."""
    before, rng = widths_of(model.config), np.random.default_rng(2)

    def zero(weight: torch.Tensor, dim: int, kept: np.ndarray) -> None:
        dead = np.setdiff1d(np.arange(weight.shape[dim]), kept)
        weight.index_fill_(dim, torch.from_numpy(dead), 0)

    stream = survivors(rng, after.hidden, of=before.hidden)
    with torch.no_grad():
        zero(model.model.embed_tokens.weight, 1, stream)
        for layer in model.model.layers:
            groups = survivors(rng, after.kv_heads, of=before.kv_heads)
            heads = [g * before.group + survivors(rng, after.group, of=before.group) for g in groups]
            columns = np.concatenate(heads)[:, None] * before.head_dim + np.arange(before.head_dim)
            zero(layer.self_attn.o_proj.weight, 1, columns.ravel())
            zero(layer.mlp.down_proj.weight, 1, survivors(rng, after.ffn, of=before.ffn))
            for matrix in (layer.self_attn.o_proj, layer.mlp.down_proj):
                zero(matrix.weight, 0, stream)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([some_ids(24)])).logits


@pytest.fixture(scope="module")
def cut(family_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    """Makes, once each, a family's silenced model and the folder of its cut."""
    made: dict[str, tuple[Any, Path]] = {}

    def make(name: str) -> tuple[Any, Path]:
        if name not in made:
            model = load_model(family_folders[name])
            widths = cut_widths(widths_of(model.config), **CUTS[name])
            silence(model, after=widths)
            folder = tmp_path_factory.mktemp(name) / "cut"
            folder.mkdir()
            save_model(narrow_model(model, measure_activity(model, calibration()), widths=widths), folder)
            template = (family_folders[name] / TEMPLATE_FILE).read_text(encoding="utf-8")
            copy_tokenizer(family_folders[name], folder, template=template)
            made[name] = model, folder
        return made[name]

    return make


def test_every_family_is_cut() -> None:
    assert CUTS.keys() == FAMILIES.keys()


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_unused_goes_and_the_logits_stay(name: str, cut: Callable[[str], tuple[Any, Path]]) -> None:
    model, folder = cut(name)
    small = load_model(folder)
    after = cut_widths(widths_of(model.config), **CUTS[name])
    assert widths_of(small.config) == after and after != widths_of(model.config)
    assert small.model.layers[1].mlp.down_proj.weight.shape == (after.hidden, after.ffn)
    assert small.model.layers[0].self_attn.o_proj.weight.shape == (after.hidden, after.heads * after.head_dim)
    found, wanted = logits(small), logits(model)
    assert wanted.std() > 0.1 and (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_cut_model_generates_through_its_cache(name: str, cut: Callable[[str], tuple[Any, Path]]) -> None:
    small = load_model(cut(name)[1])
    prompt = torch.tensor([some_ids(8)])
    text = small.generate(prompt, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    with torch.no_grad():
        again = small(text[:, :-1]).logits[0, 7:].argmax(-1)
    ends = set(small.generation_config.eos_token_id)
    assert text.shape == (1, 14)
    assert all(a == b for a, b in zip(text[0, 8:].tolist(), again.tolist(), strict=True) if b not in ends)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_cut_model_is_the_same_in_llama_cpp(
    name: str, cut: Callable[[str], tuple[Any, Path]], tmp_path: Path
) -> None:
    _, folder = cut(name)
    ids = some_ids(32)
    export_gguf_f16(model=folder, out=tmp_path / "m.gguf")
    fresh, cached = llama_cpp_deviations(tmp_path / "m.gguf", torch_logits(folder, ids), ids, context=64)
    # Gemma's embedding was multiplied by a root, which half precision does not hold.
    assert max(fresh, cached) < (1e-2 if name == "gemma3" else 1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_cutting_nothing_is_the_model_itself(name: str, family_folders: dict[str, Path]) -> None:
    model = load_model(family_folders[name])
    widths = widths_of(model.config)
    activity = measure_activity(model, calibration())
    assert narrow_model(model, activity, widths=cut_widths(widths)) is model
    assert len(activity.inputs) == 2 * len(model.model.layers)
    assert all(shares.mean() == pytest.approx(1, abs=1e-4) for shares in activity.stream.values())


@pytest.mark.parametrize("name", ["qwen2", "phi3-4k"])
def test_what_llama_cpp_would_not_load_is_told(name: str, family_folders: dict[str, Path], tmp_path: Path) -> None:
    model = load_model(family_folders[name])
    widths = cut_widths(widths_of(model.config), hidden=64)
    small = narrow_model(model, measure_activity(model, calibration()), widths=widths)
    (note,) = shape_notes(small.config, chosen={})
    assert note.startswith("4 heads of 32 are not hidden = 64: llama.cpp loads no such")
    assert shape_notes(model.config, chosen={"ffn": 256}) == []
    folder = tmp_path / "m"
    folder.mkdir()
    save_model(small, folder)
    copy_tokenizer(family_folders[name], folder, template="")
    assert read_json(folder / "config.json")["head_dim"] == 32
    assert deviation(torch_logits(folder, some_ids(8)), logits(small)[0, :8].numpy()) < 1e-5
    with pytest.raises(InputError, match="head_dim hidden_size / heads"):
        export_gguf_f16(model=folder, out=tmp_path / "m.gguf")


def test_factors_of_a_long_rope_that_no_longer_fit_are_refused(family_folders: dict[str, Path]) -> None:
    model = load_model(family_folders["phi3-128k"])
    widths = cut_widths(widths_of(model.config), hidden=64)
    with pytest.raises(InputError, match=r"a phi3 model can have, found hidden = 64 and heads = 4 .*short_factor"):
        narrow_model(model, measure_activity(model, calibration()), widths=widths)


@pytest.mark.parametrize("name", ["llama3", "qwen3", "phi4-mini", "gemma3"])
@pytest.mark.parametrize("grid", ["q4_0", "q8_0"])
def test_bytes_counted_for_a_target_are_those_of_the_file(
    name: str, grid: str, cut: Callable[[str], tuple[Any, Path]], tmp_path: Path
) -> None:
    model, folder = cut(name)
    small = load_model(folder).config
    export_gguf_codes(model=folder, out=tmp_path / "m.gguf", codes=CodeSet(plan_of(grid)))
    tensors = [t for t in GGUFReader(tmp_path / "m.gguf").tensors if not t.name.startswith("rope_factors")]
    limit = Limit(0, small.vocab_size, plan_of(grid))
    size = model_size(model, widths_of(small), layers=small.num_hidden_layers, limit=limit)
    assert size == sum(t.n_bytes for t in tensors if t.name != "rope_freqs.weight")


@pytest.mark.parametrize("name", ["qwen2", "phi3-4k", "gemma3"])
def test_a_cut_model_is_the_same_in_onnx(
    name: str, family_folders: dict[str, Path], cut: Callable[[str], tuple[Any, Path]], tmp_path: Path
) -> None:
    """Also where llama.cpp has no such model: heads as wide as they were, in a narrower stream."""
    folder = shutil.copytree(cut(name)[1], tmp_path / "m")
    if name != "gemma3":
        model = load_model(family_folders[name])
        widths = cut_widths(widths_of(model.config), hidden=64)
        save_model(narrow_model(model, measure_activity(model, calibration()), widths=widths), folder)
    export_onnx(model=folder, out=tmp_path / "onnx", threads=1)
    ids = some_ids(32)
    with closing(open_session("onnx", tmp_path / "onnx", threads=1, context=40)) as session:
        assert deviation(session.logits(ids), torch_logits(folder, ids)) < 1e-9
