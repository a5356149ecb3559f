"""FSDP2: two processes with half the weights each train what one process with all of them trains."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator
from accelerate.utils import DistributedType
from sharded_training import train
from tiny_models import save_tiny_llama
from tiny_training import fresh_accelerator, load, random_examples

from edgedistill.core.errors import InputError
from edgedistill.core.files import read_jsonl
from edgedistill.core.runfolder import SilentReporter
from edgedistill.quant.plan import plan_of
from edgedistill.train import arms, loop
from edgedistill.train.folders import TEMPLATE_FILE

pytestmark = pytest.mark.usefixtures(fresh_accelerator.__name__)
TESTS = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("whole") / "llama", layers=3, seed=5)


def in_two(tiny: Path, work: Path, *how: str) -> dict[str, np.ndarray]:
    work.mkdir(exist_ok=True)
    path = os.pathsep.join([str(TESTS.parents[1]), str(TESTS.parent), str(TESTS)])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(TESTS / "sharded_training.py"), str(tiny), str(work), *how],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    weights = work / "weights.npz"
    return dict(np.load(weights)) if weights.is_file() else {}


def losses(work: Path) -> list[float]:
    return [row.get("loss", row.get("valid_loss")) for row in read_jsonl(work / "metrics.jsonl")]


def test_halves_of_a_model_train_as_the_whole_and_go_on_from_a_checkpoint(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    before, alone = dict(load(tiny).named_parameters()), train(tiny, tmp_path / "one")
    wanted = {name: p.detach().numpy() for name, p in alone.named_parameters()}
    moved = sum(np.linalg.norm(wanted[n] - p.detach().numpy()) for n, p in before.items())
    assert not in_two(tiny, tmp_path / "two", "stop")
    assert len(read_jsonl(tmp_path / "two" / "metrics.jsonl")) == 3
    (tmp_path / "three").mkdir()
    for name in ("checkpoints", "metrics.jsonl"):
        place = tmp_path / "two" / name
        (shutil.copytree if place.is_dir() else shutil.copy)(place, tmp_path / "three" / name)
    found = in_two(tiny, tmp_path / "two")
    assert sum(np.linalg.norm(found[n] - wanted[n]) for n in wanted) < 1e-3 * moved
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    train(tiny, tmp_path / "three")  # what two processes began, one ends
    assert losses(tmp_path / "three") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


def test_the_loss_of_halves_in_bfloat16_is_not_rounded(tiny: Path, tmp_path: Path) -> None:
    found = in_two(tiny, tmp_path / "low", "bf16")
    assert all(np.isfinite(w).all() and w.dtype == np.float32 for w in found.values())
    rows = [row for row in read_jsonl(tmp_path / "low" / "metrics.jsonl") if "loss" in row]
    for row in rows:
        assert row["loss"] == pytest.approx(0.5 * row["ce"] + 0.5 * row["kl"], rel=1e-5)


def test_a_sharded_student_is_saved_whole(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tiny / TEMPLATE_FILE).write_text("{{ messages[0]['content'] }}")
    saved = []
    for name in ("plain", "sharded"):
        monkeypatch.setattr(arms, "is_sharded", lambda model, name=name: name == "sharded")
        (tmp_path / name).mkdir()
        arms.train_arm(
            untrained=tiny, folder=tmp_path / name, arm="student", train=random_examples(6), valid=[], kd_weight=0.0,
            how={"kind": "forward-kl", "beta": 0.5, "temperature": 1.0}, lora=None, qat=None, freeze_embeddings=True,
            first_layer=1, bf16=False, seed=0, report=SilentReporter(), lr=1e-2, epochs=1, batch_size=3,
        )  # fmt: skip
        saved.append((tmp_path / name / "student" / "model.safetensors").read_bytes())
    assert saved[0] == saved[1] != (tiny / "model.safetensors").read_bytes()


def test_the_first_fsdp_is_refused_before_training(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class First(Accelerator):
        distributed_type, is_fsdp2 = DistributedType.FSDP, False

    monkeypatch.setattr(loop, "Accelerator", First)
    with pytest.raises(InputError, match="expected fsdp_version: 2 in the accelerate configuration, found FSDP 1"):
        train(tiny, tmp_path)


def test_what_halves_cannot_do_is_said(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "is_sharded", lambda model: True)
    with pytest.raises(InputError, match=r"without \[train.qat\] where FSDP spreads the student over processes"):
        loop.train_model(
            load(tiny), train=random_examples(3), valid=[], arm="a", checkpoints=tmp_path, metrics=tmp_path / "m",
            seed=0, lr=1e-3, epochs=1, batch_size=3, report=SilentReporter(), bf16=False, plan=plan_of("q4_0"),
        )  # fmt: skip
