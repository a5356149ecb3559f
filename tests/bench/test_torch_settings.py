"""The teacher's best honest setting: how it is chosen, kept and told; and a compiled step answers as an eager one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgedistill.bench import torch_settings
from edgedistill.bench.block import run_block
from edgedistill.bench.model_shape import ModelShape
from edgedistill.bench.rounds import Protocol, Subject
from edgedistill.bench.torch_settings import BFLOAT16, FLOAT32, NOT_IN_QUICK, choose, in_best_setting
from edgedistill.core.target import load_target

Job = Callable[..., dict[str, Any]]
TOKENS = [5, 6, 7]
EAGER = {"tokens": TOKENS, "prefill_tokens_per_s": 100.0, "decode_tokens_per_s": 10.0}
COMPILED32 = {**FLOAT32, "compiled": True}


def probes(figures: Mapping[str, Mapping[str, Any]]) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    return lambda options: figures[torch_settings.words_of(options)]


def chosen(compiled: bool = False, **figures: Mapping[str, Any]) -> dict[str, Any]:
    named = {"float32, eager": EAGER} | {name.replace("_", ", "): found for name, found in figures.items()}
    return choose(probes(named), prompt=50, answer=20, compiled=compiled)


def test_the_fastest_that_answers_alike_is_chosen_and_all_are_told() -> None:
    fast = EAGER | {"decode_tokens_per_s": 20.0}
    found = chosen(bfloat16_eager=fast)
    assert (found["options"], found["chosen"]) == (BFLOAT16, "bfloat16, eager")
    assert found["because"] == "a request of 50 + 20 tokens takes 1500 ms; float32, eager 2500 ms"
    assert [(told["setting"], told.get("request_ms")) for told in found["tried"]] == [
        ("float32, eager", 2500.0), ("bfloat16, eager", 1500.0), ("compiled", None),
    ]  # fmt: skip
    assert found["tried"][1]["decode_tokens_per_s"] == 20.0 and found["tried"][2]["refused"] == NOT_IN_QUICK
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (EAGER | {"decode_tokens_per_s": 10.5}, "bfloat16, eager 2405 ms"),  # faster, but within the noise
        (EAGER | {"decode_tokens_per_s": 90.0, "tokens": [5, 6, 8]}, "refused (it answers otherwise than float32"),
        ({"refused": "the worker died"}, "bfloat16, eager is refused (the worker died)"),
    ],
)
def test_float32_stands_otherwise(other: Mapping[str, Any], reason: str) -> None:
    found = chosen(bfloat16_eager=other)
    assert found["options"] == FLOAT32 and reason in found["because"]


def test_compiling_is_tried_with_the_float_type_that_won_and_may_fail() -> None:
    fast = EAGER | {"decode_tokens_per_s": 20.0}
    faster = EAGER | {"decode_tokens_per_s": 40.0}
    found = chosen(compiled=True, bfloat16_eager=fast, bfloat16_compiled=faster)
    assert found["options"] == {"dtype": "bfloat16", "compiled": True} and len(found["tried"]) == 3
    found = chosen(compiled=True, bfloat16_eager=EAGER, float32_compiled={"refused": "no result within 240 s"})
    assert found["options"] == FLOAT32 and "float32, compiled is refused (no result within 240 s)" in found["because"]
    refused = choose(lambda options: {"refused": "no torch there"}, prompt=1, answer=1, compiled=True)
    assert refused["options"] == FLOAT32 and refused["because"] == "nothing could be tried: no torch there"
    assert len(refused["tried"]) == 1


@pytest.fixture
def teacher(tiny_llama: Path) -> Subject:
    ids = tuple(range(60, 76))
    return Subject(
        name="teacher", engine="torch", path=tiny_llama, digest="d", slow=True, end_ids=(383,), rounds=((ids,),),
        shape_ids=ids, shape=ModelShape(512, 384, 4000, 400),
    )  # fmt: skip


class Device:
    """Stands in for a runner: bfloat16 is twice as fast; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def run(self, job: Mapping[str, Any], *, memory_bytes: int, timeout_s: float) -> dict[str, Any]:
        self.asked.append({"options": job["options"], "memory": memory_bytes, "timeout_s": timeout_s, **job["shape"]})
        speed = 20.0 if job["options"]["dtype"] == "bfloat16" else 10.0
        samples = {"prefill_tokens_per_s": [speed / 3, speed], "decode_tokens_per_s": [speed, speed / 3]}
        row = {"workload": "shape", "samples": samples, "outputs": [TOKENS]}
        return {"engine": "torch", "settings": {}, "rows": [row]}


