"""HF → GGUF against llama.cpp's own converter, its tokenizer, and damaged or unknown input."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from export_builders import save_byte_level, save_llama, save_sentencepiece
from gguf import GGUFReader
from gguf_comparing import DIFFERENT, OURS_ALONE, differences
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from edgedistill.core.errors import InputError
from edgedistill.export.gguf import export_gguf_f16
from edgedistill.export.pretokenizer import DIGIT_SPLIT, GPT2_SPLIT, LLAMA3_SPLIT, QWEN2_SPLIT
from edgedistill.export.probes import probe_strings
from edgedistill.export.vocabulary import read_vocabulary
from edgedistill.runtimes.llama_lib import end_ids, tokenize_with

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def split(*patterns: str) -> Any:
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Llamas that between them use every branch of the export."""
    root = tmp_path_factory.mktemp("models")
    plain, cut, biased, spm = (root / name for name in ("plain", "cut", "biased", "spm"))
    save_byte_level(plain)
    save_llama(plain, rows=1200)
    save_byte_level(cut, keep=600, added=("<tool>",))
    rope = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
    save_llama(cut, rows=640, shard="100KB", rope_parameters=rope)  # 39 rows without a token
    save_byte_level(biased, pipeline=split(LLAMA3_SPLIT), ignore_merges=True)
    wide = {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True, "head_dim": 32}
    save_llama(biased, rows=1200, dtype="bfloat16", rope_parameters=LLAMA3_ROPE, **wide)
    save_sentencepiece(spm)
    save_llama(spm, rows=len(Tokenizer.from_file(str(spm / "tokenizer.json")).get_vocab()))
    return {path.name: path for path in (plain, cut, biased, spm)}


@pytest.fixture(scope="module")
def exported(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("gguf")
    for name, folder in folders.items():
        export_gguf_f16(model=folder, out=root / f"{name}.gguf")
    return {name: root / f"{name}.gguf" for name in folders}


def test_oracle_tensors_metadata_and_tokens_equal(
    folders: dict[str, Path], exported: dict[str, Path], oracle: Callable[..., None], tmp_path: Path
) -> None:
    pre = {"plain": "smollm", "cut": "smollm", "biased": "llama-bpe", "spm": "default"}
    oracle([(folders[name], tmp_path / f"{name}.gguf", pre[name]) for name in folders])
    for name, path in exported.items():
        wrong = differences(path, tmp_path / f"{name}.gguf")
        # their SentencePiece path without tokenizer.model writes the same score for every piece
        permitted = DIFFERENT | OURS_ALONE | ({"tokenizer.ggml.scores"} if name == "spm" else set())
        assert wrong.keys() <= permitted, (name, wrong)
        assert "general.name" in wrong


@pytest.mark.parametrize("name", ["plain", "cut", "biased", "spm"])
def test_llama_cpp_tokenizes_3000_strings_like_the_tokenizer(
    name: str, folders: dict[str, Path], exported: dict[str, Path]
) -> None:
    tokenizer = Tokenizer.from_file(str(folders[name] / "tokenizer.json"))
    specials = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    probes = probe_strings(count=3000, specials=specials)
    assert len(set(probes)) == 3000
    found = tokenize_with(exported[name], probes)
    wrong = [p for p, ids in zip(probes, found, strict=True) if tokenizer.encode(p).ids != ids]
    assert not wrong, wrong[:5]
    assert sum(len(ids) for ids in found) > 3000


def test_flags_and_ends_are_what_llama_cpp_reads(folders: dict[str, Path], exported: dict[str, Path]) -> None:
    fields = {name: GGUFReader(path).fields for name, path in exported.items()}
    assert fields["cut"]["tokenizer.ggml.add_bos_token"].contents() is False
    assert fields["spm"]["tokenizer.ggml.add_bos_token"].contents() is True
    assert fields["cut"]["tokenizer.ggml.tokens"].contents()[601:] == [f"[PAD{i}]" for i in range(601, 640)]
    assert fields["cut"]["tokenizer.ggml.token_type"].contents()[600:] == [4] + [5] * 39
    assert end_ids(exported["cut"]) == {0, 2}  # <|endoftext|> by its text
    assert end_ids(exported["spm"]) == {2}


def test_ends_that_llama_cpp_does_not_know_by_text_are_written(tmp_path: Path) -> None:
    save_byte_level(tmp_path, specials=["<|endoftext|>", "<a>", "<b>", "<c>", "<d>"])
    save_llama(tmp_path, rows=1200)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2, 3, 4]}))
    export_gguf_f16(model=tmp_path, out=tmp_path / "m.gguf")
    assert end_ids(tmp_path / "m.gguf") == {0, 2, 3, 4}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2, 3, 4]}))
    with pytest.raises(InputError, match=r"at most two end-of-generation tokens beside eos .* \['<a>', '<c>', '<d>'\]"):
        read_vocabulary(model=tmp_path, rows=1200)


