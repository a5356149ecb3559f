"""A trimmed vocabulary: the same text always, the same tokens where all are kept, and llama.cpp agrees."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import load

from edgedistill.core.errors import InputError, StageError
from edgedistill.core.files import read_json
from edgedistill.runtimes.chat import end_ids, load_tokenizer
from edgedistill.runtimes.gguf_tokenizer import probe_strings
from edgedistill.train import trim
from edgedistill.train.folders import save_model

TASK = ["turn on the light in the kitchen", '{"device":"light","room":"kitchen"}', "set the fan to 42 percent"]


@pytest.fixture(scope="module")
def source(tmp_path_factory, tiny_llama) -> Path:
    """The tiny model with a vocabulary of 640, two end-like special tokens that nothing uses among them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("trim") / "source"
    shutil.copytree(tiny_llama, folder)
    old = Tokenizer.from_file(str(folder / "tokenizer.json"))
    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer, fast.decoder = old.pre_tokenizer, old.decoder
    fast.train_from_iterator(
        [*TASK * 3, *probe_strings(400, seed=5)],
        trainers.BpeTrainer(
            vocab_size=640,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<reponame>", "<|fim_pad|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    fast.save(str(folder / "tokenizer.json"))
    config = load(tiny_llama).config
    config.vocab_size = 672  # padded beyond the tokenizer, as published models are
    torch.manual_seed(1)
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = [2, 0], 2
    save_model(model, folder)
    return folder


def trimmed(source: Path, folder: Path, *, size: int) -> np.ndarray:
    parsed = trim.read_tokenizer(source)
    template = load_tokenizer(source).chat_template
    task = trim.count_tokens(load_tokenizer(source), TASK)
    keep = trim.choose_tokens(
        parsed, size=size, task=task, english={}, protected=trim.protected_tokens(source, parsed, template=template)
    )
    folder.mkdir()
    trim.save_tokenizer(trim.trim_tokenizer(parsed, keep), source=source, folder=folder, template=template)
    model = load(source)
    trim.trim_embeddings(model, keep)
    save_model(model, folder)
    return keep


@pytest.fixture(scope="module")
def small(tmp_path_factory, source) -> tuple[Path, np.ndarray]:
    folder = tmp_path_factory.mktemp("trim") / "small"
    return folder, trimmed(source, folder, size=416)


def test_text_is_kept_and_tokens_where_all_of_them_are(source, small):
    folder, keep = small
    texts = [*TASK, *probe_strings(3000, seed=1, special=("<|im_start|>", "<|im_end|>"))]
    before, after = load_tokenizer(source), load_tokenizer(folder)
    new = trim.id_map(keep, size=672)
    same = 0
    for text in texts:
        old = before(text, add_special_tokens=False)["input_ids"]
        ids = after(text, add_special_tokens=False)["input_ids"]
        assert max(ids, default=0) < 416
        decoded = after.decode(ids, clean_up_tokenization_spaces=False)
        assert decoded == before.decode(old, clean_up_tokenization_spaces=False), text
        if (new[old] >= 0).all():
            same += 1
            assert ids == new[old].tolist(), text
    assert 100 < same < len(texts)
    assert all((new[before(t, add_special_tokens=False)["input_ids"]] >= 0).all() for t in TASK)


def test_model_gives_the_logits_of_the_kept_rows(source, small):
    folder, keep = small
    ids = load_tokenizer(folder)(TASK[0], add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        student = load(folder)(ids).logits
        teacher = load(source)(torch.from_numpy(keep)[ids]).logits[..., keep]
    torch.testing.assert_close(student, teacher)
    config = read_json(folder / "config.json")
    assert config["vocab_size"] == 416 and config["tie_word_embeddings"]


def test_untied_head_is_trimmed_too(source, small):
    _, keep = small
    from transformers import LlamaForCausalLM

    config = load(source).config
    config.tie_word_embeddings = False
    model = LlamaForCausalLM(config)
    head = model.lm_head.weight.detach().clone()
    trim.trim_embeddings(model, keep)
    assert torch.equal(model.lm_head.weight, head[keep])
    assert model.get_input_embeddings().weight.shape == (416, 64)


def test_only_special_tokens_in_use_stay_and_llama_cpp_ends_where_hf_does(source, small, tmp_path):
    from edgedistill.export.gguf import export_gguf_f16
    from edgedistill.runtimes import llama_lib

    folder, _ = small
    added = [t["content"] for t in read_json(folder / "tokenizer.json")["added_tokens"]]
    assert added == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # the first is an end of generation
    tokenizer = load_tokenizer(folder)
    assert tokenizer.convert_ids_to_tokens(end_ids(folder)) == ["<|im_end|>", "<|endoftext|>"]
    assert tokenizer.unk_token == "<|endoftext|>" and len(tokenizer) == 416
    export_gguf_f16(model=folder, out=tmp_path / "m.gguf")
    assert llama_lib.end_ids(tmp_path / "m.gguf") == frozenset(end_ids(folder))
    texts = probe_strings(500, seed=2, special=("<|im_start|>",))
    hf = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
    assert llama_lib.tokenize_with(tmp_path / "m.gguf", texts) == hf


def test_sizes_that_do_not_fit_are_refused(source, tmp_path):
    with pytest.raises(InputError, match=r"multiple of 32, found 400"):
        trimmed(source, tmp_path / "a", size=400)
    with pytest.raises(StageError, match=r"need \d+ tokens, found student.cut.vocab = 256; raise it to at least 320"):
        trimmed(source, tmp_path / "b", size=256)
    with pytest.raises(StageError, match=r"only 6\d\d tokens to keep, found student.cut.vocab = 672; lower it to"):
        trimmed(source, tmp_path / "c", size=672)


def test_most_frequent_english_comes_before_early_merges(source):
    parsed = trim.read_tokenizer(source)
    last = parsed["model"]["vocab"]["".join(parsed["model"]["merges"][-1])]
    kept = {}
    for english in ({}, {last: 9}):
        kept[len(english)] = trim.choose_tokens(parsed, size=416, task={}, english=english, protected=["<|im_end|>"])
    assert last in kept[1] and last not in kept[0]


def test_frequent_english_brings_no_twin_that_it_does_not_use(source):
    parsed = trim.read_tokenizer(source)
    vocab = parsed["model"]["vocab"]
    twins = {vocab[t]: vocab[t[1:]] for t in vocab if t.startswith("Ġ") and t[1:] in vocab and len(t) > 2}
    parts = trim._Parts(vocab, {pair: rank for rank, pair in enumerate(parsed["model"]["merges"])})
    needed = set().union(*(parts.of(token) for token in twins))
    unused = set(twins.values()) - needed
    alphabet = {i for text, i in vocab.items() if len(text) == 1}
    size = len(alphabet | needed) // 32 * 32  # nothing else has room
    english = {token: 9 if twin in unused else 1 for token, twin in twins.items()}
    keep = trim.choose_tokens(parsed, size=size, task={}, english=english, protected=["<|im_end|>"])
    assert unused and not unused & set(keep.tolist())
    assert {token for token, count in english.items() if count == 9} <= set(keep.tolist())


def test_a_word_is_kept_with_and_without_a_space_before_it(source):
    parsed = trim.read_tokenizer(source)
    vocab = parsed["model"]["vocab"]
    twins = {i: vocab[t] for t, i in vocab.items() for t in (t[1:] if t.startswith("Ġ") else f"Ġ{t}",) if t in vocab}
    task = dict.fromkeys(list(twins)[:20], 1)
    keep = set(trim.choose_tokens(parsed, size=416, task=task, english={}, protected=["<|im_end|>"]).tolist())
    assert all(twins[i] in keep for i in task)
    with_twin = [i for i in keep & twins.keys() if twins[i] in keep]
    assert len(with_twin) > 40 and len(with_twin) > 0.9 * len(keep & twins.keys())


def test_other_tokenizers_are_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "Unigram", "vocab": []}}))
    with pytest.raises(InputError, match=r"plain BPE tokenizer, found Unigram .*leave student.cut.vocab out"):
        trim.read_tokenizer(tmp_path)


def test_ids_inside_post_processors_are_renumbered():
    parsed = {
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 5}, "merges": [], "unk_token": None},
        "added_tokens": [{"id": 7, "content": "<s>"}],
        "post_processor": {
            "type": "Sequence",
            "processors": [
                {"type": "TemplateProcessing", "special_tokens": {"<s>": {"id": "<s>", "ids": [7], "tokens": ["<s>"]}}},
                {"type": "RobertaProcessing", "sep": ["b", 5], "cls": ["<s>", 7]},
            ],
        },
    }
    found = trim.trim_tokenizer(parsed, np.array([5, 7]))
    template, roberta = found["post_processor"]["processors"]
    assert template["special_tokens"]["<s>"]["ids"] == [1]
    assert roberta["sep"] == ["b", 0] and roberta["cls"] == ["<s>", 1]
    assert found["model"]["vocab"] == {"b": 0} and found["added_tokens"][0]["id"] == 1
