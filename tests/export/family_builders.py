"""Tiny models of every family that is exported: its config's keys, its tokenizer's pipeline, random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export_builders import corpus, save_byte_level
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from edgedistill.core.files import read_json, write_json
from edgedistill.export.pretokenizer import LLAMA3_SPLIT, O200K_SPLIT, QWEN2_SPLIT

LONG = 256  # the context that a long-rope model was trained with; llama.cpp has none shorter
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3_CHAT = (
    "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
PHI3_CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
PHI4_CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% else %}<|endoftext|>{% endif %}"
)
GEMMA_CHAT = (
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LLAMA3_SPECIALS = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eom_id|>", "<|eot_id|>", "<|python_tag|>",
)  # fmt: skip
SMALL = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
}


@dataclass(frozen=True)
class Family:
    """How one family's tiny model is made.

    `model` is transformers' class; `settings` what its config says beyond `SMALL`; `tokenizer` writes the files and
    returns the number of tokens; `spare` rows of the embedding have none. `pre` is llama.cpp's name of the
    pre-tokenizer, `begin` the token that config.json begins text with, `ends` those that end a generation.
    """

    model: str
    settings: dict[str, Any]
    tokenizer: Callable[[Path], int]
    pre: str
    begin: str
    ends: tuple[str, ...]
    spare: int = 0


def save_family(folder: Path, *, name: str, dtype: str = "float32") -> Path:
    """Write the family's tiny model: weights that half precision holds, norms and biases that do something."""
    import torch
    import transformers

    family = FAMILIES[name]
    folder.mkdir(parents=True)
    rows = family.tokenizer(folder) + family.spare
    ids = {entry["content"]: entry["id"] for entry in read_json(folder / "tokenizer.json")["added_tokens"]}
    ends = [ids[token] for token in family.ends]
    torch.manual_seed(len(name))
    kind = getattr(transformers, family.model)
    special = {"bos_token_id": ids[family.begin], "pad_token_id": None, "eos_token_id": ends}
    config = kind.config_class(vocab_size=rows, **special, **{**SMALL, **family.settings})
    model = kind(config).eval()
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            if part.endswith("bias") or "norm" in part:
                parameter.add_(0.2 * torch.randn_like(parameter))
            parameter.copy_(parameter.to(torch.bfloat16).to(torch.float16))
    model.generation_config = transformers.GenerationConfig(eos_token_id=ends)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def _settings(folder: Path, *, template: str, **entries: Any) -> None:
    """tokenizer_config.json as the families' repositories have it, with every added token spelled out."""
    added = read_json(folder / "tokenizer.json")["added_tokens"]
    decoder = {str(e["id"]): {k: v for k, v in e.items() if k != "id"} for e in added}
    write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": decoder, **entries})
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _byte_level(
    folder: Path,
    *,
    split: str | None,
    specials: tuple[str, ...],
    plain: tuple[str, ...] = (),
    ignore_merges: bool = False,
    nfc: bool = False,
    begin: str | None = None,
    removed: bool = False,
    vocab: int = 700,
) -> int:
    """A byte-level BPE whose special tokens follow its pieces, as in every such family; the number of tokens."""
    how = {"behavior": "removed", "invert": True} if removed else {"behavior": "isolated"}
    first = pre_tokenizers.Digits(individual_digits=True)
    if split is not None:
        first = pre_tokenizers.Split(Regex(split), **how)
    bytes_step = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    bpe = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    bpe.pre_tokenizer = pre_tokenizers.Sequence([first, bytes_step])
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=vocab, initial_alphabet=alphabet))
    if nfc:
        bpe.normalizer = normalizers.NFC()
    bpe.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    bpe.add_tokens([AddedToken(t, special=False, normalized=False) for t in plain])
    if begin is not None:
        bos = (begin, bpe.token_to_id(begin))
        template = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A {begin}:1 $B:1", special_tokens=[bos]
        )
        bpe.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    bpe.save(str(folder / "tokenizer.json"))
    return bpe.get_vocab_size()


