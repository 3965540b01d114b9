"""The verbs: `reclora demo | settings | prepare | pretrain | retrain | evaluate | report |
recommend | tune | stability | rank-curve | segments discover | doctor`, and those on a store:
`promote | rollback | history | diff | verify | gc`.

Nothing heavy is imported before a verb needs it, so that `--help` answers at once. Results go to
stdout, progress and errors to stderr. Exit codes:

    0    done
    1    failed; nothing that was live has changed
    2    wrong usage or settings
    3    `evaluate --require` is not met
    4    `retrain`: done, but some segments are quarantined: for them what was live stays
    5    `retrain`: done, but nothing went live: all that was live stays
    130  interrupted (SIGINT, SIGTERM): the same command goes on where it was
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from . import (
    discover_cli,
    evaluate_cli,
    operate,
    rank_curve_cli,
    recommend_cli,
    stability_cli,
    tune_cli,
    usage,
)
from .options import Overrides, SettingsFile, command_line, load_run
from .ranks import is_first, num_ranks

app = typer.Typer(
    name="reclora",
    no_args_is_help=True,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    help="LoRA for recommenders: one frozen base, an adapter per segment, measured offline.",
)


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help=f"Of an error the traceback, too; or {usage.DEBUG}=1.")
    ] = False,
) -> None:
    """What comes before a verb."""
    if debug:
        os.environ[usage.DEBUG] = "1"
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"reclora {installed('reclora')}")
        raise typer.Exit


@app.command()
def demo(
    log: Annotated[
        Literal["movielens", "movielens-1m", "xmarket", "online-retail", "gowalla"],
        typer.Argument(help="A public log."),
    ] = "movielens",
    segment_by: Annotated[
        Literal["age_group", "gender", "occupation", "all"] | None,
        typer.Option(help="What a segment of movielens is; age_group if not given."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="A folder with the log's public files; else MovieLens 100K is taken."),
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("runs"),
    overrides: Overrides = None,
) -> None:
    """The main job on a public log: pretrain, adapt per segment, evaluate, report.

    Without arguments it takes MovieLens 100K.
    On gowalla, which has no segments, it compares ways to pretrain a base.

    Example: reclora demo --segment-by gender

    Example: reclora demo xmarket --data FOLDER
    """
    from .demo import demo as run_demo
    from .summary import print_outcome

    if segment_by and log != "movielens":
        raise typer.BadParameter(f"--segment-by is for movielens; {log} has segments of its own")
    places = ["--folder", folder, *(["--data", data] if data else [])]
    by = segment_by or "age_group"
    words = [log, *(["--segment-by", by] if log == "movielens" else [])]
    repeat = command_line(["demo", *words, *places], overrides)
    if log == "gowalla":
        from .demo import demo_of_bases
        from .summary import print_studied

        print_studied(demo_of_bases(data, folder, overrides or [], repeat))
        return
    other = "occupation" if by != "occupation" else "gender"
    following = None
    if log == "movielens":
        following = command_line(["demo", log, "--segment-by", other, *places], overrides)
    print_outcome(run_demo(log, data, folder, overrides or [], repeat, by), following)


@app.command("settings")
def show_settings(
    settings: Annotated[
        Path | None,
        typer.Argument(help="The run's settings, a TOML file; else a start for a new one."),
    ] = None,
    overrides: Overrides = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say of each setting what it means.")
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of the file, for editors.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print every setting of a run, each with where its value comes from.

    Without a file: a commented settings file to begin a new run with.

    Example: reclora settings > run.toml

    Example: reclora settings run.toml --set training.epochs=5 --explain

    Example: reclora settings --schema > run.schema.json
    """
    if settings is None and overrides:
        raise typer.BadParameter("--set changes the settings of a file; name the file, too")
    if schema and (settings or explain):
        raise typer.BadParameter("--schema is the same for all runs; it takes no file or --explain")
    from . import settings_shown as shown

    if schema:
        typer.echo(shown.schema())
        return
    if settings is None and not json:
        typer.echo(shown.starting_point(), nl=False)
        return
    found = shown.beginning() if settings is None else shown.shown(settings, overrides or [])
    if json:
        typer.echo(shown.as_json(found, explain))
    else:
        typer.echo(shown.as_toml(found, explain), nl=False)


@app.command()
def prepare(settings: SettingsFile, overrides: Overrides = None) -> None:
    """Check the interaction log and lay it out by segment.

    Example: reclora prepare run.toml
    """
    from .prepare import prepare as run_prepare
    from .summary import print_log

    loaded = load_run(settings, overrides)
    following = command_line(["pretrain", settings], overrides)
    print_log(run_prepare(loaded), loaded.log_folder, following)


