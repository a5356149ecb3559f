"""Targets: what ships, what their schema refuses, and which evidence each runner gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgedistill.core.config import validate
from edgedistill.core.errors import InputError
from edgedistill.core.target import EVIDENCE_OF, Target, all_targets, load_target

SHIPPED = {
    *("local-cpu", "mobile-class", "sbc-class", "cuda-gpu", "raspberry-pi-5", "rk3588", "jetson-orin-nano"),
    *("intel-n150", "iphone-15", "iphone-16", "dimensity-8400", "snapdragon-8-gen-2", "snapdragon-8-gen-3"),
    *("snapdragon-8-elite", "snapdragon-8-elite-gen-5"),
}
TARGET = {"id": "board", "title": "A board", "device_class": "sbc", "runner": "ssh"}
ANCHOR = {
    "model": "m", "quant": "q4_0", "engine": "llama.cpp", "read_bytes": 1e9, "decode_tokens_per_s": 10.0,
    "source": "a page", "date": "2026-11-23",
}  # fmt: skip


def refusal(**changed: Any) -> str:
    with pytest.raises(InputError) as e:
        validate(Target, TARGET | changed, source="board.toml")
    head, line = str(e.value).splitlines()
    assert head == "board.toml has 1 error:"
    return line.strip()


def test_every_shipped_target_loads_and_each_says_how_it_is_known() -> None:
    targets = {name: load_target(name) for name in all_targets()}
    assert set(targets) == SHIPPED and len(targets) == 15
    for target in targets.values():
        assert target.evidence == EVIDENCE_OF[target.runner]
        # A device that is not here has no measured number, and never a limited run of this host by its name.
        assert (target.runner == "constrained") == (target.id in ("mobile-class", "sbc-class"))
        if target.runner == "projected":
            assert {"cores", "memory_bytes", "memory_bandwidth_bytes_per_s", "isa", "accelerator"} <= set(
                target.figures
            )
            assert target.number("memory_bytes") and target.number("cores")
        for anchor in target.anchors:
            assert anchor.source and anchor.date and anchor.provenance == "published"
        for name, figure in target.figures.items():
            assert figure.provenance != "derived" or figure.note, f"{target.id}.{name}: derived from what?"
    assert sum(len(target.anchors) for target in targets.values()) == 48


def test_the_anchors_speeds_stay_below_what_the_memory_can_deliver() -> None:
    """A published speed above bandwidth / bytes would be a wrong cell or a wrong figure."""
    seen = 0
    for target in map(load_target, all_targets()):
        bandwidth = target.number("memory_bandwidth_bytes_per_s")
        for anchor in target.anchors:
            if bandwidth and anchor.decode_tokens_per_s:
                assert anchor.decode_tokens_per_s * (anchor.read_bytes + anchor.kv_bytes) < bandwidth
                seen += 1
    assert seen == 48


def test_a_microcontroller_is_refused_with_the_reason() -> None:
    for name in ("mcu", "mcu-class"):
        line = refusal(device_class=name)
        assert line.startswith(f"device_class: found '{name}'; no LLM runtime fits a microcontroller")
        assert line.endswith("choose server-cpu, desktop, sbc, phone, mobile-class or gpu")
    assert refusal(device_class="phon") == "device_class: found 'phon'; did you mean 'phone'?"


@pytest.mark.parametrize(
    ("runner", "evidence"),
    [
        ("local", "measured"), ("constrained", "constrained"), ("ssh", "measured"), ("adb", "measured"),
        ("gpu", "measured"), ("projected", "projected"),
    ],
)  # fmt: skip
def test_the_runner_decides_the_evidence(runner: str, evidence: str) -> None:
    assert validate(Target, TARGET | {"runner": runner}, source="t").evidence == evidence


def test_an_unknown_runner_names_the_nearest() -> None:
    assert refusal(runner="shh") == "runner: found 'shh'; did you mean 'ssh'?"


@pytest.mark.parametrize("name", ["password", "SSH_PASSPHRASE", "auth_token", "api_key", "client_secret"])
def test_a_connection_holds_no_secret(name: str) -> None:
    assert f"expected no secret, found '{name}'; let the ssh agent" in refusal(connection={name: "x"})


def test_a_connection_is_free_otherwise_and_only_where_it_leads_somewhere() -> None:
    reached = validate(Target, TARGET | {"connection": {"host": "pi.local", "port": 22, "user": "pi"}}, source="t")
    assert reached.connection == {"host": "pi.local", "port": 22, "user": "pi"}
    assert "expected no secret" in refusal(connection={"identity": "-----BEGIN OPENSSH PRIVATE KEY-----"})
    assert refusal(runner="local", connection={"host": "h"}).endswith("the runner local reaches no other device")


def test_a_published_figure_names_its_source() -> None:
    figure = {"value": 4, "provenance": "published", "date": "2026-11-25"}
    assert "expected url and date of a published figure" in refusal(figures={"cores": figure})
    assert validate(Target, TARGET | {"figures": {"cores": figure | {"url": "https://x"}}}, source="t").number("cores")


def test_only_numbers_are_numbers() -> None:
    figures = {"cores": {"value": "as many as there are", "provenance": "this-host"}}
    target = validate(Target, TARGET | {"figures": figures}, source="t")
    assert target.number("cores") is None and target.number("memory_bytes") is None


def test_bytes_are_written_as_in_recipes() -> None:
    figures = {"memory_bytes": {"value": "8 GB", "provenance": "this-host"}}
    anchor = ANCHOR | {"read_bytes": "1.5 GB", "kv_bytes": "1 KiB"}
    changed = {"figures": figures, "limits": {"memory_bytes": "1.2 GiB"}, "anchors": [anchor]}
    target = validate(Target, TARGET | changed, source="t")
    assert (target.number("memory_bytes"), target.limits.memory_bytes) == (8e9, 1_288_490_188)
    assert (target.anchors[0].read_bytes, target.anchors[0].kv_bytes) == (1.5e9, 1024.0)
    wrong = "expected a number or a text such as '150 MB'"
    assert refusal(limits={"memory_bytes": "2 XB"}).startswith(f"limits.memory_bytes: found '2 XB'; {wrong}")
    assert refusal(anchors=[ANCHOR | {"read_bytes": "x"}]).startswith(f"anchors.0.read_bytes: found 'x'; {wrong}")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("8 XB", "a number or a text such as '150 MB'; units are B, KB, MB, GB, KiB, MiB, GiB"),
        (
            "as much as the host has",
            "a number or a text such as '150 MB'; units are B, KB, MB, GB, KiB, MiB, GiB; give words another name, "
            "such as 'memory'",
        ),
        ("0 GB", "at least one byte, such as '150 MB'"),
        (-1.0, "at least one byte, such as '150 MB'"),
    ],
)
def test_a_figure_in_bytes_is_a_size_and_words_are_for_others(value: float | str, expected: str) -> None:
    figures = {name: {"value": value, "provenance": "this-host"} for name in ("memory", "memory_bytes")}
    said = f"figures.memory_bytes.value: found {value!r}; expected {expected}"
    assert refusal(figures=figures) == said
    both = {name: {"value": value, "provenance": "this-host"} for name in ("memory_bytes", "storage_bytes")}
    with pytest.raises(
        InputError, match=r"2 errors:\n  figures.memory_bytes.value: .*\n  figures.storage_bytes.value: "
    ):
        validate(Target, TARGET | {"figures": both}, source="board.toml")


def test_an_anchor_has_a_speed_and_a_source() -> None:
    assert validate(Target, TARGET | {"anchors": [ANCHOR]}, source="t").anchors[0].backend == "cpu"
    silent = {name: value for name, value in ANCHOR.items() if name != "decode_tokens_per_s"}
    assert "expected decode_tokens_per_s or prefill_tokens_per_s, found neither" in refusal(anchors=[silent])
    assert "expected head_weights to be less than weights" in refusal(
        anchors=[ANCHOR | {"weights": 1, "head_weights": 2}]
    )
    assert refusal(anchors=[ANCHOR | {"source": ""}]).startswith("anchors.0.source: found ''")
    assert refusal(anchors=[ANCHOR | {"quantt": "q4_0"}]) == "anchors.0.quantt: unknown name; did you mean 'quant'?"


def test_a_file_is_named_as_its_id(tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    path.write_text('id = "board"\ntitle = "A board"\ndevice_class = "sbc"\nrunner = "local"\n')
    with pytest.raises(InputError, match="expected id = 'other' as the file is named, found 'board'"):
        load_target(str(path))
