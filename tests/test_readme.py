"""README is current: its generated sections, its commands, its recipe fragments, its links."""

from __future__ import annotations

import datetime
import re
import shlex
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import typer
from scripts_outside import ROOT, script

from edgedistill.cli.main import app
from edgedistill.core.files import read_json, write_json
from edgedistill.core.recipe import load_recipe, shipped_recipes
from edgedistill.core.runfolder import FOLDERS

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def renderer() -> ModuleType:
    return script("scripts/render_readme.py")


def section(name: str) -> str:
    found = re.findall(rf"<!-- begin:{name} -->\n(.*?)<!-- end:{name} -->", TEXT, re.DOTALL)
    assert len(found) == 1
    return found[0].strip()


def test_the_command_reference_is_current(renderer: ModuleType) -> None:
    assert section("commands") == renderer.commands(), "run: python scripts/render_readme.py"


def test_the_file_tree_is_current(renderer: ModuleType) -> None:
    assert section("tree") == f"```\n{renderer.tree()}\n```", "run: python scripts/render_readme.py"
    for name in renderer.BESIDE:
        assert (ROOT / name).is_dir()


def test_the_results_are_those_kept(renderer: ModuleType) -> None:
    assert section("results") == renderer.results(), "run: python scripts/render_readme.py"


def test_what_the_arms_say_stands_below_the_results(
    renderer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = read_json(renderer.RESULTS)
    kept["comparison"]["arms"] = {"sentence": "distillation helps: by much"}
    write_json(tmp_path / "kept.json", kept)
    monkeypatch.setattr(renderer, "ROOT", tmp_path)
    assert "\nArms: distillation helps: by much.\n" in renderer.results(tmp_path / "kept.json")


def test_a_section_is_replaced_whole_and_only_once(renderer: ModuleType) -> None:
    text = "a\n<!-- begin:x -->\nold\n<!-- end:x -->\nb"
    assert renderer.replaced(text, "x", r"new \1") == "a\n<!-- begin:x -->\nnew \\1\n<!-- end:x -->\nb"
    with pytest.raises(ValueError, match="expected one section 'y'"):
        renderer.replaced(text, "y", "")


def test_every_command_in_the_readme_exists() -> None:
    """Scripts are there; edgedistill commands parse, with every option they use."""
    lines = [line.split("  #")[0] for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    assert len(words) >= 7
    root = typer.main.get_command(app)
    for command in words:
        if command[0] == "bash":
            assert (ROOT / command[1]).is_file()
            continue
        assert command[0] == "edgedistill"
        name, leaf, rest = root.resolve_command(typer.Context(root), command[1:])
        leaf.make_context(name, rest)


def inline(value: object) -> str:
    """A value as inline TOML."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name} = {inline(inner)}' for name, inner in value.items())}}}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(inline, value))}]"
    return str(value) if isinstance(value, datetime.date) else repr(value)


def test_the_recipe_fragments_are_valid() -> None:
    fragments = [block for kind, block in BLOCKS if kind == "toml"]
    assert len(fragments) == 11
    for fragment in fragments:
        for table, values in tomllib.loads(fragment).items():
            if table == "budget":
                for name, budget in values.items():
                    load_recipe(shipped_recipes()["quickstart"], (f"budget.{name}={inline(budget)}",))
            if table in ("gate", "task", "data"):
                load_recipe(shipped_recipes()["quickstart"], (f"{table}={inline(values)}",))
            if table == "synth":
                asked = load_recipe(shipped_recipes()["local-server"], (f"synth={inline(values)}", 'task.kind="math"'))
                assert asked.synth.judge and asked.synth.shorten
            if table == "train":
                settings = tuple(f"train.{name}={inline(value)}" for name, value in values.items())
                load_recipe(shipped_recipes()["quickstart"], settings)
    phi = load_recipe(shipped_recipes()["phi4-mini"])
    shown = tomllib.loads(fragments[0])
    assert phi.teacher.model == shown["teacher"]["model"] and phi.student.model == shown["student"]["model"]
    assert phi.train.lora and phi.train.lora.rank == shown["train"]["lora"]["rank"]
    api = next(tomllib.loads(fragment)["teacher"] for fragment in fragments if "key_env" in fragment)
    phi = load_recipe(shipped_recipes()["phi4-mini"], (f"teacher={inline(api)}", "budget={}"))
    assert phi.teacher.is_api and phi.teacher.price and phi.teacher.terms and phi.teacher.limits.money
    cut = load_recipe(shipped_recipes()["quickstart"]).student.cut
    assert cut and cut.model_dump(mode="json", exclude_defaults=True) == tomllib.loads(fragments[1])["student"]["cut"]


def test_the_way_of_the_data_names_every_stage_s_folder() -> None:
    assert all(f" {folder}/" in TEXT for folder in FOLDERS.values())


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert len(links) >= 3
    assert all((ROOT / link).exists() for link in links if "://" not in link)
