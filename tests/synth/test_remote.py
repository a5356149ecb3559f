"""A teacher behind an API, against a real server that fails and a process that is killed: nothing lost or twice."""

from __future__ import annotations

import contextlib
import functools
import json
import random
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killing import killed
from synth_api_server import Server, serve

from edgedistill.core.errors import InputError, StageError
from edgedistill.core.files import iter_jsonl, write_jsonl
from edgedistill.core.records import Message, Prompt
from edgedistill.core.runfolder import SilentReporter
from edgedistill.runtimes.logit_cache import CacheIdentity, open_cache
from edgedistill.synth import pace, remote
from edgedistill.synth.api_logprobs import logit_row
from edgedistill.synth.api_records import StudentTokens, write_records
from edgedistill.synth.followups import settling
from edgedistill.synth.journal import Journal, read_past
from edgedistill.synth.label import read_records
from edgedistill.synth.rows import make_prompt
from edgedistill.synth.service import Service, estimate, estimate_local, figures_of, stream_prompts
from edgedistill.synth.several import Asked, Outcome, chosen, meaning_of, outcome_of, route, waits_for
from edgedistill.synth.spend import Rates

pytest.importorskip("openai", reason="the extra `api` is not installed")
FAULTS = ("status=429/0", "status=500", "cut", "half-json", "wrong-model", "empty-choice", "hang=1.5")
IDENTITY = CacheIdentity(tokenizer="t", template="c", teacher="openai:m-1")


class Notes(SilentReporter):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.progressed: list[dict[str, Any]] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def progress(self, done: float, total: float, unit: str, **figures: object) -> None:
        self.progressed.append({"done": done, "total": total, **figures})


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "BASE_S", 0.005)
    monkeypatch.setattr(pace, "LONGEST_S", 0.05)
    monkeypatch.setattr(remote, "QUIET_S", 0.0)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return written(tmp_path, 60)


def written(folder: Path, count: int) -> Path:
    path = folder / "prompts.jsonl"
    write_jsonl(path, (prompt(i).model_dump(mode="json") for i in range(count)))
    return path


def prompt(number: int) -> Prompt:
    return make_prompt([Message(role="user", content=f"number {number:04}")])


def judge(answer: str, finish: str, prompt: Prompt) -> tuple[str, str] | None:
    if finish == "length":
        return "truncated", "no end"
    return ("odd", answer) if answer.endswith("7") else None


def service(**named: Any) -> Service:
    sampling = {"max_tokens": 16, "temperature": 0.0}
    return Service("openai", "m-1", "", sampling, 16, **{"rates": Rates(1.0, 2.0), "currency": "USD"} | named)


def ask(server: Server, paths: list[Path], folder: Path, *, report: Notes | None = None, **named: Any) -> Notes:
    report = report or Notes()
    settings = {"concurrency": 8, "attempts": 20, "smoke": 0, "service": service()} | named
    client = {"key": "none", "base_url": server.url, "accepts": (), "timeout_s": 1.0}
    remote.ask_all(paths, folder=folder, client=client, judge=judge, report=report, **settings)
    return report


def records(
    paths: list[Path],
    folder: Path,
    journal: Path,
    *,
    ids: dict[str, int] | None = None,
    top_k: int = 0,
    settle: Callable[[Prompt], Outcome] | None = None,
) -> dict[str, bytes]:
    folder.mkdir(exist_ok=True)
    tokens = StudentTokens(
        prompt=lambda prompt: [1, *prompt.messages[-1].content.encode()], text=lambda text: list(text.encode()),
        end_id=2, end_ids=(2,), identity=IDENTITY, of_bytes=ids or {},
    )  # fmt: skip
    with contextlib.closing(Journal(journal)) as answers:
        counts = write_records(
            paths, folder=folder, tokens=tokens, top_k=top_k, shard_size=16,
            settle=settle or (lambda prompt: chosen(prompt, [outcome_of(prompt, service(), answers, judge)], mix=None)),
        )  # fmt: skip
    found = {p.name: p.read_bytes() for p in sorted(folder.iterdir())}
    rows = [record for _, shard in read_records(folder) for record in shard]
    rejected = list(iter_jsonl(folder / "rejected.jsonl"))
    assert counts.asked == sum(1 for path in paths for _ in iter_jsonl(path)) == counts.kept + len(rejected)
    assert counts.rejected == Counter(row["reason"] for row in rejected) and counts.kept == len(rows)
    assert counts.answer_tokens == sum(len(r.answer_ids) for r in rows)
    return found


