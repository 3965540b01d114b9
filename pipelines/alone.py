"""One run at a time in a folder: the second is told who is at work; a dead one bars nobody."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from reclora.files import held_alone, make_folder

OWNER = "at_work.json"


class Busy(RuntimeError):
    """Another run is at work in the folder."""


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder while the block runs.

    Where the file system has no locks, nobody is kept out, and a line on stderr says so.

    Raises:
        Busy: another run is at work there; it says which.
        OSError: the folder cannot be written to.
    """
    make_folder(folder)
    with (folder / OWNER).open("a+", encoding="utf-8") as file:

        def who() -> str:
            file.seek(0)
            try:
                owner = json.loads(file.read())
                return f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
            except (ValueError, KeyError):
                return "just begun"

        with _held(folder, who):
            owner = {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "since": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            file.truncate(0)
            file.write(json.dumps(owner))
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)


@contextlib.contextmanager
def writing_alone(folder: Path) -> Iterator[None]:
    """Keep others from writing the same results while the block runs: `alone_in`, without a word of
    who is at work.
    """
    make_folder(folder)
    with _held(folder, lambda: "on the same input"):
        yield


@contextlib.contextmanager
def _held(folder: Path, who: Callable[[], str]) -> Iterator[None]:
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(held_alone(folder))
        except BlockingIOError:
            raise Busy(
                f"{folder}: another run is at work here ({who()}); wait for its end, or name "
                "another `folder`"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
                raise
            print(f"{folder} has no locks: let no two runs work in it at once", file=sys.stderr)
        yield