def protocol(*, full: bool) -> Protocol:
    return Protocol(requests=1, max_new_tokens=5, decode_tokens=4, environment={"versions": {"torch": "1"}}, full=full)


def test_the_choice_is_kept_in_the_run_and_asked_for_once_a_device(teacher: Subject, tmp_path: Path) -> None:
    device, local, mobile = Device(), load_target("local-cpu"), load_target("mobile-class")
    common = {"protocol": protocol(full=False), "run": device.run, "folder": tmp_path, "device": "this host"}
    found = in_best_setting(teacher, target=local, cores=[0, 1], **common)
    assert [told.get("decode_tokens_per_s") for told in found.choice["tried"]] == [10.0, 20.0, None]
    assert found.options == BFLOAT16 and len(device.asked) == 2
    assert all(ask["decode"] == 9 and ask["repetitions"] == 3 and ask["timeout_s"] == 120 for ask in device.asked)
    assert found.shape == ModelShape(512, 384, 2000, 200), "half the bytes are read of half as long numbers"
    assert found.choice["probed_on"] == "local-cpu" and found.choice["chosen"] == "bfloat16, eager"
    assert in_best_setting(teacher, target=mobile, cores=[1], **common) == found and len(device.asked) == 2
    in_best_setting(teacher, target=mobile, cores=[1], **common | {"device": "a board"})
    assert len(device.asked) == 4
    (tmp_path / torch_settings.KEPT).write_text("{")
    assert in_best_setting(teacher, target=local, cores=[0, 1], **common) == found and len(device.asked) == 6
    gguf = replace(teacher, engine="llamacpp")
    assert in_best_setting(gguf, target=local, cores=[0], **common) is gguf


def test_the_full_profile_asks_each_target_under_its_memory(teacher: Subject, tmp_path: Path) -> None:
    device = Device()
    for name in ("local-cpu", "mobile-class"):
        in_best_setting(
            teacher, target=load_target(name), cores=[0], protocol=protocol(full=True), run=device.run,
            folder=tmp_path, device="this host",
        )  # fmt: skip
    limit = load_target("mobile-class").limits.memory_bytes
    assert limit and [ask["memory"] for ask in device.asked] == [0, 0, 0, limit, limit, limit]
    compiled = [ask for ask in device.asked if ask["options"]["compiled"]]
    assert [ask["options"]["dtype"] for ask in compiled] == ["bfloat16"] * 2
    assert {ask["timeout_s"] for ask in compiled} == {torch_settings.COMPILE_S}


def test_a_real_worker_is_probed(teacher: Subject, tmp_path: Path) -> None:
    def run(job: Mapping[str, Any], *, memory_bytes: int, timeout_s: float) -> dict[str, Any]:
        if job["options"]["dtype"] == "bfloat16":
            return {"engine": "torch", "settings": {}, "rows": [{"workload": "shape", "invalid": "left out"}]}
        return run_block(job, memory_bytes=memory_bytes, timeout_s=timeout_s)

    found = in_best_setting(
        teacher, target=load_target("local-cpu"), cores=[0], protocol=protocol(full=False), run=run, folder=tmp_path,
        device="this host",
    )  # fmt: skip
    (float32, bfloat16, _) = found.choice["tried"]
    assert found.options == FLOAT32 and float32["request_ms"] > 0 and bfloat16["refused"] == "left out"


def test_bfloat16_and_a_compiled_step_say_what_they_are(
    job: Job, tiny_llama: Path, torch_answers: list[list[int]]
) -> None:
    half = run_block(job("torch", tiny_llama, options=dict(BFLOAT16)))
    assert (half["settings"]["dtype"], half["settings"]["cache_dtype"]) == ("bfloat16", "bf16")
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("torch.compile needs a C++ compiler")
    result = run_block(job("torch", tiny_llama, workloads=["prompts", "shape"], options=dict(COMPILED32)))
    assert (result["settings"]["compiled"], result["settings"]["cache"]) == (True, "static")
    assert [row.get("invalid") for row in result["rows"]] == [None, None]
    assert result["rows"][0]["outputs"] == torch_answers


def test_without_a_compiler_the_reason_is_told(job: Job, tiny_llama: Path, tmp_path: Path) -> None:
    nowhere = {"CXX": str(tmp_path / "no-compiler"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    (row,) = run_block(job("torch", tiny_llama, options=dict(COMPILED32), environment=nowhere))["rows"]
    assert "InvalidCxxCompiler" in row["invalid"]
