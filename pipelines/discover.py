"""Find segments in a log that has none, or others: clusters of users, their number by validation.

    log -> windows, without test -> base
        -> clusters of users, for each number, by rows before validation alone
        -> pooled adapter: its search chooses the rates of all, and segments stand on it
        -> each number's own adapters, in one pass: 1, everybody as one segment, too
        -> the smallest number within one standard error of the best; the given segments beside it

That 1 is trained as the others are makes segments the only difference: training longer is none. All
are judged by the same validation users, who chose no epoch. Every segment has all that [adapter]
says; `parent = "auto"` counts as `pooled`. Nothing is published.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from reclora.base import BaseModel
from reclora.comparison import compare
from reclora.discovery import (
    cluster_users,
    labels_of,
    main_segments,
    name_clusters,
    with_segments,
)
from reclora.files import make_folder, write_parquet, write_parquet_parts
from reclora.interactions import IdMap, Interactions
from reclora.ladder import smallest_within_error
from reclora.splits import WINDOWS, Windows

from .alone import alone_in, writing_alone
from .contenders import (
    POOLED,
    SUBJECT,
    Contender,
    Ground,
    choose,
    headline_values,
    num_folds,
    train_contender,
)
from .inputs import onto_base
from .learning import adapt_log
from .prepare import prepare, windows_of
from .pretrain import check_earlier, pretrain
from .progress import step
from .ranks import num_ranks
from .run import RunFolder, RunSettings, files_of
from .settings import SettingsError
from .workshop import Workshop

NUMBERS: Final = (1, 2, 4, 8, 16)
GIVEN: Final = "given"


@dataclass(frozen=True)
class Segmentation:
    """A segment for each user."""

    labels_U: NDArray[np.int64]
    """Positions in `names`, one for each of the base's users."""
    names: tuple[str, ...]


@dataclass(frozen=True)
class Discovered:
    """What was compared, and the segments that were chosen."""

    measure: str
    """The headline metric."""
    table: pd.DataFrame
    """A row a number, and one for the given segments: segments (the number, or `given`), count,
    users, mean, difference (to 1, one segment of all), low, high, verdict, chosen."""
    number: int
    """The chosen one; 1: no segments."""
    segmentations: Mapping[str, Segmentation]
    """All that were compared, by what `segments` calls them."""
    users: IdMap
    """Those of the base."""
    given: pd.DataFrame
    """The chosen ones against the given ones: a row of `reclora.comparison.compare`; none where the
    log has one segment."""
    moved: float
    """The share of rows before the test window in another segment than most of their user's: to be
    compared user by user, given segments are taken as their users' too."""

    @property
    def chosen(self) -> Segmentation:
        """That of the chosen number."""
        return self.segmentations[str(self.number)]

    @property
    def outcome(self) -> str:
        """What came of it, in sentences."""
        rows = {str(row["segments"]): row for row in self.table.to_dict("records")}
        said = f"{self.measure} on validation, {rows['1']['users']:,} users: "
        if self.number == 1:
            said += "no segments; no number of them is better by more than a standard error."
        else:
            numbers = [name for name in rows if name != GIVEN]
            best = max(numbers, key=lambda name: float(rows[name]["mean"]))
            its = rows[str(self.number)]
            said += (
                f"{self.number} segments, the smallest number within a standard error of the best, "
                f"{best}: {_lift(its)} to one segment of all, {its['verdict']}."
            )
        if self.given.empty:
            return f"{said} The log has one segment: there are no others to compare with."
        (its,) = self.given.to_dict("records")
        said += f" Against the {rows[GIVEN]['count']:,} given segments: {_lift(its)}, "
        said += f"{its['verdict']}; the number was chosen by these users, which flatters it."
        if self.moved:
            said += (
                f" {self.moved:.1%} of the rows are in another segment than most of their user's; "
                "here they count as of that one."
            )
        return said

    @property
    def sizes(self) -> dict[str, int]:
        """Segment -> users of the base in it, the first of the largest number with rows."""
        chosen = self.chosen
        counts = np.bincount(chosen.labels_U, minlength=len(chosen.names)).tolist()
        return dict(zip(chosen.names, counts, strict=True))

    @property
    def segments(self) -> pa.Table:
        """user_id, segment: a row for each of the base's users."""
        names = pa.array(self.chosen.names, pa.string())
        return pa.table(
            {"user_id": self.users.ids, "segment": names.take(pa.array(self.chosen.labels_U))}
        )

    def write(self, path: Path) -> None:
        """Write `segments` as Parquet with page checksums, whole or not at all (OSError)."""
        make_folder(path.parent)
        write_parquet(path, self.segments)

    def write_log(self, settings: RunSettings, folder: Path) -> dict[Path, Path]:
        """Write the log's files with their segment column replaced, a row group at a time.

        All rows and other columns stay as they are, those of the test window too. A user whom the
        base does not know is of the largest segment; a row without a user has none.

        Returns:
            File -> what was written of it.

        Raises:
            FileExistsError: a file is there already.
            OSError: a file cannot be read or written; what was written of it is not there.
        """
        written = files_to_write(settings, folder)
        with step("writing the log") as progress:
            for done, (path, target) in enumerate(written.items(), 1):
                make_folder(target.parent)
                write_parquet_parts(target, self._parts(path))
                progress(done, len(written))
        return written

    def _parts(self, path: Path) -> Iterator[pa.Table]:
        names = pa.array(self.chosen.names, pa.string())
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            place = file.schema_arrow.names.index("segment")
            groups = map(file.read_row_group, range(file.metadata.num_row_groups))
            # What pandas notes of the types of columns need not hold of another one.
            empty = file.schema_arrow.remove_metadata().empty_table()
            for table in groups if file.metadata.num_row_groups else [empty]:
                labels = labels_of(self.users, self.chosen.labels_U, table["user_id"])
                segments = names.take(pa.array(labels, mask=labels < 0))
                yield table.replace_schema_metadata().set_column(place, "segment", segments)