@pytest.mark.parametrize(
    ("pipeline", "ignore_merges", "normalizer", "name"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=False), False, None, "gpt-2"),
        (split(LLAMA3_SPLIT), False, None, "dbrx"),
        (split(QWEN2_SPLIT), False, normalizers.NFC(), "qwen2"),
        (split(GPT2_SPLIT), False, None, "gpt-2"),
        (split(DIGIT_SPLIT, GPT2_SPLIT), False, None, "smollm"),
    ],
)
def test_pre_tokenizer_names_cut_text_alike(
    pipeline: Any, ignore_merges: bool, normalizer: Any, name: str, tmp_path: Path
) -> None:
    save_byte_level(tmp_path, pipeline=pipeline, ignore_merges=ignore_merges, normalizer=normalizer)
    save_llama(tmp_path, rows=1200)
    kind = read_vocabulary(model=tmp_path, rows=1200).kind
    assert (kind.pre, bool(kind.limits)) == (name, normalizer is not None)
    export_gguf_f16(model=tmp_path, out=tmp_path / "m.gguf")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    probes = [unicodedata.normalize("NFC", p) if normalizer else p for p in probe_strings(count=3000)]
    found = tokenize_with(tmp_path / "m.gguf", probes)
    assert [p for p, ids in zip(probes, found, strict=True) if tokenizer.encode(p).ids != ids] == []


@pytest.mark.parametrize(
    ("pipeline", "normalizer"),
    [
        (pre_tokenizers.Whitespace(), None),
        (pre_tokenizers.ByteLevel(add_prefix_space=True), None),
        (pre_tokenizers.Digits(individual_digits=False), None),
        (split(LLAMA3_SPLIT.replace("{1,3}", "{1,4}")), None),
        (pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.Lowercase()),
    ],
)
def test_unknown_pipeline_is_refused_with_the_list(pipeline: Any, normalizer: Any, tmp_path: Path) -> None:
    save_byte_level(tmp_path, pipeline=pipeline, normalizer=normalizer)
    (tmp_path / "config.json").write_text('{"eos_token_id": 2}')
    with pytest.raises(InputError, match=r"expected a tokenizer pipeline that llama\.cpp can repeat \(.*smollm"):
        read_vocabulary(model=tmp_path, rows=1200)


def test_sentencepiece_schemes(tmp_path: Path) -> None:
    found = {}
    for scheme in ("always", "first", "never"):
        save_sentencepiece(tmp_path / scheme, scheme=scheme)
        (tmp_path / scheme / "config.json").write_text('{"eos_token_id": 2}')
        kind = read_vocabulary(model=tmp_path / scheme, rows=1000).kind
        found[scheme] = (kind.pre, kind.add_space_prefix, len(kind.limits))
    assert found == {"always": ("default", True, 1), "first": ("default", True, 1), "never": ("default", False, 0)}


def test_merges_that_scores_cannot_repeat_are_refused(tmp_path: Path) -> None:
    save_sentencepiece(tmp_path)
    (tmp_path / "config.json").write_text('{"eos_token_id": 2}')
    path = tmp_path / "tokenizer.json"
    parsed = json.loads(path.read_text())
    merges = parsed["model"]["merges"]
    parsed["model"]["merges"] = merges[:-1]
    path.write_text(json.dumps(parsed))
    with pytest.raises(InputError, match=r"expected merges made from SentencePiece scores, found that .* is missing"):
        read_vocabulary(model=tmp_path, rows=1000)
    apart = next(i for i in range(1, len(merges)) if "".join(merges[i]) == "".join(merges[i - 1]))
    parsed["model"]["merges"] = [*merges[:apart], *merges[apart + 1 :], merges[apart]]
    path.write_text(json.dumps(parsed))
    with pytest.raises(InputError, match="the merges of one piece do not stand together"):
        read_vocabulary(model=tmp_path, rows=1000)


