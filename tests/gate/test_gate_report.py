"""The report: one file without outside requests, everything in it, nothing in it unescaped."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from edgedistill.core.budget import Verdict
from edgedistill.core.files import read_json, read_jsonl, write_json, write_jsonl
from edgedistill.core.recipe import Recipe
from edgedistill.core.sequential import plan_looks
from edgedistill.gate.plots import Line, Point, curves, scatter, thin
from edgedistill.gate.proof import proof_table
from edgedistill.gate.words import number, one_line, quantity, span

Gate = Callable[[Path, Recipe], tuple[Path, list[str]]]


class Structure(HTMLParser):
    """Checks that tags close in order; keeps addresses and visible text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.text: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action", "data") and v]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(html: str) -> Structure:
    structure = Structure()
    structure.feed(html)
    assert structure.open == []
    return structure


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished_run, tmp_path / "synthetic")


def test_the_report_is_one_small_file_that_asks_for_nothing(
    run: Path, recipe: Callable[..., Recipe], run_gate: Gate
) -> None:
    folder, _ = run_gate(run, recipe())
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert len(html.encode()) < 300_000
    structure = parsed(html)
    assert not {"script", "link", "iframe", "img", "object", "form"} & set(structure.tags)
    assert all(address.startswith("#") for address in structure.addresses)
    assert set(re.findall(r"https?://[^\"' ]*", html)) == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "url(" not in re.sub(r"url\(#[a-z0-9]+\)", "", html)
    assert not re.search(r"\bnan\b|\bNone\b|\bUndefined\b", " ".join(structure.text))


def test_everything_the_verdict_rests_on_is_in_the_report(
    run: Path, recipe: Callable[..., Recipe], run_gate: Gate
) -> None:
    folder, _ = run_gate(run, recipe())
    html = (folder / "report.html").read_text(encoding="utf-8")
    text = " ".join(" ".join(parsed(html).text).split())
    found = Verdict.model_validate(read_json(folder / "verdict.json"))
    for check in found.checks:
        assert check.reason in text
    for model in ("teacher", "teacher-gguf-q4_0", "untrained", "control", "student", "gguf-q4_0", "onnx-int4"):
        assert model in text
    for said in (
        "Accuracy against size", "Speed against size on local-cpu", "Speed against size on mobile-class",
        "student, not trained on", "student, token by token through the KV cache",
        "2,594", "6 truncated", "mobile-class: constrained",
        "50-bench/local-cpu/*/*.jsonl", "20-train/metrics.jsonl", "10-synth/manifest.json",
        *(digest[:12] for digest in found.inputs.values()),
    ):  # fmt: skip
        assert said in text
    assert html.count("<svg ") == 4


def test_scores_of_a_kind_have_a_column_and_none_stands_without_them(
    run: Path, recipe: Callable[..., Recipe], run_gate: Gate
) -> None:
    column = "<th>score</th>"
    assert column not in (run_gate(run, recipe())[0] / "report.html").read_text(encoding="utf-8")
    summary = read_json(run / "40-eval" / "summary.json")
    for path in (run / "40-eval").glob("*.jsonl"):
        write_jsonl(path, [row | {"answer_score_ratio": 0.5} for row in read_jsonl(path)])
        summary[path.stem]["answer_score_ratio"] = 0.5
    write_json(run / "40-eval" / "summary.json", summary)
    html = (run_gate(run, recipe())[0] / "report.html").read_text(encoding="utf-8")
    assert html.count(column) == 1 and html.count("<td>50 %</td>") == 7
    parsed(html)


def test_the_teacher_s_setting_is_told_with_the_reason(
    run: Path, recipe: Callable[..., Recipe], run_gate: Gate
) -> None:
    choice = {"chosen": "float32, eager", "because": "a request takes 2500 ms; bfloat16, eager 3000 ms", "tried": []}
    for path in (run / "50-bench" / "local-cpu" / "teacher").glob("*.jsonl"):
        rows = read_jsonl(path)
        write_jsonl(path, [row | {"settings": row["settings"] | {"choice": choice}} for row in rows])
    folder, _ = run_gate(run, recipe())
    text = " ".join(" ".join(parsed((folder / "report.html").read_text(encoding="utf-8")).text).split())
    assert text.count(f"teacher runs as {choice['chosen']}, its fastest that answers alike: {choice['because']}.") == 1
    found = {(r["model"], r["target"]): r["choice"] for r in read_json(folder / "comparison.json")["rows"]}
    assert found["teacher", "local-cpu"] == choice and found["teacher", "mobile-class"] is None


