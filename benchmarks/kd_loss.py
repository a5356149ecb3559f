"""Time, memory and exactness of head and loss in one, beside TRL's and Liger's chunked losses and a dense reference.

Usage: python benchmarks/kd_loss.py [--rounds N]
Writes benchmarks/results/kd_loss.json; the last line printed is the same figures as one JSON object.

Forward and backward of LM head, divergence and gradients of hidden states and head, for 2,048 positions of a student
576 wide and vocabularies of 49,152 and 151,936. Ours reads a cached teacher (8 log-probabilities a position); the peers
get the dense teacher's hidden states (576 wide) and its head, as they want them. Peers come from PyPI into an
environment of their own, over the same torch: `trl.kernels.chunked_divergence` (beta 0, forward KL: its cheapest) and
`LigerFusedLinearJSDLoss`, compiled and not, chunks of 256 and 1,024; the fastest in a trial is timed. All run in one
process, in turns; a ratio is the median of the rounds' ratios. Ours dense (`Online`) is given beside them, for the same
work as theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).with_name("results") / "kd_loss.json"
PEERS = ("trl==1.16.0", "liger-kernel==0.8.5", "triton", "datasets")
POSITIONS, WIDTH, KEPT = 2048, 576, 8
VOCABULARIES = (49152, 151936)


def peers_python() -> Path:
    """The interpreter of the peers' environment in the cache, made once; it sees this one's packages behind its own."""
    from edgedistill.core.files import cache_dir

    folder = cache_dir() / "peers" / "kd-loss"
    python = folder / "bin" / "python"
    if not (folder / "complete").is_file():
        venv.create(folder, clear=True, with_pip=True)
        inside = folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
        (inside / "behind.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n{ROOT}\n", encoding="utf-8")
        subprocess.run([python, "-m", "pip", "install", "-q", *PEERS], check=True)
        (folder / "complete").touch()
    return python


def contenders(vocab: int) -> dict[str, Callable[[], Any]]:
    """Each loss as a call that leaves fresh gradients on the same hidden states and head; built on demand."""
    import torch

    from edgedistill.train.divergence import Divergence
    from edgedistill.train.fused import Kept, Online, head_losses

    torch.manual_seed(0)
    hidden, weight = torch.randn(POSITIONS, WIDTH), torch.randn(vocab, WIDTH) / WIDTH**0.5
    of_teacher, its_head = torch.randn(POSITIONS, WIDTH), torch.randn(vocab, WIDTH) / WIDTH**0.5
    targets = torch.randint(0, vocab, (POSITIONS,))
    hidden.requires_grad_(), weight.requires_grad_()
    with torch.no_grad():
        parts = [torch.log_softmax(rows @ its_head.T, 1).topk(KEPT) for rows in of_teacher.split(256)]
    kept = Kept(
        torch.cat([p.indices for p in parts]), torch.cat([p.values for p in parts]), torch.ones(POSITIONS).bool()
    )

    def done(loss: torch.Tensor) -> None:
        hidden.grad = weight.grad = None
        loss.backward()

    def ours(teacher: Any) -> Callable[[], None]:
        return lambda: done(head_losses(hidden, weight, targets, teacher=teacher, kd_weight=0.5).total / POSITIONS)

    def dense() -> None:
        q = torch.log_softmax(hidden @ weight.T, 1)
        p = torch.log_softmax(of_teacher @ its_head.T, 1)
        ce = torch.nn.functional.nll_loss(q, targets)
        done(0.5 * ce + 0.5 * torch.nn.functional.kl_div(q, p, log_target=True, reduction="batchmean"))

    def trl() -> None:
        from trl.trainer.distillation_trainer import _chunked_divergence_loss

        mask = torch.ones(1, POSITIONS)
        done(_chunked_divergence_loss(hidden[None], of_teacher[None], weight, its_head, mask, beta=0.0)[0])

    def liger(chunk: int, compiled: bool) -> Callable[[], None]:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        loss = LigerFusedLinearJSDLoss(beta=0.5, chunk_size=chunk, compiled=compiled)
        return lambda: done(loss(hidden, weight, of_teacher, its_head, targets))

    return {
        "ours, cached": ours(kept),
        "ours, dense": ours(Online(of_teacher, its_head)),
        "ours, dense jsd": lambda: done(
            head_losses(
                hidden, weight, targets, teacher=Online(of_teacher, its_head), kd_weight=0.5, how=Divergence("jsd")
            ).total
            / POSITIONS
        ),
        "dense reference": dense,
        "trl": trl,
        **{
            f"liger, chunk {chunk}{', compiled' if compiled else ''}": (
                lambda chunk=chunk, compiled=compiled: liger(chunk, compiled)()
            )
            for chunk in (256, 1024)
            for compiled in (False, True)
        },
    }


def work(rounds: int) -> None:
    """In the peers' environment: print every sample as one JSON object."""
    from edgedistill.bench.process_memory import memory_now, reset_peak

    found: dict[str, Any] = {}
    for vocab in VOCABULARIES:
        calls = contenders(vocab)
        samples: dict[str, Any] = {name: {"seconds": [], "peak_bytes": None} for name in calls}
        for name, call in calls.items():
            call()  # compiles, and touches what stays
            before, began = memory_now()["rss_bytes"] if reset_peak() else 0, time.perf_counter()
            call()
            trial = time.perf_counter() - began
            samples[name] |= {"peak_bytes": memory_now()["peak_rss_bytes"] - before, "trial_seconds": trial}
            print(f"{vocab} tokens, {name}: {trial:.2f} s", file=sys.stderr, flush=True)
        tried = [name for name in calls if name.startswith("liger")]
        fastest = min(tried, key=lambda name: samples[name]["trial_seconds"])
        for _ in range(rounds):
            for name in [name for name in calls if name not in tried or name == fastest]:
                began = time.perf_counter()
                calls[name]()
                samples[name]["seconds"].append(time.perf_counter() - began)
        found[str(vocab)] = samples
    print(json.dumps(found))


