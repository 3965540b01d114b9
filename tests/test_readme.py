"""The README's promises: its example runs, its settings load, its commands exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from reclora.pipelines.cli import app
from reclora.pipelines.figures import read_figures, with_tables
from reclora.pipelines.run import RunSettings
from reclora.pipelines.settings import load

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def printed(example: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_python_example_finds_what_was_planted(tmp_path: Path) -> None:
    output = printed(blocks("python")[0], tmp_path)
    table = output[output.index("verdict") :].splitlines()
    assert table[1].endswith("better") and output.count(" better") >= 3, output
    assert (tmp_path / "store" / "releases").is_dir()


def test_the_example_on_ones_own_model_runs(tmp_path: Path) -> None:
    example = blocks("python")[1] + "print(torch.equal(served(users, items), served(users, items)))"
    assert printed(example, tmp_path).endswith("True\n")
    assert (tmp_path / "adapters" / "releases").is_dir()


def test_the_settings_example_loads(tmp_path: Path) -> None:
    example, base = blocks("toml")
    path = tmp_path / "run.toml"
    path.write_text(example)
    assert load(path, RunSettings).split.train == 0.15
    path.write_text(base)
    assert load(path, RunSettings, ['log.files=["a.parquet"]']).base.half_life == 120


def test_the_results_are_those_of_the_published_file() -> None:
    figures = read_figures(ROOT / "docs" / "results.json")
    assert len({figure.log for figure in figures}) >= 4
    assert with_tables(README, figures) == README
    for command in {figure.command for figure in figures}:
        assert command.startswith("reclora demo")


@pytest.mark.parametrize("command", re.findall(r"(?:^|`)reclora ([a-z]+)", README, re.MULTILINE))
def test_every_command_named_is_there(command: str) -> None:
    apps = [app, *(group.typer_instance for group in app.registered_groups)]
    verbs = {
        info.name or info.callback.__name__
        for each in apps
        if each is not None
        for info in each.registered_commands
        if info.callback
    }
    assert command in verbs


@pytest.mark.parametrize("target", re.findall(r"^make ([a-z-]+)", README, re.MULTILINE))
def test_every_make_target_named_is_there(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
