"""The verbs `reclora evaluate` and `reclora report`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from .options import Overrides, command_line, load_run

verbs = typer.Typer()


@verbs.command()
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
        list[str] | None, typer.Option("--metric", help="A metric, in any case; repeatable.")
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

    Example: reclora evaluate --recommendations a.parquet --holdout b.parquet
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
        loaded = replace(load_run(settings, overrides), repeat=repeat)
        evaluated = evaluate_releases(loaded, releases or [])
    else:
        assert recommendations is not None and holdout is not None
        from reclora.evaluation import EvaluationConfig

        default = EvaluationConfig()
        try:
            config = EvaluationConfig(
                tuple(k or default.ks),
                # nDCG and MRR are how papers write them.
                tuple(name.lower() for name in metrics or default.metrics),
            )
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


@verbs.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="A finished run's folder, or two of them.", metavar="RUN..."),
    ],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a run came to, in Markdown; of two runs, hold the first against the second.

    Two runs are compared on the users that both have measured, and get a page of their own.

    Example: reclora report runs/shop-0a1b2c3d4e

    Example: reclora report runs/shop-0a1b2c3d4e runs/shop-5f6a7b8c9d --json
    """
    if len(runs) > 2:
        raise typer.BadParameter(f"expected one run or two, got {len(runs)}")
    from .beside import beside, summary_of

    made = beside(*runs) if len(runs) == 2 else summary_of(runs[0])
    if json:
        typer.echo(made.as_json())
        return
    typer.echo(made.text, nl=False)
    print(f"report    {made.page}", file=sys.stderr)


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
    return command_line(words, overrides)