def gradient_error() -> float:
    """Of the cached loss in float32 against float64 autograd over whole logits, relative, worst of both gradients."""
    import torch

    from edgedistill.train.fused import Kept, head_losses

    torch.manual_seed(1)
    n, vocab = 64, 4096
    hidden, weight = torch.randn(n, WIDTH).double(), torch.randn(vocab, WIDTH).double() / WIDTH**0.5
    p = torch.log_softmax(torch.randn(n, vocab).double() * 3, 1).topk(KEPT)
    targets = torch.randint(0, vocab, (n,))
    hidden.requires_grad_(), weight.requires_grad_()
    q = torch.log_softmax(hidden @ weight.T, 1)
    inside, known = q.gather(1, p.indices), p.values.float().double()
    tails = [(1 - x.exp().sum(1)).log() for x in (known, inside)]
    kl = (known.exp() * (known - inside)).sum() + (tails[0].exp() * (tails[0] - tails[1])).sum()
    wanted = torch.autograd.grad(
        0.5 * torch.nn.functional.nll_loss(q, targets, reduction="sum") + 0.5 * kl, (hidden, weight)
    )
    single = [x.detach().float().requires_grad_() for x in (hidden, weight)]
    teacher = Kept(p.indices, p.values.float(), torch.ones(n).bool())
    loss = head_losses(*single, targets, teacher=teacher, kd_weight=0.5).total
    found = torch.autograd.grad(loss, single)
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True))


def summary(samples: dict[str, Any]) -> dict[str, Any]:
    """Ratios against the fastest of each peer's settings, round by round; memory without the two gradients."""
    figures: dict[str, Any] = {}
    for vocab, by_name in samples.items():
        seconds = {name: sample["seconds"] for name, sample in by_name.items()}
        fastest = next(name for name, times in seconds.items() if name.startswith("liger") and times)
        ratio = lambda theirs, ours="ours, cached", s=seconds: statistics.median(  # noqa: E731
            a / b for a, b in zip(s[theirs], s[ours], strict=True)
        )
        gradients = 4 * WIDTH * (int(vocab) + POSITIONS)
        buffers = {name: max(0, sample["peak_bytes"] - gradients) for name, sample in by_name.items()}
        figures[vocab] = {
            "speedup_vs_trl": ratio("trl"),
            "speedup_vs_liger": ratio(fastest),
            "dense_speedup_vs_trl": ratio("trl", "ours, dense"),
            "dense_jsd_speedup_vs_liger": ratio(fastest, "ours, dense jsd"),
            "liger_setting": fastest,
            "memory_vs_dense": buffers["ours, cached"] / buffers["dense reference"],
            "median_seconds": {name: statistics.median(values) for name, values in seconds.items() if values},
            "buffer_bytes": buffers,
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.rounds)
        return
    from edgedistill.core.files import write_json
    from edgedistill.core.host import environment

    command = [str(peers_python()), __file__, "--work", "--rounds", str(arguments.rounds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    if done.returncode:
        sys.exit(f"the losses could not be measured: the process ended with status {done.returncode}")
    samples = json.loads(done.stdout.splitlines()[-1])
    figures = summary(samples)
    worst = {
        "speedup_vs_trl": min(f["speedup_vs_trl"] for f in figures.values()),
        "speedup_vs_liger": min(f["speedup_vs_liger"] for f in figures.values()),
        "memory_vs_dense": max(f["memory_vs_dense"] for f in figures.values()),
        "grad_rel_err": gradient_error(),
    }
    settings = {"positions": POSITIONS, "width": WIDTH, "kept": KEPT, "peers": PEERS, "rounds": arguments.rounds}
    result = {"schema_version": 1, "settings": settings, "environment": environment(), **worst, "vocabularies": figures}
    RESULT.parent.mkdir(exist_ok=True)
    write_json(RESULT, result | {"samples": samples})
    print(json.dumps(worst))


if __name__ == "__main__":
    main()
