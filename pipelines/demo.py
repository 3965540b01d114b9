"""The main job on MovieLens 100K, from nothing to a report."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from reclora.datasets import movielens

from .retrain import Outcome, retrain
from .run import RunSettings
from .settings import load

SETTINGS = Path(__file__).with_name("demo.toml")


def demo(
    segment_by: str, data: Path | None, folder: Path, overrides: list[str], repeat: str
) -> Outcome:
    """Take the data, write the log, run `retrain`.

    Args:
        segment_by: what a segment is: age_group, gender, occupation or all.
        data: a folder with MovieLens in a public format; None takes MovieLens 100K.
        folder: gets a folder for the run, and `demo/` for all else; what is there is reused.
        overrides: of the settings, as `settings.load` takes them.
        repeat: the command that makes this run, printed in its report.

    Raises:
        MovieLensError: the data cannot be had, or is not what it should be.
    """
    work = folder / "demo"
    if data is None:
        print("MovieLens 100K, by GroupLens: for research, not to be passed on", file=sys.stderr)
    source = movielens.fetch(work / "movielens") if data is None else data
    log = movielens.write_log(source, work / f"{segment_by}.parquet", segment_by)
    given = {
        "log.files": [str(log)],
        "name": f"demo-{segment_by}",
        "folder": str(work / segment_by),
        "runs": str(folder),
        "repeat": repeat,
    }
    # Strings and lists of them are written alike in JSON and TOML.
    changes = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in given.items()]
    return retrain(load(SETTINGS, RunSettings, [*changes, *overrides]))
