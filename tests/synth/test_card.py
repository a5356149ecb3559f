"""The data cards: whole, escaped, self-contained, and with the numbers they were given."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

from edgedistill.cli.show import sample_text
from edgedistill.core.errors import InputError
from edgedistill.core.files import write_jsonl
from edgedistill.core.records import LeftOut, Message, Prompt, Rejected, TeacherRecord
from edgedistill.synth.card import answers_card, evenly, prompts_card, sample_records
from edgedistill.synth.checks import check_rows
from edgedistill.synth.rows import Row, make_prompt

NASTY = "<script>alert('x')</script> & more"


class Structure(HTMLParser):
    """Checks that tags close in order; keeps addresses and the text of each cell."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.rows: list[list[str]] = []
        self.text: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [v for k, v in attrs if k in ("src", "href", "action", "data") and v]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        self.text.append(data)


def asks(text: str, *, answer: str | None = None, kind: str = "") -> Prompt:
    return make_prompt([Message(role="user", content=text)], answer=answer, kind=kind)


def test_the_prompts_card_says_what_the_checks_found() -> None:
    words = " ".join(f"word{i}" for i in range(20))
    rows = {
        "prompts": [Row(asks(text, kind=("k0", "k1", "k1")[i % 3]), f"p.jsonl line {i}") for i, text in enumerate(
            [NASTY, NASTY, f"see {words}", "mail a@b.example.org", *(f"ask for {i} things" for i in range(30))])],
        "heldout": [Row(asks(f"please {words}", answer="yes"), "h.jsonl line 1")],
    }  # fmt: skip
    checked = check_rows(rows, near="report", similarity=0.7, contamination="drop", personal="report",
                         balance_by="kind")  # fmt: skip
    kept = {split: [row.prompt for row in held] for split, held in checked.rows.items()}
    card = {"name": "my run", "report": checked.report, "prompts": kept, "left_out": checked.left_out}
    html = prompts_card(**card)
    assert html == prompts_card(**card)
    page = Structure(html)
    assert page.addresses == [] and "<script" not in html and "&lt;script&gt;" in html
    count = checked.report["rows"]["prompts"]
    header = ["split", "read", "kept", "balance", "contamination", "duplicate"]
    assert header in page.rows
    left_out = [str(count["left_out"].get(reason, 0)) for reason in header[3:]]
    assert ["prompts", "34", str(count["kept"]), *left_out] in page.rows and count["left_out"]["duplicate"] == 1
    assert any(row[0] == "p.jsonl line 2" and "heldout: h.jsonl line 1" in row[1] for row in page.rows)
    assert ["p.jsonl line 3", "email a@*.*******.***"] in page.rows and "a@b.example.org" not in html
    assert any(row[:1] == ["k0"] and len(row) == 3 for row in page.rows)
    said = "".join(page.text)
    assert "1 row found, left out." in said and "1 row found, kept." in said and "my run: the prompts" in said


def test_checks_that_were_not_made_are_not_claimed() -> None:
    checked = check_rows({"prompts": [Row(asks("hi"), "here")]}, near="off", similarity=0.8, contamination="report",
                         personal="report")  # fmt: skip
    html = prompts_card(name="r", report=checked.report, prompts={"prompts": [asks("hi")]}, left_out=[])
    assert "Not looked for." in html and "Not asked for." in html and "0 rows found, kept." in html


def record(prompt: Prompt, answer: str) -> TeacherRecord:
    return TeacherRecord(id=prompt.id, prompt_id=prompt.id, teacher="t", messages=prompt.messages, answer=answer,
                         prompt_ids=(1,), answer_ids=(2,))  # fmt: skip


def test_the_answers_card_counts_kept_and_rejected_by_reason_and_kind() -> None:
    prompts = [asks(f"ask {i}", kind=("a", "b")[i % 2]) for i in range(40)]
    records = [record(prompt, f"answer {NASTY}") for prompt in prompts[:30]]
    rejected = [Rejected(prompt_id=p.id, answer="no", reason=("schema", "wrong")[i % 2], detail="why & how")
                for i, p in enumerate(prompts[30:])]  # fmt: skip
    figures = {"asked": 40, "kept": 30, "rejected": {"schema": 5, "wrong": 5}, "cost": 1.25}
    html = answers_card(
        name="my run", figures=figures, records=iter(records), rejected=lambda: rejected, prompts=iter(prompts)
    )
    page = Structure(html)
    assert page.addresses == [] and "<script" not in html
    assert {("schema", "5"), ("wrong", "5"), ("asked", "40"), ("cost", "1.25")} <= {tuple(row) for row in page.rows}
    assert ["a", "15", "5"] in page.rows and ["b", "15", "5"] in page.rows
    said = "".join(page.text)
    assert said.count("why & how") == 8 and "30 of 40 answers kept" in said and "ask 30" in said


def test_a_sample_is_drawn_evenly_over_the_shards(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected records in .*, found none; run synth first"):
        sample_records(tmp_path, 3)
    prompts = [asks(f"ask {i}") for i in range(10)]
    for shard in range(2):
        rows = [record(prompt, "yes").model_dump(mode="json") for prompt in prompts[5 * shard : 5 * shard + 5]]
        write_jsonl(tmp_path / f"records-{shard:05d}.jsonl", rows)
    found = sample_records(tmp_path, 5)
    assert [row["messages"][0]["content"] for row in found] == [f"ask {i}" for i in (0, 2, 4, 6, 8)]
    assert len(sample_records(tmp_path, 99)) == 10
    text = sample_text(found[:2])
    assert text.splitlines()[:2] == ["user: ask 0", "teacher: yes"] and text.count("─" * 40) == 1
    assert evenly([], 3) == [] and evenly([1, 2, 3], 2) == [1, 2]


def test_what_was_left_out_is_shown_with_its_reason() -> None:
    row = LeftOut(split="prompts", place="p.jsonl line 7", reason="empty", text="")
    report = check_rows({"prompts": [Row(asks("hi"), "here")]}, empty=[row], near="off", similarity=0.8,
                        contamination="report", personal="report").report  # fmt: skip
    html = prompts_card(name="r", report=report, prompts={}, left_out=[row])
    assert "p.jsonl line 7" in html and "1 of 2 rows kept" in html