def test_damaged_or_unknown_models_are_refused_in_one_sentence(folders: dict[str, Path], tmp_path: Path) -> None:
    def broken(name: str, change: Callable[[Path], object]) -> str:
        folder = tmp_path / name
        shutil.copytree(folders["plain"], folder)
        change(folder)
        out = folder / "out.gguf"
        with pytest.raises(InputError) as caught:
            export_gguf_f16(model=folder, out=out)
        assert not out.exists() and not list(folder.glob(".*"))
        return str(caught.value)

    def config(**entries: Any) -> Callable[[Path], object]:
        return lambda folder: (folder / "config.json").write_text(
            json.dumps({**json.loads((folder / "config.json").read_text()), **entries})
        )

    def settings(**entries: Any) -> Callable[[Path], object]:
        return lambda folder: [
            (folder / "tokenizer_config.json").write_text(
                json.dumps({"tokenizer_class": "TokenizersBackend", **entries})
            ),
            (folder / "generation_config.json").unlink(),
            config(eos_token_id=None)(folder),
        ]

    def tokenizer(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
        def apply(folder: Path) -> None:
            parsed = json.loads((folder / "tokenizer.json").read_text())
            change(parsed)
            (folder / "tokenizer.json").write_text(json.dumps(parsed))

        return apply

    cases: dict[str, tuple[Callable[[Path], object], str]] = {
        "arch": (
            config(architectures=["GPT2LMHeadModel"]),
            "(Gemma3ForCausalLM)), found GPT2LMHeadModel",
        ),
        "act": (config(hidden_act="gelu"), "expected hidden_act 'silu'"),
        "rope": (
            config(rope_parameters={"rope_type": "dynamic", "rope_theta": 1.0}),
            "expected rope_type default, linear, llama3, yarn, found 'dynamic'",
        ),
        "layers": (config(num_hidden_layers=3), "'model.layers.2.input_layernorm.weight' is missing"),
        "fewer": (config(num_hidden_layers=1), "is not one of Llama 3.x and SmolLM2"),
        "shape": (config(intermediate_size=64), r"of shape (64, 64), found (96, 64)"),
        "rows": (config(vocab_size=1100), "expected [1200, 64], the shape of"),
        "untied": (config(tie_word_embeddings=False), "'lm_head.weight' is missing"),
        "no-eos": (settings(), "expected eos_token_id in generation_config.json"),
        "far-eos": (
            lambda f: (f / "generation_config.json").write_text('{"eos_token_id": 1200}'),
            "within the vocabulary of 1200, found [1200]",
        ),
        "no-tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "expected a tokenizer.json in"),
        "cut-json": (lambda f: (f / "tokenizer.json").write_text('{"model":'), "is not valid JSON"),
        "no-weights": (lambda f: (f / "model.safetensors").unlink(), "expected safetensors weights in"),
        "half": (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 9), "not a whole safetensors file"),
        "lstrip": (
            tokenizer(lambda t: t["added_tokens"][0].update(lstrip=True)),
            "added tokens that match as they stand",
        ),
        "twice": (
            tokenizer(lambda t: t["model"]["vocab"].update({"[PAD1200]": 1201})),
            "expected token ids below 1200",
        ),
        "wordpiece": (
            tokenizer(lambda t: t.update(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"})),
            "BPE",
        ),
    }
    for name, (change, sentence) in cases.items():
        assert sentence in broken(name, change), name


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    save_byte_level(tmp_path)
    save_llama(tmp_path, rows=1200)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = torch.tensor(1e6)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"values that float16 can hold .* 'blk\.0\.ffn_up\.weight'"):
        export_gguf_f16(model=tmp_path, out=tmp_path / "m.gguf")


def test_same_input_gives_the_same_bytes(folders: dict[str, Path], exported: dict[str, Path], tmp_path: Path) -> None:
    export_gguf_f16(model=folders["cut"], out=tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == exported["cut"].read_bytes()
