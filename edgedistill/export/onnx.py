"""Student → ONNX: a complete onnxruntime-genai folder in float32, 8 or 4 bits."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnx

from edgedistill.core.errors import InputError
from edgedistill.core.files import atomic_folder, read_json
from edgedistill.export.onnx_check import OnnxFacts, check_onnx
from edgedistill.export.onnx_data import write_model
from edgedistill.export.onnx_graph import GRAPH, ORIGINS, build_graph, is_traced, load_graph
from edgedistill.export.onnx_quantize import encode_all, quantize_graph
from edgedistill.export.weights import stored_tensors
from edgedistill.quant.codes import CodeSet
from edgedistill.runtimes.sources import check_folder

# 4: kernels may round activations to int8.
_ACCURACY_LEVEL = 4


def export_onnx(
    *,
    model: Path,
    out: Path,
    threads: int,
    graph: Path | None = None,
    codes: CodeSet | None = None,
    accuracy_level: int = _ACCURACY_LEVEL,
) -> OnnxFacts:
    """Write the Hugging Face folder `model` to `out` as a folder that onnxruntime-genai loads.

    It holds model.onnx with one data file, genai_config.json, tokenizer.json, tokenizer_config.json (with the chat
    template, also in chat_template.jinja). The graph is the builder's, in float32, or with the block-quantized weights
    of `codes` put into it. `graph` names a folder that `build_graph` filled for the same model before: it is read
    instead of running the builder again. Equal inputs give equal bytes. `out` appears whole or not at all.
    Returned: what the structural check counted.

    Raises:
        StageError: the builder failed.
        MissingError: a package that the builder needs is absent.
        InputError: a matrix could not be encoded, or `codes` has plans for matrices whose names the graph lost.
    """
    check_folder(model)
    with atomic_folder(out) as folder, _graph_folder(model, graph, threads, codes, beside=out) as source:
        for path in sorted(source.iterdir()):
            if not path.name.startswith(GRAPH) and path.name != ORIGINS:
                shutil.copyfile(path, folder / path.name)
        made, found = load_graph(source, model=model)
        _settle_cache_width(made.graph, width=read_json(folder / "genai_config.json")["model"]["decoder"]["head_size"])
        groups = []
        if codes is not None:
            if codes.by_name and not is_traced(source):
                raise InputError(
                    f"expected a graph whose matrices are traced to the tensors of {model}, which a plan by names "
                    "needs, found one of an architecture that is not; use one grid for all layers, without importances"
                )
            groups = quantize_graph(made.graph, matrices=found, plan=codes.plan, accuracy_level=accuracy_level)
        write_model(made, folder / GRAPH, matrices=found, groups=groups, codes=codes)
        return check_onnx(folder)


@contextlib.contextmanager
def _graph_folder(
    model: Path, graph: Path | None, threads: int, codes: CodeSet | None, *, beside: Path
) -> Iterator[Path]:
    """The graph to start from: `graph` as it is, or a temporary folder that the builder fills.

    The builder is a process of its own, and mostly reads libraries; `codes` are made while it runs.
    """
    if graph is not None:
        yield graph
        return
    temporary = beside.parent / f".{beside.name}.graph.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with ThreadPoolExecutor(1) as pool:
            built = pool.submit(build_graph, model=model, out=temporary, threads=threads)
            if codes is not None:
                encode_all(stored_tensors(model).values(), codes=codes)
            built.result()
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _settle_cache_width(graph: onnx.GraphProto, *, width: int) -> None:
    """Give the width of keys and values as a number: transformers.js makes its first, empty cache of what is said."""
    for slot in (*graph.input, *graph.output):
        for dim in slot.type.tensor_type.shape.dim:
            if dim.dim_param == "kv_cache_dim":
                dim.dim_value = width