def _llama3(folder: Path) -> int:
    count = _byte_level(
        folder, split=LLAMA3_SPLIT, specials=LLAMA3_SPECIALS, ignore_merges=True, begin="<|begin_of_text|>"
    )
    _settings(
        folder, template=LLAMA3_CHAT, tokenizer_class="PreTrainedTokenizerFast", bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>", clean_up_tokenization_spaces=True,
    )  # fmt: skip
    return count


def _smollm2(folder: Path) -> int:
    save_byte_level(folder, vocab=700)
    _settings(
        folder, template=CHATML, tokenizer_class="PreTrainedTokenizerFast", bos_token="<|im_start|>",
        eos_token="<|im_end|>", unk_token="<|endoftext|>", pad_token="<|im_end|>", clean_up_tokenization_spaces=False,
    )  # fmt: skip
    return 700


def _smollm3(folder: Path) -> int:
    specials = (*LLAMA3_SPECIALS, "<|im_start|>", "<|im_end|>")
    plain = ("<think>", "</think>", "<tool_call>", "</tool_call>")
    count = _byte_level(folder, split=LLAMA3_SPLIT, specials=specials, plain=plain, ignore_merges=True)
    _settings(
        folder, template=CHATML, tokenizer_class="PreTrainedTokenizerFast", bos_token=None, eos_token="<|im_end|>",
        pad_token="<|im_end|>", clean_up_tokenization_spaces=True,
    )  # fmt: skip
    return count


