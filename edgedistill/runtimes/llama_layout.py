"""Proof that ctypes reads llama.cpp's structures where the library has them; light enough for the bench worker."""

from __future__ import annotations

from types import ModuleType

from edgedistill.core.errors import MissingError


def check_layout(lib: ModuleType) -> None:
    """Hold known defaults, first and last of each structure, against what ctypes reads.

    Raises:
        MissingError: a field lies elsewhere than the Python side believes.
    """
    model, context = lib.llama_model_default_params(), lib.llama_context_default_params()
    quantize = lib.llama_model_quantize_default_params()
    read = {
        "model.n_gpu_layers": (model.n_gpu_layers, -1),
        "model.split_mode": (model.split_mode, 1),
        "model.vocab_only": (model.vocab_only, False),
        "model.use_extra_bufts": (model.use_extra_bufts, True),
        "model.load_mtp": (model.load_mtp, False),
        "context.n_ctx": (context.n_ctx, 512),
        "context.n_ubatch": (context.n_ubatch, 512),
        "context.yarn_beta_slow": (context.yarn_beta_slow, -1.0),
        "context.type_v": (context.type_v, 1),
        "context.no_perf": (context.no_perf, True),
        "context.n_samplers": (context.n_samplers, 0),
        "quantize.quantize_output_tensor": (quantize.quantize_output_tensor, True),
        "quantize.dry_run": (quantize.dry_run, False),
    }
    wrong = [f"{name} is {found}, not {known}" for name, (found, known) in read.items() if found != known]
    if wrong:
        raise MissingError(
            f"llama-cpp-python's structures do not match its library ({'; '.join(wrong)}); "
            "install the version that edgedistill pins"
        )
