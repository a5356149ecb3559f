"""The loop: invariance to how a step is split, exact resume, early stop, and what it refuses."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import save_tiny_llama
from tiny_training import fresh_accelerator, load, random_examples, teach

from edgedistill.core.errors import InputError, StageError
from edgedistill.core.runfolder import SilentReporter
from edgedistill.quant.plan import plan_of
from edgedistill.train.data import Example, collate, collate_rows, pack
from edgedistill.train.loop import learning_rate, train_model
from edgedistill.train.lora import add_lora, factors, merge_lora
from edgedistill.train.step import step_losses

pytestmark = pytest.mark.usefixtures(fresh_accelerator.__name__)


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("teacher") / "llama", layers=3, seed=7)


@pytest.fixture
def examples(teacher_folder) -> list[Example]:
    return teach(load(teacher_folder), random_examples(24))


class Notes(SilentReporter):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def settings(folder: Path, **changes):
    folder.mkdir(exist_ok=True)
    return {
        "arm": "student", "checkpoints": folder / "checkpoints", "metrics": folder / "metrics.jsonl", "seed": 0,
        "lr": 3e-3, "epochs": 2, "batch_size": 4, "report": SilentReporter(), "kd_weight": 0.5, "bf16": False,
        "valid": [], **changes,
    }  # fmt: skip


def gradient(model, batches: list[list[Example]], *, packed: bool = False) -> torch.Tensor:
    """Of the mean loss per supervised token over all batches."""
    model.zero_grad()
    count = sum(e.supervised for batch in batches for e in batch)
    for batch in batches:
        rows = pack(batch, width=40) if packed else [[e] for e in batch]
        assert not packed or len(rows) < len(batch)
        losses = step_losses(model, collate_rows(rows, pad_id=3), kd_weight=0.5)
        (losses.total / count).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize(("attention", "taught"), [("eager", 8), ("eager", 5), ("sdpa", 8)])
def test_gradient_invariance_to_split_padding_and_packing(tiny_llama, examples, attention, taught):
    """Also where of some examples the text alone is learnt."""
    model = load(tiny_llama)
    model.set_attn_implementation(attention)
    eight = [*examples[:taught], *random_examples(8)[taught:]]
    whole = gradient(model, [eight])
    assert whole.norm() > 0.01
    splits = {
        "2x4": gradient(model, [eight[:4], eight[4:]]),
        "8x1, no padding": gradient(model, [[e] for e in eight]),
        "packed": gradient(model, [eight], packed=True),
        "packed in two": gradient(model, [eight[:3], eight[3:]], packed=True),
    }
    for name, other in splits.items():
        assert (other - whole).norm() / whole.norm() < 1e-5, name


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_packed_sequence_sees_nothing_of_its_neighbours(tiny_llama, examples, attention):
    model = load(tiny_llama)
    model.set_attn_implementation(attention)
    first, other, last = examples[0], examples[1], examples[2]
    hidden = []
    for between in (other, Example("else", np.full_like(other.ids, 77), other.start)):
        batch = collate_rows([[first, between, last]])
        alone = {"input_ids": batch.input_ids, "use_cache": False}  # a cache would have the restarts overlooked
        with torch.no_grad():
            states = model.model(position_ids=batch.position_ids, **alone).last_hidden_state[0]
        hidden.append(torch.cat((states[: len(first.ids)], states[-len(last.ids) :])))
    assert torch.equal(*hidden)
    with torch.no_grad():  # without the restarts the last one sees them
        whole = model.model(**alone).last_hidden_state[0]
    assert not torch.allclose(whole[-1], hidden[0][-1], atol=1e-3)


@pytest.mark.parametrize("packing", [False, True, "auto"])
def test_trained_weights_invariance_to_packing_and_micro_batches(tiny_llama, tmp_path, examples, packing):
    found = []
    for name, how in (("padded", {"packing": False}), ("other", {"packing": packing, "micro_batch_tokens": 24})):
        model = load(tiny_llama)
        train_model(model, train=examples, **settings(tmp_path / name, lr=1e-3, batch_size=8, **how))
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    moved = found[0] - torch.cat([p.detach().flatten() for p in load(tiny_llama).parameters()])
    assert moved.norm() > 0 and (found[0] - found[1]).norm() / moved.norm() < 1e-4


def test_a_model_that_caps_its_logits_is_trained_on_the_capped(examples):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    sizes = {"vocab_size": 384, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, **heads}
    model = Gemma2ForCausalLM(Gemma2Config(final_logit_softcapping=0.5, initializer_range=0.5, **sizes)).eval()
    found = step_losses(model, collate(examples[:2]), kd_weight=0.0).total
    expected = 0.0
    for e in examples[:2]:
        ids = torch.from_numpy(e.ids)[None]
        logits = model(input_ids=ids).logits[0, e.start - 1 : -1]
        assert logits.abs().max() <= 0.5
        expected += torch.nn.functional.cross_entropy(logits, ids[0, e.start :], reduction="sum")
    torch.testing.assert_close(found, expected)
    mine, theirs = (torch.autograd.grad(x, model.lm_head.weight)[0] for x in (found, expected))
    torch.testing.assert_close(mine, theirs)


def test_loss_is_that_of_full_logits_shifted_and_masked(tiny_llama, examples):
    model = load(tiny_llama)
    batch = examples[:5]
    found = step_losses(model, collate(batch), kd_weight=0.0).total
    expected = 0.0
    for e in batch:
        logits = model(input_ids=torch.from_numpy(e.ids)[None]).logits[0]
        logs = torch.log_softmax(logits, -1)
        expected -= sum(logs[i - 1, e.ids[i]] for i in range(e.start, len(e.ids)))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_student_learns_and_ends_at_its_best_validation(tiny_llama, tmp_path, examples):
    student = load(tiny_llama)
    result = train_model(student, train=examples, **settings(tmp_path, valid=examples[:6], epochs=6, patience=2))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    evals = {row["step"]: row["valid_loss"] for row in rows if "valid_loss" in row}
    assert steps[-1]["loss"] < 0.7 * steps[0]["loss"]
    assert steps[-1]["kl"] < steps[0]["kl"]
    assert all(row["tok_s"] > 0 and row["eta_s"] >= 0 for row in steps)
    assert evals[result.best_step] == min(evals.values()) == result.best_loss
    with torch.no_grad():
        total = step_losses(student, collate(examples[:6]), kd_weight=0.5).total
    assert float(total) / sum(e.supervised for e in examples[:6]) == pytest.approx(result.best_loss, rel=1e-4)


def test_stops_early_when_validation_turns_and_says_so(tiny_llama, tmp_path):
    train, valid, report = random_examples(12, seed=1), random_examples(12, seed=2), Notes()
    changes = {"valid": valid, "epochs": 40, "lr": 3e-2, "patience": 2, "report": report}
    result = train_model(load(tiny_llama), train=train, **settings(tmp_path, **changes))
    assert result.steps < result.planned_steps
    assert result.steps - result.best_step == 2 * 3  # two evaluations, one in each epoch of three steps
    (said,) = report.notes
    assert said.startswith(
        f"student: the held-out loss turned: {result.best_loss:.4f} at step {result.best_step} and no"
    )
    assert f"kept the weights of step {result.best_step} (lower train.lr" in said


class Stop:
    """A reporter that interrupts, as Ctrl-C would, at one step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def note(self, message: str) -> None: ...

    def progress(self, done, total, unit, **figures) -> None:
        if done == self.at:
            os.kill(os.getpid(), signal.SIGINT)


