"""The verbs: `reclora demo | prepare | pretrain | retrain | evaluate | recommend | doctor`, and
those on a store: `promote | rollback | history | diff | verify | gc`.

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
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from . import operate, recommend_cli

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

    Without arguments it takes MovieLens 100K. On gowalla, which has no segments, it compares ways
    to pretrain a base.

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
    repeat = _command(["demo", *words, *places], overrides)
    if log == "gowalla":
        from .demo import demo_of_bases
        from .summary import print_studied

        print_studied(demo_of_bases(data, folder, overrides or [], repeat))
        return
    other = "occupation" if by != "occupation" else "gender"
    following = None
    if log == "movielens":
        following = _command(["demo", log, "--segment-by", other, *places], overrides)
    print_outcome(run_demo(log, data, folder, overrides or [], repeat, by), following)


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

    Example: reclora pretrain run.toml --set base.factorisation.embedding_dim=32
    """
    from .prepare import prepare as run_prepare
    from .pretrain import pretrain as run_pretrain

    loaded = _load(settings, overrides)
    base = run_pretrain(loaded, run_prepare(loaded).inputs)
    following = _command(["retrain", settings], overrides)
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

    An interrupted run goes on with the same command. Exit codes: 4 where segments are quarantined,
    5 where nothing went live, 130 where it was interrupted.

    Example: reclora retrain run.toml

    Example: reclora retrain run.toml --only de --dry-run
    """
    from .plan import plan
    from .retrain import retrain as run_retrain
    from .summary import outcome_as_json, plan_as_json, print_outcome, print_plan

    names = only or []
    words = ["retrain", settings, *(word for name in names for word in ("--only", name))]
    loaded = replace(_load(settings, overrides), repeat=_command(words, overrides))
    if dry_run:
        planned = plan(loaded, names)
        if json:
            typer.echo(plan_as_json(planned))
        else:
            print_plan(planned)
        return
    outcome = run_retrain(loaded, names, resume)
    if json:
        typer.echo(outcome_as_json(outcome))
    else:
        print_outcome(outcome, None)
    if outcome.decisions.of("quarantined"):
        raise typer.Exit(4)
    if not outcome.decisions.goes_live:
        raise typer.Exit(5)


@app.command()
def evaluate(
    settings: Annotated[
        Path | None, typer.Argument(help="The run's settings, a TOML file; or files as below.")
    ] = None,
    releases: Annotated[
        list[int] | None,
        typer.Option("--release", help="A release, instead of the current one; repeatable."),
    ] = None,
    recommendations: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FILE",
            help="Lists of any system: user_id, item_id, rank or score; repeatable, the first is "
            "held against the others.",
        ),
    ] = None,
    holdout: Annotated[
        Path | None, typer.Option(help="What users did next: user_id, item_id.")
    ] = None,
    seen: Annotated[
        Path | None, typer.Option(help="What they did before: user_id, item_id.")
    ] = None,
    k: Annotated[list[int] | None, typer.Option("-k", help="A list length; repeatable.")] = None,
    metrics: Annotated[
        list[str] | None, typer.Option("--metric", help="A metric; repeatable.")
    ] = None,
    slices: Annotated[
        list[str] | None, typer.Option("--slice", help="A column of the held-out file; repeatable.")
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where an evaluation of files goes.")] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    require: Annotated[
        Literal["better", "not-worse"] | None,
        typer.Option(help="Exit with code 3 unless this is the verdict over all segments."),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Evaluate what is live, or the lists of any other system.

    Example: reclora evaluate run.toml

    Example: reclora evaluate --recommendations recs.parquet --holdout test.parquet
    """
    if (settings is None) == (recommendations is None or holdout is None):
        raise typer.BadParameter("give a settings file, or --recommendations and --holdout")
    if settings is not None and (seen or k or metrics or slices or recommendations or holdout):
        raise typer.BadParameter(
            "with a settings file these are settings, such as --set 'evaluation.ks=[5]', "
            "--set 'evaluation.metrics=[\"mrr\"]' and --set 'log.contract.attributes=[\"device\"]'"
        )
    if settings is None and (releases or overrides):
        raise typer.BadParameter("--release and --set go with a settings file")
    if require and settings is None and len(recommendations or []) < 2 and seen is None:
        raise typer.BadParameter(
            "--require needs something to compare with: a second --recommendations, or --seen, "
            "whose popularity it is then"
        )
    from .evaluate import evaluate_releases
    from .evaluate_lists import evaluate_files
    from .summary import as_json, print_evaluated

    given: dict[str, object] = {
        "--release": releases,
        "--recommendations": recommendations,
        "--holdout": holdout,
        "--seen": seen,
        "-k": k,
        "--metric": metrics,
        "--slice": slices,
    }
    repeat = _evaluation_command(settings, overrides, given)
    if settings is not None:
        loaded = replace(_load(settings, overrides), repeat=repeat)
        evaluated = evaluate_releases(loaded, releases or [])
    else:
        assert recommendations is not None and holdout is not None
        from reclora.evaluation import EvaluationConfig

        default = EvaluationConfig()
        try:
            config = EvaluationConfig(tuple(k or default.ks), tuple(metrics or default.metrics))
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        evaluated = evaluate_files(
            _named(recommendations),
            holdout,
            seen,
            config,
            attributes=slices or [],
            runs=folder,
            repeat=repeat,
        )
    if json:
        typer.echo(as_json(evaluated))
    else:
        print_evaluated(evaluated)
    met = {"better": evaluated.verdict == "better", "not-worse": evaluated.verdict != "worse"}
    if require is not None and not met[require]:
        print(
            f"required: {require}; {evaluated.subject} over {evaluated.baseline or 'nothing'}: "
            f"{evaluated.verdict}",
            file=sys.stderr,
        )
        raise typer.Exit(3)


