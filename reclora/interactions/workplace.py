"""This file is the place where a log is laid out: held by one run, spilling to disk, then gone."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import duckdb

from reclora.files import held_alone, temporary_path
from reclora.interactions.contract import LogError

WORK = "prepare"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` alone, and remove what killed runs left in it.

    Raises:
        LogError: another run holds the folder.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(held_alone(folder))
        except BlockingIOError as error:
            raise LogError(f"{folder}: another run lays out a log there; wait for it") from error
        for left in folder.glob(f"{WORK}.tmp.*"):
            shutil.rmtree(left)
        yield


@contextlib.contextmanager
def workplace(folder: Path) -> Iterator[Path]:
    """Give a folder for unfinished files, gone afterwards."""
    work = temporary_path(folder / WORK)
    work.mkdir()
    try:
        yield work
    except OSError as error:
        # A full disk is reported by `write`, which knows no name.
        error.filename = error.filename or str(folder)
        raise
    finally:
        shutil.rmtree(work)


@contextlib.contextmanager
def sorting_database(work: Path, memory_limit: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """Give a database that spills to `work` what does not fit into `memory_limit`.

    Raises:
        LogError: the limit is none, or even spilling does not do; says what can be done.
    """
    options: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": memory_limit,
        "temp_directory": str(work / "sort"),
        "preserve_insertion_order": False,
        "arrow_large_buffer_size": True,
        "autoinstall_known_extensions": False,
    }
    try:
        with duckdb.connect(config=options) as database:
            # Long sorts would draw a bar on stdout, where results go.
            database.execute("SET enable_progress_bar = false")
            yield database
    except duckdb.Error as error:
        raise LogError(
            f"sorting the log within memory_limit={memory_limit!r} failed: {error}; "
            f"raise memory_limit, or free disk space in {work.parent}"
        ) from error
