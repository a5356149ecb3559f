"""GGUF to Hugging Face folder: the same weights, the same tokens, and refusals where it could not be exact."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from gguf_writing import NAMES, write_llama_gguf
from safetensors.numpy import load_file
from tiny_models import save_tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from edgedistill.core.errors import InputError
from edgedistill.runtimes.base import open_session
from edgedistill.runtimes.gguf_file import read_gguf
from edgedistill.runtimes.gguf_import import generation_config, import_gguf
from edgedistill.runtimes.gguf_tokenizer import build_tokenizer, differing, probe_strings
from edgedistill.runtimes.llama_lib import check_layout, end_ids, library, tokenize_with


def data_lines(count: int) -> list[str]:
    """Lines of the real data sets beside the checkout, none where there are none."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "data"
    lines: list[str] = []
    for path in sorted(folder.glob("*/*.jsonl")) if folder.is_dir() else []:
        with path.open(encoding="utf-8") as f:
            lines += [line[:600] for line, _ in zip(f, range(count), strict=False)]
    return lines


def test_teacher_tokenizes_as_llama_cpp_does(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2.folder)
    special = tuple(token.content for token in tokenizer.added_tokens_decoder.values())
    texts = probe_strings(4000, seed=20, special=special) + data_lines(60)
    assert len(texts) >= 3000
    expected = tokenize_with(smollm2.gguf, texts)
    assert differing(tokenizer.backend_tokenizer, texts, expected) == []
    without_digits = AutoTokenizer.from_pretrained(smollm2.folder).backend_tokenizer
    without_digits.pre_tokenizer = without_digits.pre_tokenizer[1]
    assert len(differing(without_digits, texts, expected)) > 100  # the probes do see the defect


def test_teacher_keeps_template_ends_and_weights(smollm2):
    config = json.loads((smollm2.folder / "config.json").read_text())
    assert (config["num_hidden_layers"], config["rms_norm_eps"], config["tie_word_embeddings"]) == (30, 1e-5, True)
    assert json.loads((smollm2.folder / "generation_config.json").read_text())["eos_token_id"] == 2
    tokenizer = AutoTokenizer.from_pretrained(smollm2.folder)
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert rendered.startswith("<|im_start|>system\n") and rendered.endswith("<|im_start|>assistant\n")
    assert tokenizer.eos_token == "<|im_end|>" and end_ids(smollm2.gguf) == {0, 2, 4}
    shapes = load_file(smollm2.folder / "model.safetensors")
    assert sum(w.size for w in shapes.values()) == 134_515_008


def test_imported_teacher_answers_as_its_gguf_does(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2.folder)
    ids = tokenizer("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    ask = {"max_new_tokens": 8, "eos_ids": frozenset({2})}
    logits, texts = [], []
    for engine, path in (("hf", smollm2.folder), ("llamacpp", smollm2.gguf)):
        with closing(open_session(engine, path, threads=1, context=64)) as session:
            logits.append(session.logits(ids).astype(np.float64))
            texts.append(tokenizer.decode(session.generate([ids], **ask)[0].ids))
    assert texts == ["The capital of France is Paris.<|im_end|>"] * 2
    ours, theirs = (rows - np.log(np.exp(rows).sum(axis=1, keepdims=True)) for rows in logits)
    kld = (np.exp(ours) * (ours - theirs)).sum(axis=1)
    assert kld.mean() < 0.02  # llama.cpp rounds activations to 8 bits; wrong weights give whole nats


def test_weights_come_back_bit_for_bit(tiny_llama: Path, tiny_gguf: Path, tmp_path: Path):
    import_gguf(tiny_gguf, tmp_path)
    ours, theirs = load_file(tmp_path / "model.safetensors"), load_file(tiny_llama / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    before, after = (json.loads((f / "config.json").read_text()) for f in (tiny_llama, tmp_path))
    for key in ("rope_parameters", "head_dim", "num_key_value_heads", "rms_norm_eps", "vocab_size", "eos_token_id"):
        assert after[key] == before[key], key
    assert (tmp_path / "chat_template.jinja").read_text() == (tiny_llama / "chat_template.jinja").read_text()


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "qwen2", "llama-bpe", "starcoder", "stablelm2"])
def test_pre_tokenizers_are_found_by_proof(pre: str, tiny_llama: Path, tmp_path: Path):
    path = write_llama_gguf(tiny_llama, tmp_path / "x.gguf", pre=pre)
    fast = build_tokenizer(read_gguf(path)).backend_tokenizer
    texts = probe_strings(3000, seed=7, special=("<|im_start|>", "<|im_end|>"))
    assert differing(fast, texts, tokenize_with(path, texts)) == []


def test_unprovable_pre_tokenizer(tiny_llama: Path, tmp_path: Path):
    path = write_llama_gguf(tiny_llama, tmp_path / "x.gguf", pre="tekken")
    with pytest.raises(InputError, match=r"probes differ from llama\.cpp"):
        build_tokenizer(read_gguf(path))


