"""Hostile Hugging Face folders, made from a sound one: safetensors, shards, settings, tokenizers and chat templates."""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Damage = Callable[[Path], Any]
HUGE = (2**31, 2**62, 2**63, 2**64, 10**30)


def weights(change: Callable[[dict[str, Any]], Any], *, name: str = "model.safetensors") -> Damage:
    """Edit the header of a safetensors file."""

    def damage(folder: Path) -> None:
        raw = (folder / name).read_bytes()
        size = struct.unpack("<Q", raw[:8])[0]
        header = json.loads(raw[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        (folder / name).write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])

    return damage


def raw(name: str, change: Callable[[bytes], bytes]) -> Damage:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def setting(name: str, *place: Any, value: Any = None, drop: bool = False) -> Damage:
    """Set or drop a value in a JSON file; a place may lead through lists."""

    def damage(folder: Path) -> None:
        found = json.loads((folder / name).read_text())
        inner = found
        for key in place[:-1]:
            inner = inner[key]
        if drop:
            del inner[place[-1]]
        else:
            inner[place[-1]] = value
        (folder / name).write_text(json.dumps(found))

    return damage


def first(key: str, value: Any) -> Damage:
    return weights(lambda h: h[next(n for n in h if n != "__metadata__")].__setitem__(key, value))