def discover(settings: RunSettings, numbers: Sequence[int] = NUMBERS) -> Discovered:
    """Cluster users, choose the number by validation, and compare with the log's own segments.

    Interrupted, the same call goes on where it was.

    Args:
        numbers: of segments; 1, everybody as one, is always among them.

    Raises:
        LogError, SettingsError, BaseError, ValueError: what is wrong with input or settings.
        TrainingError: every segment of a number is quarantined.
        Busy: another run is at work in the same folder.
        OSError: a file cannot be written.
    """
    check(settings, numbers)
    with alone_in(settings.folder):
        base, windows, inputs = _read(settings)
    # Interrupted, the same call goes on in here; what comes of it is not kept here.
    mine = replace(settings, name=f"{settings.name}-segments")
    folder = RunFolder(mine, base.fingerprint, inputs, sorted({1, *numbers}))
    with writing_alone(folder.path):
        folder.begin()
        found = _discover(settings, numbers, base, windows, folder.training)
        folder.forget()
        # Who has just begun the same has been refused, or has written here already.
        with contextlib.suppress(OSError):
            folder.path.rmdir()
    return found


def _discover(
    settings: RunSettings,
    numbers: Sequence[int],
    base: BaseModel,
    windows: Windows,
    training: Path,
) -> Discovered:
    log, found = adapt_log(settings, windows), dict[str, Segmentation]()
    for number in sorted({1, *numbers}):
        labels_U = cluster_users(base, log, number, settings.seeds[0])
        found[str(number)] = Segmentation(labels_U, name_clusters(labels_U, log))
    known = windows.before_validation.joined(windows.validation)
    moved = 0.0
    if known.num_segments > 1:
        labels_U = main_segments(known)
        moved = float((labels_U[known.user_rows] != known.segment_rows).mean())
        found[GIVEN] = Segmentation(labels_U, known.segment_names)
    values = _Compared(settings, base, windows, log, training).values(found)
    table, chosen, given = _table(settings, values, found)
    return Discovered(
        settings.evaluation.headline, table, int(chosen), found, base.users, given, moved
    )


def check(settings: RunSettings, numbers: Sequence[int]) -> None:
    """Refuse what cannot be compared, before anything is read.

    Raises:
        ValueError: a number is below 1, or none is above it.
        SettingsError: each number would rank other items, or there are many ranks.
    """
    if min(numbers, default=0) < 1 or max(numbers) == 1:
        raise ValueError(
            f"numbers must be of segments, at least 1 and one of them at least 2, got "
            f"{list(numbers)}; such as {','.join(map(str, NUMBERS))}"
        )
    if settings.evaluation.candidates != "catalogue":
        raise SettingsError(
            f"evaluation.candidates is {settings.evaluation.candidates!r}, and each number of "
            "segments would rank other items: set evaluation.candidates = 'catalogue' here"
        )
    if num_ranks() > 1:
        raise SettingsError("segments are discovered in one process: start it without torchrun")