WAYS = {
    "padded": {"packing": False},
    "bf16": {"bf16": True},
    "packed": {"packing": True, "micro_batch_tokens": 30},
    "qat": {"plan": plan_of("q4_0"), "grid_share": 0.5},
    "lora": {"packing": True},
    "frozen": {},
}


def prepared(folder: Path, way: str):
    model = load(folder)
    if way == "lora":
        return add_lora(model, rank=4, alpha=8, seed=0)
    if way == "frozen":
        model.get_input_embeddings().weight.requires_grad_(False)
    return model


@pytest.mark.parametrize("way", WAYS)
def test_resume_of_an_interrupted_run_ends_bit_for_bit_alike(tiny_llama, tmp_path, examples, way):
    kwargs = {"train": examples, "valid": examples[:4], **WAYS[way]}
    whole = prepared(tiny_llama, way)
    train_model(whole, **settings(tmp_path / "a", **kwargs))
    for at in (1, 5, 6, 7):
        parts = prepared(tiny_llama, way)
        torch.rand(at)  # another random state than the first run's
        with pytest.raises(KeyboardInterrupt):
            train_model(parts, **settings(tmp_path / "b", **kwargs, report=Stop(at)))
    parts = prepared(tiny_llama, way)
    train_model(parts, **settings(tmp_path / "b", **kwargs))
    for (name, p), q in zip(whole.named_parameters(), parts.parameters(), strict=True):
        assert torch.equal(p, q), name
    drop = ("tok_s", "eta_s")
    rows = [
        [{k: v for k, v in json.loads(line).items() if k not in drop} for line in path.read_text().splitlines()]
        for path in (tmp_path / "a" / "metrics.jsonl", tmp_path / "b" / "metrics.jsonl")
    ]
    assert rows[0] == rows[1]


