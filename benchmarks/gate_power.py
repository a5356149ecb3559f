"""How often the gate is wrong, and how often it sees a slowdown: simulated from recorded noise, and real.

Usage: python benchmarks/gate_power.py [--runs N] [--record ROUNDS] [--real] [--aa N] [--slow N] [--model GGUF]

Two models that are one file are measured in interleaved blocks, as the stage bench does it, and judged by the gate's
own `judge`: `after` against `before` on the time per decoded token, with six blocks and as many further ones as the
looks of `gate --settle` take. A 10 % slowdown is a decode step that takes 1.1 times as long; a least speed of 0.95
times is judged as a `max_ratio` of 1 / 0.95 on `tpot_ms`, whose median over tokens a busy host moves less than a speed.

`--record` measures that many rounds of two equal models and keeps them in benchmarks/results/gate_noise.json; the
simulation draws whole rounds from it, exchanges the two at random, and draws each block's samples anew. `--real`
measures the blocks of every verdict, the slowdown made by `slowed_worker.py`; run it on a machine that does nothing
else. The last line printed is one JSON object; with `--real` it is kept in benchmarks/results/gate_power.json too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgedistill.bench import block
from edgedistill.bench.limits import usable_cores
from edgedistill.bench.llama_interface import llama_interface
from edgedistill.core.budget import Budget, Check
from edgedistill.core.files import read_json, write_json
from edgedistill.core.host import environment, host_id
from edgedistill.core.measurement import Measurement
from edgedistill.core.sequential import plan_looks
from edgedistill.gate.check import judge
from edgedistill.gate.rundata import ModelFacts, RunData

ROOT = Path(__file__).resolve().parents[1]
NOISE, RESULT = (ROOT / "benchmarks" / "results" / name for name in ("gate_noise.json", "gate_power.json"))
METRIC = "tpot_ms"
BEFORE, AFTER = "before", "after"
BLOCKS, FURTHER, CONFIDENCE = 6, 54, 0.95
LOOKS = plan_looks(blocks=BLOCKS, further=FURTHER, confidence=CONFIDENCE)
# name, how much longer a step takes, the least decode speed against `before` (judged as the most time per token)
SCENARIOS = (("aa", 0.0, 0.95), ("slow_10pct", 0.10, 0.95), ("slow_3pct", 0.03, 0.90))
# An A/A pair held to exactly equal is where a false FAIL is likeliest; told beside the targets, in simulation.
EDGE = ("aa_at_its_limit", 0.0, 1.0)
Round = tuple[Sequence[float], Sequence[float]]


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    if options.record:
        with _worker(), _model(options.model) as model:
            rounds = [measured_round(model, pair=pair) for pair in range(options.record)]
        write_json(NOISE, {"schema_version": 1, "environment": environment(), "metric": METRIC, "rounds": rounds})
        print(f"kept {len(rounds)} rounds in {NOISE}", file=sys.stderr)
    if not NOISE.is_file():
        print(f"expected recorded noise in {NOISE}, found none; run with --record 60 first", file=sys.stderr)
        return 2
    noise = read_json(NOISE)
    found: dict[str, Any] = {"noise": _told(noise["rounds"]) | {"host_id": noise["environment"]["host_id"]}}
    found["simulated"] = simulated(noise["rounds"], runs=options.runs)
    if options.real:
        with _worker(), _model(options.model) as model:
            found["real"] = real(model, runs={"aa": options.aa, "slow_10pct": options.slow, "slow_3pct": 0})
        write_json(RESULT, {"schema_version": 1, "environment": environment()} | summary(found))
    print(json.dumps(summary(found)))
    return 0


def simulated(rounds: Sequence[Round], *, runs: int) -> dict[str, Any]:
    """Outcomes of `runs` verdicts of each scenario on rounds drawn from recorded ones."""
    found = {}
    for number, (name, slowdown, limit) in enumerate((*SCENARIOS, EDGE)):
        checks = []
        for run in range(runs):
            rng = random.Random(f"{number} {run}")
            drawn = [drawn_round(rounds, rng, slowdown=slowdown) for _ in range(LOOKS[-1].blocks)]
            checks.append(verdict_of(drawn, limit=limit))
            _progress(name, run + 1, runs)
        found[name] = _counted(checks)
    return found


def drawn_round(rounds: Sequence[Round], rng: random.Random, *, slowdown: float) -> Round:
    """One recorded round, its two equal models exchanged at random, samples drawn anew, the second one slowed."""
    before, after = rng.sample(list(rng.choice(rounds)), k=2)
    before, after = (rng.choices(samples, k=len(samples)) for samples in (before, after))
    return before, [time * (1 + slowdown) for time in after]


def real(model: Path, *, runs: Mapping[str, int]) -> dict[str, Any]:
    """Outcomes of verdicts whose every block is measured: further ones only where those before did not decide."""
    found = {}
    for name, slowdown, limit in SCENARIOS:
        checks = []
        for run in range(runs[name]):
            rounds: list[Round] = []
            for look in LOOKS:
                while len(rounds) < look.blocks:
                    rounds.append(measured_round(model, pair=len(rounds), slowdown=slowdown))
                check = verdict_of(rounds, limit=limit)
                if check.outcome != "inconclusive":
                    break
            checks.append(check)
            _progress(f"real {name}", run + 1, runs[name])
        if checks:
            found[name] = _counted(checks)
    return found


def measured_round(model: Path, *, pair: int, slowdown: float = 0.0) -> Round:
    """Token times of two equal models in a block each, the second one's steps slowed; the order alternates (ABBA).

    Raises:
        RuntimeError: a block is invalid; its reason.
    """
    found = {}
    for name in (BEFORE, AFTER) if pair % 2 == 0 else (AFTER, BEFORE):
        os.environ["EDGEDISTILL_SLOWDOWN"] = str(slowdown if name == AFTER else 0.0)
        (row,) = block.run_block(_job(model))["rows"]
        if "invalid" in row:
            raise RuntimeError(f"a block is invalid: {row['invalid']}")
        found[name] = [float(f"{value:.5g}") for value in row["samples"][METRIC]]
    return found[BEFORE], found[AFTER]


def verdict_of(rounds: Sequence[Round], *, limit: float) -> Check:
    """The gate's own check of `after` against `before` on these rounds."""
    digest, host = "0" * 64, host_id()
    rows = [
        Measurement(
            model=name, engine="llamacpp", target="mobile-class", workload="shape", pair=pair, evidence="constrained",
            valid=True, samples={METRIC: list(samples)}, environment={"host_id": host}, artifact_digest=digest,
            started="2026-01-01T00:00:00+00:00",
        )
        for pair, both in enumerate(rounds)
        for name, samples in zip((BEFORE, AFTER), both, strict=True)
    ]  # fmt: skip
    facts = ModelFacts("artifact", "gguf", bytes=1, parameters=1, bits_per_weight=8.0, digest=digest)
    data = RunData(host_id=host, models={BEFORE: facts, AFTER: facts}, measurements=rows)
    budget = Budget(metric=METRIC, target="mobile-class", artifacts=(AFTER,), against=BEFORE, max_ratio=1 / limit)
    verdict = judge(
        run="power", budgets={"speed": budget}, release=(), data=data, confidence=CONFIDENCE, looks=LOOKS, inputs={}
    )
    return verdict.checks[0]


def summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """The headline: shares of the simulated verdicts, and every count."""
    told = found["simulated"]

    def share(name: str) -> float:
        return round(told[name]["fail"] / told[name]["runs"], 4)

    return {
        "aa_false_fail": share("aa"),
        "detect_10pct": share("slow_10pct"),
        "false_fail_3pct": share("slow_3pct"),
        "looks": [[look.blocks, round(look.confidence, 4)] for look in LOOKS],
        **found,
    }


def _counted(checks: Sequence[Check]) -> dict[str, Any]:
    counts = Counter(check.outcome for check in checks)
    blocks = [check.samples for check in checks]
    return {
        "runs": len(checks),
        **{outcome: counts[outcome] for outcome in ("pass", "fail", "inconclusive", "error")},
        "mean_blocks": round(statistics.fmean(blocks), 1),
    }


def _told(rounds: Sequence[Round]) -> dict[str, Any]:
    """Spread of the recorded noise: between the two of a round, and within a block, in percent."""
    ratios = [statistics.median(a) / statistics.median(b) for a, b in rounds]
    within = [statistics.stdev(samples) / statistics.fmean(samples) for both in rounds for samples in both]
    return {
        "rounds": len(rounds),
        "sd_of_ratio_pct": round(100 * statistics.stdev(ratios), 2),
        "median_sd_within_block_pct": round(100 * statistics.median(within), 2),
    }


def _job(model: Path) -> dict[str, Any]:
    # One core, as the target mobile-class: threads that wait for each other would measure their neighbours' load.
    cores = usable_cores()[-1:]
    return {
        "engine": "llamacpp", "model": str(model), "options": {"interface": llama_interface()}, "workloads": ["shape"],
        "threads": len(cores), "cores": cores, "context": 128, "batch": 64, "prompts": [], "end_ids": [],
        "max_new_tokens": 1, "warmup": 0,
        "shape": {"ids": [60 + i for i in range(64)], "decode": 32, "warmup": 1, "repetitions": 3},
    }  # fmt: skip


class _worker:
    """Blocks run by `slowed_worker.py`, from this checkout."""

    def __enter__(self) -> None:
        self.command = block.COMMAND
        block.COMMAND = (sys.executable, "-P", str(Path(__file__).with_name("slowed_worker.py")))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))

    def __exit__(self, *_: object) -> None:
        block.COMMAND = self.command


class _model:
    """The GGUF to measure: the one given, or a random Llama of 5 M parameters that the tests' builder makes."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def __enter__(self) -> Path:
        self.folder = tempfile.TemporaryDirectory()
        if self.path is not None:
            return self.path.resolve()
        sys.path.insert(0, str(ROOT / "tests"))
        from tiny_models import save_tiny_llama

        from edgedistill.export.gguf import export_gguf_f16

        folder = Path(self.folder.name)
        save_tiny_llama(folder / "model", layers=8, hidden=256)
        export_gguf_f16(model=folder / "model", out=folder / "model.gguf")
        return folder / "model.gguf"

    def __exit__(self, *_: object) -> None:
        self.folder.cleanup()


def _progress(name: str, done: int, total: int) -> None:
    if done == total or done % 50 == 0 or name.startswith("real"):
        print(f"{name}: {done} of {total}", file=sys.stderr)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    number: Callable[[str], int] = int
    parser.add_argument("--runs", type=number, default=200, help="simulated verdicts of each scenario (200)")
    parser.add_argument("--record", type=number, default=0, metavar="ROUNDS", help="record noise first (60 is enough)")
    parser.add_argument("--real", action="store_true", help="measure real verdicts too")
    parser.add_argument("--aa", type=number, default=20, help="real A/A verdicts (20)")
    parser.add_argument("--slow", type=number, default=10, help="real verdicts with a 10 %% slowdown (10)")
    parser.add_argument("--model", type=Path, default=None, help="a GGUF to measure instead of a random Llama")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
