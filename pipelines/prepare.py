"""Check the interaction log and lay it out by segment: the door of every run."""

from __future__ import annotations

from reclora.interactions import LogSummary, prepare_log

from .progress import step
from .run import RunSettings, files_of


def prepare(settings: RunSettings) -> LogSummary:
    """Lay out the run's log in `settings.log_folder`; what is there of the same input is reused.

    Raises:
        LogError: the log breaks its contract; files, columns and rows are named.
        FileNotFoundError: a log file is not there.
    """
    with step("checking and sorting the log") as progress:
        return prepare_log(
            files_of(settings.log.files),
            settings.log_folder,
            settings.log.contract,
            memory_limit=settings.log.memory_limit,
            progress=progress,
        )
