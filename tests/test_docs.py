"""The pages of docs/: what they run runs, what they name is there, their tables are the code's."""

import inspect
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from reclora import metrics
from reclora.evaluation import user_log_likelihoods
from reclora.pipelines.cli import app
from tests.blocks import (
    blocks,
    check_command,
    commands,
    load_settings,
    run_python,
    unknown_verbs,
)

DOCS = Path(__file__).parent.parent / "docs"
TEXTS = {page.name: page.read_text(encoding="utf-8") for page in sorted(DOCS.glob("*.md"))}


def of_pages(find: Callable[[str], list[str]]) -> pytest.MarkDecorator:
    """One case for each that is found on each page."""
    cases = [pytest.param(one, id=f"{name}: {one}") for name in TEXTS for one in find(TEXTS[name])]
    return pytest.mark.parametrize("found", cases)


# TorchRec warns of itself as it is imported.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", [name for name in TEXTS if blocks(TEXTS[name], "python")])
def test_its_python_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace = run_python(DOCS / name)
    if name == "metrics.md":
        check_table("conventions", conventions_table(namespace["figures"]))


def test_the_lists_that_are_made_are_evaluated_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_python(DOCS / "evaluating.md")
    first, *_ = commands(TEXTS["evaluating.md"])
    done = CliRunner().invoke(app, shlex.split(first)[1:])
    assert done.exit_code == 0, done.exception
    assert "ours: better than old" in done.output and [*tmp_path.glob("runs/lists-*/report.html")]


@of_pages(commands)
def test_its_commands_are_such(found: str, tmp_path: Path) -> None:
    check_command(found, tmp_path)


@of_pages(lambda page: blocks(page, "toml"))
def test_its_settings_load(found: str, tmp_path: Path) -> None:
    load_settings(found, tmp_path)


@pytest.mark.parametrize("name", TEXTS)
def test_what_it_names_is_there(name: str) -> None:
    assert not unknown_verbs(TEXTS[name])
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", TEXTS[name])
    assert not [link for link in links if not (DOCS / link).exists()]


def test_the_index_has_every_page() -> None:
    assert {*re.findall(r"\]\(([a-z-]+\.md)\)", TEXTS["index.md"])} == {*TEXTS} - {"index.md"}


def test_the_definitions_are_those_of_the_metrics() -> None:
    check_table("definitions", definitions_table())


def check_table(mark: str, wanted: str) -> None:
    """Hold a table of metrics.md against what the code says."""
    pattern = rf"<!-- {mark}: .*?-->\n(.*?)<!-- end of {mark} -->"
    found = re.search(pattern, TEXTS["metrics.md"], re.DOTALL)
    assert found and found[1] == wanted, f"docs/metrics.md, {mark}: write\n{wanted}"


def definitions_table() -> str:
    """Each metric's formula, and from its docstring the edge rules and the source."""
    return table(
        ("metric", "formula", "edges", "source"),
        [
            (f"`{name}`", formula, *edges_and_source(metric_of(name)))
            for name, formula in metrics.DEFINITIONS.items()
        ],
    )


def metric_of(name: str) -> Any:
    return metrics.METRICS.get(name) or getattr(metrics, name, user_log_likelihoods)


def edges_and_source(metric: Any) -> tuple[str, str]:
    """What its docstring says after the formula, which ends with a semicolon or its sentence."""
    text = inspect.getdoc(metric) or ""
    said = re.split(r"\n(?=Args:|Raises:|Returns:|Source:)", text)[0].strip()
    formula, *others = (" ".join(part.split()) for part in said.split("\n\n"))
    found = re.search(r"(?:; |\. (?=[A-Z`]))(.*)", formula)
    edges = [found[1] if found else "", *others]
    source = re.search(r"Source: (.*?)(?:\n\n|\Z)", text, re.DOTALL)
    edges = [edge.replace(" Arguments as for `novelty`.", "") for edge in edges if edge]
    return " ".join(edges), " ".join(source[1].split()) if source else ""


def conventions_table(figures: dict[str, dict[str, float]]) -> str:
    """Whose each convention is, what it does otherwise, and what it says of the six users."""
    return table(
        ("convention", "of", "what differs", "of the six users, at 3"),
        [
            (
                f"`{one.name}`",
                one.systems,
                one.says,
                ", ".join(f"{number} {value:.4f}" for number, value in figures[one.name].items()),
            )
            for one in metrics.CONVENTIONS.values()
        ],
    )


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines
    )
