"""Labelling: kills at every step end in the same bytes, and every prompt is accounted for."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgedistill.core.errors import InputError, StageError
from edgedistill.core.files import clear_temporaries, read_jsonl, write_jsonl
from edgedistill.core.records import Message, Prompt
from edgedistill.runtimes.base import Generation
from edgedistill.runtimes.logit_cache import CacheIdentity, open_cache
from edgedistill.synth import label as labelling
from edgedistill.synth.label import Counts, Request, label, read_records
from edgedistill.synth.rows import make_prompt

IDENTITY = CacheIdentity(tokenizer="t", template="c", teacher="x")
END = 2


def teacher(batch: list[list[int]]) -> list[Generation]:
    """A pure function of each prompt: one in seven never ends, one in five is empty."""
    answers = []
    for prompt in batch:
        source = random.Random(str(prompt))
        ids = [source.randrange(3, 90) for _ in range(0 if sum(prompt) % 5 == 0 else 4)]
        finish = "length" if ids and sum(prompt) % 7 == 0 else "stop"
        ids += [END] if finish == "stop" else []
        top_ids = np.array([[i, i + 1] for i in ids])
        top_logprobs = np.array([[-0.1 * source.random(), -3.0] for _ in ids], np.float32)
        answers.append(Generation(ids, finish, top_ids, top_logprobs))
    return answers


def judge(answer: str, finish: str, prompt: Prompt) -> tuple[str, str] | None:
    if finish == "length":
        return "truncated", ""
    return None if answer else ("empty", "")


def requests(count: int = 40) -> list[Request]:
    made = []
    for i in range(count):
        prompt = make_prompt([Message(role="user", content=f"number {i}")])
        made.append(Request(id=f"request-{i}", prompt=prompt, prompt_ids=[10 + i] * (1 + i % 3)))
    return made


def run(folder: Path, items: list[Request], *, ask: Callable = teacher, shard_size: int = 8) -> Counts:
    return label(
        items,
        folder=folder,
        ask=ask,
        decode=lambda ids: " ".join(map(str, ids)),
        judge=judge,
        identity=IDENTITY,
        end_ids=(END,),
        top_k=2,
        cut={},
        batch_size=3,
        shard_size=shard_size,
        progress=lambda done, total, tokens: None,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_every_prompt_is_kept_or_rejected_with_its_reason(tmp_path: Path) -> None:
    items = requests()
    counts = run(tmp_path, items)
    rejected = read_jsonl(tmp_path / "rejected.jsonl")
    records = [record for _, shard in read_records(tmp_path) for record in shard]
    assert counts.asked == 40 == counts.kept + sum(counts.rejected.values())
    assert (counts.kept, sum(counts.rejected.values())) == (len(records), len(rejected))
    assert set(counts.rejected) == {"empty", "truncated"}
    by_id = {item.prompt.id: item for item in items}
    for row in rejected:
        total = sum(by_id[row["prompt_id"]].prompt_ids)
        assert row["reason"] == ("empty" if total % 5 == 0 else "truncated")
    cache = open_cache(sorted(tmp_path.glob("logits-*")), identity=IDENTITY)
    for record in records:
        said = teacher([list(by_id[record.prompt_id].prompt_ids)])[0]
        assert list(record.answer_ids) == said.ids
        row = cache.row(prompt_ids=record.prompt_ids, answer_ids=record.answer_ids, record=record.id)
        assert row.ids.tolist() == said.top_ids.tolist()
        assert record.answer == " ".join(map(str, said.ids[:-1]))


def test_a_repeated_request_is_asked_once(tmp_path: Path) -> None:
    items = requests(20)
    twin = make_prompt([Message(role="user", content="number 1 in other words")])
    items.append(Request(id="request-1", prompt=twin, prompt_ids=items[1].prompt_ids))
    asked: list[list[int]] = []
    counts = run(tmp_path, items, ask=lambda batch: asked.extend(batch) or teacher(batch))
    assert len(asked) == 20 and counts.rejected["duplicate"] == 1
    last = read_jsonl(tmp_path / "rejected.jsonl")[-1]
    assert last["detail"] == f"the same request as prompt {items[1].prompt.id}"
    with pytest.raises(InputError, match="expected prompts of distinct ids"):
        run(tmp_path, [*items, items[0]])


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", range(0, 15, 2))
def test_sigkill_before_or_after_any_write_ends_in_the_same_bytes(tmp_path: Path, step: int, after: bool) -> None:
    run(tmp_path / "whole", requests())
    child = os.fork()
    if child == 0:
        writes = 0

        def counting(write: Callable) -> Callable:
            def wrapped(*args: object, **named: object) -> object:
                nonlocal writes
                if writes == step and not after:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = write(*args, **named)
                if writes == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                writes += 1
                return result

            return wrapped

        labelling.write_cache = counting(labelling.write_cache)
        labelling.write_jsonl = counting(labelling.write_jsonl)
        run(tmp_path / "killed", requests())
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    done = len(list((tmp_path / "killed").glob("records-*")))
    assert done == (step + after) // 3
    asked = []
    clear_temporaries(tmp_path / "killed")
    run(tmp_path / "killed", requests(), ask=lambda batch: asked.extend(batch) or teacher(batch))
    assert len(asked) == 40 - 8 * done
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: (f / "records-00001.jsonl").write_text('{"id":'),
            "records-00001.jsonl line 1: expected one JSON object",
        ),
        (lambda f: (f / "records-00000.jsonl").unlink(), "do not answer the 8 prompts of their shard"),
        (lambda f: (f / "rejected.jsonl").unlink(), "expected a JSONL file at .*rejected.jsonl, found nothing there"),
        (lambda f: write_jsonl(f / "rejected.jsonl", []), "do not answer the 8 prompts of their shard"),
        (lambda f: (f / "logits-00001.safetensors").unlink(), "expected safetensors at .*logits-00001"),
        (lambda f: (f / "logits-00001.safetensors").write_bytes(b"x" * 40), "is not a whole safetensors file"),
        (
            lambda f: (f / "logits-00001.safetensors").write_bytes((f / "logits-00002.safetensors").read_bytes()),
            "expected the teacher's distributions for record request-8, found none for its text",
        ),
    ],
)
def test_damage_left_by_an_earlier_run_is_named(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    run(tmp_path, requests())
    before = contents(tmp_path).keys()
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        run(tmp_path, requests())
    assert contents(tmp_path).keys() <= before


def test_other_requests_than_before_are_not_mixed(tmp_path: Path) -> None:
    run(tmp_path, requests())
    with pytest.raises(InputError, match=r"delete .* and run synth again"):
        run(tmp_path, requests()[1:])


def test_a_teacher_that_breaks_its_promise_fails_the_stage(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="expected 3 answers from the teacher, found 2"):
        run(tmp_path, requests(), ask=lambda batch: teacher(batch)[:2])
    short = Generation([5, END], "stop", [[5, 6]], [[-0.1, -3.0]])
    with pytest.raises(StageError, match="expected 2 log-probs for each of the 2 tokens"):
        run(tmp_path, requests(), ask=lambda batch: [short] * len(batch))
    unended = Generation([5], "stop", [[5, 6]], [[-0.1, -3.0]])
    with pytest.raises(StageError, match="an end token where it stopped"):
        run(tmp_path, requests(), ask=lambda batch: [unended] * len(batch))
    wild = Generation([5, END], "stop", [[5, 6]] * 2, [[float("nan"), -3.0]] * 2)
    with pytest.raises(StageError, match="are no distributions: expected natural log-probs"):
        run(tmp_path, requests(), ask=lambda batch: [wild] * len(batch))
    silent = Generation([END], "stop", [[2, 6]], [[-0.1, -3.0]])
    with pytest.raises(StageError, match=r"all 40 answers of the teacher were rejected .*empty"):
        run(tmp_path, requests(), ask=lambda batch: [silent] * len(batch))
