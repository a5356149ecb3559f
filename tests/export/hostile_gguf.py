"""Hostile GGUF files, made from a sound one: lies about counts, places and types, and models that llama.cpp dies of."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from gguf import GGUFReader

U8, U32, I32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 5, 6, 7, 8, 9, 10
CODES = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d"}
HUGE = (1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


def packed(value: Any, kind: int, inner: int | None = None) -> bytes:
    """A metadata value as it stands behind its key: type, then for arrays inner type and count, then the bytes."""
    if kind == ARRAY:
        assert inner is not None
        body = b"".join(packed(v, inner)[4:] for v in value)
        return struct.pack("<IIQ", ARRAY, inner, len(value)) + body
    if kind == STRING:
        raw = value if isinstance(value, bytes) else value.encode()
        return struct.pack("<IQ", STRING, len(raw)) + raw
    return struct.pack("<I", kind) + struct.pack(CODES[kind], value)


@dataclass
class Tensor:
    name: bytes
    shape: list[int]
    kind: int
    offset: int
    rank: int | None = None


@dataclass
class Parts:
    """A GGUF file taken apart, so that any piece can lie; `write` puts it together without asking questions."""

    fields: dict[bytes, bytes]
    tensors: list[Tensor]
    data: bytes
    magic: bytes = b"GGUF"
    version: int = 3
    tensor_count: int | None = None
    field_count: int | None = None
    alignment: int = 32
    repeated: list[tuple[bytes, bytes]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Parts:
        reader = GGUFReader(path)
        fields = {}
        for name, entry in reader.fields.items():
            if not name.startswith("GGUF."):
                raw = b"".join(part.tobytes() for part in entry.parts)
                fields[name.encode()] = raw[8 + len(name.encode()) :]
        begin = min(t.data_offset for t in reader.tensors)
        tensors = [
            Tensor(t.name.encode(), [int(n) for n in t.shape], int(t.tensor_type), t.data_offset - begin)
            for t in reader.tensors
        ]
        return cls(fields=fields, tensors=tensors, data=path.read_bytes()[begin:])

    def set(self, key: str, value: Any, kind: int = U32, inner: int | None = None) -> None:
        self.fields[key.encode()] = packed(value, kind, inner)

    def drop(self, key: str) -> None:
        del self.fields[key.encode()]

    def tensor(self, name: str) -> Tensor:
        return next(t for t in self.tensors if t.name == name.encode())

    def strings(self, key: str) -> list[bytes]:
        raw, at, found = self.fields[key.encode()], 16, []
        while at < len(raw):
            size = struct.unpack_from("<Q", raw, at)[0]
            found.append(raw[at + 8 : at + 8 + size])
            at += 8 + size
        return found

    def blob(self) -> bytes:
        entries = [*self.fields.items(), *self.repeated]
        tensors = len(self.tensors) if self.tensor_count is None else self.tensor_count
        count = len(entries) if self.field_count is None else self.field_count
        out = self.magic + struct.pack("<IQQ", self.version, tensors, count)
        for key, value in entries:
            out += struct.pack("<Q", len(key)) + key + value
        for t in self.tensors:
            rank = len(t.shape) if t.rank is None else t.rank
            out += struct.pack("<Q", len(t.name)) + t.name + struct.pack("<I", rank)
            out += struct.pack(f"<{len(t.shape)}QIQ", *t.shape, t.kind & 0xFFFFFFFF, t.offset)
        return out + b"\0" * (-len(out) % self.alignment) + self.data

    def reshape(self, shapes: dict[str, list[int]], *, kind: int = 0) -> None:
        """Give tensors other shapes and types of 4 bytes, with places and data that fit them."""
        data, ends = b"", [t.offset for t in self.tensors[1:]] + [len(self.data)]
        for t, end in zip(self.tensors, ends, strict=True):
            part = self.data[t.offset : end]
            if shape := shapes.get(t.name.decode()):
                t.shape, t.kind = list(shape), kind
                part = struct.pack("<f", 0.01) * prod(shape)
            t.offset = len(data)
            data += part + b"\0" * (-len(part) % self.alignment)
        self.data = data


Change = Callable[[Parts], None]


def _edited(key: str, **changes: Any) -> Change:
    def change(parts: Parts) -> None:
        for name, value in changes.items():
            setattr(parts.tensor(key), name, value)

    return change


def _kv(key: str, value: Any, kind: int = U32, inner: int | None = None) -> Change:
    return lambda parts: parts.set(key, value, kind, inner)


def _gone(key: str) -> Change:
    return lambda parts: parts.drop(key)


def _words(change: Callable[[list[bytes]], list[bytes]], key: str = "tokenizer.ggml.tokens") -> Change:
    return lambda parts: parts.set(key, change(parts.strings(key)), ARRAY, STRING)


def structural() -> Iterator[tuple[str, Change]]:
    """Lies about the container: counts, lengths, types, names, places."""
    for n in HUGE:
        yield f"tensor count {n}", lambda p, n=n: setattr(p, "tensor_count", n)
        yield f"field count {n}", lambda p, n=n: setattr(p, "field_count", n)
        yield f"string of {n}", lambda p, n=n: p.fields.update({b"general.name": struct.pack("<IQ", STRING, n)})
        yield f"array of {n}", lambda p, n=n: p.fields.update({b"a": struct.pack("<IIQ", ARRAY, U8, n)})
        yield f"strings {n}", lambda p, n=n: p.fields.update({b"a": struct.pack("<IIQ", ARRAY, STRING, n)})
        yield f"width {n}", _edited("token_embd.weight", shape=[n, 384])
        yield f"rows {n}", _edited("token_embd.weight", shape=[64, n])
        yield f"offset {n}", _edited("output_norm.weight", offset=n - n % 32)
    for version in (0, 1, 4, 1 << 24):
        yield f"version {version}", lambda p, v=version: setattr(p, "version", v)
    for kind in (13, 14, 99, 1 << 31):
        yield f"value type {kind}", lambda p, k=kind: p.fields.update({b"a": struct.pack("<IQ", k, 0)})
        yield f"inner type {kind}", lambda p, k=kind: p.fields.update({b"a": struct.pack("<IIQ", ARRAY, k, 1)})
    for kind in (4, 5, 31, 36, 38, 42, 99, 1 << 31):
        yield f"tensor type {kind}", _edited("output_norm.weight", kind=kind)
    for alignment in (0, 3, 7, 48):
        yield f"alignment {alignment}", _kv("general.alignment", alignment)
    yield "alignment as text", _kv("general.alignment", "32", STRING)
    yield "alignment true", _kv("general.alignment", 1, BOOL)
    yield "alignment u64", _kv("general.alignment", 32, U64)
    yield "alignment of half the file", _kv("general.alignment", 1 << 31)
    for rank in (0, 5, 255, (1 << 32) - 1):
        yield f"rank {rank}", _edited("output_norm.weight", rank=rank)
    yield "five dimensions", _edited("output_norm.weight", shape=[64, 1, 1, 1, 1])
    yield "no width", _edited("output_norm.weight", shape=[0])
    yield "no rows", _edited("token_embd.weight", shape=[64, 0])
    yield "overflowing product", _edited("token_embd.weight", shape=[1 << 32, 1 << 32, 4, 4])
    yield "product that wraps to right", _edited("token_embd.weight", shape=[64, 384 + (1 << 58)])
    yield "half a block", _edited("output_norm.weight", kind=12)
    yield "unaligned", lambda p: setattr(p.tensors[-1], "offset", p.tensors[-1].offset + 4)
    yield "on another", lambda p: setattr(p.tensors[-1], "offset", p.tensors[0].offset)
    yield "beyond the end", lambda p: setattr(p.tensors[-1], "offset", len(p.data))
    yield "name twice", lambda p: setattr(p.tensors[1], "name", p.tensors[0].name)
    yield "key twice", lambda p: p.repeated.append((b"llama.block_count", packed(2, U32)))
    yield "empty key", lambda p: p.fields.update({b"": packed(1, U32)})
    yield "empty tensor name", _edited("output_norm.weight", name=b"")
    yield "long tensor name", _edited("output_norm.weight", name=b"x" * 200)
    yield "NUL in tensor name", _edited("output_norm.weight", name=b"output_norm.weight\0x")
    yield "NUL in key", lambda p: p.fields.update({b"a\0b": packed(1, U32)})
    yield "tensor name not UTF-8", _edited("output_norm.weight", name=b"\xff\xfe")
    yield "key not UTF-8", lambda p: p.fields.update({b"\xff\xfe": packed(1, U32)})
    yield "nested arrays", lambda p: p.fields.update({b"a": struct.pack("<IIQ", ARRAY, ARRAY, 1) * 50})
    yield "magic", lambda p: setattr(p, "magic", b"GGJT")
    yield "no tensors", lambda p: p.tensors.clear()
    yield "no metadata", lambda p: p.fields.clear()


SIZES = ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count")


def _llama(shapes: dict[str, list[int]], **values: int) -> Change:
    """Sizes, and tensors that fit them: what a check of shapes alone lets through."""

    def change(parts: Parts) -> None:
        for key, value in values.items():
            parts.set("llama." + key.replace("__", "."), value)
        parts.reshape({f"blk.{i}.{name}.weight": shape for i in range(2) for name, shape in shapes.items()})

    return change


def models() -> Iterator[tuple[str, Change]]:
    """Whole containers whose models llama.cpp refuses, aborts on or reads beyond."""
    for key in (*SIZES, "attention.head_count_kv", "rope.dimension_count"):
        full = f"llama.{key}"
        yield f"{key} 0", _kv(full, 0)
        yield f"{key} as text", _kv(full, "64", STRING)
        yield f"{key} as an array", _kv(full, [4, 4], ARRAY, U32)
        yield f"{key} as a short array", _kv(full, [4], ARRAY, U32)
        yield f"{key} negative", _kv(full, -1, I32)
        yield f"{key} as a number with a fraction", _kv(full, 64.5, F32)
        yield f"{key} huge", _kv(full, (1 << 32) - 1)
        yield f"{key} true", _kv(full, 1, BOOL)
        yield f"{key} odd", _kv(full, 7)
        yield f"{key} of texts", _kv(full, ["4", "4"], ARRAY, STRING)
    for key in SIZES:
        yield f"without {key}", _gone(f"llama.{key}")
    yield "layers over the limit", _kv("llama.block_count", 513)
    yield "a layer more", _kv("llama.block_count", 3)
    yield "a layer less", _kv("llama.block_count", 1)
    yield "eps NaN", _kv("llama.attention.layer_norm_rms_epsilon", float("nan"), F32)
    yield "eps negative", _kv("llama.attention.layer_norm_rms_epsilon", -1.0, F32)
    yield "eps as text", _kv("llama.attention.layer_norm_rms_epsilon", "1e-5", STRING)
    yield "without eps", _gone("llama.attention.layer_norm_rms_epsilon")
    yield "rope base NaN", _kv("llama.rope.freq_base", float("nan"), F32)
    yield "rope base 0", _kv("llama.rope.freq_base", 0.0, F32)
    yield "rope base infinite", _kv("llama.rope.freq_base", float("inf"), F32)
    yield "rope scaling unknown", _kv("llama.rope.scaling.type", "spiral", STRING)
    yield "rope scaling a number", _kv("llama.rope.scaling.type", 3)
    yield "rope factor NaN", _kv("llama.rope.scaling.factor", float("nan"), F32)
    yield "experts without router", _kv("llama.expert_count", 8)
    yield "too many experts", _kv("llama.expert_count", 100_000)
    yield "experts used alone", _kv("llama.expert_used_count", 2)
    yield "expert groups alone", _kv("llama.expert_group_count", 2)
    yield "more nextn layers than layers", _kv("llama.nextn_predict_layers", 9)
    yield "value length other than key length", _kv("llama.attention.value_length", 32)
    yield "key length 0", _kv("llama.attention.key_length", 0)
    yield "key length odd", _kv("llama.attention.key_length", 15)
    yield "architecture unknown", _kv("general.architecture", "llamma", STRING)
    yield "architecture a number", _kv("general.architecture", 7)
    yield "architecture of a picture model", _kv("general.architecture", "clip", STRING)
    yield "architecture of others", _kv("general.architecture", "mamba", STRING)
    yield "architecture of an encoder", _kv("general.architecture", "bert", STRING)
    yield "without architecture", _gone("general.architecture")
    yield "file type as text", _kv("general.file_type", "F16", STRING)
    yield "name an array", _kv("general.name", [1], ARRAY, U32)
    yield "name of phi-3", _kv("general.name", "phi-3", STRING)
    yield "split of many", _kv("split.count", 4, 2)
    yield "split of text", _kv("split.count", "2", STRING)
    for name in ("token_embd.weight", "output_norm.weight", "blk.0.attn_q.weight", "blk.1.ffn_down.weight"):
        yield f"without {name}", lambda p, n=name: p.tensors.remove(p.tensor(n))
        yield f"integer {name}", _edited(name, kind=26)
        yield f"{name} turned", lambda p, n=name: p.tensor(n).shape.reverse()
        yield f"{name} flat", lambda p, n=name: setattr(p.tensor(n), "shape", [p.tensor(n).shape[0]])
        yield f"{name} with a third dimension", lambda p, n=name: p.tensor(n).shape.extend([1, 1])
        yield f"{name} narrower", lambda p, n=name: p.tensor(n).shape.__setitem__(0, 32)
    yield "layer that is none", _edited("blk.1.attn_q.weight", name=b"blk.99.attn_q.weight")
    yield "input tensor in a layer", _edited("output_norm.weight", name=b"blk.0.output_norm.weight")
    yield "layer tensor in no layer", _edited("blk.0.attn_q.weight", name=b"attn_q.weight")
    keys, odd = {"attn_k": [64, 48], "attn_v": [64, 48]}, {"attn_k": [64, 30], "attn_v": [64, 30]}
    yield "three of four key heads", _llama(keys, attention__head_count_kv=3)
    yield "more key heads than heads", _llama(
        {"attn_k": [64, 128], "attn_v": [64, 128]}, attention__head_count_kv=8)  # fmt: skip
    yield "odd heads", _llama({"attn_q": [64, 60], "attn_output": [60, 64], **odd}, attention__key_length=15,
                              attention__value_length=15, rope__dimension_count=15)  # fmt: skip
    yield "values longer than keys", _llama(
        {"attn_v": [64, 64], "attn_output": [128, 64]}, attention__value_length=32)  # fmt: skip
    yield "no key heads", _llama({}, attention__head_count_kv=0)
    yield "no feed-forward", _llama({}, feed_forward_length=0)
    yield "Q8_1 weights", _edited("blk.0.attn_q.weight", kind=9)
    yield "Q8_K weights", _edited("blk.1.ffn_down.weight", kind=15)
    yield "float64 weights", _edited("blk.1.ffn_down.weight", kind=28)
    yield "integer norms", lambda p: p.reshape({"output_norm.weight": [64]}, kind=26)
    yield "left-over tensor", _edited("blk.1.attn_q.weight", name=b"../../etc/passwd")
    yield "rope factors of wrong size", _edited("output_norm.weight", name=b"rope_freqs.weight")


def vocabularies() -> Iterator[tuple[str, Change]]:
    """Vocabularies that llama.cpp aborts on, indexes out of range in, or reads as another's."""
    tokens, types, merges = ("tokenizer.ggml." + name for name in ("tokens", "token_type", "merges"))
    yield "without tokens", _gone(tokens)
    yield "no tokens", _kv(tokens, [], ARRAY, STRING)
    yield "tokens as numbers", _kv(tokens, [1] * 384, ARRAY, U32)
    yield "tokens as a text", _kv(tokens, "abc", STRING)
    yield "fewer tokens", _words(lambda words: words[:-7])
    yield "more tokens", _words(lambda words: [*words, b"extra", b"more"])
    yield "a token twice", _words(lambda words: [*words[:-1], words[0]])
    yield "empty token", _words(lambda words: [*words[:-1], b""])
    yield "two empty tokens", _words(lambda words: [*words[:-2], b"", b""])
    yield "token not UTF-8", _words(lambda words: [*words[:-1], b"\xff\xfe"])
    yield "NUL in a token", _words(lambda words: [*words[:-1], b"a\0b"])
    yield "huge token", _words(lambda words: [*words[:-1], b"x" * 100_000])
    yield "no newline", _words(lambda words: [b"[NL]" if w == "Ċ".encode() else w for w in words])
    yield "no bytes", _words(lambda words: [b"[B%d]" % i if len(w) < 3 else w for i, w in enumerate(words)])
    yield "without types", _gone(types)
    yield "fewer types", _kv(types, [1] * 10, ARRAY, I32)
    yield "more types", _kv(types, [1] * 500, ARRAY, I32)
    yield "types as bytes", _kv(types, [1] * 384, ARRAY, U8)
    yield "types as floats", _kv(types, [1.0] * 384, ARRAY, F32)
    yield "types unknown", _kv(types, [77] * 384, ARRAY, I32)
    yield "types negative", _kv(types, [-1] * 384, ARRAY, I32)
    yield "types as texts", _kv(types, ["1"] * 384, ARRAY, STRING)
    yield "all tokens bytes", _kv(types, [6] * 384, ARRAY, I32)
    yield "all tokens unknown", _kv(types, [2] * 384, ARRAY, I32)
    yield "without merges", _gone(merges)
    yield "merges as numbers", _kv(merges, [1, 2], ARRAY, U32)
    yield "merges of no pair", _words(lambda words: [b"ab", b"", b" ", *words], merges)
    yield "merges of missing pieces", _words(lambda words: [*words, b"zq qz"], merges)
    yield "merges of missing unions", _words(lambda words: [*words, b"a z"], merges)
    yield "fewer scores", _kv("tokenizer.ggml.scores", [0.0] * 3, ARRAY, F32)
    yield "scores as texts", _kv("tokenizer.ggml.scores", ["0"] * 384, ARRAY, STRING)
    yield "scores NaN", _kv("tokenizer.ggml.scores", [float("nan")] * 384, ARRAY, F32)
    for model in ("llama", "bert", "t5", "rwkv", "none", "test", "plamo2", "gemma4", "whitespace", "unheard"):
        yield f"tokenizer {model}", _kv("tokenizer.ggml.model", model, STRING)
    yield "tokenizer a number", _kv("tokenizer.ggml.model", 3)
    yield "without tokenizer", _gone("tokenizer.ggml.model")
    yield "pre unknown", _kv("tokenizer.ggml.pre", "unheard", STRING)
    yield "pre a number", _kv("tokenizer.ggml.pre", 3)
    for role in ("bos", "eos", "unknown", "padding", "eot", "eom", "mask", "seperator"):
        yield f"{role} beyond", _kv(f"tokenizer.ggml.{role}_token_id", 384)
        yield f"{role} huge", _kv(f"tokenizer.ggml.{role}_token_id", (1 << 32) - 2)
    yield "eos as text", _kv("tokenizer.ggml.eos_token_id", "2", STRING)
    yield "eos negative", _kv("tokenizer.ggml.eos_token_id", -7, I32)
    yield "without bos, added", lambda p: (p.drop("tokenizer.ggml.bos_token_id"), p.set(
        "tokenizer.ggml.add_bos_token", 1, BOOL))  # fmt: skip
    yield "add_bos a number", _kv("tokenizer.ggml.add_bos_token", 3)
    yield "vocabulary size larger", _kv("llama.vocab_size", 1 << 20)
    yield "vocabulary size 0", _kv("llama.vocab_size", 0)
    yield "vocabulary size as text", _kv("llama.vocab_size", "384", STRING)
    yield "template a number", _kv("tokenizer.chat_template", 3)
    yield "template of array", _kv("tokenizer.chat_template", ["a"], ARRAY, STRING)
    yield "charsmap short", lambda p: (p.set("tokenizer.ggml.model", "t5", STRING), p.set(
        "tokenizer.ggml.precompiled_charsmap", [255, 255, 255, 255, 0], ARRAY, U8))  # fmt: skip


def random_damage(whole: bytes, *, begin: int, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Bit flips, overwritten words and cuts within the first `begin` bytes (the header) and of the whole."""
    draw = random.Random(seed)
    for number in range(count):
        raw = bytearray(whole)
        way = number % 4
        if way == 0:
            raw = raw[: draw.randrange(len(raw))]
        elif way == 1:
            for _ in range(draw.randint(1, 4)):
                raw[draw.randrange(begin)] ^= 1 << draw.randrange(8)
        elif way == 2:
            at = draw.randrange(begin - 8)
            raw[at : at + 8] = struct.pack("<Q", draw.choice(HUGE))
        else:
            at, size = draw.randrange(begin), draw.randint(1, 64)
            raw[at : at + size] = b"" if draw.random() < 0.5 else raw[at : at + size] * 2
        yield f"random {number}", bytes(raw)
