"""Every family that is exported: its GGUF against llama.cpp's own converter, its tokens and logits in llama.cpp."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_builders import FAMILIES, LONG, older_config
from gguf import GGUFReader
from gguf_comparing import (
    DIFFERENT,
    OURS_ALONE,
    deviation,
    differences,
    llama_cpp_deviations,
    some_ids,
    torch_logits,
)

from edgedistill.core.errors import InputError
from edgedistill.core.files import read_json, write_json
from edgedistill.export.architectures import ARCHITECTURES, read_shape
from edgedistill.export.gguf import export_gguf_f16
from edgedistill.export.gguf_keys import name_for_llama_cpp
from edgedistill.export.parity_text import followed
from edgedistill.export.pretokenizer import identify
from edgedistill.export.probes import probe_strings
from edgedistill.runtimes import chat
from edgedistill.runtimes.base import open_session
from edgedistill.runtimes.llama_lib import end_ids, tokenize_with

# The converter says of every template tokenizer that it adds no separator, which is what absence means; and of the ends
# of a generation it writes eos alone, where llama.cpp would not know Phi-3's <|assistant|> by its text.
THEIRS_ALONE = {"tokenizer.ggml.add_sep_token"}
PHI3_ENDS = {"tokenizer.ggml.eot_token_id"}


@pytest.fixture(scope="session")
def converted(
    family_folders: dict[str, Path], oracle: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """llama.cpp's own GGUF of each family, all made by one process."""
    root = tmp_path_factory.mktemp("converted")
    oracle([(folder, root / f"{name}.gguf", FAMILIES[name].pre) for name, folder in family_folders.items()])
    return {name: root / f"{name}.gguf" for name in family_folders}


def test_every_architecture_has_a_family() -> None:
    assert {family.model for family in FAMILIES.values()} == set(ARCHITECTURES)
    assert len(FAMILIES) == 9 and len(ARCHITECTURES) == 6


@pytest.mark.parametrize("name", FAMILIES)
def test_oracle_writes_the_same_file(name: str, family_ggufs: dict[str, Path], converted: dict[str, Path]) -> None:
    wrong = differences(family_ggufs[name], converted[name])
    phi3 = PHI3_ENDS if name.startswith("phi3") else set()
    assert wrong.keys() <= DIFFERENT | OURS_ALONE | THEIRS_ALONE | phi3, wrong
    assert "general.name" in wrong and len(GGUFReader(converted[name]).tensors) >= 14


@pytest.mark.parametrize("name", FAMILIES)
def test_llama_cpp_tokenizes_3000_strings_like_the_tokenizer(
    name: str, family_folders: dict[str, Path], family_ggufs: dict[str, Path]
) -> None:
    tokenizer = chat.load_tokenizer(family_folders[name])
    specials = sorted(tokenizer.get_added_vocab())
    limits = identify(json.loads(tokenizer.backend_tokenizer.to_str()), source=name).limits
    probes = followed(probe_strings(count=3000, specials=specials), limits=limits, specials=specials)
    assert len(probes) > 2000 and (limits or len(probes) == 3000)
    found = tokenize_with(family_ggufs[name], probes)
    wanted = tokenizer(probes)["input_ids"]
    assert [p for p, ours, ids in zip(probes, wanted, found, strict=True) if ours != ids] == []