def sharded(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Make the one file a shard with an index, and edit the index."""

    def damage(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        blob = (folder / "model-00001-of-00001.safetensors").read_bytes()
        names = json.loads(blob[8 : 8 + struct.unpack("<Q", blob[:8])[0]]).keys() - {"__metadata__"}
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
        change(index)
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return damage


def linked(name: str, target: str) -> Damage:
    def damage(folder: Path) -> None:
        outside = folder.parent / f"{folder.name}-outside"
        (folder / name).rename(outside)
        os.symlink(outside if target == "absolute" else f"../{outside.name}", folder / name)

    return damage


def safetensors() -> Iterator[tuple[str, Damage]]:
    file = "model.safetensors"
    for n in (0, 1, 10, *HUGE[:3], 2**64 - 1):
        yield f"header of {n}", raw(file, lambda b, n=n: struct.pack("<Q", n) + b[8:])
    for value in (*HUGE, -1, 1.5, "64", None, True, float("nan"), [], {}):
        yield f"dimension {value!r}", first("shape", [value, 64])
        yield f"offset {value!r}", first("data_offsets", [value, 100])
        yield f"end {value!r}", first("data_offsets", [0, value])
    for value in ("F33", "f32", 7, None, [], "I64", "F4"):
        yield f"type {value!r}", first("dtype", value)
    for shape in ([], [0], [1] * 5000, [2**32, 2**32], [[64]], "ab", {"a": 1}):
        yield f"shape {str(shape)[:30]}", first("shape", shape)
    for places in ([0], [0, 1, 2], [8, 0], "01", None, {"0": 1}):
        yield f"places {places!r}", first("data_offsets", places)
    for key in ("dtype", "shape", "data_offsets"):
        yield f"without {key}", weights(lambda h, k=key: h[next(n for n in h if n != "__metadata__")].pop(k))
    yield "unheard of key", first("path", "/etc/passwd")
    yield "entry a list", weights(lambda h: h.update({"model.norm.weight": []}))
    yield "entry a text", weights(lambda h: h.update({"model.norm.weight": "../x"}))
    yield "hole", weights(lambda h: h.pop("model.norm.weight"))
    yield "a tensor over another", weights(lambda h: h["model.norm.weight"].update(data_offsets=[0, 256]))
    yield "one more, beyond the end", weights(lambda h: h.update(
        x={"dtype": "F32", "shape": [64], "data_offsets": [10**9, 10**9 + 256]}))  # fmt: skip
    yield "header a list", raw(file, lambda b: struct.pack("<Q", 2) + b"[]" + b[8:])
    yield "header nested", raw(file, lambda b: struct.pack("<Q", 200_000) + b"[" * 200_000 + b[8:])
    yield "header not UTF-8", raw(file, lambda b: struct.pack("<Q", 4) + b'{"\xff' + b[8:])
    yield "header NaN", raw(file, lambda b: struct.pack("<Q", 5) + b"NaN  " + b[8:])
    yield "digits without end", raw(file, lambda b: struct.pack("<Q", 10_000) + b"9" * 10_000 + b[8:])
    twice = b'{"__metadata__":{},"__metadata__":{},'
    yield "a key twice", raw(
        file, lambda b: struct.pack("<Q", struct.unpack("<Q", b[:8])[0] + len(twice) - 1) + twice + b[9:])  # fmt: skip
    yield "truncated", raw(file, lambda b: b[:-1])
    yield "longer", raw(file, lambda b: b + b"x")
    yield "empty", raw(file, lambda b: b"")
    yield "seven bytes", raw(file, lambda b: b[:7])
    yield "a pickle", raw(file, lambda b: b"\x80\x04cos\nsystem\n(S'id'\ntR.")
    yield "a folder", lambda f: ((f / file).unlink(), (f / file).mkdir())
    yield "a pipe", lambda f: ((f / file).unlink(), os.mkfifo(f / file))
    yield "linked out, absolute", linked(file, "absolute")
    yield "linked out, relative", linked(file, "relative")
    yield "linked to itself", lambda f: ((f / file).unlink(), os.symlink(file, f / file))
    yield "a pickle alone", lambda f: (f / file).rename(f / "pytorch_model.bin")
    yield "a second file, damaged", lambda f: (f / "other.safetensors").write_bytes(b"x" * 50)
    for target in (
        "/etc/passwd",
        "../x.safetensors",
        "a/../../x",
        "..\\x",
        "",
        ".",
        "a\0b",
        "no.safetensors",
        "x" * 5000,
    ):
        yield f"shard at {target[:20]!r}", sharded(lambda i, t=target: i["weight_map"].update(
            {"model.norm.weight": t}))  # fmt: skip
    for value in (3, None, ["model"], {"a": 1}):
        yield f"shard {value!r}", sharded(lambda i, v=value: i["weight_map"].update({"model.norm.weight": v}))
    yield (
        "shard without the tensor",
        sharded(lambda i: i["weight_map"].update(extra="model-00001-of-00001.safetensors")),
    )
    yield "no map", sharded(lambda i: i.pop("weight_map"))
    yield "map a list", sharded(lambda i: i.update(weight_map=[]))
    yield "empty map", sharded(lambda i: i.update(weight_map={}))
    yield "whole index a list", lambda f: (f / "model.safetensors.index.json").write_text("[]")
    yield "index not JSON", lambda f: (f / "model.safetensors.index.json").write_text("{")
    yield "index beside a damaged file", lambda f: (sharded(lambda i: None)(f), (f / file).write_bytes(b"x" * 9))


SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
         "vocab_size", "max_position_embeddings")  # fmt: skip
TEMPLATES = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__ }}",
    "attribute filter": "{{ messages|attr('__class__') }}",
    "item": "{{ messages['__class__'] }}",
    "cycler": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "lipsum": "{{ lipsum.__globals__['os'].system('id') }}",
    "self": "{{ self.__init__ }}",
    "format": "{{ '{0.__class__}'.format(messages) }}",
    "built name": "{{ messages|attr('__cla' ~ 'ss__') }}",
    "format filter": "{{ '%s'|format(messages|attr('__class__')) }}",
    "map attribute": "{{ messages|map(attribute='__class__')|list }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import '/etc/passwd' as x %}",
    "from": "{% from 'x' import y %}",
    "extends": "{% extends '../x' %}",
    "huge range": "{% for i in range(10**9) %}x{% endfor %}",
    "endless": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "long text": "{{ 'a' * 10000000000 }}",
    "doubling": "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "joining": "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = [n.x, n.x]|join %}{% endfor %}",
    "replacing": "{% set n = namespace(x='a') %}{% for i in range(60) %}"
    "{% set n.x = n.x.replace('a', 'aa') %}{% endfor %}",
    "wide": "{{ '{:10000000000}'.format(1) }}",
    "centred": "{{ 'a'|center(10000000000) }}",
    "percent": "{{ '%10000000000d' % 1 }}",
    "batch": "{{ [1]|batch(1000000000, 0)|list }}",
    "recursive macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursive loop": "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "deep brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep blocks": "{% if 1 %}" * 400 + "{% endif %}" * 400,
    "no Jinja": "{% for %}",
    "longer than any": "a" * (1 << 21),
    "changes messages": "{{ messages.append(1) }}",
    "number and text": "{{ 1 + 'a' }}",
}


def settings() -> Iterator[tuple[str, Damage]]:
    """config.json, generation_config.json and tokenizer_config.json."""
    config = "config.json"
    for key in SIZES:
        for value in (0, -1, 2**31, 2**62, "64", 1.5, True, [64], {}, float("nan")):
            yield f"{key} {value!r}", setting(config, key, value=value)
        yield f"without {key}", setting(config, key, drop=True)
    for key, value in (("rms_norm_eps", "a"), ("rms_norm_eps", float("nan")), ("rope_parameters", 3),
                       ("rope_parameters", {"rope_type": "spiral"}), ("rope_parameters", {"rope_theta": float("inf")}),
                       ("rope_parameters", {"rope_type": "linear", "factor": 0, "rope_theta": 1e4}),
                       ("rope_parameters", {"rope_type": ["a"]}), ("rope_scaling", "x"), ("hidden_act", "evil"),
                       ("hidden_act", 3), ("model_type", "unheard"), ("model_type", 3), ("model_type", None),
                       ("architectures", "LlamaForCausalLM"), ("architectures", [3]), ("architectures", ["Evil"]),
                       ("attn_implementation", "evil/kernel"), ("_attn_implementation", "evil/kernel"),
                       ("transformers_weights", "../../x.safetensors"), ("quantization_config", {"quant_method": "e"}),
                       ("quantization_config", []), ("torch_dtype", "evil"), ("dtype", "os.system"), ("head_dim", 7),
                       ("head_dim", 2**40), ("num_hidden_layers", 3), ("num_hidden_layers", 1), ("eos_token_id", "2"),
                       ("eos_token_id", 10**30), ("eos_token_id", [2, None]), ("tie_word_embeddings", False),
                       ("auto_map", {"AutoModelForCausalLM": "evil.Model"}), ("pad_token_id", 10**6),
                       ("text_config", {"hidden_size": -1}), ("intermediate_size", 7)):  # fmt: skip
        yield f"{key} is {value!r}", setting(config, key, value=value)
    for name in (config, "generation_config.json", "tokenizer_config.json"):
        for text in ("", "[]", "null", "3", '"a"', "{", "[" * 100_000, "9" * 10_000, '{"a":' * 5000):
            yield f"{name} {text[:6]!r} of {len(text)}", lambda f, n=name, t=text: (f / n).write_text(t)
        yield f"{name} not UTF-8", lambda f, n=name: (f / n).write_bytes(b'{"a": "\xff\xfe"}')
        yield f"{name} a folder", lambda f, n=name: ((f / n).unlink(), (f / n).mkdir())
    for value in (-1, 384, 10**30, "2", [], [2, "x"], [2, 10**9], {}, True):
        yield f"generation eos {value!r}", setting("generation_config.json", "eos_token_id", value=value)
    for key, value in (("tokenizer_class", "Evil"), ("tokenizer_class", 3), ("eos_token", 3), ("eos_token", "absent"),
                       ("bos_token", {"content": 3}), ("auto_map", {"AutoTokenizer": ["evil.T", None]}),
                       ("model_max_length", "a"), ("model_max_length", -1), ("added_tokens_decoder", []),
                       ("added_tokens_decoder", {"99999999": {"content": "x"}}), ("extra_special_tokens", 3),
                       ("chat_template", 3), ("chat_template", [3]), ("chat_template", {"a": "b"})):  # fmt: skip
        yield f"tokenizer's {key} {value!r}", setting("tokenizer_config.json", key, value=value)


def tokenizers() -> Iterator[tuple[str, Damage]]:
    """tokenizer.json: models, merges, ids, expressions, pipelines."""
    file = "tokenizer.json"
    for text in ("", "[]", "null", "{}", "{", "[" * 100_000, '{"model": {}}', '{"model": {"type": "BPE"}}'):
        yield f"whole {text[:16]!r} of {len(text)}", lambda f, t=text: (f / file).write_text(t)
    for kind in ("Unigram", "WordPiece", "WordLevel", "Evil", 3, None):
        yield f"model {kind!r}", setting(file, "model", "type", value=kind)
    for value in (
        [["a", "zq"]],
        [["zq", "qz"]],
        ["a b c"],
        ["ab"],
        [""],
        [3],
        "a b",
        None,
        [["a"]],
        [["a", "b", "c"]],
        {},
    ):
        yield f"merges {value!r}", setting(file, "model", "merges", value=value)
    for value in (-1, 384, 10**9, 2**32, 2**64, "3", 1.5, None):
        yield f"a piece at {value!r}", setting(file, "model", "vocab", "zz", value=value)
        yield f"an added token at {value!r}", setting(file, "added_tokens", 0, "id", value=value)
    yield "a piece at another's id", setting(file, "model", "vocab", "zz", value=5)
    yield "pieces a list", setting(file, "model", "vocab", value=[["a", 0.5]])
    yield "no pieces", setting(file, "model", "vocab", value={})
    yield "an empty piece", setting(file, "model", "vocab", "", value=383)
    yield "no model", setting(file, "model", drop=True)
    for key, value in (("content", ""), ("content", 3), ("content", "a\0b"), ("special", "x"), ("lstrip", True),
                       ("single_word", True), ("content", "x" * 100_000)):  # fmt: skip
        yield f"added {key} {str(value)[:9]!r}", setting(file, "added_tokens", 0, key, value=value)
    yield "added tokens a dict", setting(file, "added_tokens", value={})
    yield "an added token twice", setting(file, "added_tokens", 1, "content", value="<|endoftext|>")
    split = {"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Isolated", "invert": False}
    for pattern in ("(a+)+$", "(" * 3000, "(?<!a", "\\p{Evil}", "(.*)*" * 50, "[", "a{99999999}", "", "(?i:" * 500):
        yield (
            f"expression {pattern[:12]!r}",
            setting(file, "pre_tokenizer", value=split | {"pattern": {"Regex": pattern}}),
        )
    for part in ({"type": "Evil"}, {"type": "Sequence"}, {"type": "Sequence", "pretokenizers": []}, 3, [], None,
                 {"type": "Sequence", "pretokenizers": [{"type": "Digits"}] * 2000}, {}):  # fmt: skip
        yield f"pre-tokenizer {str(part)[:40]}", setting(file, "pre_tokenizer", value=part)
    for part in ({"type": "Evil"}, {"type": "Prepend", "prepend": "x" * 100_000}, 3, {"type": "Precompiled"},
                 {"type": "Replace", "pattern": {"Regex": "("}, "content": ""}):  # fmt: skip
        yield f"normalizer {str(part)[:40]}", setting(file, "normalizer", value=part)
    for part in ({"type": "Evil"}, 3, {"type": "TemplateProcessing"}, {"type": "TemplateProcessing", "single": [
            {"SpecialToken": {"id": "zq", "type_id": 0}}], "pair": [], "special_tokens": {}}):  # fmt: skip
        yield f"post-processor {str(part)[:50]}", setting(file, "post_processor", value=part)
    yield "decoder unheard of", setting(file, "decoder", value={"type": "Evil"})
    yield "truncation negative", setting(file, "truncation", value={"max_length": -1})
    yield "linked out", linked(file, "absolute")
    for name, text in TEMPLATES.items():
        yield f"template: {name}", lambda f, t=text: (f / "chat_template.jinja").write_text(t)
    yield "template not UTF-8", lambda f: (f / "chat_template.jinja").write_bytes(b"{{ '\xff' }}")
    yield "template a folder", lambda f: ((f / "chat_template.jinja").unlink(), (f / "chat_template.jinja").mkdir())


def random_damage(folder: Path, *, names: tuple[str, ...], count: int, seed: int) -> Iterator[tuple[str, Damage]]:
    """Bit flips in the header or the first 2 KiB, cuts and repeats."""
    draw = random.Random(seed)
    for number in range(count):
        name = names[number % len(names)]
        size = min((folder / name).stat().st_size, 2048)
        way, at = draw.randrange(3), draw.randrange(size)
        places = [(draw.randrange(size), draw.randrange(8)) for _ in range(draw.randint(1, 5))]

        def damage(f: Path, name: str = name, way: int = way, at: int = at, places: list = places) -> None:
            data = bytearray((f / name).read_bytes())
            if way == 0:
                data = data[:at]
            elif way == 1:
                data[at : at + 20] = data[at : at + 20] * 2
            else:
                for place, bit in places:
                    data[place] ^= 1 << bit
            (f / name).write_bytes(data)

        yield f"random {number} of {name}", damage
