"""TOML at the edge: every error of a file in one message, with place, found and expected; typed overrides."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgedistill.core.config import apply_overrides, did_you_mean, load_toml, validate, validate_overridden
from edgedistill.core.errors import InputError
from edgedistill.core.recipe import Recipe, load_recipe

RECIPE = {
    "name": "x",
    "data": {"generator": "home-commands"},
    "teacher": {"model": "m"},
    "student": {"cut": {"layers": [0, 1]}},
}


def refusal(**changed: object) -> list[str]:
    with pytest.raises(InputError) as e:
        validate(Recipe, RECIPE | changed, source="r.toml")
    head, *lines = str(e.value).splitlines()
    assert head == f"r.toml has {len(lines)} error{'s' if len(lines) > 1 else ''}:"
    return [line.strip() for line in lines]


def test_every_error_comes_at_once_with_its_place() -> None:
    assert refusal(seed="x", teacher={"modell": "m"}, gate={"confidence": 2}) == [
        "seed: found 'x'; input should be a valid integer, unable to parse string as an integer",
        "teacher.model: expected a value, found none",
        "teacher.modell: unknown name; did you mean 'model'?",
        "gate.confidence: found 2; input should be less than 1",
    ]


def test_an_unknown_metric_target_or_variant_names_the_nearest() -> None:
    found = refusal(budget={"size": {"metric": "artifact_byte", "max": "1 KB"}})
    assert found == ["budget.size.metric: found 'artifact_byte'; did you mean 'artifact_bytes'?"]
    latency = {"metric": "response_ms", "max": "1 s", "target": "mobil-class"}
    assert "did you mean 'mobile-class'?" in refusal(budget={"latency": latency})[0]
    size = {"metric": "artifact_bytes", "max": "1 KB", "artifacts": ["gguf-q4"]}
    assert "did you mean 'gguf-q4_0'?" in refusal(budget={"size": size})[0]
    variants = {"variants": ["gguf-q9"], "release": []}
    assert refusal(export=variants) == ["export.variants.0: found 'gguf-q9'; did you mean 'gguf-q8_0'?"]


def test_a_misspelt_target_is_blamed_on_the_list_that_has_it() -> None:
    latency = {"metric": "response_ms", "max": "1 s", "target": "mobile-class"}
    found = refusal(budget={"latency": latency}, bench={"targets": ["local-cpu", "mobil-class"]})
    assert found == ["bench.targets: 'mobil-class' is no target; did you mean 'mobile-class'?"]
    found = refusal(budget={"latency": latency}, bench={"targets": ["local-cpu"]})
    assert "budget.latency.target = 'mobile-class' is not in bench.targets" in found[0]


@pytest.mark.parametrize(
    ("overrides", "source", "line"),
    [
        (["seed=7", "train.lr='x'"], "--set train.lr='x'", "train.lr: found 'x'; "),
        (["train.lrr=1"], "--set train.lrr=1", "train.lrr: unknown name; did you mean 'lr'?"),
        (["bench.blocks=2", "gate.settle_blocks=0", "bench.further_blocks=1"], "--set bench.further_blocks=1", "1"),
        (["bench.targets=['local-cpux']"], "--set bench.targets=['local-cpux']", "'local-cpux' is no target; did you"),
    ],
)
def test_what_an_override_made_wrong_is_blamed_on_it(overrides: list[str], source: str, line: str) -> None:
    latency = {"metric": "response_ms", "max": "1 s", "target": "local-cpu"}
    with pytest.raises(InputError) as e:
        validate_overridden(Recipe, RECIPE | {"budget": {"latency": latency}}, overrides, source="r.toml")
    assert str(e.value).startswith(f"{source} has 1 error:\n") and line in str(e.value)
    assert "r.toml" not in str(e.value)


def test_what_the_file_has_wrong_is_blamed_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('name = "x"\nseed = "no"\n')
    with pytest.raises(InputError) as e:
        load_recipe(path, ("train.lr='x'",))
    assert str(e.value).startswith(f"{path} has ") and "train.lr: found 'x'" in str(e.value)
    path.write_text('name = "x"\n[data]\ngenerator = "home-commands"\n[teacher]\nmodel = "m"\n[student]\nmodel = "s"\n')
    (tmp_path / "base.json").touch()
    assert load_recipe(path, ('gate.baseline="base.json"',)).gate.baseline == str((tmp_path / "base.json").resolve())
    with pytest.raises(InputError, match=r"^--set seed='x' has 1 error"):
        load_recipe(path, ("seed='x'",))


def test_a_name_like_nothing_known_lists_what_is_known() -> None:
    assert did_you_mean("zzz", ["b", "a"]) == "; known: a, b"


@pytest.mark.parametrize("identity", ["size", "max", "metric"])
def test_an_unknown_name_in_a_table_of_tables_is_told_whatever_the_table_is_called(identity: str) -> None:
    budget = {identity: {"metric": "artifact_bytes", "maxx": "1 KB", "min": 1}}
    assert refusal(budget=budget) == [f"budget.{identity}.maxx: unknown name; did you mean 'max'?"]


def test_a_value_that_fits_no_member_of_a_union_is_one_error_at_its_own_place() -> None:
    assert refusal(student={"cut": {"layers": 0}}) == [
        "student.cut.layers: found 0; input should be a valid tuple or input should be greater than or equal to 1"
    ]
    assert refusal(budget={"a b": {"metric": "artifact_bytes", "max": 1}})[0].startswith("budget.a b: found 'a b'; ")


def test_overrides_are_typed_as_toml_and_leave_the_original_alone() -> None:
    data = {"train": {"lr": 1.0, "layers": [1, 2]}}
    changed = apply_overrides(data, ["train.lr=1e-4", 'budget.size.max="1 KB"', "train.layers=[3]", "seed = 7"])
    assert changed == {"train": {"lr": 1e-4, "layers": [3]}, "budget": {"size": {"max": "1 KB"}}, "seed": 7}
    assert data == {"train": {"lr": 1.0, "layers": [1, 2]}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr", "expected --set NAME=VALUE, found 'train.lr'"),
        ("=3", "expected --set NAME=VALUE"),
        ("name=foo", "--set name: expected a TOML value, found 'foo'; quote text"),
        ("seed=1\nname='y'", "--set seed: expected a TOML value"),
        ("name.first=1", "--set name.first: expected 'name' to be a table, found 'x'"),
    ],
)
def test_a_bad_override_is_told(override: str, message: str) -> None:
    with pytest.raises(InputError) as e:
        apply_overrides(RECIPE, [override])
    assert message in str(e.value)


def test_a_file_that_is_no_toml_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found nothing there"):
        load_toml(tmp_path / "absent.toml")
    with pytest.raises(InputError, match=r"expected a readable TOML file at .*directory"):
        load_toml(tmp_path)
    for name, content in (("syntax", b"a = \n"), ("encoding", b"a = '\xff'\n")):
        path = tmp_path / f"{name}.toml"
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"{name}\.toml is not valid TOML"):
            load_toml(path)
    assert load_toml(_written(tmp_path / "good.toml", "lr = 1e-4\n")) == {"lr": 1e-4}


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("cut", "sentence"),
    [
        ({}, "expected layers, or one of target_parameters, target_bytes, target_tokens_per_s to choose them by"),
        ({"target_parameters": 1, "target_bytes": "2 MB"}, "found target_parameters and target_bytes"),
        ({"target_tokens_per_s": 9, "target_bytes": "2 MB"}, "found target_bytes and target_tokens_per_s"),
        ({"target_tokens_per_s": 0}, "student.cut.target_tokens_per_s"),
        ({"target_bytes": "2 miles"}, "expected a number or a text such as '150 MB'"),
        ({"target_bytes": 0}, "student.cut.target_bytes: found 0; expected at least one byte, such as '150 MB'"),
    ],
)
def test_a_cut_has_sizes_or_one_target(cut: dict[str, object], sentence: str) -> None:
    (line,) = refusal(student={"cut": cut})
    assert sentence in line


QUANTITY = "expected a number or a text such as '{}'"


@pytest.mark.parametrize(
    ("tables", "place", "found", "example"),
    [
        ({"export": {"variants": ["gguf-mixed"], "release": [], "max_bytes": "60 XB"}}, "export.max_bytes", "60 XB", 0),
        ({"student": {"cut": {"target_bytes": "2 miles"}}}, "student.cut.target_bytes", "2 miles", 0),
        ({"budget": {"b": {"metric": "artifact_bytes", "max": "4 ZB"}}}, "budget.b.max", "4 ZB", 0),
        ({"budget": {"b": {"metric": "kld_nats", "min_ratio": "5 s"}}}, "budget.b.min_ratio", "5 s", 1),
        (
            {"budget": {"b": {"metric": "ttft_ms", "target": "local-cpu", "max": "2 MB"}}},
            *("budget.b.max", "2 MB", 2),
        ),
    ],
)
def test_a_wrong_quantity_is_told_by_its_key_with_an_example(
    tables: dict[str, object], place: str, found: str, example: int
) -> None:
    (line,) = refusal(**tables)
    assert line.startswith(f"{place}: found {found!r}; {QUANTITY.format(('150 MB', '95 %', '40 ms')[example])}")


def test_a_target_in_bytes_is_read_with_its_unit() -> None:
    recipe = validate(Recipe, RECIPE | {"student": {"cut": {"target_bytes": "20 MB"}}}, source="r.toml")
    assert recipe.student.cut and recipe.student.cut.most_bytes == 20e6 and recipe.student.cut.layers is None


def test_draws_teach_forward_kl_alone() -> None:
    (line,) = refusal(synth={"kept": "drawn"}, train={"divergence": "jsd"})
    assert 'synth.kept = "drawn", found "jsd" and 1: of draws only that one has no bias' in line
    for train in ({}, {"divergence": "jsd", "kd_weight": 0.0}):
        assert validate(Recipe, RECIPE | {"synth": {"kept": "drawn"}, "train": train}, source="r").synth.kept == "drawn"


def test_two_steps_and_a_grid_exclude_one_another() -> None:
    found = refusal(student={"cut": {"layers": [0], "steps": 2}}, train={"qat": {}})
    assert found == ["expected student.cut.steps = 1 with [train.qat]: cutting again leaves the grid"]


RATIO = {"metric": "response_ms", "target": "local-cpu", "max_ratio": 0.5}
SHARE = {"metric": "artifact_bytes", "max_ratio": 0.5}


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        ({"teacher": {"model": " "}}, "teacher.model: found ' '; string should have at least 1 character"),
        ({"student": {"model": ""}}, "student.model: found ''; string should have at least 1 character"),
        ({"train": {"lr": -5}}, "train.lr: found -5; input should be greater than 0"),
        ({"train": {"epochs": 0}}, "train.epochs: found 0; input should be greater than 0"),
        ({"train": {"weight_decay": -3}}, "train.weight_decay: found -3; input should be greater than or equal to 0"),
        (
            {"train": {"teacher": "online", "match": {"hidden": 0}}},
            "train.match: expected hidden or attention above 0, found neither; leave [train.match] out",
        ),
        (
            {"student": {"cut": {"layers": [0, 5]}}, "train": {"teacher": "online", "match": {"layers": [[2, 5]]}}},
            "expected train.match.layers of a student's layer below 2, as student.cut.layers leaves it",
        ),
        ({"student": {"cut": {"layers": [0, 0]}}}, "student.cut.layers: found [0, 0]; expected distinct layers from 0"),
        ({"student": {"cut": {"layers": [0], "vocab": 100}}}, "student.cut.vocab: found 100; input should be a mult"),
        (
            {"export": {"variants": ["gguf-q4_0"]}},
            "export: release names onnx-int4, which variants does not build; set release to some of gguf-q4_0, or",
        ),
        ({"bench": {"targets": []}}, "bench.targets: found []; tuple should have at least 1 item"),
        (
            {"budget": {"b": SHARE | {"against": "gguf-q4"}}},
            "budget.b.against = 'gguf-q4' is no model of this run; did",
        ),
        ({"budget": {"b": SHARE | {"against": "control"}}}, "budget.b.against = 'control' is no model of this run"),
        (
            {"budget": {"b": RATIO | {"against": "student"}}},
            "budget.b.against: expected a model whose response_ms is measured, such as teacher, teacher-gguf-q4_0, "
            "gguf-f16, found 'student'",
        ),
        (
            {"budget": {"b": {"metric": "kld_nats", "max_ratio": 2}}},
            "budget.b.against: expected a model whose kld_nats is measured, such as teacher-gguf-q4_0, gguf-f16, "
            "gguf-q8_0, found 'teacher'",
        ),
        (
            {"budget": {"b": {"metric": "sustained_ratio", "target": "local-cpu", "min": 0.9}}},
            'budget.b: expected bench.profile = "full", which measures sustained_ratio, found "quick"',
        ),
        (
            {"budget": {"b": RATIO | {"metric": "tpot_ms", "workload": "streams-2"}}},
            'budget.b: expected bench.profile = "full", which measures the workload streams-2, found "quick"',
        ),
        (
            {"budget": {"b": SHARE}, "export": {"release": []}},
            "budget.b.artifacts: expected what is judged, found none and no export.release either",
        ),
    ],
)
def test_what_would_fail_hours_later_is_refused_at_once(tables: dict[str, object], sentence: str) -> None:
    (line,) = refusal(**tables)
    assert line.startswith(sentence)


def test_an_empty_model_is_not_taken_for_the_recipe_s_folder(tmp_path: Path) -> None:
    path = _written(tmp_path / "r.toml", 'name = "r"\n[data]\n[teacher]\nmodel = ""\n[student]\nmodel = "s"\n')
    with pytest.raises(InputError, match=r"teacher\.model: found ''"):
        load_recipe(path)


def test_budgets_are_held_against_every_model_of_a_run() -> None:
    train = {"control": {}, "arms": {"seeds": 2, "gold": True}}
    data = {"generator": "home-commands", "gold": 4}
    for against in ("untrained", "control-s2", "gold", "student-s2", "gguf-q8_0", "teacher-gguf-q4_0", "previous"):
        tables = {"train": train, "data": data, "budget": {"b": SHARE | {"against": against}}}
        assert validate(Recipe, RECIPE | tables, source="r").budget["b"].against == against
