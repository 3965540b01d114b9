"""The verbs: `reclora demo | prepare | pretrain | retrain | doctor`.

Nothing heavy is imported before a verb needs it, so that `--help` answers at once. Results go to
stdout, progress and errors to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 130
interrupted.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

if TYPE_CHECKING:
    from .run import RunSettings

app = typer.Typer(
    name="reclora",
    no_args_is_help=True,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="LoRA for recommenders: one frozen base, an adapter per segment, measured offline.",
)

SettingsFile = Annotated[Path, typer.Argument(help="The run's settings, a TOML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Replace one setting; repeatable."),
]


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """What comes before a verb."""
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"reclora {installed('reclora')}")
        raise typer.Exit


@app.command()
def demo(
    segment_by: Annotated[
        Literal["age_group", "gender", "occupation", "all"],
        typer.Option(help="What a segment is."),
    ] = "age_group",
    data: Annotated[
        Path | None,
        typer.Option(help="A folder with MovieLens in a public format; else ML-100K is taken."),
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("runs"),
    overrides: Overrides = None,
) -> None:
    """The main job on MovieLens 100K: pretrain, adapt per segment, evaluate, report.

    Example: reclora demo --segment-by gender
    """
    from .demo import demo as run_demo
    from .summary import print_outcome

    places = ["--folder", folder, *(["--data", data] if data else [])]
    repeat = _command(["demo", "--segment-by", segment_by, *places], overrides)
    other = "occupation" if segment_by != "occupation" else "gender"
    following = _command(["demo", "--segment-by", other, *places], overrides)
    print_outcome(run_demo(segment_by, data, folder, overrides or [], repeat), following)


@app.command()
def prepare(settings: SettingsFile, overrides: Overrides = None) -> None:
    """Check the interaction log and lay it out by segment.

    Example: reclora prepare run.toml
    """
    from .prepare import prepare as run_prepare
    from .summary import print_log

    loaded = _load(settings, overrides)
    following = _command(["pretrain", settings], overrides)
    print_log(run_prepare(loaded), loaded.log_folder, following)


@app.command()
def pretrain(settings: SettingsFile, overrides: Overrides = None) -> None:
    """Make the base model from the log's first window, or import its tables.

    Example: reclora pretrain run.toml --set base.embedding_dim=64
    """
    from .prepare import prepare as run_prepare
    from .pretrain import pretrain as run_pretrain

    loaded = _load(settings, overrides)
    base = run_pretrain(loaded, run_prepare(loaded).inputs)
    following = _command(["retrain", settings], overrides)
    typer.echo(f"{base!r}\n{loaded.base_folder}\nnext: {following}")


@app.command()
def retrain(settings: SettingsFile, overrides: Overrides = None) -> None:
    """Train a pooled adapter and on it one per segment in one pass, evaluate, report and publish.

    Example: reclora retrain run.toml
    """
    from .retrain import retrain as run_retrain
    from .summary import print_outcome

    loaded = replace(_load(settings, overrides), repeat=_command(["retrain", settings], overrides))
    print_outcome(run_retrain(loaded), None)


@app.command()
def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is installed, what fits and what to do.

    Example: reclora doctor
    """
    from .doctor import run

    raise typer.Exit(run(json))


def _load(settings: Path, overrides: list[str] | None) -> RunSettings:
    from .run import RunSettings
    from .settings import load

    return load(settings, RunSettings, overrides or [])


def _command(words: Sequence[object], overrides: list[str] | None) -> str:
    """The command line of a verb, as a shell takes it."""
    changes = [part for override in overrides or [] for part in ("--set", override)]
    return shlex.join(["reclora", *map(str, words), *changes])


def main() -> None:
    """The console command."""
    from reclora.environment import WrongEnvironmentError, check_environment

    # Read once, when torch is loaded: threads that wait must not spin on shared cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        if not {"--help", "doctor"} & set(sys.argv[1:2]):
            check_environment()
        app()
    except KeyboardInterrupt:
        _exit_interrupted()
    except SystemExit as exit:
        # Typer makes a silent exit of an interrupt.
        if exit.code == 130:
            _exit_interrupted()
        raise
    except (WrongEnvironmentError, ValueError, OSError, RuntimeError, KeyError) as error:
        from .settings import SettingsError

        print(f"reclora: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, SettingsError) else 1)


def _exit_interrupted() -> NoReturn:
    print(
        "interrupted; run the same command again: the log and the base model are kept",
        file=sys.stderr,
    )
    sys.exit(130)
