"""Training in several processes through accelerate launch: what goes over, what comes back, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from test_stage import Notes, context, hashes, label, trained
from tiny_models import save_tiny_llama
from tiny_training import fresh_accelerator, load, random_examples, teach

from edgedistill.core.errors import InputError
from edgedistill.core.files import read_jsonl
from edgedistill.core.runfolder import StageContext, check_launch
from edgedistill.train.data import Example
from edgedistill.train.launch import launch_options, load_examples, save_examples
from edgedistill.train.stage import run, run_teacher

pytestmark = pytest.mark.usefixtures(fresh_accelerator.__name__)

ONE_ARM = {"lr": 3e-3, "epochs": 2, "batch_size": 4, "valid_share": 0.2, "dtype": "fp32"}


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("deep") / "llama", layers=3, seed=5)


def test_examples_come_back_as_they_went(tmp_path, deep):
    taught = teach(load(deep), random_examples(3))
    taught[0] = replace(taught[0], shares=np.array([0.25, 0.75], np.float32))
    mixed = [*random_examples(2, seed=1), *taught, *teach(load(deep), random_examples(1, seed=2), k=3)]
    for examples in (mixed, random_examples(4), []):
        save_examples(tmp_path / "e.npz", examples)
        found = load_examples(tmp_path / "e.npz")
        assert len(found) == len(examples)
        for ours, theirs in zip(examples, found, strict=True):
            for name in (field.name for field in fields(Example)):
                a, b = getattr(ours, name), getattr(theirs, name)
                same = np.array_equal(a, b) and a.dtype == b.dtype if isinstance(a, np.ndarray) else a == b
                assert same, name


def test_a_launch_is_a_number_or_a_configuration(tmp_path):
    (tmp_path / "four.yaml").write_text("num_processes: 4\n")
    assert launch_options(str(tmp_path / "four.yaml")) == ["--config_file", str(tmp_path / "four.yaml")]
    assert launch_options("2")[:3] == ["--multi_gpu", "--num_processes", "2"]
    for wrong in ("0", "-1", "two", str(tmp_path)):
        with pytest.raises(InputError, match="a number of processes or an accelerate configuration for --launch"):
            check_launch(wrong)


def launched(folder, deep, launch: str, **changes) -> StageContext:
    run_teacher(context(folder, "teacher", deep))
    label(context(folder, "synth", deep))
    made = context(folder, "train", deep, **changes)
    return StageContext(made.recipe, made.run, "train", Notes(), {}, launch)


def test_two_processes_of_a_launch_train_what_one_does(tmp_path, deep, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one = trained(tmp_path / "one", deep)
    two = launched(tmp_path / "two", deep, "2")
    run(two)
    assert [arm for arm, _ in two.report.steps] == ["student"] * 6 + ["control"] * 6
    rows = [read_jsonl(ctx.folder / "metrics.jsonl") for ctx in (one, two)]
    assert len(rows[0]) == len(rows[1])
    for ours, theirs in zip(*rows, strict=True):
        assert ours["arm"] == theirs["arm"] and ours["step"] == theirs["step"]
        for name in {"loss", "valid_loss"} & ours.keys():
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4)
    for arm in ("student", "control"):
        before, found, wanted = (
            torch.cat([p.detach().flatten() for p in load(folder).parameters()])
            for folder in (one.folder / "untrained", two.folder / arm, one.folder / arm)
        )
        assert (found - wanted).norm() / (wanted - before).norm() < 1e-3
    assert hashes(one.folder).keys() == hashes(two.folder).keys()


def test_an_error_of_a_process_is_the_stage_s_error(tmp_path, deep):
    ctx = launched(tmp_path, deep, "2", train={"first_layer": 2, "dtype": "fp32"})
    with pytest.raises(InputError, match=r"a layer of the student, found 2 and 2 layers; lower it"):
        run(ctx)


def test_processes_end_with_their_stage(tmp_path, deep):
    """The stage is killed with no chance to tell anyone; whoever trains for it is gone soon after."""
    ctx = launched(tmp_path, deep, "2", train={"epochs": 5000, "batch_size": 4, "dtype": "fp32"})
    recipe = ctx.recipe.model_dump(mode="json")
    code = (
        "import json, sys; from pathlib import Path\n"
        "from edgedistill.core.recipe import Recipe; from edgedistill.core.runfolder import *\n"
        "from edgedistill.train.stage import run\n"
        f"recipe = Recipe.model_validate(json.loads({json.dumps(json.dumps(recipe))}))\n"
        f"run(StageContext(recipe, Path({str(ctx.run)!r}), 'train', SilentReporter(), {{}}, '2'))\n"
    )
    stage = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "1"})
    metrics = ctx.folder / "metrics.jsonl"
    try:
        waited_for(lambda: metrics.is_file() and metrics.stat().st_size > 0, seconds=120)
        mine = workers(ctx)
        assert len(mine) == 2
    finally:
        stage.send_signal(signal.SIGKILL)
        stage.wait()
    waited_for(lambda: not workers(ctx), seconds=30)


def workers(ctx: StageContext) -> list[int]:
    import psutil

    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        line = process.info["cmdline"] or []
        if str(ctx.folder / "launch") in line and "accelerate.commands.launch" not in line:
            found.append(process.info["pid"])
    return found


def waited_for(what, *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_second_machine_takes_part(tmp_path, deep, monkeypatch):
    """As README says: the first machine gets its configuration, the second one joins when it is waited for."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    for rank in (0, 1):
        settings = {
            "compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU", "machine_rank": rank,
            "main_process_ip": "127.0.0.1", "main_process_port": port, "num_machines": 2, "num_processes": 2,
            "same_network": True, "mixed_precision": "no", "use_cpu": False,
        }  # fmt: skip
        (tmp_path / f"machine{rank}.yaml").write_text(json.dumps(settings))
    ctx = launched(tmp_path / "run", deep, str(tmp_path / "machine0.yaml"), train=ONE_ARM)
    orders = ctx.folder / "launch"
    joined: list[subprocess.Popen[bytes]] = []

    def join() -> None:
        waited_for(lambda: (orders / "order.json").is_file(), seconds=60)
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(tmp_path / "machine1.yaml")]
        environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
        joined.append(subprocess.Popen([*command, "--module", "edgedistill.train.worker", orders], env=environment))

    helper = threading.Thread(target=join)
    helper.start()
    run(ctx)
    helper.join()
    assert joined[0].wait(timeout=60) == 0
    alone = trained(tmp_path / "alone", deep, train=ONE_ARM)
    rows = [[r["loss"] for r in read_jsonl(c.folder / "metrics.jsonl") if "loss" in r] for c in (ctx, alone)]
    assert rows[0] == pytest.approx(rows[1], rel=1e-4)
