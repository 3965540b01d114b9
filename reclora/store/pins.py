"""This file is who may work beside whom: locks that end with the process that holds them.

    releases/                 shared: writers, and readers while they pin; alone: gc
    releases/00000042.json    shared: readers that have pinned release 42; gc keeps what is locked

They are `flock`s of open files, so that they need no right to write and a killed process leaves
none behind. Needs no torch.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from reclora.store.reading import StoreError, open_regular

NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF})
"""How file systems say that they have no such lock; NFS wants a file open for writing: EBADF."""

PATIENCE_S = 5.0
"""So long gc waits for those that publish."""

RETRY_S = 0.02


@contextlib.contextmanager
def beside_others(releases: Path) -> Iterator[None]:
    """Keep gc away, and wait for one that is at work; on a file system without locks do nothing.

    Args:
        releases: the folder of the releases.
    """
    descriptor = os.open(releases, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _share(descriptor)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def alone(releases: Path) -> Iterator[None]:
    """Keep everyone away that writes or is about to pin.

    Raises:
        StoreError: others are at work for longer than `PATIENCE_S`, or the file system has no
            locks.
    """
    descriptor = os.open(releases, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        end = time.monotonic() + PATIENCE_S
        while not _took_alone(descriptor, releases):
            if time.monotonic() > end:
                raise StoreError(
                    f"a publish is at work in {releases}; nothing was removed, try again later"
                )
            time.sleep(RETRY_S)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def pinned(release: Path) -> Iterator[None]:
    """Have the release of this file kept; taken inside `beside_others`, it holds on after it."""
    with open_regular(release) as descriptor:
        _share(descriptor)
        yield


def is_pinned(release: Path) -> bool:
    """Whether a reader has pinned the release of this file; asked inside `alone`.

    Raises:
        StoreError: the file system has no locks.
    """
    with open_regular(release) as descriptor:
        return not _took_alone(descriptor, release)


def _share(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


def _took_alone(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise StoreError(
            f"the file system of {path} has no locks ({error.strerror}), so that nobody can tell "
            "what others still read; nothing was removed: run gc where the disk is local"
        ) from None
    return True
