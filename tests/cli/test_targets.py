"""`edgedistill targets`: what show prints of an anchor, and a projection as text, as JSON and refused."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from edgedistill.cli.main import app
from edgedistill.core.errors import InputError

ASKED = ["--model-bytes", "1e9", "--quant", "q8_0", "--engine", "llama.cpp"]


def said(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["targets", *arguments], catch_exceptions=False)
    assert result.exit_code == code
    return result.output


def test_show_prints_anchors_with_their_source() -> None:
    lines = said("show", "raspberry-pi-5").splitlines()
    assert lines[1] == "class sbc, runner projected, evidence projected"
    header, anchor = lines[-2:]
    assert header.split() == [
        *("anchor", "quant", "engine", "read/token", "decode/s", "prefill/s", "provenance", "date", "source")
    ]
    assert anchor.split()[:7] == ["qwen2.5-1.5b", "q8_0", "llama.cpp", "cpu", "1.641", "GB", "5.79"]
    assert anchor.endswith(
        "2026-11-23  Raspberry Pi 5 8GB, llama-bench: huggingface.co/spaces/nyunai/edge-llm-leaderboard"
    )
    assert "anchor" not in said("show", "mobile-class")


def test_a_figure_is_shown_with_source_and_note() -> None:
    (line,) = [line for line in said("show", "snapdragon-8-gen-2").splitlines() if line.startswith("cores")]
    assert line.split()[1:4] == ["8.0", "published", "2026-11-25"] and line.endswith("goes-official/; 1 + 4 + 3")


def test_a_projection_is_printed_with_its_band_and_evidence() -> None:
    found = json.loads(said("project", "raspberry-pi-5", *ASKED, "--json"))
    first, decode, prefill = said("project", "raspberry-pi-5", *ASKED).splitlines()
    assert first == "raspberry-pi-5, llama.cpp cpu, q8_0: evidence projected"
    speed = found["decode_tokens_per_s"]
    low, value, high = (f"{speed[name]:.3g} tokens/s" for name in ("low", "tokens_per_s", "high"))
    assert decode.startswith(f"decode: {value} ({low} … {high} at 90 %), ")
    assert decode.endswith("from 1 anchor of this quant and 48 leave-one-out residuals")
    assert prefill.startswith(f"prefill: {found['prefill_tokens_per_s']['tokens_per_s']:.3g} tokens/s")
    small = said("project", "raspberry-pi-5", "--model-bytes", "2e7", *ASKED[2:]).splitlines()
    assert small[-1] == (
        "note: no anchor reads as few or as many bytes per token as 20 MB, so no band was tested there"
    )
    slower = json.loads(said("project", "raspberry-pi-5", *ASKED, "--kv-bytes", "5e8", "--json"))
    assert slower["decode_tokens_per_s"]["tokens_per_s"] < speed["tokens_per_s"]


def test_what_does_not_fit_is_said_and_has_no_speed() -> None:
    asked = ["project", "raspberry-pi-5", "--model-bytes", "7e9", "--quant", "q8_0", "--engine", "llama.cpp"]
    assert said(*asked, code=1).splitlines()[1:] == ["does not fit: 7 GB are needed, 6.872 GB can be had"]
    found = json.loads(said(*asked, "--json", code=1))
    assert (found["state"], found["needed_bytes"], found["decode_tokens_per_s"]) == ("does-not-fit", 7e9, None)


def test_bytes_are_written_as_in_recipes() -> None:
    asked = ["project", "raspberry-pi-5", "--quant", "q8_0", "--engine", "llama.cpp", "--json"]
    plain = said(*asked, "--model-bytes", "1e9", "--kv-bytes", "5e8")
    assert said(*asked, "--model-bytes", "1 GB", "--kv-bytes", "500MB") == plain
    refused = said(*asked, "--model-bytes", "60 XB", code=2)
    assert "--model-bytes" in refused and "a text such as '150 MB'; units are B, KB" in refused
    assert "found '60 XB'" in refused


def test_an_unseen_quant_is_refused() -> None:
    with pytest.raises(InputError, match=r"found 'q8_1'; did you mean 'q8_0'\?"):
        said("project", "raspberry-pi-5", "--model-bytes", "1e9", "--quant", "q8_1", "--engine", "llama.cpp")
