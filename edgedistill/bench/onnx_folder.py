"""Where a decoder graph lies among a folder's files, and what its inputs need to be told. Standard library only.

Known layouts: `model.onnx` beside its settings, and `onnx/*.onnx` below them, as transformers.js has it
(https://huggingface.co/docs/transformers.js/custom_usage). A graph's weights lie beside it in a file of their own.
"""

from __future__ import annotations

import json
import os

from edgedistill.core.errors import InputError

BELOW = "onnx"
SETTINGS = ("config.json", "genai_config.json")


def find_graphs(folder: str) -> list[str]:
    """Paths of the graphs in a folder, or else in its folder `onnx`, sorted."""
    for place in (folder, os.path.join(folder, BELOW)):
        names = sorted(os.listdir(place)) if os.path.isdir(place) else []
        found = [os.path.join(place, name) for name in names if name.endswith(".onnx")]
        if found:
            return found
    return []


def the_graph(path: str) -> str:
    """The graph that `path`, a file or a folder, means.

    Raises:
        InputError: there is none, or there are several and none is named.
    """
    if os.path.isfile(path):
        return path
    found = find_graphs(path)
    if len(found) != 1:
        names = ", ".join(os.path.relpath(graph, path) for graph in found) or "none"
        raise InputError(f"expected one .onnx file in {path} or its folder {BELOW}, found {names}; name the file")
    return found[0]


def beside(graph: str, name: str) -> str | None:
    """Path of one of the model's other files: in the graph's folder, or above it if that is called `onnx`."""
    folder = os.path.dirname(os.path.abspath(graph))
    places = [folder, os.path.dirname(folder)] if os.path.basename(folder) == BELOW else [folder]
    return next((path for place in places if os.path.isfile(path := os.path.join(place, name))), None)


def geometry(graph: str) -> dict[str, int]:
    """`layers`, `kv_heads`, `width` of a head, `context` and `vocab`, from the settings beside the graph.

    Raises:
        InputError: there are none, or they do not say it.
    """
    for name in SETTINGS:
        if path := beside(graph, name):
            try:
                with open(path, encoding="utf-8") as f:
                    return (_of_genai if name == "genai_config.json" else _of_transformers)(json.load(f))
            except (KeyError, TypeError, ValueError) as e:
                raise InputError(f"{path} does not say its shape: {type(e).__name__} {e}; fetch it again") from None
    raise InputError(f"expected config.json beside {graph}, which says how many heads there are; put it there")


def _of_transformers(config: dict) -> dict[str, int]:
    heads = config["num_attention_heads"]
    return {
        "layers": config["num_hidden_layers"],
        "kv_heads": config.get("num_key_value_heads") or heads,
        "width": config.get("head_dim") or config["hidden_size"] // heads,
        "context": config["max_position_embeddings"],
        "vocab": config["vocab_size"],
    }


def _of_genai(config: dict) -> dict[str, int]:
    model = config["model"]
    decoder = model["decoder"]
    return {
        "layers": decoder["num_hidden_layers"],
        "kv_heads": decoder["num_key_value_heads"],
        "width": decoder["head_size"],
        "context": model["context_length"],
        "vocab": model["vocab_size"],
    }
