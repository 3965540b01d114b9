"""This file is how files reach the disk whole: after a crash a path holds old bytes or new ones.

A file is written under a temporary name in its own folder (`NAME.tmp.TOKEN`), fsynced, renamed (or
linked, where the first writer must win), and the folder is fsynced. A killed process leaves at most
a `*.tmp.*` file.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


@contextlib.contextmanager
def atomic_write(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Give a temporary path to write to; when the block ends without an error it becomes `path`.

    The file gets the mode that the umask says, whoever writes it (safetensors alone leaves 0600).
    The folder must exist (see `make_folder`).

        with atomic_write(folder / "tables.safetensors") as temporary:
            save_file(tensors, temporary)

    Args:
        path: where the file shall be.
        replace: whether an existing `path` is replaced; if not, one of several writers wins.

    Raises:
        FileExistsError: `replace` is false and `path` exists; nothing was changed.
        OSError: a write, fsync or rename failed (the error names `path`); `path` is as before.
    """
    temporary = temporary_path(path)
    # Made here first, so that its mode is what the kernel gives under the umask.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        mode = os.fstat(descriptor).st_mode & 0o777
        os.close(descriptor)
        yield temporary
        os.chmod(temporary, mode)
        fsync(temporary)
        if replace:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)
            os.unlink(temporary)
        fsync(path.parent)
    except OSError as error:
        # A full disk is reported by `write`, which knows no name; what has no number says it all.
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """Return an unused name beside `path` that marks unfinished work: `NAME.tmp.TOKEN`."""
    return path.with_name(f"{path.name}.tmp.{secrets.token_hex(8)}")


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all; raises as `atomic_write`."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)
        found = temporary.stat().st_size
        if found != len(data):
            raise OSError(
                errno.EIO, f"{len(data):,} bytes were written and {found:,} arrived", str(path)
            )


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, whole or not at all; raises as `atomic_write`."""
    write_bytes(path, text.encode("utf-8"))


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write `table` as zstd Parquet with page checksums, whole or not at all.

    Without checksums a flipped bit reads back as a wrong value, silently. Raises as `atomic_write`.
    """
    write_parquet_parts(path, [table])


def write_parquet_parts(path: Path, tables: Iterable[pa.Table]) -> None:
    """Write tables of one schema, at least one, as `write_parquet` would write all of them; no more
    than one is asked for at once.
    """
    with atomic_write(path) as temporary, contextlib.ExitStack() as held:
        writer: pq.ParquetWriter | None = None
        for table in tables:
            if writer is None:
                writer = held.enter_context(
                    pq.ParquetWriter(
                        temporary, table.schema, compression="zstd", write_page_checksum=True
                    )
                )
            writer.write_table(table)


def read_parquet(path: Path) -> pa.Table:
    """Read what `write_parquet` wrote, verifying its page checksums.

    Raises:
        OSError: a page differs from its checksum, rows are missing, or the file cannot be read.
        pyarrow.ArrowInvalid: the file is no Parquet file, or truncated.
    """
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        table = file.read()
        # Headers and the footer have no checksum: a flipped bit there can hide rows.
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        counts = {table.num_rows, file.metadata.num_rows, sum(group.num_rows for group in groups)}
    if len(counts) != 1:
        raise OSError(f"{path}: damaged, its parts say that it has {sorted(counts)} rows")
    return table


def make_folder(folder: Path) -> None:
    """Make `folder` and its missing parents, each fsynced into the folder above it."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    fsync(folder.parent)


@contextlib.contextmanager
def held_alone(folder: Path) -> Iterator[None]:
    """Keep others who ask for the same folder out of it while the block runs.

    The kernel lets go of the lock when the process ends, however it ends.

    Raises:
        BlockingIOError: another process holds it.
        OSError: it cannot be opened, or its file system has no locks.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def fsync(path: Path) -> None:
    """Wait until the file or folder at `path` is on the disk.

    Raises:
        OSError: it is not. Do not try again: the kernel may have dropped what was to be written.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Return the sha256 of the bytes of the file at `path`, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
