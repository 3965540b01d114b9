"""The README's promises: its example runs, its settings load, its commands exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from reclora.pipelines.figures import read_figures, with_tables
from tests.blocks import blocks, check_command, commands, load_settings, unknown_verbs

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def printed(example: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_python_example_finds_what_was_planted(tmp_path: Path) -> None:
    output = printed(blocks(README, "python")[0], tmp_path)
    table = output[output.index("verdict") :].splitlines()
    assert table[1].endswith("better") and output.count(" better") >= 3, output
    assert (tmp_path / "store" / "releases").is_dir()


def test_the_example_on_ones_own_model_runs(tmp_path: Path) -> None:
    example = blocks(README, "python")[1]
    example += "print(torch.equal(served(users, items), served(users, items)))"
    assert printed(example, tmp_path).endswith("True\n")
    assert (tmp_path / "adapters" / "releases").is_dir()


def test_the_settings_example_loads(tmp_path: Path) -> None:
    example, base = blocks(README, "toml")
    assert load_settings(example, tmp_path).split.train == 0.15
    assert load_settings(base, tmp_path).base.half_life == 120


def test_the_results_are_those_of_the_published_file() -> None:
    figures = read_figures(ROOT / "docs" / "results.json")
    assert len({figure.log for figure in figures}) >= 4
    assert with_tables(README, figures) == README
    for command in {figure.command for figure in figures}:
        assert command.startswith("reclora demo")


@pytest.mark.parametrize("command", commands(README))
def test_every_command_is_one(command: str, tmp_path: Path) -> None:
    check_command(command, tmp_path)


def test_every_verb_named_is_there() -> None:
    assert not unknown_verbs(README)


@pytest.mark.parametrize("target", re.findall(r"^make ([a-z-]+)", README, re.MULTILINE))
def test_every_make_target_named_is_there(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
