"""Is there room on the disk? Asked before hours of work, not after."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path


def check_space(path: Path, num_bytes: int) -> None:
    """Refuse to begin what the disk has no room for.

    Raises:
        OSError: fewer than `num_bytes` are free where `path` is, or will be; both are named.
    """
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    if free < num_bytes:
        message = f"about {num_bytes:,} bytes are needed here, and {free:,} are free"
        raise OSError(errno.ENOSPC, message, str(path))