@app.command()
def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is installed, what fits and what to do.

    Example: reclora doctor
    """
    from .doctor import run

    raise typer.Exit(run(json))


app.add_typer(recommend_cli.verbs)
app.add_typer(operate.verbs)


def _load(settings: Path, overrides: list[str] | None) -> RunSettings:
    from .run import RunSettings
    from .settings import load

    return load(settings, RunSettings, overrides or [])


def _named(recommendations: Sequence[str]) -> dict[str, Path]:
    """The names of lists and their files: as given, or the file's own."""
    named: dict[str, Path] = {}
    for given in recommendations:
        name, equals, path = given.partition("=")
        # A path may have an equals sign in it.
        if not equals or Path(given).exists():
            name, path = Path(given).stem, given
        if not name:
            raise typer.BadParameter(f"lists need a name, got {given!r}; write NAME=FILE")
        if name in named:
            raise typer.BadParameter(f"two lists are called {name!r}; write NAME=FILE")
        named[name] = Path(path)
    return named


def _evaluation_command(
    settings: Path | None, overrides: list[str] | None, options: Mapping[str, object]
) -> str:
    """The command line of `evaluate` with what was given."""
    words: list[object] = ["evaluate", *([settings] if settings else [])]
    for option, given in options.items():
        values = given if isinstance(given, list) else [given] if given is not None else []
        words += [word for value in values for word in (option, value)]
    return _command(words, overrides)


def _command(words: Sequence[object], overrides: list[str] | None) -> str:
    """The command line of a verb, as a shell takes it."""
    changes = [part for override in overrides or [] for part in ("--set", override)]
    return shlex.join(["reclora", *map(str, words), *changes])


def main() -> None:
    """The console command."""
    from reclora.environment import WrongEnvironmentError, check_environment

    # Read once, when torch is loaded: threads that wait must not spin on shared cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
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
    except (
        WrongEnvironmentError,
        ValueError,
        OSError,
        RuntimeError,
        KeyError,
        MemoryError,
    ) as error:
        from .settings import SettingsError

        print(f"reclora: {_said(error)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, SettingsError) else 1)


def _said(error: BaseException) -> str:
    """An error in a sentence: of the disk without its number, a key without its quotes."""
    if isinstance(error, OSError) and error.strerror:
        names = [str(name) for name in (error.filename, error.filename2) if name]
        return f"{' -> '.join(names)}: {error.strerror}" if names else error.strerror
    if isinstance(error, KeyError) and len(error.args) == 1:
        return str(error.args[0])
    return str(error)


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
