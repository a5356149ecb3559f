"""Data cards, `data.html`: what the prompts are and what was left out; what the teacher said and what was rejected."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgedistill.core.calls import as_text
from edgedistill.core.config import validate
from edgedistill.core.errors import InputError, shortened
from edgedistill.core.files import iter_jsonl, read_jsonl, sha256_bytes, write_text
from edgedistill.core.page import page_environment
from edgedistill.core.records import LeftOut, Message, Prompt, Rejected, TeacherRecord
from edgedistill.synth.checks import Checked
from edgedistill.synth.diversity import quantiles
from edgedistill.synth.label import read_records
from edgedistill.synth.personal import masked

CARD = "data.html"
SHOWN = 8  # examples of each kind
MOST_KINDS = 50
LONGEST = 1200  # characters of an example's turn
DASH = "–"
Cell = str | int | float | None
Example = Sequence[tuple[str, str]]  # (who, what they say)
Item = TypeVar("Item")


@dataclass(frozen=True)
class Table:
    """Rows under a header; with `total` the second column is drawn as a share of it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    total: int | None = None


@dataclass(frozen=True)
class Section:
    title: str
    said: str = ""
    tables: Sequence[Table] = ()
    examples: Sequence[Example] = ()
    source: str = field(default="", kw_only=True)


def write_prompts_card(folder: Path, *, name: str, checked: Checked) -> None:
    """Write the card of the stage data."""
    kept = {split: [row.prompt for row in rows] for split, rows in checked.rows.items()}
    write_text(folder / CARD, prompts_card(name=name, report=checked.report, prompts=kept, left_out=checked.left_out))


def write_answers_card(folder: Path, *, name: str, figures: Mapping[str, Any], prompts: Iterable[Prompt]) -> None:
    """Write the card of the stage synth from the records and rejects in its `folder`.

    Raises:
        InputError: a record or a reject is damaged.
    """
    path = folder / "rejected.jsonl"

    def rejected() -> Iterator[Rejected]:
        for number, row in enumerate(iter_jsonl(path) if path.is_file() else (), start=1):
            yield validate(Rejected, row, source=f"{path} line {number}")

    card = answers_card(
        name=name,
        figures=figures,
        records=(record for _, shard in read_records(folder) for record in shard),
        rejected=rejected,
        prompts=prompts,
    )
    write_text(folder / CARD, card)