def test_records_are_what_the_server_said_in_the_students_tokens(tmp_path: Path, prompts: Path) -> None:
    with serve() as server:
        report = ask(server, [prompts], tmp_path / "j", smoke=3)
    assert sum(server.arrived.values()) == 60 and set(server.answered.values()) == {1}
    assert [n for n in report.notes if n.startswith("first answers: number 0000 → NUMBER 0000 (kept)")]
    assert sum(n.startswith("first answers: ") for n in report.notes) == 3
    last = report.progressed[-1]
    assert (last["done"], last["total"], last["odd"]) == (60, 60, 6) and "USD" in last["cost"]
    assert last["rows_s"] > 0 and last["tok_s"] > 0
    files = records([prompts], tmp_path / "out", tmp_path / "j")
    assert sorted(files) == [f"records-0000{i}.jsonl" for i in range(4)] + ["rejected.jsonl"]
    (_, first), *_ = read_records(tmp_path / "out")
    assert first[0].answer == "NUMBER 0000" and first[0].teacher == "openai:m-1" and first[0].logits_key is None
    assert first[0].prompt_ids == (1, *b"number 0000") and first[0].answer_ids == (*b"NUMBER 0000", 2)
    figures = figures_of(tmp_path / "j", service=service())
    assert figures["attempts"] == 60 and figures["failed_attempts"] == {}
    assert figures["input_tokens"] == 60 * 11 and figures["cost"]["amount"] == pytest.approx((660 + 2 * 120) / 1e6)


def test_every_fault_is_accounted_for_and_no_row_lost_twice_or_wrong(tmp_path: Path, prompts: Path) -> None:
    rng = random.Random(3)
    planned = {f"number {i:04}": [rng.choice(FAULTS) for _ in range(rng.choice([0, 0, 0, 1, 2]))] for i in range(60)}

    def plan(text: str, attempt: int) -> str:
        return planned[text][attempt - 1] if attempt <= len(planned[text]) else ""

    with serve() as server:
        ask(server, [prompts], tmp_path / "calm")
    with serve(plan=plan) as server:
        ask(server, [prompts], tmp_path / "faulty")
    reasons = {
        "status=429/0": "rate-limited", "status=500": "server-error", "hang=1.5": "timeout",
    }  # fmt: skip
    expected = Counter(reasons.get(fault, fault) for faults in planned.values() for fault in faults)
    past, _ = read_past(tmp_path / "faulty" / "answers.jsonl")
    assert past.reasons == expected and len(expected) == len(FAULTS)
    assert past.sent == 60 + sum(expected.values()) == sum(server.arrived.values()) and past.answered == 60
    calm = records([prompts], tmp_path / "a", tmp_path / "calm")
    assert records([prompts], tmp_path / "b", tmp_path / "faulty") == calm


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_random_moments_nothing_is_lost_or_asked_twice(tmp_path: Path, seed: int) -> None:
    """What the server answered twice was in flight at a kill: its answer cannot have been on the disk."""
    prompts = written(tmp_path, 150)
    rng = random.Random(seed)
    kills = 0

    def plan(text: str, attempt: int) -> str:
        return "status=500" if zlib.crc32(f"{text} {attempt}".encode()) % 9 == 0 else ""

    with serve(delay_s=0.01, plan=plan) as server:
        while killed(
            lambda: ask(server, [prompts], tmp_path / "j", concurrency=6),
            after_s=rng.uniform(0.02, 0.25) * (1 + kills / 20),
        ):
            kills += 1
            assert kills < 200
    past, whole = read_past(tmp_path / "j" / "answers.jsonl")
    assert kills >= 3 and past.answered == 150 and whole == (tmp_path / "j" / "answers.jsonl").stat().st_size
    lines = [json.loads(line) for line in (tmp_path / "j" / "answers.jsonl").read_text().splitlines()]
    answers = Counter(line["answer"] for line in lines if "answer" in line)
    assert set(answers.values()) == {1} and len(answers) == 150
    again = sum(count - 1 for count in server.answered.values())
    assert (
        again <= past.in_flight <= 6 * kills
        and past.sent == past.answered + sum(past.reasons.values()) + past.in_flight
    )
    assert len(records([prompts], tmp_path / "out", tmp_path / "j")) == 11


