"""Tiny Hugging Face folders of many shapes: byte-level and SentencePiece tokenizers, cut vocabularies, Llamas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgedistill.export.probes import probe_strings

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SPM_TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"


def corpus() -> list[str]:
    """Text of every kind the probes have, so that merges reach into all of it."""
    return probe_strings(count=2000, seed=99) + ["the light in the living room is on, turn it off"] * 20


def smollm_pipeline() -> Any:
    from tokenizers import pre_tokenizers

    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])


def save_byte_level(
    folder: Path,
    *,
    vocab: int = 1200,
    keep: int | None = None,
    pipeline: Any = None,
    normalizer: Any = None,
    ignore_merges: bool = False,
    specials: list[str] = SPECIALS,
    added: tuple[str, ...] = (),
) -> None:
    """Train a byte-level BPE; with `keep`, cut it to that many pieces and the merges that still make sense."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    bpe.pre_tokenizer = pipeline or smollm_pipeline()
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=specials, initial_alphabet=alphabet)
    bpe.train_from_iterator(corpus(), trainer)
    if normalizer is not None:
        bpe.normalizer = normalizer
    if keep is not None:
        bpe = Tokenizer.from_str(json.dumps(cut_vocabulary(json.loads(bpe.to_str()), keep=keep)))
    bpe.add_tokens(list(added))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=specials[1], eos_token=specials[2], pad_token=specials[2], unk_token=specials[0]
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


def cut_vocabulary(parsed: dict[str, Any], *, keep: int) -> dict[str, Any]:
    """Keep specials, single bytes and merged pieces whose parts are kept, leaving out every third; renumbered.

    So every piece left can still be reached by merging, as a cut must see to.
    """
    pieces = sorted(parsed["model"]["vocab"], key=parsed["model"]["vocab"].get)
    specials = {entry["content"] for entry in parsed["added_tokens"]}
    kept = dict.fromkeys(p for p in pieces if p in specials or len(p) == 1)
    merges = []
    for number, (a, b) in enumerate(parsed["model"]["merges"]):
        if number % 3 and a in kept and b in kept and len(kept) < keep:
            kept[a + b] = None
            merges.append([a, b])
    place = {piece: i for i, piece in enumerate(kept)}
    parsed["model"] |= {"vocab": place, "merges": merges}
    for entry in parsed["added_tokens"]:
        entry["id"] = place[entry["content"]]
    return parsed


def save_sentencepiece(folder: Path, *, vocab: int = 700, scheme: str | None = None) -> None:
    """A SentencePiece-like BPE: `<unk> <s> </s>`, 256 bytes, then pieces; merges made of pieces as converters do."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trained.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=vocab - 259, limit_alphabet=120))
    pieces = sorted(trained.get_vocab(), key=trained.get_vocab().get)
    merged = [p for p in pieces if len(p) > 1]
    names = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        *merged,
        *(p for p in pieces if len(p) == 1),
    ]
    place = {name: i for i, name in enumerate(names)}
    merges = [(p[:cut], p[cut:]) for p in merged for cut in range(1, len(p)) if p[:cut] in place and p[cut:] in place]
    bpe = Tokenizer(models.BPE(vocab=place, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if scheme is None:
        bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        bpe.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    bpe.decoder = decoders.Sequence(steps)
    bpe.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", pair=None, special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = SPM_TEMPLATE
    fast.save_pretrained(folder)


def save_llama(
    folder: Path, *, rows: int, seed: int = 0, dtype: str = "float32", shard: str = "5GB", **sizes: Any
) -> Path:
    """A random Llama of any shape, with random biases, into a folder that holds a tokenizer already."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    settings = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.2,
        **sizes,
    }
    model = LlamaForCausalLM(LlamaConfig(vocab_size=rows, **settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
    return folder