def refuse(path: Path, folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        import_gguf(path, folder)
    return str(caught.value)


def test_tensors_a_dense_llama_has_not(tiny_llama: Path, tmp_path: Path):
    bias = {"blk.0.attn_q.bias": np.zeros(64, np.float32)}
    assert "blk.0.attn_q.bias" in refuse(write_llama_gguf(tiny_llama, tmp_path / "a.gguf", extra=bias), tmp_path)
    factors = {"rope_freqs.weight": np.ones(8, np.float32)}
    assert "rotary embedding" in refuse(write_llama_gguf(tiny_llama, tmp_path / "b.gguf", extra=factors), tmp_path)


def edited(path: Path, target: Path, *, old: bytes, new: bytes) -> Path:
    raw = path.read_bytes()
    assert raw.count(old) == 1 and len(old) == len(new)
    target.write_bytes(raw.replace(old, new))
    return target


def number(key: str, value: int) -> bytes:
    return key.encode() + (4).to_bytes(4, "little") + value.to_bytes(4, "little")


def test_metadata_that_contradict_the_tensors(tiny_gguf: Path, tmp_path: Path):
    path = tmp_path / "x.gguf"
    key = "llama.feed_forward_length"
    edited(tiny_gguf, path, old=number(key, 128), new=number(key, 160))
    assert "expected a tensor of [64, 160] as blk.0.ffn_gate.weight, found [64, 128]" in refuse(path, tmp_path)
    edited(tiny_gguf, path, old=b"llama.block_count", new=b"llama.block_kount")
    assert "expected 1 to 512 as llama.block_count, found none" in refuse(path, tmp_path)
    key = "llama.rope.dimension_count"
    edited(tiny_gguf, path, old=number(key, 16), new=number(key, 8))
    assert "expected one even size of heads" in refuse(path, tmp_path)
    key = "tokenizer.ggml.padding_token_id"
    edited(tiny_gguf, path, old=number(key, 2), new=number(key, 9999))
    assert "expected a token id below 384" in refuse(path, tmp_path)
    edited(tiny_gguf, path, old=b"tokenizer.ggml.tokens", new=b"tokenizer.ggml.tokenz")
    assert "expected the texts of a vocabulary as tokenizer.ggml.tokens, found none" in refuse(path, tmp_path)


def test_every_declared_end_is_kept(tiny_gguf: Path):
    gguf = read_gguf(tiny_gguf)
    assert generation_config(gguf).eos_token_id == 2
    gguf.fields["tokenizer.ggml.eot_token_id"] = 1
    assert generation_config(gguf).eos_token_id == [2, 1]


def test_other_architectures_go_through_transformers(tiny_llama: Path, tmp_path: Path):
    """A tiny random Qwen2 (attention biases, no rotary permutation) written by hand comes back bit for bit."""
    config = Qwen2Config(
        vocab_size=384, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=256,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    path = tmp_path / "qwen2.gguf"
    llama = read_gguf(write_llama_gguf(tiny_llama, tmp_path / "llama.gguf", pre="qwen2"))
    writer = GGUFWriter(path, "qwen2")
    writer.add_context_length(256)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(llama.fields["tokenizer.ggml.tokens"])
    writer.add_token_types(llama.fields["tokenizer.ggml.token_type"])
    writer.add_token_merges(llama.fields["tokenizer.ggml.merges"])
    writer.add_eos_token_id(2)
    for name, weight in model.state_dict().items():
        stem, kind = name.rsplit(".", 1)
        if stem == "lm_head":
            continue
        if stem.startswith("model.layers."):
            _, _, layer, *rest = stem.split(".")
            stem = f"blk.{layer}.{NAMES['.'.join(rest)]}"
        else:
            stem = NAMES[stem]
        writer.add_tensor(f"{stem}.{kind}", weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    folder = tmp_path / "hf"
    folder.mkdir()
    import_gguf(path, folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert type(loaded) is Qwen2ForCausalLM
    theirs = model.state_dict()
    assert all(np.array_equal(w.numpy(), theirs[name].numpy()) for name, w in loaded.state_dict().items())


def test_layout_check_sees_a_shift():
    from edgedistill.core.errors import MissingError

    real = library()

    class Shifted:
        llama_model_default_params = staticmethod(real.llama_model_default_params)
        llama_model_quantize_default_params = staticmethod(real.llama_model_quantize_default_params)

        @staticmethod
        def llama_context_default_params():
            context = real.llama_context_default_params()
            context.n_ctx, context.n_ubatch = 0, 2048
            return context

    with pytest.raises(MissingError, match=r"context.n_ctx is 0, not 512; context.n_ubatch is 2048"):
        check_layout(Shifted)


def test_llama_cpp_is_silent_and_says_why(tiny_llama: Path, tmp_path: Path, capfd):
    path = write_llama_gguf(tiny_llama, tmp_path / "x.gguf", pre="no-such-rule")
    with pytest.raises(InputError, match=r"llama.cpp cannot load .*no-such-rule"):
        tokenize_with(path, ["a"])
    assert capfd.readouterr() == ("", "")


def test_tiny_conversion_of_another_shape(tmp_path: Path):
    folder = save_tiny_llama(tmp_path / "llama", layers=1, hidden=32, seed=3)
    (tmp_path / "out").mkdir()
    import_gguf(write_llama_gguf(folder, tmp_path / "x.gguf"), tmp_path / "out")
    ours, theirs = (load_file(f / "model.safetensors") for f in (tmp_path / "out", folder))
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