def test_the_first_answers_stop_what_is_bad_from_the_beginning(tmp_path: Path, prompts: Path) -> None:
    with (
        serve(plan=lambda text, attempt: "length") as server,
        pytest.raises(StageError, match=r"because none of the first 4 answers is kept \(truncated\); 4 of 60 answers"),
    ):
        ask(server, [prompts], tmp_path / "j", smoke=4)
    assert sum(server.arrived.values()) == 4


def test_a_budget_stops_and_more_of_it_goes_on_where_it_was(tmp_path: Path, prompts: Path) -> None:
    with serve() as server:
        with pytest.raises(
            StageError, match=r"leave no room for another request; \d+ of 60 answers are kept in .*again"
        ):
            ask(server, [prompts], tmp_path / "j", service=service(tokens=500), concurrency=64)
        past, _ = read_past(tmp_path / "j" / "answers.jsonl")
        assert 0 < past.answered < 60 and sum(past.tokens) <= 500
        ask(server, [prompts], tmp_path / "j", service=service(tokens=5000), concurrency=64)
    assert set(server.arrived.values()) == {1} and len(server.arrived) == 60


def test_other_settings_ask_anew_and_other_places_do_not(tmp_path: Path, prompts: Path) -> None:
    first = next(iter_jsonl(prompts))
    asked = service().question(prompt(0)).id
    assert first["id"] == prompt(0).id and len(asked) == 64
    assert service(rates=None, money=None, currency="").question(prompt(0)).id == asked
    for changed in (
        Service("openai", "m-2", "", service().sampling, 16), Service("anthropic", "m-1", "", service().sampling, 16),
        Service("openai", "m-1", "v2", service().sampling, 16), Service("openai", "m-1", "", {"max_tokens": 17}, 17),
    ):  # fmt: skip
        assert changed.question(prompt(0)).id != asked
    assert service().question(prompt(1)).id != asked
    assert service().journal_in(tmp_path) != Service("openai", "m-1", "v2", {}, 16).journal_in(tmp_path)
    assert service().journal_in(tmp_path) != service(role="judge").journal_in(tmp_path)


def test_the_most_that_one_s_own_teacher_reads_is_no_less_than_the_likely(prompts: Path) -> None:
    found = estimate_local([prompts], teacher="hf:m", max_new_tokens=8)
    assert found["at_most"]["input_tokens"] >= found["input_tokens"] > 0
    assert found["at_most"]["output_tokens"] == 2 * found["output_tokens"] == 8 * found["requests"]


def test_an_estimate_sends_nothing_and_learns_from_what_is_there(tmp_path: Path, prompts: Path) -> None:
    found = estimate([prompts], journal=tmp_path / "j", service=service(), concurrency=4)
    assert not (tmp_path / "j").exists()
    assert (found["prompts"], found["requests"], found["answered"]) == (60, 60, 0)
    most = found["at_most"]
    assert most["output_tokens"] == 960 and most["cost"] == pytest.approx((most["input_tokens"] + 1920) / 1e6, abs=1e-4)
    with serve() as server:
        ask(server, [written(tmp_path, 20)], tmp_path / "j")
        written(tmp_path, 60)
        found = estimate([prompts], journal=tmp_path / "j", service=service(), concurrency=4)
    assert sum(server.arrived.values()) == 20
    assert (found["answered"], found["requests"], found["output_tokens"]) == (20, 40, 80)
    assert found["from"] == "20 answers" and found["seconds"] < 10


IDS = {bytes([i]).hex(): i for i in range(256)}


def log_probs(text: str) -> dict[str, Any]:
    """Of each byte of the answer in capitals, as a server gives them; where a prompt ends with 1, of other tokens."""
    said = text.upper()
    if text.endswith("1"):
        return {"logprobs": {"content": [{"token": said, "bytes": list(said.encode()), "logprob": -0.1}]}}
    content = []
    for byte in said.encode():
        top = [{"token": "", "bytes": [b], "logprob": p} for b, p in ((byte, -0.25), (200, -2.0), (201, -3.0))]
        unknown = {"token": "", "bytes": [5, 6], "logprob": -1.7}
        content.append({"token": "", "bytes": [byte], "logprob": -0.25, "top_logprobs": [*top, unknown]})
    return {"logprobs": {"content": content}}


