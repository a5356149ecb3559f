"""What is looked for in the data before a teacher is asked: repeats, leaks from the evaluation set, people, balance.

Each row is kept or left out with one reason, the first that applies; the counts of the report add up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgedistill.core.errors import shortened
from edgedistill.core.records import LeftOut, Prompt
from edgedistill.synth.balance import balanced, length_class
from edgedistill.synth.contamination import contaminated, gram_size
from edgedistill.synth.diversity import diversity
from edgedistill.synth.duplicates import near_duplicates
from edgedistill.synth.personal import personal_data
from edgedistill.synth.rows import Row, left_out
from edgedistill.synth.textforms import asked_text, folded

EVALUATION = ("heldout", "valid")
TRAINING = ("gold", "prompts")
ORDER = (*EVALUATION, *TRAINING)  # what stands in an earlier one is left out of the later ones
LOOKED_FOR = ("contamination", "near-duplicate", "personal")
EXAMPLES = 20
NO_CLASS = "–"
CLASSES = 50  # told of a split; the rest is summed

Rows = dict[str, list[Row]]


@dataclass
class Checked:
    """The rows that stay, those that do not, and what was found, as JSON values."""

    rows: Rows
    left_out: list[LeftOut] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)

    def drop(self, wrong: Mapping[tuple[str, int], str], *, reason: str) -> None:
        """Leave out the rows `(split, place in its list)`, each with its detail."""
        for split, rows in self.rows.items():
            marked = [wrong.get((split, i)) for i in range(len(rows))]
            pairs = list(zip(rows, marked, strict=True))
            self.left_out += [left_out(r, split=split, reason=reason, detail=why) for r, why in pairs if why]
            self.rows[split] = [r for r, why in pairs if not why]


def check_rows(
    rows: Mapping[str, Sequence[Row]],
    *,
    empty: Sequence[LeftOut] = (),
    near: str,
    similarity: float,
    contamination: str,
    overlap: float = 0.0,
    personal: str,
    balance_split: str = "prompts",
    balance_by: str | None = None,
    balance_target: Mapping[str, float] | None = None,
) -> Checked:
    """Hold the splits' rows against one another; evaluation splits lose exact repeats only.

    `near`, `contamination` and `personal` are `report`, `drop` or `off`: what is found is told, and with `drop` the
    training row goes. `overlap` is the share of an evaluation text that a leak must have; `balance_target` None means
    equal shares; `empty` are rows that were read and ask nothing.

    Raises:
        InputError: the balance asks for a class that has no rows.
    """
    checked = Checked({split: list(rows.get(split, ())) for split in ORDER}, left_out=list(empty))
    read = {split: len(held) + sum(row.split == split for row in empty) for split, held in checked.rows.items()}
    repeated, checked.report["duplicate"] = _repeated(checked.rows)
    checked.drop(repeated, reason="duplicate")
    for name, action, look in (
        ("contamination", contamination, lambda held: _contaminated(held, overlap=overlap)),
        ("near-duplicate", near, lambda held: _near(held, similarity=similarity)),
        ("personal", personal, _personal),
    ):
        if action == "off":
            continue
        wrong, told = look(checked.rows)
        checked.report[name] = {"action": action, **told}
        if action == "drop":
            checked.drop(wrong, reason=name)
    if balance_by:
        checked.report["balance"] = _balance(checked, split=balance_split, by=balance_by, target=balance_target)
    checked.report["rows"] = {split: _count(checked, split, read[split]) for split in ORDER}
    checked.report["splits"] = {split: _described(held) for split, held in checked.rows.items() if held}
    return checked


def notes(report: Mapping[str, Any]) -> list[str]:
    """What of a report is worth a line while the stage runs: rows left out of a split, and rows kept in spite of."""
    said = []
    for split, count in report["rows"].items():
        if reasons := count["left_out"]:
            each = ", ".join(f"{number} {reason}" for reason, number in reasons.items())
            said.append(f"{split}: left out {sum(reasons.values())} of {count['read']} rows ({each})")
    told = [(name, report[name]) for name in LOOKED_FOR if name in report]
    kept = [f"{found['found']} {name}" for name, found in told if found["found"] and found["action"] == "report"]
    if kept:
        said.append(f"found and kept, as data.checks says: {', '.join(kept)}; see checks.json")
    return said


def class_of(row: Row, by: str) -> str | None:
    """The class of a row as the balance sees it, None where it has none."""
    if by == "length":
        return length_class(asked_text(row.prompt))
    return {"answer": row.prompt.answer, "kind": row.prompt.kind, "source": row.source}[by] or None


def _repeated(rows: Rows) -> tuple[dict[tuple[str, int], str], dict[str, Any]]:
    wrong: dict[tuple[str, int], str] = {}
    first: dict[str, tuple[str, str]] = {}
    leaks = 0
    for split in ORDER:
        for i, row in enumerate(rows[split]):
            if row.prompt.id in first:
                of, place = first[row.prompt.id]
                wrong[split, i] = f"the same request as {of}: {place}"
                leaks += of in EVALUATION and split in TRAINING
            else:
                first[row.prompt.id] = (split, row.place)
    return wrong, {"found": len(wrong), "of_evaluation": leaks}


def _contaminated(rows: Rows, *, overlap: float) -> tuple[dict[tuple[str, int], str], dict[str, Any]]:
    evaluation = [(split, row) for split in EVALUATION for row in rows[split]]
    training = [(split, i) for split in TRAINING for i in range(len(rows[split]))]
    texts = [asked_text(row.prompt) for _, row in evaluation]
    found = contaminated([asked_text(rows[split][i].prompt) for split, i in training], texts, least=overlap)
    wrong: dict[tuple[str, int], str] = {}
    examples = []
    for leak in found:
        split, item = evaluation[leak.item]
        wrong[training[leak.row]] = f"{split} ({item.place}) has its words {shortened(leak.words)!r}"
        if len(examples) < EXAMPLES:
            examples.append({
                "split": training[leak.row][0], "place": _at(rows, training[leak.row]).place, "of": split,
                "of_place": item.place, "words": shortened(leak.words), "share": leak.share,
            })  # fmt: skip
    size = gram_size([len(folded(text).split()) for text in texts])
    return wrong, {"found": len(found), "gram_words": size, "evaluation_rows": len(texts), "examples": examples}


def _near(rows: Rows, *, similarity: float) -> tuple[dict[tuple[str, int], str], dict[str, Any]]:
    places = [(split, i) for split in ORDER for i in range(len(rows[split]))]
    texts = [asked_text(_at(rows, place).prompt) for place in places]
    kept = [split in EVALUATION for split, _ in places]
    parts = [_at(rows, place).parts for place in places]
    found = near_duplicates(texts, threshold=similarity, keep=kept, parts=parts)
    wrong: dict[tuple[str, int], str] = {}
    for near in found:
        split, i = places[near.of]
        wrong[places[near.row]] = f"{near.similarity:.2f} like {split}: {rows[split][i].place}"
    return wrong, {
        "found": len(found),
        "similarity": similarity,
        "of_evaluation": sum(places[near.of][0] in EVALUATION for near in found),
        "examples": [
            {"split": places[near.row][0], "place": _at(rows, places[near.row]).place, "of": places[near.of][0],
             "of_place": _at(rows, places[near.of]).place, "similarity": near.similarity,
             "text": shortened(texts[near.row]), "of_text": shortened(texts[near.of])}
            for near in found[:EXAMPLES]
        ],
    }  # fmt: skip


def _personal(rows: Rows) -> tuple[dict[tuple[str, int], str], dict[str, Any]]:
    wrong: dict[tuple[str, int], str] = {}
    kinds: Counter[str] = Counter()
    examples = []
    for split in TRAINING:
        for i, row in enumerate(rows[split]):
            found = personal_data(f"{asked_text(row.prompt)}\n{row.prompt.answer or ''}")
            if not found:
                continue
            kinds.update({what for what, _ in found})
            wrong[split, i] = ", ".join(f"{what} {masked}" for what, masked in found[:3])
            if len(examples) < EXAMPLES:
                examples.append({"split": split, "place": row.place, "found": wrong[split, i]})
    return wrong, {"found": len(wrong), "kinds": dict(sorted(kinds.items())), "examples": examples}


def _balance(checked: Checked, *, split: str, by: str, target: Mapping[str, float] | None) -> dict[str, Any]:
    classes = [class_of(row, by) for row in checked.rows[split]]
    kept = balanced(classes, [row.prompt.id for row in checked.rows[split]], target=target)
    surplus = {(split, i): f"{classes[i]!r} has its share" for i, stays in enumerate(kept) if not stays}
    checked.drop(surplus, reason="balance")
    before, after = (
        _most(Counter(name or NO_CLASS for name in names))
        for names in (classes, [class_of(row, by) for row in checked.rows[split]])
    )
    return {"by": by, "split": split, "before": before, "after": after}


def _count(checked: Checked, split: str, read: int) -> dict[str, Any]:
    reasons = Counter(row.reason for row in checked.left_out if row.split == split)
    return {"read": read, "kept": len(checked.rows[split]), "left_out": dict(sorted(reasons.items()))}


def _described(rows: Sequence[Row]) -> dict[str, Any]:
    """Classes, sources, turns and diversity of a split."""
    prompts: list[Prompt] = [row.prompt for row in rows]
    kinds = [prompt.kind for prompt in prompts]
    answered = [prompt.answer for prompt in prompts if prompt.answer is not None]
    return {
        "kinds": _most(Counter(kind for kind in kinds if kind)),
        "answers": _most(Counter(answered)) if len(set(answered)) <= CLASSES else {},
        "answered": len(answered),
        "sources": _most(Counter(row.source for row in rows if row.source)),
        "lengths": _most(Counter(length_class(asked_text(prompt)) for prompt in prompts)),
        "several_turns": sum(sum(m.role == "user" for m in prompt.messages) > 1 for prompt in prompts),
        **diversity([asked_text(prompt) for prompt in prompts], kinds),
    }


def _most(counts: Counter[str]) -> dict[str, int]:
    """The commonest classes, the rest as one."""
    kept = dict(counts.most_common(CLASSES))
    rest = counts.total() - sum(kept.values())
    return {shortened(name): count for name, count in kept.items()} | ({"others": rest} if rest else {})


def _at(rows: Rows, place: tuple[str, int]) -> Row:
    return rows[place[0]][place[1]]
