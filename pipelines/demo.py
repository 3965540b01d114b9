"""The main job on public logs, from their raw files to a report.

| name | segments | settings |
|---|---|---|
| movielens | age groups, or as asked; MovieLens 100K is taken where no data is given | demo.toml |
| movielens-1m | gender x age group; each user's rows in a random order | movielens_1m.toml |
| xmarket | markets | xmarket.toml |
| online-retail | countries | online_retail.toml |
| gowalla | none: ways to pretrain a base are compared | gowalla.toml |
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, get_args

from reclora.datasets import gowalla, movielens

from .bases import Studied, study_bases
from .bases_settings import StudySettings
from .retrain import Outcome, retrain
from .run import RunSettings
from .settings import SettingsError, load

Name = Literal["movielens", "movielens-1m", "xmarket", "online-retail"]
SegmentBy = Literal["age_group", "gender", "occupation", "all"]


def demo(
    name: Name,
    data: Path | None,
    folder: Path,
    overrides: list[str],
    repeat: str,
    segment_by: SegmentBy = "age_group",
) -> Outcome:
    """Take the data, write the log, run `retrain`.

    Args:
        data: a folder with the public files; None takes MovieLens 100K.
        folder: gets a folder for the run, and `demo/` for all else; what is there is reused.
        overrides: of the settings, as `settings.load` takes them.
        repeat: the command that makes this run, printed in its report.
        segment_by: what a segment is, of `movielens`.

    Raises:
        SettingsError: no data is given for a log that cannot be taken from anywhere.
        ValueError: the data cannot be had, or is not what it should be.
    """
    work = folder / "demo"
    is_movielens = name == "movielens"
    if data is None:
        if not is_movielens:
            raise _no_data(name)
        print("MovieLens 100K, by GroupLens: for research, not to be passed on", file=sys.stderr)
        data = movielens.fetch(work / "movielens")
    own = segment_by if is_movielens else name
    log = _writer(name, segment_by)(data, work / f"{own}.parquet")
    given = {
        "log.files": [str(log)],
        "name": f"{name}-{segment_by}" if is_movielens else name,
        "folder": str(work / own),
        "runs": str(folder),
        "repeat": repeat,
    }
    return retrain(load(settings_of(name), RunSettings, [*_changes(given), *overrides]))


def demo_of_bases(data: Path | None, folder: Path, overrides: list[str], repeat: str) -> Studied:
    """Compare ways to pretrain a base, on Gowalla; arguments and errors as `demo` has them."""
    if data is None:
        raise _no_data("gowalla")
    work = folder / "demo" / "gowalla"
    train, test = gowalla.write_logs(data, work / "logs")
    given = {
        "train": str(train),
        "test": str(test),
        "folder": str(work),
        "runs": str(folder),
        "repeat": repeat,
    }
    return study_bases(load(settings_of("gowalla"), StudySettings, [*_changes(given), *overrides]))


def _changes(given: Mapping[str, object]) -> list[str]:
    """Settings as overrides: strings and lists of them are written alike in JSON and TOML."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in given.items()]


def _no_data(name: str) -> SettingsError:
    return SettingsError(
        f"{name} is not taken from anywhere: give the folder of its public files, --data FOLDER; "
        "where they are published stands in the data card, datasets/README.md"
    )


def settings_of(name: Name | Literal["gowalla"]) -> Path:
    """The file of settings of a demo."""
    file = "demo" if name == "movielens" else name.replace("-", "_")
    return Path(__file__).with_name(f"{file}.toml")


def _writer(name: Name, segment_by: SegmentBy) -> Callable[[Path, Path], Path]:
    """(the folder of the public files, the log to write) -> the log."""
    assert name in get_args(Name)
    if name == "movielens":
        return lambda data, log: movielens.write_log(data, log, segment_by)
    if name == "movielens-1m":
        return lambda data, log: movielens.write_log(data, log, "gender_age", order="random")
    if name == "xmarket":
        from reclora.datasets import xmarket

        return xmarket.write_log
    from reclora.datasets import online_retail

    return online_retail.write_log