@pytest.mark.parametrize("name", FAMILIES)
def test_chats_end_where_the_model_ends_them(
    name: str, family_folders: dict[str, Path], family_ggufs: dict[str, Path]
) -> None:
    tokenizer = chat.load_tokenizer(family_folders[name])
    wanted = {tokenizer.convert_tokens_to_ids(token) for token in FAMILIES[name].ends}
    beyond = end_ids(family_ggufs[name]) - wanted
    known_by_text = {"</s>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "<|repo_name|>"}
    assert wanted <= end_ids(family_ggufs[name])
    assert set(tokenizer.convert_ids_to_tokens(beyond)) <= known_by_text
    messages = [{"role": "user", "content": " Hi\n"}, {"role": "assistant", "content": "ho"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenize_with(family_ggufs[name], [text]) == [tokenizer(text)["input_ids"]]


@pytest.mark.parametrize("name", FAMILIES)
def test_llama_cpp_gives_the_logits_of_transformers(
    name: str, family_folders: dict[str, Path], family_ggufs: dict[str, Path]
) -> None:
    ids = some_ids(48)
    wanted = torch_logits(family_folders[name], ids)
    assert np.std(wanted) > 0.5
    fresh, cached = llama_cpp_deviations(family_ggufs[name], wanted, ids, context=64)
    assert fresh < 1e-4 and cached < 1e-4


@pytest.mark.parametrize("name", ["phi3-128k", "phi4-mini"])
def test_long_text_takes_the_long_factors(
    name: str, family_folders: dict[str, Path], family_ggufs: dict[str, Path]
) -> None:
    ids = some_ids(LONG + 44)
    wanted = torch_logits(family_folders[name], ids)
    fresh, _ = llama_cpp_deviations(family_ggufs[name], wanted, ids, context=2 * LONG)
    assert fresh < 1e-4
    # the limit that is told: in a long context llama.cpp takes them for short text too
    short = some_ids(48)
    fresh, _ = llama_cpp_deviations(
        family_ggufs[name], torch_logits(family_folders[name], short), short, context=2 * LONG
    )
    assert fresh > 0.1
    assert "factors for long text" in " ".join(read_shape(family_folders[name]).limits)


def test_the_window_of_phi_is_told_as_a_limit(family_folders: dict[str, Path], family_ggufs: dict[str, Path]) -> None:
    ids = some_ids(100)
    wanted = torch_logits(family_folders["phi3-4k"], ids)
    fresh, _ = llama_cpp_deviations(family_ggufs["phi3-4k"], wanted, ids, context=128)
    assert fresh > 0.01
    with closing(open_session("llamacpp", family_ggufs["phi3-4k"], threads=1, context=128)) as session:
        assert deviation(session.logits(ids)[:63], wanted[:63]) < 1e-4
    assert "the model 63 tokens of it" in " ".join(read_shape(family_folders["phi3-4k"]).limits)


def changed(folder: Path, to: Path, **entries: Any) -> Path:
    shutil.copytree(folder, to)
    write_json(to / "config.json", {**read_json(folder / "config.json"), **entries})
    return to


def test_gemma_layers_of_another_pattern_are_written(family_folders: dict[str, Path], tmp_path: Path) -> None:
    kinds = ["full_attention" if i in (1, 4) else "sliding_attention" for i in range(7)]
    folder = changed(family_folders["gemma3"], tmp_path / "m", layer_types=kinds)
    export_gguf_f16(model=folder, out=tmp_path / "m.gguf")
    ids = some_ids(48)
    wanted = torch_logits(folder, ids)
    assert deviation(torch_logits(family_folders["gemma3"], ids), wanted) > 0.01
    assert max(llama_cpp_deviations(tmp_path / "m.gguf", wanted, ids, context=64)) < 1e-4


@pytest.mark.parametrize(
    ("name", "rope"),
    [
        ("llama3", {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}),
        ("smollm3", {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}),
        (
            "qwen2",
            {
                "rope_type": "yarn",
                "rope_theta": 1000000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "beta_fast": 32,
                "attention_factor": 0.1 * np.log(4.0) + 1.0,
            },
        ),
    ],
)
def test_scaled_rotations_give_the_logits_of_transformers(
    name: str, rope: dict[str, Any], family_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = changed(family_folders[name], tmp_path / "m", rope_parameters=rope)
    export_gguf_f16(model=folder, out=tmp_path / "m.gguf")
    ids = some_ids(100)
    wanted = torch_logits(folder, ids)
    assert max(llama_cpp_deviations(tmp_path / "m.gguf", wanted, ids, context=128)) < 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_the_older_form_of_config_json_is_read_alike(
    name: str, family_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(family_folders[name], tmp_path / "m")
    older_config(folder)
    assert "rope_parameters" not in read_json(folder / "config.json")
    export_gguf_f16(model=family_folders[name], out=tmp_path / "new.gguf", name="m")
    export_gguf_f16(model=folder, out=tmp_path / "old.gguf", name="m")
    assert (tmp_path / "new.gguf").read_bytes() == (tmp_path / "old.gguf").read_bytes()


YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("name", "entries", "sentence"),
    [
        ("smollm3", {"no_rope_layers": [1, 0, 1, 0, 1]}, "no_rope_layers [1, 0, 1, 0, 1]"),
        ("smollm3", {"use_sliding_window": True, "sliding_window": 16, "layer_types": None}, "sliding_window 16"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "layer_types": None}, "sliding_window 64"),
        ("qwen2", {"head_dim": 64}, "head_dim hidden_size / heads"),
        ("qwen3", {"attention_bias": True}, "found attention_bias"),
        ("qwen3", {"rope_parameters": {**YARN, "beta_slow": 2}}, "found beta_slow 2"),
        ("qwen3", {"rope_parameters": {**YARN, "attention_factor": 1.0}}, "found attention_factor 1.0"),
        ("qwen3", {"rope_parameters": {**YARN, "truncate": False}}, "found truncate False"),
        ("qwen3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ("smollm3", {"rope_parameters": {**YARN, "rope_type": "llama3"}}, "found 'llama3'"),
        ("gemma3", {"query_pre_attn_scalar": 168}, "query_pre_attn_scalar 64"),
        ("gemma3", {"use_bidirectional_attention": True}, "no use_bidirectional_attention"),
        ("gemma3", {"hidden_activation": "gelu"}, "hidden_act 'gelu_pytorch_tanh'"),
        ("phi3-4k", {"mlp_bias": True}, "found mlp_bias"),
    ],
)
def test_what_llama_cpp_would_not_follow_is_refused(
    name: str, entries: dict[str, Any], sentence: str, family_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = changed(family_folders[name], tmp_path / "m", **entries)
    with pytest.raises(InputError) as caught:
        export_gguf_f16(model=folder, out=tmp_path / "m.gguf")
    assert sentence in str(caught.value) and not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"factor": 8.0}, "the attention factor 1.1180"), ({"long_factor": [1.0]}, "expected 16 numbers in long_factor")],
)
def test_long_ropes_that_the_converter_cannot_write_are_refused(
    change: dict[str, Any], sentence: str, family_folders: dict[str, Path], tmp_path: Path
) -> None:
    rope = {**read_json(family_folders["phi3-128k"] / "config.json")["rope_parameters"], **change}
    folder = changed(family_folders["phi3-128k"], tmp_path / "m", rope_parameters=rope)
    with pytest.raises(InputError, match=sentence.replace(".", r"\.")):
        read_shape(folder)


def test_an_architecture_that_is_not_on_the_list_is_refused_with_the_list(
    family_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = changed(family_folders["llama3"], tmp_path / "m", architectures=["GPT2LMHeadModel"])
    with pytest.raises(InputError) as caught:
        read_shape(folder)
    assert "GPT2LMHeadModel" in str(caught.value)
    assert all(f"{known.family} ({name})" in str(caught.value) for name, known in ARCHITECTURES.items())


def test_the_name_says_phi3_where_special_tokens_drop_white_space() -> None:
    assert name_for_llama_cpp("my phi", strips_right=True) == "my phi (Phi-3)"
    assert name_for_llama_cpp("Phi-3.5-mini", strips_right=True) == "Phi-3.5-mini"
    assert name_for_llama_cpp("not-PHI3 but llama", strips_right=False) == "not-PHI 3 but llama"
    assert name_for_llama_cpp("phi-4-mini", strips_right=False) == "phi-4-mini"
