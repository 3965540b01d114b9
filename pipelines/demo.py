"""The main job on MovieLens 100K, from nothing to a report."""

from __future__ import annotations

from pathlib import Path

from reclora.datasets import movielens

from .retrain import Outcome, retrain
from .run import RunSettings
from .settings import load

SETTINGS = Path(__file__).with_name("demo.toml")


def demo(segment_by: str, data: Path | None, folder: Path, overrides: list[str]) -> Outcome:
    """Take the data, write the log, run `retrain`.

    Args:
        segment_by: what a segment is: age_group, gender or occupation.
        data: a folder with MovieLens in a public format; None takes MovieLens 100K.
        folder: where everything goes; what is there is reused.

    Raises:
        MovieLensError: the data cannot be had, or is not what it should be.
    """
    source = movielens.fetch(folder / "movielens") if data is None else data
    log = folder / f"{segment_by}.parquet"
    movielens.write_log(source, log, segment_by)
    work = folder / segment_by
    given = [
        f"name='demo-{segment_by}'",
        f"folder='{work}'",
        f"runs='{folder.parent}'",
        f"repeat='reclora demo --segment-by {segment_by}'",
    ]
    settings = load(SETTINGS, RunSettings, [f"log.files=['{log}']", *given, *overrides])
    return retrain(settings)
