"""bf16 only where it is faster."""

from __future__ import annotations

import platform

import pytest
import torch

from edgedistill.runtimes.precision import session_dtype, uses_bf16


@pytest.mark.parametrize(("amx", "expected"), [(True, True), (False, False), (None, False)])
def test_auto_on_a_cpu_follows_its_matrix_tiles(monkeypatch: pytest.MonkeyPatch, amx: bool | None, expected: bool):
    found = {"avx512_bf16": True} | ({} if amx is None else {"amx_bf16": amx})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert uses_bf16("auto") is expected
    assert session_dtype("auto") == ("bfloat16" if expected else "float32")


@pytest.mark.parametrize("supported", [True, False])
def test_auto_on_a_gpu_follows_the_gpu(monkeypatch: pytest.MonkeyPatch, supported: bool):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: supported)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": not supported})
    assert uses_bf16("auto") is supported


def test_a_type_that_is_named_is_taken():
    assert uses_bf16("bf16") and not uses_bf16("fp32")
    assert session_dtype("bf16") == "bfloat16" and session_dtype("fp32") == "float32"


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="AMX is of x86-64")
def test_this_torch_knows_its_cpu():
    assert isinstance(torch.cpu.get_capabilities()["amx_bf16"], bool)
