"""What the verbs share: the settings file, what replaces parts of it, the line that repeats it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from .run import RunSettings

SettingsFile = Annotated[Path, typer.Argument(help="The run's settings, a TOML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Replace one setting; repeatable."),
]


def load_run(settings: Path, overrides: list[str] | None) -> RunSettings:
    """The settings of a run (SettingsError: what is wrong with them)."""
    from .run import RunSettings
    from .settings import load

    return load(settings, RunSettings, overrides or [])


def command_line(words: Sequence[object], overrides: list[str] | None) -> str:
    """The command line of a verb, as a shell takes it."""
    changes = [part for override in overrides or [] for part in ("--set", override)]
    return shlex.join(["reclora", *map(str, words), *changes])
