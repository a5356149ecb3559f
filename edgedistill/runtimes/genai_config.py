"""genai_config.json held against its graph: what onnxruntime-genai takes from it decides names, sizes and libraries.

Keys: https://onnxruntime.ai/docs/genai/reference/config.html. Its names are printf patterns and its session options can
name a library to load or a file to write, so only what a decoder needs is let through.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedistill.core.errors import InputError, shortened
from edgedistill.core.files import inside, read_json

if TYPE_CHECKING:
    from onnx import GraphProto

MOST = 2**31 - 1
SESSION_OPTIONS = frozenset({
    "log_id", "provider_options", "intra_op_num_threads", "inter_op_num_threads", "log_severity_level",
    "log_verbosity_level", "enable_cpu_mem_arena", "enable_mem_pattern", "graph_optimization_level",
    "disable_cpu_ep_fallback", "disable_quant_qdq", "enable_quant_qdq_cleanup", "use_env_allocators",
})  # fmt: skip
DECODER = frozenset({
    "filename", "head_size", "hidden_size", "inputs", "outputs", "num_attention_heads", "num_hidden_layers",
    "num_key_value_heads", "session_options", "sliding_window", "run_options", "layer_types",
})  # fmt: skip
NEEDED_SIZES = ("head_size", "num_hidden_layers", "num_key_value_heads")
SIZES = (*NEEDED_SIZES, "hidden_size", "num_attention_heads")
CACHES = {"inputs": ("past_key_names", "past_value_names"), "outputs": ("present_key_names", "present_value_names")}


def check_genai_config(graph: GraphProto, file: Path) -> None:
    """Hold the genai_config.json beside `file` against its graph.

    Raises:
        InputError: it is no decoder's, a size or a name is not the graph's, or it names a file or library elsewhere.
    """
    place = file.parent / "genai_config.json"
    config = read_json(place, unique=True)
    try:
        model = config["model"]
        decoder = model["decoder"]
        layers, vocabulary = decoder["num_hidden_layers"], model["vocab_size"]
        names = {side: dict(decoder[side]) for side in ("inputs", "outputs")}
        logits, ends = names["outputs"]["logits"], model["eos_token_id"]
        needed = [decoder["filename"], names["inputs"]["past_key_names"], model["context_length"], model["type"]]
    except (KeyError, TypeError, ValueError) as e:
        raise InputError(
            f"{place}: expected the settings of a decoder, {shortened(e)} is missing; export it again"
        ) from None
    if needed[0] != file.name:
        raise _wrong(place, f"filename {file.name!r}", needed[0])
    _check_alone(model, decoder, place)
    sizes = {key: decoder.get(key) for key in SIZES if key in decoder or key in NEEDED_SIZES}
    for key, value in (sizes | {key: model[key] for key in ("vocab_size", "context_length")}).items():
        if not _is_count(value):
            raise _wrong(place, f"{key} of 1 to {MOST}", value)
    _check_session(decoder, place)
    _check_names(graph, names, layers=layers, place=place)
    _check_shapes(graph, decoder, place)
    widths = {o.name: o.type.tensor_type.shape.dim[-1].dim_value for o in graph.output if o.type.tensor_type.shape.dim}
    if widths.get(logits) != vocabulary:
        raise InputError(f"{place}: expected vocab_size {widths.get(logits)} as the graph has, found {vocabulary}")
    _check_ids(model, ends, place)
    search = config.get("search", {})
    if not isinstance(search, dict) or not all(_is_number(value) for value in search.values()):
        raise _wrong(place, "numbers and true or false as search settings", search)
    if not _is_count(search.get("max_length", 1)) or search.get("min_length", 0) < 0:
        raise _wrong(place, f"search.max_length of 1 to {MOST} and a min_length", search.get("max_length"))


def model_file(folder: Path) -> Path:
    """The model that the folder's genai_config.json names.

    Raises:
        InputError: it names none, or one outside the folder or that is not there.
    """
    place = folder / "genai_config.json"
    config = read_json(place)
    try:
        name = config["model"]["decoder"]["filename"]
    except (KeyError, TypeError):
        raise InputError(f"{place}: expected the settings of a decoder with its filename, found none") from None
    if not isinstance(name, str) or not inside(folder, name).is_file():
        raise InputError(f"{place} names {shortened(name)}, which is not there; export the model again")
    return folder / name


def _check_alone(model: dict[str, Any], decoder: dict[str, Any], place: Path) -> None:
    others = [key for key, value in model.items() if key != "decoder" and isinstance(value, dict)]
    if others:
        raise _wrong(place, "a decoder alone", f"model.{others[0]} beside it")
    if unknown := sorted(decoder.keys() - DECODER):
        raise _wrong(place, "settings of one decoder", f"decoder.{unknown[0]}")
    if not isinstance(model["type"], str):
        raise _wrong(place, "a type as text", model["type"])


def _check_session(decoder: dict[str, Any], place: Path) -> None:
    options = decoder.get("session_options", {})
    if not isinstance(options, dict) or (unknown := sorted(options.keys() - SESSION_OPTIONS)):
        found = f"session_options.{unknown[0]}" if isinstance(options, dict) else options
        raise _wrong(place, "session options that load no library and write no file", found)
    for name in ("intra_op_num_threads", "inter_op_num_threads"):
        if type(options.get(name, 0)) is not int or not 0 <= options.get(name, 0) <= 4096:
            raise _wrong(place, f"{name} of 0 to 4096", options[name])
    providers = options.get("provider_options", [])
    if not isinstance(providers, list) or not all(isinstance(entry, dict) for entry in providers):
        raise _wrong(place, "a list of provider options", providers)
    for entry in providers:
        for name, values in entry.items():
            paths = [k for k, v in values.items() if _is_place(str(v))] if isinstance(values, dict) else [name]
            if paths:
                raise _wrong(place, "provider options that name no file", f"{name}.{paths[0]}")


def _is_place(text: str) -> bool:
    return "/" in text or "\\" in text or text.endswith((".so", ".dll", ".dylib"))


def _check_names(graph: GraphProto, names: dict[str, dict[str, Any]], *, layers: int, place: Path) -> None:
    """Names are the graph's; those of a cache have one %d for the layer's number, and stand for every layer."""
    there = {"inputs": {i.name for i in graph.input}, "outputs": {o.name for o in graph.output}}
    for side, entries in names.items():
        for key, name in entries.items():
            pattern = key in CACHES[side]
            if not isinstance(name, str) or name.count("%") != pattern or ("%d" in name) != pattern:
                raise _wrong(place, f"{side}.{key} as a name{' with one %d' if pattern else ''}", name)
        for key in CACHES[side]:
            name = entries.get(key, "")
            cached = sum(1 for i in range(len(there[side])) if name.replace("%d", str(i)) in there[side]) if name else 0
            if cached != layers:
                raise InputError(
                    f"{place}: expected {cached} layers as the graph has for {side}.{key}, found "
                    f"{shortened(layers, most=30)}; export it again"
                )
        needed = [entries.get("input_ids") if side == "inputs" else entries.get("logits")]
        optional = [name for key, name in entries.items() if key in ("attention_mask", "position_ids")]
        if absent := [name for name in needed + optional if name not in there[side]]:
            raise _wrong(place, f"{side} of the graph", absent[0])


def _check_shapes(graph: GraphProto, decoder: dict[str, Any], place: Path) -> None:
    """Heads and their size as the graph's attention and its cache have them."""
    heads, size = decoder["num_key_value_heads"], decoder["head_size"]
    pattern = decoder["inputs"]["past_key_names"]
    cache = {i.name: [d.dim_value if d.HasField("dim_value") else None for d in i.type.tensor_type.shape.dim]
             for i in graph.input}  # fmt: skip
    for layer in range(decoder["num_hidden_layers"]):
        shape = cache[pattern.replace("%d", str(layer))]
        if len(shape) != 4 or shape[1] not in (None, heads) or shape[3] not in (None, size):
            raise _wrong(place, f"a cache of {heads} heads of {size} in the graph", shape)
    tables = {t.name: list(t.dims) for t in graph.initializer}
    for node in graph.node:
        if node.op_type != "GroupQueryAttention":
            continue
        found = {a.name: a.i for a in node.attribute}
        counts = (found.get("num_heads"), found.get("kv_num_heads"))
        if counts[1] != heads or decoder.get("num_attention_heads", counts[0]) != counts[0]:
            raise _wrong(place, f"num_attention_heads and num_key_value_heads of {counts} as the graph has", heads)
        table = tables.get(node.input[7] if len(node.input) > 7 else "")
        if table and table[1] * 2 > size:
            raise _wrong(place, f"a head_size of at least {table[1] * 2}, which the rotation tables turn", size)


def _check_ids(model: dict[str, Any], ends: Any, place: Path) -> None:
    most = model["vocab_size"] - 1
    for token in ends if isinstance(ends, list) and ends else [ends]:
        if type(token) is not int or not 0 <= token <= most:
            raise InputError(
                f"{place}: expected eos_token_id within 0 to {most}, found {shortened(repr(token), most=30)}"
            )
    for key in ("bos_token_id", "pad_token_id"):
        value = model.get(key)
        if value is not None and (type(value) is not int or not -1 <= value <= most):
            raise _wrong(place, f"{key} of -1 to {most}", model[key])


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MOST


def _is_number(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, int | float) and math.isfinite(value) and abs(value) <= MOST)


def _wrong(place: Path, expected: str, found: object) -> InputError:
    return InputError(f"{place}: expected {expected}, found {shortened(repr(found), most=60)}; export it again")