def test_log_probs_of_the_students_tokens_become_distributions(tmp_path: Path) -> None:
    prompts = written(tmp_path, 3)
    with serve(extra=log_probs) as server:
        ask(server, [prompts], tmp_path / "j")
    records([prompts], tmp_path / "out", tmp_path / "j", ids=IDS, top_k=4)
    ((_, rows),) = read_records(tmp_path / "out")
    cache = open_cache([tmp_path / "out" / "logits-00000.safetensors"], identity=IDENTITY)
    assert [row.logits_key is None for row in rows] == [False, True, False]
    row = cache.row(prompt_ids=rows[0].prompt_ids, answer_ids=rows[0].answer_ids, record="x")
    assert row.ids[:-1, 0].tolist() == list(b"NUMBER 0000") and row.ids[-1, 0] == 2
    assert row.ids[0].tolist()[:3] == [ord("N"), 200, 201] and not (row.ids[:, 3:] >= 0).any()
    assert row.logprobs[0].tolist()[:3] == pytest.approx([-0.25, -2.0, -3.0], abs=0.05)  # kept in 8 bits
    known = sum(2.718281828459045**p for p in (-0.25, -2.0, -3.0))
    assert row.tail[0] == pytest.approx(max(0.0, 1 - known), abs=0.02) and row.tail[-1] == pytest.approx(0, abs=0.02)
    assert logit_row([[["4e", -0.1]]], [78, 79, 2], token_ids=IDS, k=4) is None


def test_each_teacher_s_log_probs_are_kept_as_its_own(tmp_path: Path) -> None:
    """Of three teachers by share the second tells none: its records are text."""
    prompts = written(tmp_path, 40)
    asked = [
        Asked(Service("openai", f"m-{i}", "", {}, 16), share=share) for i, share in ((1, None), (2, 0.3), (3, 0.3))
    ]
    for number, one in enumerate(asked):
        with contextlib.ExitStack() as stack, serve(**({} if number == 1 else {"extra": log_probs})) as server:
            wanted = waits_for(asked, number, tmp_path, stack, mix="share", judge=judge)
            ask(server, [prompts], one.service.journal_in(tmp_path), service=one.service, wanted=wanted)
    with contextlib.ExitStack() as stack:
        settle = settling(asked, tmp_path, stack, mix="share", judge=judge)
        found = records([prompts], tmp_path / "out", tmp_path / "j", ids=IDS, top_k=4, settle=settle)
    rows = [record for _, shard in read_records(tmp_path / "out") for record in shard]
    taught = {record.teacher for record in rows if record.logits_key is not None}
    assert {record.teacher for record in rows} == {"openai:m-1", "openai:m-2", "openai:m-3"}
    assert taught == {"openai:m-1", "openai:m-3"}
    paths = [tmp_path / "out" / name for name in found if name.startswith("logits-")]
    assert {path.name for path in paths} >= {"logits-00000.safetensors", "logits-00000-1.safetensors"}
    cache = open_cache(paths, identity=IDENTITY, teachers=taught)
    for record in rows:
        if record.logits_key is not None:
            text = {"prompt_ids": record.prompt_ids, "answer_ids": record.answer_ids}
            assert cache.row(**text, record=record.id, teacher=record.teacher).ids[-1, 0] == 2
            other = next(iter(taught - {record.teacher}))
            with pytest.raises(InputError, match=f"of {other} for record .* found those of {record.teacher}"):
                cache.row(**text, record=record.id, teacher=other)


def test_an_answer_with_an_end_token_in_it_is_rejected(tmp_path: Path) -> None:
    prompts = written(tmp_path, 3)
    with serve(answer=lambda text: "\x02 and on" if "0001" in text else "fine") as server:
        ask(server, [prompts], tmp_path / "j")
    files = records([prompts], tmp_path / "out", tmp_path / "j")
    (row,) = (json.loads(line) for line in files["rejected.jsonl"].splitlines())
    assert row["reason"] == "ends-inside" and row["answer"] == "\x02 and on"