def _qwen(folder: Path) -> int:
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|vision_pad|>")
    plain = ("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|repo_name|>", "<think>", "</think>")
    count = _byte_level(folder, split=QWEN2_SPLIT, specials=specials, plain=plain, nfc=True)
    _settings(
        folder, template=CHATML, tokenizer_class="Qwen2Tokenizer", bos_token=None, eos_token="<|im_end|>",
        pad_token="<|endoftext|>", unk_token=None, add_bos_token=False, add_prefix_space=False,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    return count


def _phi4(folder: Path) -> int:
    specials = (
        "<|endoftext|>", "<|endofprompt|>", "<|assistant|>", "<|end|>", "<|user|>", "<|system|>", "<|tool|>",
        "<|/tool|>", "<|tool_call|>", "<|/tool_call|>", "<|tool_response|>", "<|tag|>",
    )  # fmt: skip
    count = _byte_level(folder, split=O200K_SPLIT, specials=specials, removed=True)
    end = "<|endoftext|>"
    _settings(
        folder, template=PHI4_CHAT, tokenizer_class="GPT2Tokenizer", bos_token=end, eos_token=end, pad_token=end,
        unk_token=end, add_bos_token=False, add_prefix_space=False, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    return count


def _sentencepiece_pieces(*, count: int) -> list[str]:
    """Pieces as SentencePiece orders them: merged ones in the order they were learnt, then single characters."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    text = [line for line in corpus() if "0x0A" not in line]  # no piece shall become a byte's name by merging
    trained.train_from_iterator(text, trainers.BpeTrainer(vocab_size=count, limit_alphabet=120))
    pieces = sorted(trained.get_vocab(), key=trained.get_vocab().get)
    return [*(p for p in pieces if len(p) > 1), *(p for p in pieces if len(p) == 1)]


def _scored_merges(place: dict[str, int], scores: dict[str, float]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, best score first: how transformers converts SentencePiece models."""
    found = [
        (scores[piece], cut, len(piece) - cut, piece)
        for piece in place
        for cut in range(1, len(piece))
        if piece in scores and piece[:cut] in place and piece[cut:] in place
    ]
    return [(p[:cut], p[cut:]) for _, cut, _, p in sorted(found, key=lambda f: f[:3], reverse=True)]


def _write_sentencepiece(
    folder: Path, bpe: Tokenizer, *, pieces: list[tuple[str, float, int]], added: list[AddedToken]
) -> int:
    """tokenizer.json, and tokenizer.model as the converter reads it: pieces with their scores and types."""
    from transformers.utils.sentencepiece_model_pb2_new import ModelProto

    for token in added:
        (bpe.add_special_tokens if token.special else bpe.add_tokens)([token])
    bpe.save(str(folder / "tokenizer.json"))
    proto = ModelProto()
    for piece, score, kind in pieces:
        proto.pieces.add(piece=piece, score=score, type=kind)
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
    return bpe.get_vocab_size()


# Types of SentencePiece's ModelProto.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
BYTES = [(f"<0x{i:02X}>", 0.0, BYTE) for i in range(256)]


def _phi3(folder: Path) -> int:
    """Llama 2's SentencePiece, with tokens for chats of which all but three drop the white space behind them."""
    learnt = _sentencepiece_pieces(count=500)
    scored = [(piece, -float(i), NORMAL) for i, piece in enumerate(learnt)]
    first = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    pieces = [*first, *BYTES, *scored]
    place = {piece: i for i, (piece, _, _) in enumerate(pieces)}
    merges = _scored_merges(place, {piece: score for piece, score, _ in scored})
    bpe = Tokenizer(models.BPE(vocab=place, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    bpe.decoder = decoders.Sequence(steps)
    names = ("<|assistant|>", "<|placeholder1|>", "<|system|>", "<|end|>", "<|placeholder5|>", "<|user|>")
    added = [
        *(AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>")),
        AddedToken("</s>", special=False, normalized=False, rstrip=True),
        AddedToken("<|endoftext|>", special=True, normalized=False),
        *(AddedToken(t, special=True, normalized=False, rstrip=True) for t in names),
    ]
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    count = _write_sentencepiece(folder, bpe, pieces=pieces, added=added)
    _settings(
        folder, template=PHI3_CHAT, tokenizer_class="LlamaTokenizer", bos_token="<s>", eos_token="<|endoftext|>",
        pad_token="<|endoftext|>", unk_token="<unk>", add_bos_token=True, add_eos_token=False, legacy=False,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    return count


def _gemma3(folder: Path) -> int:
    """Gemma's SentencePiece: no space before a text, and user-defined tokens of line ends, spaces and tags."""
    specials = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    turns = ("<start_of_turn>", "<end_of_turn>")
    unused = ("[multimodal]", *(f"<unused{i}>" for i in range(4)))
    lines, spaces = ["\n" * n for n in range(1, 32)], ["▁" * n for n in range(2, 32)]
    tags = ("<table>", "</table>", "<h1>", "</h1>", "<code>")
    defined = [*unused, *turns, *lines, *spaces, *tags]
    learnt = [p for p in _sentencepiece_pieces(count=500) if p not in (*lines, *spaces)]
    scored = [(piece, -float(i), NORMAL) for i, piece in enumerate(learnt)]
    first = [(t, 0.0, UNKNOWN if t == "<unk>" else CONTROL) for t in specials[:4]]
    user = [(t, 0.0, USER_DEFINED) for t in ("<mask>", *defined)]
    pieces = [*first, *user, *BYTES, *scored]
    place = {piece: i for i, (piece, _, _) in enumerate(pieces)}
    merges = _scored_merges(place, {piece: score for piece, score, kind in pieces if kind in (NORMAL, USER_DEFINED)})
    bpe = Tokenizer(models.BPE(vocab=place, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    bpe.normalizer = normalizers.Replace(" ", "▁")
    bpe.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    added = [AddedToken(t, special=True, normalized=False) for t in (*specials, *turns)]
    added += [AddedToken(t, special=False, normalized=False) for t in defined if t not in turns]
    bpe.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", 2)]
    )
    count = _write_sentencepiece(folder, bpe, pieces=pieces, added=added)
    _settings(
        folder, template=GEMMA_CHAT, tokenizer_class="GemmaTokenizer", bos_token="<bos>", eos_token="<eos>",
        pad_token="<pad>", unk_token="<unk>", add_bos_token=True, add_eos_token=False,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    return count


def _factors(*, step: float) -> list[float]:
    return [1.0 + step * i for i in range(24)]


def _longrope(*, count: int) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": _factors(step=0.05)[:count],
        "long_factor": _factors(step=1.5)[:count],
    }


LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 4.0, "original_max_position_embeddings": 128}

FAMILIES = {
    "llama3": Family(
        model="LlamaForCausalLM",
        settings={"tie_word_embeddings": True, "rope_parameters": LLAMA3_ROPE, "rms_norm_eps": 1e-5},
        tokenizer=_llama3,
        pre="llama-bpe",
        begin="<|begin_of_text|>",
        ends=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    ),
    "smollm2": Family(
        model="LlamaForCausalLM",
        settings={
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
            "rms_norm_eps": 1e-5,
        },
        tokenizer=_smollm2,
        pre="smollm",
        begin="<|im_start|>",
        ends=("<|im_end|>",),
    ),
    "smollm3": Family(
        model="SmolLM3ForCausalLM",
        settings={
            "num_hidden_layers": 5,  # the fourth rotates nothing
            "rope_parameters": {"rope_type": "default", "rope_theta": 5000000.0},
        },
        tokenizer=_smollm3,
        pre="llama-bpe",
        begin="<|begin_of_text|>",
        ends=("<|im_end|>",),
    ),
    "qwen2": Family(
        model="Qwen2ForCausalLM",
        settings={
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
            "use_sliding_window": False,
            "sliding_window": 64,
            "max_window_layers": 1,
        },
        tokenizer=_qwen,
        pre="qwen2",
        begin="<|endoftext|>",
        ends=("<|im_end|>", "<|endoftext|>"),
        spare=13,
    ),
    "qwen3": Family(
        model="Qwen3ForCausalLM",
        settings={"head_dim": 64, "rope_parameters": YARN, "tie_word_embeddings": False},
        tokenizer=_qwen,
        pre="qwen2",
        begin="<|endoftext|>",
        ends=("<|im_end|>", "<|endoftext|>"),
        spare=13,
    ),
    "phi3-4k": Family(
        model="Phi3ForCausalLM",
        settings={
            "num_key_value_heads": 4,
            "max_position_embeddings": 128,
            "original_max_position_embeddings": 128,
            "sliding_window": 63,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
        },
        tokenizer=_phi3,
        pre="default",
        begin="<s>",
        ends=("<|endoftext|>", "<|assistant|>", "<|end|>"),
        spare=20,
    ),
    "phi3-128k": Family(
        model="Phi3ForCausalLM",
        settings={
            "num_key_value_heads": 4,
            "max_position_embeddings": 4 * LONG,
            "original_max_position_embeddings": LONG,
            "sliding_window": 4096,
            "rope_parameters": {**_longrope(count=16), "partial_rotary_factor": 1.0},
        },
        tokenizer=_phi3,
        pre="default",
        begin="<s>",
        ends=("<|endoftext|>", "<|assistant|>", "<|end|>"),
        spare=20,
    ),
    "phi4-mini": Family(
        model="Phi3ForCausalLM",
        settings={
            "hidden_size": 256,
            "max_position_embeddings": 4 * LONG,
            "original_max_position_embeddings": LONG,
            "sliding_window": 4096,
            "tie_word_embeddings": True,
            "rope_parameters": {**_longrope(count=24), "partial_rotary_factor": 0.75},
        },
        tokenizer=_phi4,
        pre="gpt-4o",
        begin="<|endoftext|>",
        ends=("<|end|>", "<|endoftext|>"),
    ),
    "gemma3": Family(
        model="Gemma3ForCausalLM",
        settings={
            "num_hidden_layers": 7,  # the sixth sees the whole text
            "num_key_value_heads": 1,
            "head_dim": 64,
            "query_pre_attn_scalar": 64,
            "sliding_window": 16,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
        tokenizer=_gemma3,
        pre="default",
        begin="<bos>",
        ends=("<eos>", "<end_of_turn>"),
        spare=64,
    ),
}


def older_config(folder: Path) -> None:
    """Rewrite config.json in the form from before transformers 5: `rope_theta`, `rope_scaling` and their like."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    if "full_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        config["sliding_window_pattern"] = 6
        config.pop("layer_types", None)
        rope = rope["full_attention"]
    config["rope_theta"] = rope.pop("rope_theta")
    if (share := rope.pop("partial_rotary_factor", None)) is not None:
        config["partial_rotary_factor"] = share
    kind = rope.pop("rope_type")
    config["rope_scaling"] = {"type": kind, **rope} if kind != "default" else None
    config.pop("no_rope_layers", None)
    path.write_text(json.dumps(config))
