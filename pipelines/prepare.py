"""Check the interaction log and lay it out by segment: the door of every run."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from reclora.interactions import IdMap, Interactions, LogError, LogSummary, prepare_log
from reclora.interactions.contract import check_files
from reclora.interactions.layout import ITEM_IDS, USER_IDS
from reclora.splits import WINDOWS, Windows, split, together

from .progress import step
from .run import RunSettings, files_of, window_file


def prepare(settings: RunSettings) -> LogSummary:
    """Lay out the run's log in `settings.log_folder`; what is there of the same input is reused.

    Windows that are given as files are laid out each in a folder of its own in there.

    Raises:
        LogError: the log breaks its contract (files, columns and rows are named), a file is in two
            windows, or no row is left.
        FileNotFoundError: a log file is not there.
    """
    parts = _parts(settings)
    # Before hours of sorting: windows of other columns or types, or a file in two of them.
    check_files(
        [file for patterns, _ in parts.values() for file in files_of(patterns)],
        settings.log.contract,
        now=time.time(),
    )
    summaries = []
    for name, (patterns, folder) in parts.items():
        with step(f"checking and sorting {name}") as progress:
            summaries.append(
                prepare_log(
                    files_of(patterns),
                    folder,
                    settings.log.contract,
                    memory_limit=settings.log.memory_limit,
                    progress=progress,
                )
            )
        print(f"{name}: {describe(summaries[-1])}", file=sys.stderr)
        if summaries[-1].rows_kept == 0:
            raise LogError(f"no row of {name} is left: {describe(summaries[-1])}")
    summary = summaries[0] if len(summaries) == 1 else _together(summaries, parts)
    if settings.log.contract.min_label is None and any(
        _has_negatives(folder / "log.parquet") for _, folder in parts.values()
    ):
        print(
            "the log has labels of 0 or less, and they count as interactions like all others; set "
            "log.contract.min_label to keep only rows from that label on",
            file=sys.stderr,
        )
    return summary


def windows_of(settings: RunSettings) -> Windows:
    """The windows of the log that `prepare` laid out: cut, or as they were given.

    Raises:
        LeakageError: rows of given windows are where they should not be; they are named.
        ValueError: a window has no rows.
    """
    logs = [Interactions.read(folder) for _, folder in _parts(settings).values()]
    if settings.log.windows is None:
        return split(logs[0], settings.split)
    pretrain, train, validation, test = logs
    return together(pretrain, train, validation, test, by=settings.split.by)


def declined_of(
    settings: RunSettings, users: IdMap, items: IdMap, given: Sequence[str]
) -> Interactions | None:
    """The rows of the log below its `min_label`, as one segment on these id maps; None where the
    contract drops them. Rows of ids that the maps do not know are left out.

    Args:
        given: the windows whose rows they are, where windows are given as files: each has those of
            users and items with a positive row in it. Of a log that is cut here they are all rows.
    """
    if settings.log.contract.declined == "drop":
        return None
    folders = [settings.log_folder / name for name in given]
    if settings.log.windows is None:
        folders = [settings.log_folder]
    parts = (
        Interactions.read(folder, declined=True).pooled().onto(users, items)[0]
        for folder in folders
    )
    return reduce(Interactions.joined, parts)


def check_same_ids(what: str, log: IdMap, base: IdMap) -> None:
    """Refuse a log whose identifiers are of another type than the base's (ValueError)."""
    if log.ids.type != base.ids.type:
        raise ValueError(
            f"{what} is {log.ids.type} in the log and {base.ids.type} in the base model; write "
            "both as strings or both as integers"
        )


def _parts(settings: RunSettings) -> dict[str, tuple[Sequence[Path], Path]]:
    """The logs to lay out: what each is called, its files, its folder."""
    if settings.log.windows is None:
        return {"the log": (settings.log.files, settings.log_folder)}
    return {
        f"the {name} window": (getattr(settings.log.windows, name), settings.log_folder / name)
        for name in WINDOWS
    }


def _together(
    summaries: Sequence[LogSummary], parts: Mapping[str, tuple[Sequence[Path], Path]]
) -> LogSummary:
    """One summary of the logs of all windows."""
    quarantined, segments = Counter[str](), Counter[str]()
    for summary in summaries:
        quarantined.update(summary.quarantined)
        segments.update(summary.segments)
    ids = [
        IdMap.of(pa.concat_arrays([IdMap.read(folder / name).ids for _, folder in parts.values()]))
        for name in (USER_IDS, ITEM_IDS)
    ]
    return LogSummary(
        contract=summaries[0].contract,
        rows_read=sum(s.rows_read for s in summaries),
        rows_kept=sum(s.rows_kept for s in summaries),
        quarantined=dict(quarantined),
        duplicates=sum(s.duplicates for s in summaries),
        below_min_label=sum(s.below_min_label for s in summaries),
        users=len(ids[0]),
        items=len(ids[1]),
        segments=dict(sorted(segments.items())),
        first=min(s.first for s in summaries),
        last=max(s.last for s in summaries),
        inputs={
            window_file(window, path): sha256
            for window, summary in zip(WINDOWS, summaries, strict=True)
            for path, sha256 in summary.inputs.items()
        },
        declined=sum(s.declined for s in summaries),
    )


def describe(summary: LogSummary) -> str:
    """Rows kept of rows read, and where the others went."""
    went = {
        **summary.quarantined,
        f"duplicates ({summary.contract.duplicates})": summary.duplicates,
        "below min_label": summary.below_min_label,
    }
    parts = [f"{rows:,} {reason}" for reason, rows in went.items() if rows]
    kept = f"{summary.rows_kept:,} of {summary.rows_read:,} rows kept"
    if summary.contract.declined == "keep":
        kept += f", beside them {summary.declined:,} declined"
    return f"{kept}; {', '.join(parts)}" if parts else kept


def _has_negatives(log: Path) -> bool:
    """Whether the log has a label of 0 or less, by the statistics in its footer."""
    metadata = pq.read_metadata(log)
    if "label" not in metadata.schema.names:
        return False
    place = metadata.schema.names.index("label")
    groups = (metadata.row_group(i).column(place) for i in range(metadata.num_row_groups))
    return any(group.statistics.min <= 0 for group in groups)
