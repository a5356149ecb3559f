"""The table of arms: who stands in it, what it claims of distillation, and what it never claims."""

from __future__ import annotations

import pytest

from edgedistill.core.arms import (
    COLUMNS,
    NOTHING_CLAIMED,
    arm_cells,
    arm_models,
    arm_name,
    compare_arms,
    is_further_seed,
)
from edgedistill.core.records import EvalItem


def answers(right: int, *, of: int = 200, scores: list[float] | None = None) -> list[EvalItem]:
    return [
        EvalItem(
            id=f"i{i}", answer="a", output="a", output_ids=(1,), finish="stop", correct=i < right,
            answer_score_ratio=scores[i] if scores else None,
        )
        for i in range(of)
    ]  # fmt: skip


def test_models_are_known_by_arm_and_seed() -> None:
    assert [arm_name("student", n) for n in (1, 2, 3)] == ["student", "student-s2", "student-s3"]
    assert is_further_seed("control-s2") and is_further_seed("gold-s10")
    others = ("student", "student-wide", "teacher-s2", "gguf-q4_k_s", "student-s0", "student-s2-wide")
    assert not any(map(is_further_seed, others))
    names = ["student-s10", "gguf-q4_0", "control", "student-s2", "student", "untrained", "gold", "student-wide"]
    assert arm_models(names) == ["untrained", "gold", "control", "student", "student-s2", "student-s10"]


def test_every_arm_has_a_row_with_its_mean_over_seeds() -> None:
    items = {
        "teacher": answers(190), "untrained": answers(0), "gold": answers(150), "control": answers(170),
        "control-s2": answers(172), "student": answers(186), "student-s2": answers(188), "gguf-q4_0": answers(3),
    }  # fmt: skip
    table = compare_arms(items, confidence=0.95)
    rows = {row.arm: row for row in table.rows}
    assert list(rows) == ["teacher", "untrained", "gold", "control", "student"]
    assert rows["student"].models == ("student", "student-s2") and rows["student"].score == pytest.approx(187 / 200)
    assert rows["student"].of_teacher == pytest.approx(187 / 190) and rows["teacher"].of_teacher is None
    assert rows["untrained"].of_teacher == 0 and rows["untrained"].interval[1] < 0.03
    assert table.difference == pytest.approx(16 / 200) and table.pairs == 2 and table.items == 200
    assert table.score == "exact_match_ratio"
    cells = arm_cells(table)
    assert all(len(row) == len(COLUMNS) for row in cells)
    assert cells[4][:3] == ("distillation", "2", "93.5 %") and cells[0][1] == "–"
    assert cells[-1][:3] == ("distillation minus SFT on its text", "2", "+8.0 points")


@pytest.mark.parametrize(
    ("student", "control", "outcome", "said"),
    [
        (186, 150, "helps", "distillation helps: distillation minus SFT on the same text is +18.0 points, 95 % inter"),
        (150, 186, "hurts", "distillation hurts: distillation minus SFT on the same text is -18.0 points, 95 % inter"),
        (186, 185, "no difference shown", "no difference shown: distillation minus SFT on the same text is +0.5 po"),
        (186, 186, "no difference shown", "no difference shown: distillation minus SFT on the same text is +0.0 po"),
    ],
)
def test_the_sentence_says_what_the_interval_does(student: int, control: int, outcome: str, said: str) -> None:
    table = compare_arms({"student": answers(student), "control": answers(control)}, confidence=0.95)
    assert table.outcome == outcome and table.sentence.startswith(said)
    assert table.sentence.endswith(", 200 items, 1 seed, which says nothing of another")


def test_seeds_that_disagree_show_no_difference() -> None:
    items = {"student": answers(186), "student-s2": answers(150), "control": answers(160), "control-s2": answers(150)}
    table = compare_arms(items, confidence=0.95)
    assert table.outcome == "no difference shown" and table.sentence.endswith("200 items, 2 seeds")


def test_without_a_control_nothing_is_claimed() -> None:
    table = compare_arms({"student": answers(200), "untrained": answers(0), "gold": answers(3)}, confidence=0.95)
    assert (table.outcome, table.sentence, table.difference) == ("no control", NOTHING_CLAIMED, None)
    assert [row[0] for row in arm_cells(table)] == ["base student", "SFT on gold", "distillation"]
    assert compare_arms({"teacher": answers(3), "control": answers(3)}, confidence=0.95) is None


def test_only_seeds_that_both_have_are_compared() -> None:
    items = {"student": answers(186), "student-s2": answers(0), "control": answers(100)}
    table = compare_arms(items, confidence=0.95)
    assert table.pairs == 1 and table.difference == pytest.approx(0.43)


def test_graded_answers_are_compared_by_their_scores() -> None:
    half = answers(0, of=4, scores=[0.5, 0.25, 0.75, 0.5])
    table = compare_arms({"student": half, "control": answers(0, of=4, scores=[0.0] * 4)}, confidence=0.95)
    assert table.score == "answer_score_ratio" and table.difference == 0.5
    mixed = compare_arms({"student": half, "control": answers(4, of=4)}, confidence=0.95)
    assert mixed.score == "exact_match_ratio" and mixed.difference == -1


def test_arms_of_other_items_are_refused() -> None:
    with pytest.raises(ValueError, match="expected control and student on the same items, found others; run eval"):
        compare_arms({"student": answers(3, of=5), "control": answers(3, of=4)}, confidence=0.95)
