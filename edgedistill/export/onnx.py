"""Student → ONNX: a complete onnxruntime-genai folder in float32, 8 or 4 bits."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgedistill.core.errors import StageError
from edgedistill.core.files import atomic_folder, read_json, write_json
from edgedistill.export.onnx_check import OnnxFacts, check_onnx
from edgedistill.export.onnx_graph import build_graph
from edgedistill.export.onnx_quantize import quantize_graph
from edgedistill.quant.codes import CodeSet
from edgedistill.runtimes.chat import encode, load_tokenizer

# 4: kernels may round activations to int8.
_ACCURACY_LEVEL = 4
# What the builder's tokenizer writer notes about how it was called, not about the tokenizer.
_CALL_NOTES = ("is_local", "local_files_only", "name_or_path")


def export_onnx(
    *,
    model: Path,
    out: Path,
    threads: int,
    graph: Path | None = None,
    codes: CodeSet | None = None,
) -> OnnxFacts:
    """Write the Hugging Face folder `model` to `out` as a folder that onnxruntime-genai loads.

    It holds model.onnx with one data file, genai_config.json, tokenizer.json, tokenizer_config.json (with the chat
    template, also in chat_template.jinja). The graph is the builder's, in float32, or with the block-quantized weights
    of `codes` put into it. `graph` names an fp32 export of the same model made before: it
    is read instead of running the builder again. Equal inputs give equal bytes. `out` appears whole or not at all.
    Returned: what the structural check counted.

    Raises:
        StageError: the builder failed, or a matrix could not be encoded.
        MissingError: a package that the builder needs is absent.
        InputError: `graph`, or what was written, fails the structural check.
    """
    with atomic_folder(out) as folder, _float_folder(model, graph, threads, beside=out) as source:
        for path in sorted(source.iterdir()):
            if not path.name.startswith("model.onnx") and path.name != "artifact.json":
                shutil.copyfile(path, folder / path.name)
        if codes is None:
            _move_weights(source, folder, keep=graph is not None)
        else:
            _quantize(source / "model.onnx", folder / "model.onnx", codes)
        _finish_configs(folder)
        return check_onnx(folder)


@contextlib.contextmanager
def _float_folder(model: Path, graph: Path | None, threads: int, *, beside: Path) -> Iterator[Path]:
    """The fp32 folder to start from: `graph` as it is, or a temporary one that the builder fills."""
    if graph is not None:
        check_onnx(graph)
        yield graph
        return
    temporary = beside.parent / f".{beside.name}.graph.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        build_graph(model=model, out=temporary, threads=threads)
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move_weights(source: Path, folder: Path, *, keep: bool) -> None:
    for name in ("model.onnx", "model.onnx.data"):
        if keep:
            shutil.copyfile(source / name, folder / name)
        else:
            os.replace(source / name, folder / name)


def _quantize(source: Path, out: Path, codes: CodeSet) -> None:
    try:
        quantize_graph(source=source, out=out, accuracy_level=_ACCURACY_LEVEL, codes=codes)
    except ValueError as e:
        raise StageError(f"the quantized ONNX weights could not be made from {source}: {e}") from None


def _finish_configs(folder: Path) -> None:
    """Make the settings files say what every loader needs, and nothing about this machine."""
    place = folder / "tokenizer_config.json"
    tokenizer: dict[str, Any] = {k: v for k, v in read_json(place).items() if k not in _CALL_NOTES}
    template = folder / "chat_template.jinja"
    if template.is_file():
        tokenizer["chat_template"] = template.read_text(encoding="utf-8")
    write_json(place, tokenizer)
    place = folder / "genai_config.json"
    config: dict[str, Any] = read_json(place)
    config["search"]["do_sample"] = False
    config["model"]["pad_token_id"] = _padding_id(folder, config["model"]["pad_token_id"])
    write_json(place, config)


def _padding_id(folder: Path, found: int) -> int:
    """`found`, or where chats hold that id the first special one that they do not.

    onnxruntime-genai masks every pad id in a prompt, and many chat models pad with the id that ends each turn.
    """
    tokenizer = load_tokenizer(folder)
    if tokenizer.chat_template is None:
        return found
    chat = [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    used = set(encode(tokenizer, text))
    free = [i for i in (found, *sorted(tokenizer.added_tokens_decoder)) if i not in used]
    return free[0] if free else found
