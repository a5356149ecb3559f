"""bf16 only where it is faster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from edgedistill.runtimes import precision
from edgedistill.runtimes.precision import bf16_speedup, session_dtype, uses_bf16


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What torch says of the CPU, without a GPU and with an empty cache."""
    found: dict[str, Any] = {"architecture": "x86_64"}
    monkeypatch.setenv("EDGEDISTILL_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    return found


@pytest.mark.parametrize(("speedup", "expected"), [(2.2, True), (1.1, False), (0.5, False)])
@pytest.mark.parametrize("instruction", ["amx_bf16", "avx512_bf16", "bf16"])
def test_auto_on_a_cpu_follows_what_was_measured_once(
    cpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch, instruction: str, speedup: float, expected: bool
) -> None:
    measured: list[int] = []
    monkeypatch.setattr(precision, "bf16_speedup", lambda: measured.append(1) or speedup)
    cpu[instruction] = True
    assert uses_bf16("auto") is expected
    assert session_dtype("auto") == ("bfloat16" if expected else "float32")
    assert len(measured) == 1


@pytest.mark.parametrize("kept", ["a folder that is a file", "damaged"])
def test_a_cache_that_cannot_be_used_ends_nothing(
    cpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kept: str
) -> None:
    monkeypatch.setattr(precision, "bf16_speedup", lambda: 2.0)
    cpu["avx512_bf16"] = True
    if kept == "damaged":
        assert uses_bf16("auto")
        for path in tmp_path.rglob("*.json"):
            path.write_text("[]")
    else:
        (tmp_path / "measured").write_text("")
    assert uses_bf16("auto")


def test_a_cpu_without_the_instructions_is_not_measured(cpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "bf16_speedup", lambda: pytest.fail("measured"))
    cpu["avx512_bf16"] = False
    assert not uses_bf16("auto")


def test_both_types_are_timed_and_no_random_number_is_drawn() -> None:
    before = torch.get_rng_state()
    assert 0.01 < bf16_speedup() < 100
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("supported", [True, False])
def test_auto_on_a_gpu_follows_the_gpu(monkeypatch: pytest.MonkeyPatch, supported: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: supported)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": not supported})
    assert uses_bf16("auto") is supported


def test_a_type_that_is_named_is_taken() -> None:
    assert uses_bf16("bf16") and not uses_bf16("fp32")
    assert session_dtype("bf16") == "bfloat16" and session_dtype("fp32") == "float32"