def text_of(folder: Path) -> str:
    return " ".join(" ".join(parsed((folder / "report.html").read_text(encoding="utf-8")).text).split())


def test_the_proof_is_told_in_words(run: Path, recipe: Callable[..., Recipe], run_gate: Gate) -> None:
    folder, _ = run_gate(run, recipe())
    html = (folder / "report.html").read_text(encoding="utf-8")
    names = re.findall(r'<tr><td class="l">([^<]+)</td><td>', html.partition("Equal to the student")[2])
    assert {"of them tokenized otherwise by the engine", "same top token as the student, in one pass"} <= set(names)
    inner = ("engine differing", "kld nats", "top1", "end ids", "cached", "fresh")
    assert not [name for name in names for word in inner if word in name]
    table = proof_table({
        "a": {"fresh": {"kld_nats": 0.012, "top1_ratio": 0.955, "new_figure": 3}, "text": {"limits": []}},
        "b": {"text": {"chat_template": True, "end_ids": [0, 2]}, "bounds": {"max": 1}},
    })  # fmt: skip
    assert dict(table["rows"]) == {
        "KL divergence from the student, in one pass": ["0.012 nats", "–"],
        "same top token as the student, in one pass": ["95.5 %", "–"],
        "new figure, in one pass": ["3", "–"],
        "known limits of the engine's tokenizer": ["none", "–"],
        "chat template, rendered alike": ["–", "yes"],
        "token ids that end an answer": ["–", "0, 2"],
    }


def test_one_thread_is_no_plural(run: Path, recipe: Callable[..., Recipe], run_gate: Gate) -> None:
    for path in (run / "50-bench" / "mobile-class").glob("*/*.jsonl"):
        write_jsonl(path, [row | {"settings": row["settings"] | {"threads": 1}} for row in read_jsonl(path)])
    folder, _ = run_gate(run, recipe())
    text = text_of(folder)
    assert ", 1 thread " in text and ", 2 threads " in text and "1 threads" not in text


def test_the_confidence_of_each_look_is_told(run: Path, recipe: Callable[..., Recipe], run_gate: Gate) -> None:
    folder, _ = run_gate(run, recipe())
    assert "kept when the whole 95 % interval keeps it" in text_of(folder)
    folder, _ = run_gate(run, recipe(gate={"settle_blocks": 6}, bench={"blocks": 6}))
    looks, text = plan_looks(blocks=6, further=6, confidence=0.95), text_of(folder)
    for look in looks:
        assert f"{100 * look.confidence:.4g} % with {look.blocks} blocks" in text
    used = {check.confidence for check in Verdict.model_validate(read_json(folder / "verdict.json")).checks}
    assert looks[0].confidence in used
    assert f"at {100 * looks[0].confidence:.4g} %" in text and "the whole 95 % interval" not in text


def test_recipe_architecture_and_time_of_all_stages_are_told(
    run: Path, recipe: Callable[..., Recipe], run_gate: Gate
) -> None:
    config = {"model_type": "llama", "num_hidden_layers": 8, "hidden_size": 576, "vocab_size": 8192}
    write_json(run / "20-train" / "student" / "config.json", config)
    manifest = read_json(run / "20-train" / "manifest.json")
    write_json(run / "20-train" / "manifest.json", manifest | {"seconds": 3900.4})
    folder, _ = run_gate(run, recipe())
    text = text_of(folder)
    assert "recipe synthetic" in text
    assert "student llama, layers 8, hidden 576, vocabulary 8192" in text and "teacher llama" in text
    assert "all stages together 1 h 5 min" in text