def test_resume_of_a_killed_run_goes_on_from_an_older_checkpoint_to_the_same_end(tiny_llama, tmp_path, examples):
    """Nothing is saved at the kill, but a checkpoint lies some steps back, older than the best weights on disk."""

    class Kill(Stop):
        def progress(self, done, total, unit, **figures) -> None:
            if done == self.at:
                raise MemoryError  # like a kill, it saves nothing

    kwargs = {"train": examples, "valid": examples[:4]}
    whole, parts = load(tiny_llama), load(tiny_llama)
    train_model(whole, **settings(tmp_path / "a", **kwargs))
    with pytest.raises(KeyboardInterrupt):
        train_model(parts, **settings(tmp_path / "b", **kwargs, report=Stop(4)))
    with pytest.raises(MemoryError):
        train_model(load(tiny_llama), **settings(tmp_path / "b", **kwargs, report=Kill(8)))
    with (tmp_path / "b" / "metrics.jsonl").open("a") as f:
        f.write('{"arm":"student","st')  # a line the kill cut off
    parts = load(tiny_llama)
    train_model(parts, **settings(tmp_path / "b", **kwargs))
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), parts.parameters(), strict=True))


def test_damaged_checkpoint_is_refused(tiny_llama, tmp_path, examples):
    with pytest.raises(KeyboardInterrupt):
        train_model(load(tiny_llama), train=examples, **settings(tmp_path, report=Stop(2)))
    path = tmp_path / "checkpoints" / "last" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        train_model(load(tiny_llama), train=examples, **settings(tmp_path))


def test_checkpoint_of_another_model_is_refused(tiny_llama, teacher_folder, tmp_path, examples):
    with pytest.raises(KeyboardInterrupt):
        train_model(load(tiny_llama), train=examples, **settings(tmp_path, report=Stop(2)))
    with pytest.raises(InputError, match="belongs to another model"):
        train_model(load(teacher_folder), train=examples, **settings(tmp_path))


def scarce(model, *, most: int) -> None:
    """Let `model` find no memory for a batch of more than `most` places, as torch says it."""
    forward = model.forward

    def limited(input_ids, **kwargs):
        if input_ids.numel() > most:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
        return forward(input_ids=input_ids, **kwargs)

    model.forward = limited


def test_out_of_memory_halves_the_micro_batch_and_goes_on(tiny_llama, tmp_path, examples):
    whole, short = load(tiny_llama), load(tiny_llama)
    train_model(whole, train=examples, **settings(tmp_path / "a", batch_size=8))
    scarce(short, most=40)
    report = Notes()
    with pytest.raises(KeyboardInterrupt):
        train_model(short, train=examples, **settings(tmp_path / "b", batch_size=8, report=Stop(2)))
    again = load(tiny_llama)
    scarce(again, most=40)
    train_model(again, train=examples, **settings(tmp_path / "b", batch_size=8, report=report))
    assert report.notes == []  # what fitted was kept with the checkpoint
    fresh = load(tiny_llama)
    scarce(fresh, most=40)
    train_model(fresh, train=examples, **settings(tmp_path / "c", batch_size=8, report=report))
    assert "going on with train.micro_batch_tokens = " in report.notes[-1]
    assert int(report.notes[-1].rpartition(" ")[2]) <= 40
    moved = torch.cat(
        [(p - q).flatten() for p, q in zip(whole.parameters(), load(tiny_llama).parameters(), strict=True)]
    )
    for other in (again, fresh):
        apart = torch.cat([(p - q).flatten() for p, q in zip(whole.parameters(), other.parameters(), strict=True)])
        assert apart.norm() / moved.norm() < 1e-3


def test_one_sequence_that_does_not_fit_is_said(tiny_llama, tmp_path, examples):
    model = load(tiny_llama)
    scarce(model, most=3)
    with pytest.raises(StageError, match=r"memory ran out in a micro-batch of one sequence of \d+ tokens; leave the"):
        train_model(model, train=examples, **settings(tmp_path))


def test_infinite_loss_stops_with_the_batch_saved(tiny_llama, tmp_path, examples):
    model = load(tiny_llama)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("inf"))
    with pytest.raises(StageError, match=r"finite loss and gradient, found loss (nan|inf).* at step 1 of student"):
        train_model(model, train=examples, **settings(tmp_path))
    saved = json.loads((tmp_path / "checkpoints" / "failed.json").read_text())
    assert len(saved["examples"]) == 4


