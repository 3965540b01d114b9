"""The code blocks of pages for people: found, run, parsed and loaded."""

import re
import shlex
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer.core

from reclora.pipelines.cli import app
from reclora.pipelines.run import RunSettings
from reclora.pipelines.settings import load

COMMANDS = typer.main.get_command(app)
assert isinstance(COMMANDS, typer.core.TyperGroup)


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language, in the order of the page."""
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def run_python(path: Path) -> dict[str, Any]:
    """Run the Python blocks of the page at `path`, one after the other in one namespace, and return
    that. A traceback names the page and its line.
    """
    page = path.read_text(encoding="utf-8")
    namespace: dict[str, Any] = {"__name__": path.stem}
    for block in re.finditer(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        above = "\n" * page[: block.start(1)].count("\n")
        exec(compile(above + block[1], str(path), "exec"), namespace)
    return namespace


def commands(page: str) -> list[str]:
    """The lines of shell blocks that call `reclora`."""
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [line for line in map(str.strip, lines) if line.startswith("reclora ")]


def unknown_verbs(page: str) -> set[str]:
    """What the text of a page calls verbs of `reclora`, and are none."""
    return {*re.findall(r"`reclora ([a-z-]+)", page)} - {*COMMANDS.commands}


def check_command(line: str, folder: Path) -> None:
    """Read a command line as the command itself does, without running it: there is such a verb
    with such options, no argument is missing, and what is `--set` is a setting.

    Args:
        folder: where a settings file may be written.

    Raises:
        Exception: what is wrong, as a user of the command line is told it.
    """
    # What another command prints, and what the shell does with what this one prints.
    words = shlex.split(re.sub(r"\$\([^)]*\)", "X", line), comments=True)
    shell = [at for at, word in enumerate(words) if re.fullmatch(r"\d?[<>|&;]+", word)]
    arguments = words[1 : shell[0] if shell else None]
    with COMMANDS.make_context("reclora", arguments.copy()) as context:
        name, command, rest = COMMANDS.resolve_command(context, arguments)
        assert command is not None
        with command.make_context(name, rest, parent=context) as own:
            load_settings("", folder, own.params.get("overrides") or ())


def load_settings(block: str, folder: Path, overrides: Sequence[str] = ()) -> RunSettings:
    """Load a block of TOML as a run's settings; where it names no log, of some file.

    Raises:
        SettingsError: what is wrong.
    """
    path = folder / "run.toml"
    path.write_text(block, encoding="utf-8")
    has_log = tomllib.loads(block).get("log", {}).keys() & {"files", "windows"}
    return load(path, RunSettings, [*([] if has_log else ['log.files=["a.parquet"]']), *overrides])