def test_what_came_from_outside_is_escaped(run: Path, recipe: Callable[..., Recipe], run_gate: Gate) -> None:
    path = run / "50-bench" / "local-cpu" / "gguf-q4_0" / "prompts.jsonl"
    evil = "<script>alert(1)</script>\n\x1b[31m& more"
    rows = read_jsonl(path)
    write_jsonl(path, [row | {"valid": False, "invalid_reason": evil, "engine": "<b>"} for row in rows])
    folder, notes = run_gate(run, recipe())
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "<script>" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; [31m&amp; more" in html
    assert "<b>," not in html
    assert any("<script>alert(1)</script> [31m& more" in note for note in notes)
    parsed(html)


def test_a_run_with_hardly_anything_still_has_a_report(
    run: Path, recipe: Callable[..., Recipe], run_gate: Gate
) -> None:
    for name in ("00-data", "10-synth", "20-train", "40-eval", "50-bench"):
        shutil.rmtree(run / name)
    folder, _ = run_gate(run, recipe({}))
    text = " ".join(parsed((folder / "report.html").read_text(encoding="utf-8")).text)
    assert "nothing was judged" in text
    assert "error" in text


def test_plots_take_their_colours_from_the_page_and_are_reproducible() -> None:
    points = [Point("a", "one", 10.0, 90.0, 80.0, 95.0, strong=True), Point("b", "two words", 11.0, 90.5)]

    def draw() -> str:
        return scatter(points, series=("one", "two words"), x="MB", y="%", title="T", log_y=False)

    svg = draw()
    assert svg == draw()
    assert "var(--one)" in svg
    assert "var(--two-words)" in svg
    assert "#0a0" not in svg
    assert 'aria-label="T"' in svg
    assert "<text" in svg
    parsed(svg)


def test_labels_of_models_alike_do_not_cover_each_other() -> None:
    points = [Point(f"model-{i}", "one", 10.0 + i / 10, 97.0 + i / 100, 92.0, 99.0) for i in range(6)]
    svg = scatter(points, series=("one",), x="MB", y="%", title="T", log_y=False)
    places = re.findall(r'<text style="[^"]*var\(--ink\)[^"]*" x="([-\d.]+)" y="([-\d.]+)"[^>]*>(model-\d)', svg)
    assert len(places) == 6
    for i, (x, y, _) in enumerate(places):
        for other_x, other_y, _ in places[i + 1 :]:
            assert abs(float(y) - float(other_y)) > 8 or abs(float(x) - float(other_x)) > 30


def test_a_long_curve_is_thinned_to_means() -> None:
    x, y = thin(range(1000), [float(i % 2) for i in range(1000)], most=100)
    assert len(x) == 100
    assert set(y) == {0.5}
    assert thin([1.0], [2.0]) == ([1.0], [2.0])
    long = curves([Line("a", "one", x, y)], series=("one",), x="step", y="nats", title="T")
    assert len(long) < 20_000
    assert thin([], []) == ([], [])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.04123, "0.0412"), (12.0, "12"), (999.94, "1000"), (12345.6, "12,346"), (1e-7, "0.0000001"),
     (-95.94, "-95.9"), (0.1, "0.1")],
)  # fmt: skip
def test_numbers_have_three_digits_and_no_exponent(value: float, text: str) -> None:
    assert number(value) == text


def test_quantities_are_said_in_a_fitting_unit() -> None:
    assert [quantity(v, "bytes") for v in (12, 1500, 18.3e6, 2e9)] == ["12 B", "1.5 kB", "18.3 MB", "2 GB"]
    assert [quantity(v, "ms") for v in (0.5, 42, 12_000)] == ["0.5 ms", "42 ms", "12 s"]
    assert (quantity(0.953, "ratio"), quantity(3, "tokens/s")) == ("95.3 %", "3 tokens/s")
    assert (span(157, 185, "ms"), span(0.9e6, 1.1e6, "bytes")) == ("157–185 ms", "900 kB–1.1 MB")


def test_one_line_has_no_control_characters() -> None:
    assert one_line("a\r\n\tb\x00\x1b[0m \ud800c  ") == "a b [0m c"
