"""Check the interaction log and lay it out by segment: the door of every run."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.parquet as pq

from reclora.interactions import LogError, LogSummary, prepare_log

from .progress import step
from .run import RunSettings, files_of


def prepare(settings: RunSettings) -> LogSummary:
    """Lay out the run's log in `settings.log_folder`; what is there of the same input is reused.

    Raises:
        LogError: the log breaks its contract (files, columns and rows are named), or no row is
            left.
        FileNotFoundError: a log file is not there.
    """
    with step("checking and sorting the log") as progress:
        summary = prepare_log(
            files_of(settings.log.files),
            settings.log_folder,
            settings.log.contract,
            memory_limit=settings.log.memory_limit,
            progress=progress,
        )
    print(f"the log: {describe(summary)}", file=sys.stderr)
    if summary.rows_kept == 0:
        raise LogError(f"no row of the log is left: {describe(summary)}")
    if settings.log.contract.min_label is None and _has_negatives(
        settings.log_folder / "log.parquet"
    ):
        print(
            "the log has labels of 0 or less, and they count as interactions like all others; set "
            "log.contract.min_label to keep only rows from that label on",
            file=sys.stderr,
        )
    return summary


def describe(summary: LogSummary) -> str:
    """Rows kept of rows read, and where the others went."""
    went = {
        **summary.quarantined,
        f"duplicates ({summary.contract.duplicates})": summary.duplicates,
        "below min_label": summary.below_min_label,
    }
    parts = [f"{rows:,} {reason}" for reason, rows in went.items() if rows]
    kept = f"{summary.rows_kept:,} of {summary.rows_read:,} rows kept"
    return f"{kept}; {', '.join(parts)}" if parts else kept


def _has_negatives(log: Path) -> bool:
    """Whether the log has a label of 0 or less, by the statistics in its footer."""
    metadata = pq.read_metadata(log)
    if "label" not in metadata.schema.names:
        return False
    place = metadata.schema.names.index("label")
    groups = (metadata.row_group(i).column(place) for i in range(metadata.num_row_groups))
    return any(group.statistics.min <= 0 for group in groups)
