"""Write README's generated sections: results table, command reference and file tree.

Usage: python scripts/render_readme.py [--check]
A section stands between `<!-- begin:NAME -->` and `<!-- end:NAME -->`.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from edgedistill.cli import show
from edgedistill.cli.main import app
from edgedistill.core.files import read_json

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results" / "quickstart.json"
BESIDE = {
    "targets/": "One TOML per device class; every hardware figure has its provenance.",
    "benchmarks/": "Scripts whose last line is one JSON object, and their committed results.",
    "tests/": "Mirrors edgedistill/.",
    "scripts/": "The two commands, the pinned packages, this README's generator.",
}


def commands() -> str:
    """The command reference: one row a command, then what the options mean."""
    rows = ["| command | what it does |", "|---|---|"]
    options: dict[str, str] = {}
    for path, command in _leaves(typer.main.get_command(app), ()):
        words = ["edgedistill", *path]
        for parameter in command.params:
            shown = _shown(parameter)
            if parameter.param_type_name == "option":
                options.setdefault(shown.strip("[]"), parameter.help)
            words.append(shown)
        summary = (command.help or "").splitlines()[0]
        rows.append(f"| `{' '.join(words)}` | {summary} |")
    rows += ["", "| option | |", "|---|---|"]
    rows += [f"| `{name}` | {text} |" for name, text in options.items()]
    return "\n".join(rows)


def tree() -> str:
    """The package's folders and top-level files with the first line of their docstrings, and the folders beside it."""
    lines = ["edgedistill/"]
    package = ROOT / "edgedistill"
    for folder in sorted(p for p in package.iterdir() if (p / "__init__.py").is_file()):
        lines.append(_entry(f"  {folder.name}/", _docstring(folder / "__init__.py")))
        names = [p.stem for p in sorted(folder.glob("*.py")) if p.stem != "__init__"]
        lines += [f"    {line}" for line in _wrapped(names)]
    for file in sorted(package.glob("*.py")):
        if file.stem != "__init__":
            lines.append(_entry(f"  {file.name}", _docstring(file)))
    recipes = ", ".join(p.stem for p in sorted((package / "recipes").glob("*.toml")))
    lines.append(_entry("  recipes/", f"Shipped recipes: {recipes}."))
    return "\n".join([*lines, *(_entry(name, text) for name, text in BESIDE.items())])


def results(path: Path = RESULTS) -> str:
    """A kept run's comparison as a Markdown table, with what was measured where and by which versions."""
    kept = read_json(path)
    comparison, verdict, environment = kept["comparison"], kept["verdict"], kept["environment"]
    hardware = environment["hardware"]
    lines = [f"| {' | '.join(show.COMPARED)} |", "|" + "---|" * len(show.COMPARED)]
    lines += [f"| {' | '.join(row)} |" for row in show.comparison_rows(comparison)]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(environment["versions"].items()))
    open_checks = [f"- {c['outcome']}: {c['reason']}" for c in verdict["checks"] if c["outcome"] != "pass"]
    evidence = {row["target"]: row["evidence"] for row in comparison["rows"] if row["target"]}
    name = path.relative_to(ROOT).as_posix()
    return "\n".join(
        [
            *lines,
            "",
            "`*` is what ships. In brackets: the change against the teacher in torch fp32, taken within each round of "
            "the same run, so not the columns' quotient. Of 300 items, differences of two points are noise.",
            "",
            *([f"Arms: {comparison['arms']['sentence']}.", ""] if comparison.get("arms") else []),
            f"Verdict: **{verdict['outcome']}**, {len(verdict['checks'])} checks at "
            f"{100 * comparison['confidence']:.0f} % confidence. All stages together: "
            f"{show.duration(sum(kept['seconds'].values()))}.",
            *([*open_checks, ""] if open_checks else []),
            f"Evidence: {', '.join(f'{target} {kind}' for target, kind in evidence.items())}.",
            f"Measured {kept['measured'][:10]} on {hardware['cpu']}, {hardware['cores']} cores, "
            f"{hardware['memory_gib']} GiB, {hardware['system']} {hardware['arch']} (host {environment['host_id']}), "
            f"commit {_commit(environment['commit'])}; {versions}. Intervals, percentiles and every "
            f"check: [`{name}`]({name}).",
        ]
    )


def main(arguments: list[str]) -> int:
    """Rewrite README.md, or with `--check` say whether it is current."""
    text = README.read_text(encoding="utf-8")
    wanted = replaced(text, "commands", commands())
    wanted = replaced(wanted, "tree", f"```\n{tree()}\n```")
    wanted = replaced(wanted, "results", results())
    if "--check" in arguments:
        return int(wanted != text)
    README.write_text(wanted, encoding="utf-8")
    return 0


def replaced(text: str, name: str, content: str) -> str:
    """`text` with the section `name` set to `content`.

    Raises:
        ValueError: the text has no such section, or several.
    """
    pattern = re.compile(rf"(<!-- begin:{name} -->\n).*?(<!-- end:{name} -->)", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"expected one section {name!r}")
    return pattern.sub(lambda found: f"{found[1]}{content}\n{found[2]}", text)


def _commit(commit: str | None) -> str:
    """Twelve digits, and a `+` where the tree had changes that no commit holds."""
    return f"{commit[:12]}{'+' * commit.endswith('+')}" if commit else "unknown"


def _leaves(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    children = getattr(command, "commands", {})
    if path and (not children or command.invoke_without_command):
        yield path, command
    for name, child in children.items():
        yield from _leaves(child, (*path, name))


def _shown(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return (parameter.metavar or parameter.name.upper()) + "..." * (parameter.nargs == -1)
    metavar = f" {parameter.metavar}" if parameter.metavar else ""
    shown = f"{parameter.opts[-1]}{metavar}"
    return shown if parameter.required else f"[{shown}]"


def _docstring(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def _entry(name: str, text: str) -> str:
    return f"{name:<20} {text}"


def _wrapped(names: list[str], width: int = 96) -> list[str]:
    lines = [""]
    for name in names:
        if len(lines[-1]) + len(name) > width:
            lines.append("")
        lines[-1] += f"{name} "
    return [line.rstrip() for line in lines if line]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
