"""A SentencePiece-like tokenizer, small enough to make in a test."""

from __future__ import annotations

from pathlib import Path

TEXTS = ["Turn on the light in the kitchen and set the fan to 42 percent.", "Füge 3,14 hinzu: été à Gand…"] * 8


def save_pieces(folder: Path, *, scheme: str | None) -> None:
    """Pieces with `▁`, 256 bytes to fall back on, as a normalizer writes them (scheme None) or a pre-tokenizer."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trained.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=200))
    pieces = sorted(trained.get_vocab(), key=trained.get_vocab().get)
    names = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces]
    place = {name: i for i, name in enumerate(names)}
    merges = [(p[:c], p[c:]) for p in pieces for c in range(1, len(p)) if p[:c] in place and p[c:] in place]
    bpe = Tokenizer(models.BPE(vocab=place, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if scheme is None:
        bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        bpe.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    bpe.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = "{% for m in messages %}{{ bos_token }}{{ m.content }}{% endfor %}"
    fast.save_pretrained(folder)