@app.command()
def pretrain(settings: SettingsFile, overrides: Overrides = None) -> None:
    """Make the base model from the log's first window, or import its tables.

    Example: reclora pretrain run.toml --set base.half_life=120
    """
    from .prepare import prepare as run_prepare
    from .pretrain import pretrain as run_pretrain

    loaded = load_run(settings, overrides)
    base = run_pretrain(loaded, run_prepare(loaded).inputs)
    following = command_line(["retrain", settings], overrides)
    typer.echo(f"{base!r}\n{loaded.base_folder}\nnext: {following}")


@app.command()
def retrain(
    settings: SettingsFile,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="SEGMENT", help="Train this segment alone; repeatable."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, and say what would be trained.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume/--no-resume", help="Go on with what an interrupted run has left."),
    ] = True,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    overrides: Overrides = None,
) -> None:
    """Train one adapter per segment in one pass, publish what passes the gate, evaluate, report.

    An interrupted run goes on with the same command.
    Exit codes: 4 segments are quarantined, 5 nothing went live, 130 interrupted.

    Example: reclora retrain run.toml

    Example: reclora retrain run.toml --only de --dry-run

    Example: torchrun --nproc-per-node 4 --no-python reclora retrain run.toml
    """
    from .plan import plan
    from .retrain import retrain as run_retrain
    from .summary import outcome_as_json, plan_as_json, print_outcome, print_plan

    names = only or []
    words = ["retrain", settings, *(word for name in names for word in ("--only", name))]
    loaded = replace(load_run(settings, overrides), repeat=command_line(words, overrides))
    if dry_run:
        planned = plan(loaded, names)
        if json:
            typer.echo(plan_as_json(planned))
        else:
            print_plan(planned)
        return
    if not is_first():
        from .orders import help_first

        return help_first(loaded)
    outcome = run_retrain(loaded, names, resume)
    if json:
        typer.echo(outcome_as_json(outcome))
    else:
        print_outcome(outcome, None)
    if num_ranks() > 1:
        # torchrun takes every code but 0 for a failure, and would start all ranks again.
        return
    if outcome.decisions.of("quarantined"):
        raise typer.Exit(4)
    if not outcome.decisions.goes_live:
        raise typer.Exit(5)


@app.command()
def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is installed, what fits and what to do.

    Example: reclora doctor
    """
    from .doctor import run

    raise typer.Exit(run(json))


app.add_typer(evaluate_cli.verbs)
app.add_typer(recommend_cli.verbs)
app.add_typer(tune_cli.verbs)
app.add_typer(discover_cli.verbs)
app.add_typer(stability_cli.verbs)
app.add_typer(rank_curve_cli.verbs)
app.add_typer(operate.verbs)


def main() -> None:
    """The console command."""
    from reclora.environment import WrongEnvironmentError, check_environment

    # Read once, when torch is loaded: threads that wait must not spin on shared cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if os.environ.get("NO_COLOR"):
        # Without colours there would still be bold type and a moving cursor.
        os.environ["TERM"] = "dumb"
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    verb = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    if num_ranks() > 1 and verb != "retrain":
        if is_first():
            print(f"only `retrain` runs on several ranks; start {verb} alone", file=sys.stderr)
        sys.exit(2)
    try:
        if _needs_torch(sys.argv[1:]):
            check_environment()
        code = app(standalone_mode=False)
    except KeyboardInterrupt:
        _exit_interrupted()
    except usage.UsageError as error:
        usage.tell(error)
        sys.exit(2)
    except (
        WrongEnvironmentError,
        ValueError,
        OSError,
        RuntimeError,
        KeyError,
        MemoryError,
    ) as error:
        from .settings import SettingsError

        usage.tell(error)
        sys.exit(2 if isinstance(error, SettingsError) else 1)
    # Typer makes a silent exit of an interrupt.
    if code == 130:
        _exit_interrupted()
    sys.exit(code)


def _needs_torch(words: Sequence[str]) -> bool:
    """Whether what is asked for would fail, late, where torch and its companions do not fit."""
    verb = next((word for word in words if not word.startswith("-")), "")
    return "--help" not in words and verb != "doctor" and "_RECLORA_COMPLETE" not in os.environ


def _interrupt(number: int, frame: object) -> NoReturn:
    """The first signal stops in an orderly way, the second one at once."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt


def _exit_interrupted() -> NoReturn:
    print(
        "interrupted; run the same command again: it goes on where it was",
        file=sys.stderr,
    )
    sys.exit(130)