def prompts_card(
    *,
    name: str,
    report: Mapping[str, Any],
    prompts: Mapping[str, Sequence[Prompt]],
    left_out: Sequence[LeftOut],
) -> str:
    """The card of the stage data as HTML: `report` is that of `check_rows`, `prompts` the kept ones by split.

    Equal inputs give equal bytes.
    """
    rows = report["rows"]
    read, kept = (sum(count[what] for count in rows.values()) for what in ("read", "kept"))
    described = report["splits"]
    sections = [
        Section(
            "Rows", "Each row is kept or left out for the first reason that applies. "
            f"{report['duplicate']['of_evaluation']:,} exact repeats are of the evaluation set.",
            [Table("", ("split", "read", "kept", *_reasons(rows)), [
                (split, count["read"], count["kept"], *(count["left_out"].get(r, 0) for r in _reasons(rows)))
                for split, count in rows.items()
            ])],
            source="left-out.jsonl, checks.json",
        ),
        _found("Contamination by the evaluation set", report.get("contamination"), said=(
            "Training rows that have a run of words of an evaluation row, boilerplate aside (Brown et al. 2020)."),
            header=("row", "has words of", "the words", "share of that row's"),
            cells=lambda e: (_file(e["place"]), f"{e['of']}: {_file(e['of_place'])}", e["words"], e["share"])),
        _found("Near duplicates", report.get("near-duplicate"), said=(
            "Rows as similar to an earlier one as asked for: Jaccard similarity of character shingles."),
            header=("row", "similarity", "asks", "like", "which asks"),
            cells=lambda e: (_file(e["place"]), e["similarity"], e["text"],
                             f"{e['of']}: {_file(e['of_place'])}", e["of_text"])),
        _found("Personal data", report.get("personal"), said="Patterns to look at, masked.", header=("row", "found"),
               cells=lambda e: (_file(e["place"]), e["found"])),
        _balance(report.get("balance")),
        Section(
            "Lengths and diversity", "Distinct n-grams are those of all words of a split, and fall as it grows; "
            "evenness is 1 where all classes, or all beginnings, are as common.",
            [Table("Words of a request", ("split", "least", "25 %", "half", "75 %", "95 %", "most"),
                   [(split, *about["words"].values()) for split, about in described.items()]),
             Table("Diversity", ("split", "distinct words", "distinct pairs", "evenness of beginnings",
                                 "evenness of kinds", "several turns"),
                   [(split, about["distinct_1"], about["distinct_2"], about["opening_evenness"],
                     about["class_evenness"], about["several_turns"]) for split, about in described.items()])],
            source="checks.json",
        ),
        Section("Classes", "", [
            _shares(f"{split}: {what}", about[key])
            for split, about in described.items()
            for key, what in (("kinds", "kinds"), ("answers", "right answers"), ("lengths", "lengths"),
                              ("sources", "sources"), ("openings", "commonest beginnings"))
            if len(about[key]) > (key == "sources")
        ]),
        Section("Kept", "Evenly drawn from each split.", examples=[
            [(split, ""), *_turns(prompt.messages), *([("right answer", _cut(prompt.answer))] if prompt.answer else [])]
            for split, held in prompts.items() for prompt in evenly(held, SHOWN // 2)
        ], source="gold.jsonl, valid.jsonl, heldout.jsonl, prompts.jsonl"),
        Section("Left out", "Evenly drawn from each reason.", examples=[
            [(row.reason, row.detail), (_file(row.place), _cut(row.text))]
            for reason in sorted({row.reason for row in left_out})
            for row in evenly([row for row in left_out if row.reason == reason], SHOWN // 2)
        ], source="left-out.jsonl"),
    ]  # fmt: skip
    return _page(f"{name}: the prompts", f"{kept:,} of {read:,} rows kept", sections)


def answers_card(
    *,
    name: str,
    figures: Mapping[str, Any],
    records: Iterable[TeacherRecord],
    rejected: Callable[[], Iterable[Rejected]],
    prompts: Iterable[Prompt],
) -> str:
    """The card of the stage synth as HTML: `figures` are its headline numbers, `prompts` all that were asked.

    Records and prompts are read once, rejects twice, and none is kept: a corpus need not fit in memory. Equal inputs
    give equal bytes.
    """
    reasons = Counter(row.reason for row in rejected())
    shown, lost_words, lost = _rejects(rejected(), reasons)
    kinds, asked = _asked(prompts, rejected=lost, shown={row.prompt_id for row in shown})
    wanted = set(evenly(range(int(figures["kept"])), SHOWN))
    kept, words = [], array("L")
    for number, record in enumerate(records):
        words.append(len(record.answer.split()))
        if number in wanted:
            kept.append(record)
    lengths = {"kept": words, "rejected": lost_words}
    plain = [(key.replace("_", " "), value) for key, value in figures.items() if isinstance(value, str | int | float)]
    sections = [
        Section("Answers", "", [Table("", ("figure", "value"), plain)], source="manifest.json"),
        Section("Rejected, by reason", "", [_shares("", dict(reasons.most_common()))], source="rejected.jsonl"),
        Section("By kind of prompt", "", [Table("", ("kind", "kept", "rejected"), kinds)]),
        Section("Lengths", "Words of an answer.", [Table("", ("", "least", "25 %", "half", "75 %", "95 %", "most"), [
            (what, *quantiles(values).values()) for what, values in lengths.items() if values])]),
        Section("Kept", "Evenly drawn.", examples=[
            [*_turns(record.messages), ("teacher", _cut(record.answer))] for record in kept
        ], source="records-*.jsonl"),
        Section("Rejected", "Evenly drawn from each reason.", examples=[
            [(row.reason, row.detail), *_turns(asked.get(row.prompt_id, ())), ("teacher", _cut(row.answer))]
            for row in shown
        ], source="rejected.jsonl"),
    ]  # fmt: skip
    total = len(words) + len(lost_words)
    return _page(f"{name}: the teacher's answers", f"{len(words):,} of {total:,} answers kept", sections)


def sample_records(folder: Path, count: int) -> list[dict[str, Any]]:
    """`count` of the records in a stage's folder, evenly drawn: `prompt_id`, `messages` and `answer`.

    Raises:
        InputError: there is no record, or one is damaged.
    """
    paths = sorted(folder.glob("records-*.jsonl"))
    places = [(path, number) for path in paths for number in range(sum(1 for _ in path.open("rb")))]
    if not places:
        raise InputError(f"expected records in {folder}, found none; run synth first")
    drawn = evenly(places, count)
    found = []
    for path in sorted({path for path, _ in drawn}):
        rows = read_jsonl(path)
        for number in (number for where, number in drawn if where == path):
            record = validate(TeacherRecord, rows[number], source=f"{path} line {number + 1}")
            messages = [message.model_dump() for message in record.messages]
            found.append({"prompt_id": record.prompt_id, "messages": messages, "answer": record.answer})
    return found


def _rejects(rejected: Iterable[Rejected], reasons: Mapping[str, int]) -> tuple[list[Rejected], array[int], np.ndarray]:
    """Rejects to show of each reason, words of every rejected answer, and the sorted short ids of their prompts."""
    wanted = {reason: set(evenly(range(count), SHOWN // 2)) for reason, count in reasons.items()}
    seen: Counter[str] = Counter()
    shown, words, ids = [], array("L"), array("Q")
    for row in rejected:
        if seen[row.reason] in wanted[row.reason]:
            shown.append(row)
        seen[row.reason] += 1
        words.append(len(row.answer.split()))
        ids.append(_short(row.prompt_id))
    return sorted(shown, key=lambda row: row.reason), words, np.sort(np.frombuffer(ids, np.uint64))


def _short(identity: str) -> int:
    """64 bits of an id: a text of 32 digits each would be most of the memory."""
    return int(sha256_bytes(identity.encode())[:16], 16)


def _asked(
    prompts: Iterable[Prompt], *, rejected: np.ndarray, shown: set[str]
) -> tuple[list[tuple[str, int, int]], dict[str, Sequence[Message]]]:
    """How many answers of each kind of prompt were kept and rejected, and the messages of those to show."""
    kept, lost = Counter[str](), Counter[str]()
    messages: dict[str, Sequence[Message]] = {}
    for prompt in prompts:
        short = np.uint64(_short(prompt.id))
        place = int(np.searchsorted(rejected, short))
        is_lost = place < len(rejected) and rejected[place] == short
        (lost if is_lost else kept)[prompt.kind or DASH] += 1
        if prompt.id in shown:
            messages[prompt.id] = prompt.messages
    kinds = [kind for kind, _ in (kept + lost).most_common(MOST_KINDS)]
    return [(kind, kept[kind], lost[kind]) for kind in kinds], messages


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` items at even distances, the first among them."""
    return [items[i * len(items) // count] for i in range(count)] if len(items) > count else list(items)


def _reasons(rows: Mapping[str, Any]) -> list[str]:
    return sorted({reason for count in rows.values() for reason in count["left_out"]})


def _found(title: str, found: Mapping[str, Any] | None, *, said: str, header: Sequence[str], cells: Any) -> Section:
    if found is None:
        return Section(title, "Not looked for.")
    kept = "left out" if found["action"] == "drop" else "kept"
    rows = f"{found['found']:,} row{'s'[: found['found'] != 1]} found, {kept}."
    kinds = [_shares("", found["kinds"])] if found.get("kinds") else []
    return Section(title, f"{said} {rows}", [*kinds, Table("", header, [cells(e) for e in found["examples"]])])


def _balance(found: Mapping[str, Any] | None) -> Section:
    if found is None:
        return Section("Balance", "Not asked for.")
    rows = [(name, count, found["after"].get(name, 0)) for name, count in found["before"].items()]
    return Section("Balance", f"{found['split']}, by {found['by']}.", [Table("", ("class", "before", "after"), rows)])


def _shares(title: str, counts: Mapping[str, int] | Sequence[Sequence[Any]]) -> Table:
    rows = [tuple(row) for row in (counts.items() if isinstance(counts, Mapping) else counts)]
    return Table(title, ("", "rows"), rows, total=sum(count for _, count in rows) or None)


def _turns(messages: Sequence[Message]) -> list[tuple[str, str]]:
    return [(message.role, _cut(message.content)) for message in as_text(messages)]


def _file(place: str) -> str:
    """A place by the file's name alone."""
    return place.rpartition("/")[2]


def _cut(text: str) -> str:
    text = masked(text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _cell(value: Cell) -> str:
    if value is None:
        return DASH
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else shortened(masked(value), most=400)


def _page(title: str, summary: str, sections: Sequence[Section]) -> str:
    environment = page_environment(Path(__file__).parent)
    environment.filters["cell"] = _cell
    return environment.get_template("card.html.j2").render(title=title, summary=summary, sections=sections)
