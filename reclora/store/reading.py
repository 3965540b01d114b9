"""This file is how the store reads what may be damaged or hostile: an error, never code run.

Only regular files are opened, sizes are capped before memory is taken, JSON has no duplicate keys.
"""

import contextlib
import difflib
import errno
import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

FORMAT = 1
"""The format of the packs, maps and releases that this version writes and reads."""

NEEDS = "0.1.0"
"""The first version of reclora that reads `FORMAT`."""

MAX_PARENTS = 8
"""On how many others an adapter stands at most: parent, its parent, and so on."""


class StoreError(ValueError):
    """What was asked of the store, or found in it, breaks its contract; nothing was changed."""


class BaseMismatch(StoreError):
    """An adapter of one base model was offered to, or asked for, another."""


class Superseded(StoreError):
    """Another release has come since the one that a change was made for."""


class UnknownSegment(StoreError, KeyError):
    """A segment was asked for that the release has not."""

    # KeyError would show the message quoted.
    __str__ = Exception.__str__


def near(segment: str, known: Iterable[str]) -> str:
    """Return the end of an error's message: the names that are like `segment`, if any is."""
    found = difflib.get_close_matches(segment, known, n=3)
    return f"; near names: {', '.join(map(repr, found))}" if found else ""


def utf8(segment: str) -> bytes:
    """Return the bytes that stand for a segment's name on disk.

    Raises:
        StoreError: the name is no text.
    """
    try:
        return segment.encode()
    except UnicodeEncodeError:
        raise StoreError(
            f"segment {segment!r} has half of a surrogate pair, which is no text; rename it"
        ) from None


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[int]:
    """Open `path` for reading and give its descriptor.

    Raises:
        StoreError: `path` is a symbolic link, FIFO, device or folder.
        OSError: it cannot be opened.
    """
    # Without O_NONBLOCK opening a FIFO waits for its writer.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StoreError(f"{path} is a symbolic link; put the file itself there") from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise StoreError(f"{path} is not a regular file; a store holds nothing else")
        yield descriptor
    finally:
        os.close(descriptor)


def read_into(descriptor: int, buffer: memoryview, offset: int, path: Path) -> None:
    """Fill `buffer` with the bytes of `path` from `offset` on.

    Reading, not mapping: a file that is cut short while in use is an error here and a SIGBUS there.

    Raises:
        StoreError: the file ends first.
    """
    done = 0
    while done < len(buffer):
        count = os.preadv(descriptor, [buffer[done:]], offset + done)
        if count == 0:
            raise StoreError(
                f"{path} is cut short: it ends at byte {offset + done:,}, expected at least "
                f"{offset + len(buffer):,}; restore it from a copy"
            )
        done += count


def parse_json(text: str | bytearray, path: Path) -> dict[str, Any]:
    """Parse one JSON object: no duplicate keys, no NaN or Infinity.

    Raises:
        StoreError: it is something else; the error names `path`.
    """
    try:
        parsed = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is damaged: {error}; restore it from a copy") from None
    if not isinstance(parsed, dict):
        raise StoreError(f"{path} is damaged: expected an object, got {type(parsed).__name__}")
    return parsed


def check_format(found: object, needs: object, path: Path) -> None:
    """Refuse a file of another format; `needs` is the version that its writer asked for.

    Raises:
        StoreError: naming the version of reclora that reads it.
    """
    if type(found) is int and found > FORMAT:
        raise StoreError(
            f"{path} needs reclora >= {needs}: its format is {found}, this version reads {FORMAT}"
        )
    if type(found) is not int or found < 1:
        raise StoreError(f"{path} is damaged: expected format {FORMAT}, got {found!r}")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        raise ValueError("an object has a key twice")
    return unique


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")
