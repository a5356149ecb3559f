"""The benchmark of a training step, on a tiny teacher: what it times is what it says."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scripts_outside import ROOT, script
from tiny_models import save_tiny_llama
from tiny_training import fresh_accelerator, load

from edgedistill.train.launch import load_examples

pytestmark = pytest.mark.usefixtures(fresh_accelerator.__name__)


@pytest.fixture(scope="module")
def benchmark():
    sys.path.append(str(ROOT / "benchmarks"))
    return script("benchmarks/kd_step.py")


@pytest.fixture(scope="module")
def prepared(benchmark, tmp_path_factory) -> tuple[Path, Path, dict]:
    folder = tmp_path_factory.mktemp("kd")
    teacher = save_tiny_llama(folder / "llama", layers=3, seed=1)
    return folder, teacher, benchmark.prepare(folder, model=str(teacher), layers=[0, 2], chats=40)


def test_the_examples_have_the_teacher_s_distributions(benchmark, prepared):
    folder, teacher, data = prepared
    examples = load_examples(folder / "examples.npz")
    assert len(examples) == data["chats"] == 40 and sum(len(e.ids) for e in examples) == data["tokens"]
    e = examples[7]
    with torch.no_grad():
        logits = load(teacher)(input_ids=torch.from_numpy(e.ids)[None]).logits[0, e.start - 1 : -1]
    wanted = torch.log_softmax(logits, 1).topk(benchmark.KEPT)
    assert np.array_equal(e.top_ids, wanted.indices.numpy())
    np.testing.assert_allclose(e.top_logprobs, wanted.values.numpy(), rtol=1e-4, atol=1e-4)
    assert load(folder / "student").config.num_hidden_layers == 2


def test_steps_are_timed_in_pairs_and_epochs_by_step(benchmark, prepared):
    folder, _, _ = prepared
    assert len(benchmark.overhead(folder, rounds=3)) == 2 * 2  # two batches an epoch; the first epoch's do not count
    done = benchmark.ours(folder, bf16=False, batch=8)
    assert len(done) == 5 and done == sorted(done)
    assert benchmark.tokens_per_s([1.0, 2.0, 4.0, 6.0], 400) == pytest.approx(50.0)