def several(mix: str, tmp_path: Path, prompts: Path, texts: list[dict[str, str]], **parts: Any) -> dict[str, str]:
    """Prompt's text → who answered, or why nobody did; teacher `i` says `texts[i]`, or the prompt in capitals."""
    names = [f"m-{i + 1}" for i in range(len(texts))]
    asked = [
        Asked(Service("openai", name, "", {"max_tokens": 16}, 16), *(parts.get(name) or ((), None))) for name in names
    ]
    for number, one in enumerate(asked):
        said = functools.partial(lambda own, text: own.get(text, text.upper()), texts[number])
        with contextlib.ExitStack() as stack, serve(answer=said) as server:
            wanted = waits_for(asked, number, tmp_path, stack, mix=mix, judge=judge)
            folder = one.service.journal_in(tmp_path)
            ask(server, [prompts], folder, service=one.service, wanted=wanted)
            parts.setdefault("asked", []).append(len(server.arrived))
    with contextlib.ExitStack() as stack:
        settle = settling(asked, tmp_path, stack, mix=mix, judge=judge)
        outcomes = {p.messages[-1].content: settle(p) for p in stream_prompts([prompts])}
    return {text: o.fault[0] if o.fault else o.service.model for text, o in outcomes.items()}


def test_a_cascade_asks_the_stronger_one_only_what_the_first_got_wrong(tmp_path: Path) -> None:
    counts: list[int] = []
    weak = {f"number {i:04}": "odd 7" for i in (1, 4, 8)}
    strong = {"number 0004": "odd again 7"}
    found = several("cascade", tmp_path, written(tmp_path, 10), [weak, strong], asked=counts)
    assert counts == [10, 4]  # number 0007 in capitals is odd too
    expected = dict.fromkeys((f"number {i:04}" for i in range(10)), "m-1")
    assert found == expected | {"number 0001": "m-2", "number 0008": "m-2", "number 0004": "odd", "number 0007": "odd"}


def test_a_vote_keeps_what_most_say_and_nothing_where_they_disagree(tmp_path: Path) -> None:
    texts = [
        {"number 0000": "[1, 2]", "number 0001": "a", "number 0002": "x"},
        {"number 0000": "no", "number 0001": "b", "number 0002": " y "},
        {"number 0000": "[1,2]", "number 0001": "c", "number 0002": "y"},
    ]
    counts: list[int] = []
    found = several("vote", tmp_path, written(tmp_path, 10), texts, asked=counts)
    assert counts == [10, 10, 10]
    assert [found[f"number {i:04}"] for i in (0, 1, 2, 3, 7)] == ["m-1", "no-majority", "m-2", "m-1", "odd"]


def test_votes_are_counted_by_what_an_answer_of_its_kind_says() -> None:
    said = ["So it is 6 * 7 = 42.", "The answer is 42", "41"]
    outcomes = [Outcome(service(), "r", text, None) for text in said]
    math = functools.partial(meaning_of, kind="math")
    assert chosen(prompt(0), outcomes, mix="vote", meaning=math) is outcomes[0]
    fault = chosen(prompt(0), outcomes, mix="vote").fault
    assert fault is not None and fault[0] == "no-majority"


def test_tags_and_shares_part_the_prompts_for_good(tmp_path: Path) -> None:
    path = tmp_path / "kinds.jsonl"
    kinds = [prompt(i).model_copy(update={"kind": "math" if i % 2 else ""}) for i in range(10)]
    write_jsonl(path, (p.model_dump(mode="json") for p in kinds))
    counts: list[int] = []
    found = several("tag", tmp_path, path, [{}, {}], asked=counts, **{"m-2": (("math",), None)})
    assert counts == [5, 5] and [found[f"number {i:04}"] for i in (0, 1, 2, 7)] == ["m-1", "m-2", "m-1", "odd"]
    service_of = [Asked(service()), Asked(service(), share=0.3), Asked(service(), share=0.2)]
    parts = Counter(route(prompt(i), service_of, mix="share")[0] for i in range(4000))
    assert [parts[i] / 4000 for i in range(3)] == pytest.approx([0.5, 0.3, 0.2], abs=0.03)
    assert [route(prompt(i), service_of, mix="share") for i in range(50)] == [
        route(prompt(i), service_of, mix="share") for i in range(50)
    ]