def files_to_write(settings: RunSettings, folder: Path) -> dict[Path, Path]:
    """The log's files -> those in `folder` that have other segments; of given windows in a folder
    for each.

    Raises:
        FileExistsError: one is there already.
    """
    log, written = settings.log, dict[Path, Path]()
    windows = {"": log.files}
    if log.windows is not None:
        windows = {name: getattr(log.windows, name) for name in WINDOWS}
    for window, patterns in windows.items():
        files = files_of(patterns)
        for at, path in enumerate(files):
            is_alone = [each.name for each in files].count(path.name) == 1
            name = path.name if is_alone else f"{at}-{path.name}"
            written[path] = folder / window / name
    there = [str(target) for target in written.values() if target.exists()]
    if there:
        raise FileExistsError(f"{there[0]} is there already; name a new folder for the log")
    return written


def _read(settings: RunSettings) -> tuple[BaseModel, Windows, dict[str, str]]:
    """The base, the windows without test, and the files they are of."""
    inputs = prepare(settings).inputs
    base = pretrain(settings, inputs)
    whole = windows_of(settings)
    check_earlier(settings, whole)
    base, windows, _ = onto_base(base, whole, settings)
    return base, windows.without_test(), inputs


@dataclass(frozen=True)
class _Compared:
    """What every segmentation trains on and is judged by, alike."""

    settings: RunSettings
    base: BaseModel
    windows: Windows
    log: Interactions
    """What adapters train on."""
    training: Path
    """Where what was trained is kept until the end."""

    def values(self, found: Mapping[str, Segmentation]) -> dict[str, pd.DataFrame]:
        """For each segmentation the headline metric of each user who chose no epoch of it."""
        settings, everybody = self.settings, self._ground("1", found["1"])
        folds = num_folds(replace(settings, parent="auto"), self.windows.validation)
        grounds = (everybody, everybody.opposite)[:folds]
        pooled = Contender(POOLED, settings.adapter, is_pooled=True)
        with step("choosing rates: pooled adapter") as progress:
            choice = choose(pooled, grounds, settings, progress)
        own = Contender(SUBJECT, settings.adapter, False, has_parent=settings.parent != "none")
        parents = [stopped.bank.adapters()[0] for stopped in choice.stopped]
        values = dict[str, pd.DataFrame]()
        with step("training segments") as progress:
            for name, segmentation in found.items():
                ground, parts = self._ground(name, segmentation), list[pd.DataFrame]()
                for fold, parent in zip((ground, ground.opposite), parents, strict=False):
                    fold = replace(fold, parent=parent)
                    trained = train_contender(own, fold, choice.config, settings.seeds[0])
                    parts.append(headline_values(fold.opposite, trained))
                values[name] = pd.concat(parts, ignore_index=True)
                progress(len(values), len(found))
        return values

    def _ground(self, name: str, segmentation: Segmentation) -> Ground:
        log, validation, seen = (
            with_segments(part, segmentation.labels_U, segmentation.names)
            for part in (self.log, self.windows.validation, self.windows.before_validation)
        )
        # All segments in one pass.
        workshop = Workshop(self.training / name, chunk_rows=max(len(log), 1))
        return Ground(self.base, log, validation, seen, self.settings.evaluation, workshop)


def _table(
    settings: RunSettings, values: Mapping[str, pd.DataFrame], found: Mapping[str, Segmentation]
) -> tuple[pd.DataFrame, str, pd.DataFrame]:
    """The rows of `Discovered.table`, the number that is chosen, and it against the given ones."""
    # A user is in one segment of each: what is paired is users.
    users = {name: its.assign(segment="", model=name) for name, its in values.items()}
    chosen = smallest_within_error({name: its for name, its in users.items() if name != GIVEN})
    results = pd.concat(users.values(), ignore_index=True)

    def against(name: str, other: str) -> pd.DataFrame:
        metric, k = settings.evaluation.metrics[0], settings.evaluation.ks[0]
        return compare(results, name, other, metric=metric, k=k).head(1)

    columns = ["users", "difference", "low", "high", "verdict"]
    parts = []
    for name in users:
        row = against(name, "1")
        own = row[columns].assign(mean=row["model_mean"], segments=name, chosen=name == chosen)
        parts.append(own.assign(count=len(found[name].names)))
    table = pd.concat(parts, ignore_index=True)
    # It is no other than itself.
    table.loc[table["segments"] == "1", ["low", "high"]] = np.nan
    table.loc[table["segments"] == "1", "verdict"] = ""
    order = ["segments", "count", "users", "mean", *columns[1:], "chosen"]
    given = against(chosen, GIVEN) if GIVEN in users else pd.DataFrame()
    return table[order], chosen, given


def _lift(row: Mapping[Any, Any]) -> str:
    return f"{row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"