def test_nothing_to_train_on_is_refused(tiny_llama, tmp_path):
    with pytest.raises(StageError, match="expected examples to train student on, found none"):
        train_model(load(tiny_llama), train=[], **settings(tmp_path))


TWO_PROCESSES = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from test_loop import settings
from tiny_training import load, random_examples, teach
from edgedistill.train.loop import train_model
from edgedistill.train.step import Step
folder = Path({folder!r})
examples = teach(load(Path({teacher!r})), random_examples(25))
accelerator = Accelerator()
found = {{}}
for name, how in {splits!r}.items():
    model = load(Path({student!r}))
    head = model.get_output_embeddings()
    ready = accelerator.prepare(model)
    Step(ready, head, accelerator.device, 0.5, **how).backward(examples[:9], accelerator=accelerator)
    found["gradient " + name] = torch.cat([p.grad.flatten() for p in model.parameters()])
model = load(Path({student!r}))
train_model(model, train=examples, **settings(folder, valid=examples[:5]))
if accelerator.is_main_process:
    save_file(found | dict(model.named_parameters()), folder / f"{{accelerator.num_processes}}.safetensors")
"""
SPLITS = {
    "padded": {"packing": False},
    "packed": {"packing": True},
    "in parts": {"packing": False, "most_tokens": 20},
    "packed in parts": {"packing": True, "most_tokens": 30},
}


def test_two_processes_end_where_one_does(tiny_llama, teacher_folder, tmp_path):
    """Nine examples are no even share; of 25 in batches of 4 the last batch has nothing for the second process."""
    script = tmp_path / "two.py"
    paths = [str(p) for p in (Path(__file__).parent, Path(__file__).parents[1])]
    places = {"folder": str(tmp_path), "student": str(tiny_llama), "teacher": str(teacher_folder), "splits": SPLITS}
    script.write_text(TWO_PROCESSES.format(paths=paths, **places))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    for launch in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]):
        subprocess.run([sys.executable, *launch, str(script)], env=environment, check=True, capture_output=True)
        shutil.rmtree(tmp_path / "checkpoints")
    one, two = (load_file(tmp_path / f"{n}.safetensors") for n in (1, 2))
    whole = one["gradient padded"]
    for name in SPLITS:
        for found in (one, two):
            assert (found[f"gradient {name}"] - whole).norm() / whole.norm() < 1e-5, name
    for name, before in load(tiny_llama).named_parameters():
        moved = (one[name] - before.detach()).norm()
        assert moved > 0 and (one[name] - two[name]).norm() / moved < 1e-4, name


def test_learning_rate_warms_up_and_falls_to_almost_nothing():
    rates = [learning_rate(i, total=100, peak=1.0, warmup=10) for i in range(100)]
    assert rates[0] == pytest.approx(1 / 11) and max(rates) == rates[10] == 1.0
    assert rates[-1] < 0.001 and all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_lora_trains_factors_alone_and_merges_to_the_same_logits(tiny_llama, tmp_path, examples):
    base = load(tiny_llama)
    before = {name: p.clone() for name, p in base.named_parameters()}
    wrapped = add_lora(base, rank=4, alpha=8, seed=0)
    train_model(wrapped, train=examples, **settings(tmp_path, lr=1e-2))
    merged = merge_lora(load(tiny_llama), factors(wrapped), rank=4, alpha=8)
    ids = torch.from_numpy(examples[0].ids)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, wrapped(ids).logits, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(merged(ids).logits, load(tiny_llama)(ids).logits, atol=1e-2)
    changed = {name for name, p in merged.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if "_proj" in name}
    assert all(np.isfinite(p.detach().numpy()).all() for p in merged.parameters())


def test_lora_from_a_layer_on_leaves_those_before_as_they_are(tiny_llama):
    wrapped = add_lora(load(tiny_llama), rank=4, alpha=8, seed=0, first_layer=1)
    trained = factors(wrapped)
    assert len(trained) == 2 * 7 and all(".layers.1." in name for name in trained)
    ids = torch.arange(1, 9)[None]
    wrapped(input_ids=ids, labels=ids).loss.backward()
    for name, value in trained.items():
        if "lora_B" in name:
            value.normal_(std=0.02)
    merged = merge_lora(load(tiny_llama), trained, rank=4, alpha=8, first_layer=1)
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, wrapped(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
    before, after = load(tiny_llama).state_dict(), merged.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) == 7 and all(".layers.1." in name for name in changed)


def test_lora_from_a_layer_that_is_not_there_is_refused(tiny_llama):
    with pytest.raises(InputError, match="begin at a layer of the model, found 2 and 2 of them; lower it"):
        add_lora(load(tiny_llama), rank=4, alpha=8, seed=0, first_layer=2)
