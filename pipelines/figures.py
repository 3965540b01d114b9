"""The figures of runs, as others can read, repeat and cite them.

A run writes its own as `figures.json`. Those that the project publishes stand in
`docs/results.json`, under titles and without the places of one machine, and the README's tables are
made from that file:

    python -m reclora.pipelines.figures runs/xmarket-... runs/gowalla-...
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, groupby
from pathlib import Path

import pandas as pd

from reclora.files import write_text

FIGURES = "figures.json"
TITLES = {
    "gowalla": "Gowalla, bases alone",
    "movielens-age_group": "MovieLens 100K, 7 age groups",
    "movielens-1m": "MovieLens 1M, 14 groups of gender and age, users' rows in random order",
    "online-retail": "Online Retail, 37 countries",
    "xmarket": "XMarket electronics, 7 markets",
}
"""What the log of a demo is called where its figures are published."""
BEGIN, END = "<!-- results: made from docs/results.json -->", "<!-- end of results -->"


@dataclass(frozen=True)
class Effort:
    """What a model costs.

    Attributes:
        seeds: how many times it was trained; 1 where nothing is random.
        numbers: that it stores beside what it changes; of a base, its tables.
        seconds: CPU time of one training with the chosen settings; NaN where it is not known.
    """

    seeds: int
    numbers: int
    seconds: float


@dataclass(frozen=True)
class Figure:
    """A model's mean of a metric on a log's test users, with its 95 % interval."""

    log: str
    model: str
    metric: str
    k: int
    value: float
    low: float
    high: float
    users: int
    seeds: int
    numbers: int
    seconds: float | None
    command: str


def figures_of(
    log: str, means: pd.DataFrame, efforts: Mapping[str, Effort], command: str
) -> list[Figure]:
    """The figures of a log: every model whose effort is known, in that order.

    Args:
        means: as `reclora.comparison.means` gives; of it the rows of scope "all".
        command: that makes them.
    """
    whole = means[means["scope"] == "all"]
    found = []
    for model, effort in efforts.items():
        for row in whole[whole["model"] == model].to_dict("records"):
            seconds = None if pd.isna(effort.seconds) else round(effort.seconds, 1)
            value, low, high = (round(float(row[c]), 5) for c in ("mean", "low", "high"))
            found.append(
                Figure(
                    log,
                    model,
                    str(row["metric"]),
                    int(row["k"]),
                    value,
                    low,
                    high,
                    int(row["users"]),
                    effort.seeds,
                    effort.numbers,
                    seconds,
                    command,
                )
            )
    return found


def write_figures(path: Path, figures: Sequence[Figure]) -> None:
    """Write figures as a JSON list, a figure a line."""
    lines = ",\n".join(json.dumps(asdict(figure), ensure_ascii=False) for figure in figures)
    write_text(path, f"[\n{lines}\n]\n" if figures else "[]\n")


def read_figures(path: Path) -> list[Figure]:
    """Read what `write_figures` wrote.

    Raises:
        ValueError: it is no list of figures.
        OSError: it cannot be read.
    """
    try:
        return [Figure(**each) for each in json.loads(path.read_text(encoding="utf-8"))]
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: expected a list of figures, got {error}") from error


def as_published(figure: Figure) -> Figure:
    """A run's figure as it is published: the log's title, and the command that anybody can give,
    `--data FOLDER` and without `--folder`.
    """
    words = shlex.split(figure.command)
    if "--folder" in words:
        at = words.index("--folder")
        del words[at : at + 2]
    if "--data" in words:
        words[words.index("--data") + 1] = "FOLDER"
    return replace(figure, log=TITLES.get(figure.log, figure.log), command=shlex.join(words))


def gathered(published: Iterable[Figure], runs: Iterable[Sequence[Figure]]) -> list[Figure]:
    """What is published, with the logs of new runs in the place of the same ones.

    Raises:
        ValueError: two of the runs are of one log, whatever each has measured.
    """
    added = list(runs)
    times = Counter(log for run in added for log in {figure.log for figure in run})
    for log, count in times.items():
        if count > 1:
            raise ValueError(f"{log}: expected one run of a log, got {count}; publish one of them")
    kept = [figure for figure in published if figure.log not in times]
    return sorted([*kept, *chain.from_iterable(added)], key=lambda figure: figure.log)


def tables_of(figures: Sequence[Figure]) -> str:
    """The figures in Markdown: a table a log, a row a model, a column a metric."""
    return "\n\n".join(_table(log, list(its)) for log, its in groupby(figures, lambda f: f.log))


def _table(log: str, figures: Sequence[Figure]) -> str:
    measures = list(dict.fromkeys((f.metric, f.k) for f in figures))
    head = [f"{_name(metric)}@{k}" for metric, k in measures]
    (command,) = {figure.command for figure in figures}
    lines = [
        f"**{log}**, {figures[0].users:,} test users: `{command}`",
        "",
        f"| model | {' | '.join(head)} | seeds | numbers stored | CPU-s |",
        f"|---|{'---|' * (len(head) + 3)}",
    ]
    for model, its in groupby(figures, lambda f: f.model):
        own = list(its)
        found = {(f.metric, f.k): f for f in own}
        cells = [_with_interval(found[measure]) for measure in measures]
        seconds = "" if own[0].seconds is None else f"{own[0].seconds:,.1f}"
        name = model.replace("|", "\\|")
        lines.append(
            f"| {name} | {' | '.join(cells)} | {own[0].seeds} | {own[0].numbers:,} | {seconds} |"
        )
    return "\n".join(lines)


def _name(metric: str) -> str:
    return "NDCG" if metric == "ndcg" else metric


def _with_interval(figure: Figure) -> str:
    value, low, high = (
        f"{number:.4f}".lstrip("0") for number in (figure.value, figure.low, figure.high)
    )
    return f"{value} [{low}, {high}]"


def with_tables(readme: str, figures: Sequence[Figure]) -> str:
    """A README with the tables between its two marks.

    Raises:
        ValueError: it has not the two marks.
    """
    between = re.compile(f"(?<={re.escape(BEGIN)}\n).*?(?={re.escape(END)})", re.DOTALL)
    if not between.search(readme):
        raise ValueError(f"the README has no lines {BEGIN!r} and {END!r} to put the tables between")
    return between.sub(lambda found: f"\n{tables_of(figures)}\n\n", readme)


def publish(root: Path, runs: Sequence[Path]) -> None:
    """Take runs' figures into `docs/results.json`, and its tables into the README.

    Raises:
        ValueError, OSError: a file is not there, or not what it should be.
    """
    results, readme = root / "docs" / "results.json", root / "README.md"
    new = [[as_published(figure) for figure in read_figures(run / FIGURES)] for run in runs]
    figures = gathered(read_figures(results) if results.exists() else [], new)
    text = with_tables(readme.read_text(encoding="utf-8"), figures)
    results.parent.mkdir(exist_ok=True)
    write_figures(results, figures)
    write_text(readme, text)


if __name__ == "__main__":
    publish(Path(), [Path(run) for run in sys.argv[1:]])
