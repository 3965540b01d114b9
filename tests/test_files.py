"""Tests of reclora.files: a file is there whole or not at all, with the umask's mode."""

import errno
import hashlib
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reclora.files import (
    atomic_write,
    fsync,
    make_folder,
    read_parquet,
    sha256_of,
    write_bytes,
    write_parquet,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_and_bytes_arrive_and_nothing_else_stays(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "naïve 日本\n")
    write_bytes(tmp_path / "b.bin", b"\x00\xff")
    assert (tmp_path / "a.txt").read_bytes() == "naïve 日本\n".encode()
    assert (tmp_path / "b.bin").read_bytes() == b"\x00\xff"
    assert names(tmp_path) == ["a.txt", "b.bin"]


def test_an_error_leaves_the_old_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as temporary:
        temporary.write_text("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_the_target_is_untouched_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.parent == tmp_path and ".tmp." in temporary.name
    assert path.read_text() == "new"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_mode_is_the_umasks_even_if_the_writer_replaced_the_file(
    tmp_path: Path, umask: int, mode: int
) -> None:
    path = tmp_path / "a.txt"
    old = os.umask(umask)
    try:
        with atomic_write(path) as temporary:
            other = temporary.with_name("other")
            other.touch(mode=0o600)
            other.replace(temporary)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_first_writer_wins_where_nothing_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "7.json"

    def write(number: int) -> bool:
        try:
            with atomic_write(path, replace=False) as temporary:
                temporary.write_text(str(number))
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(write, range(64)))
    assert sum(won) == 1
    assert path.read_text() == str(won.index(True))
    assert names(tmp_path) == ["7.json"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_text(tmp_path / "nowhere" / "a.txt", "")


def test_a_full_disk_is_an_error_that_names_the_path(tmp_path: Path) -> None:
    path = tmp_path / "big.bin"
    write_bytes(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=r"big\.bin") as caught:
            write_bytes(path, bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.errno == errno.EFBIG
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["big.bin"]


def test_make_folder_makes_parents_and_is_repeatable(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "c"
    make_folder(folder)
    make_folder(folder)
    assert folder.is_dir()


def test_make_folder_does_not_hide_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(OSError):
        make_folder(tmp_path / "a" / "b")
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "a")


def test_fsync_names_what_it_cannot_open(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        fsync(tmp_path / "gone")


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    data = random.Random(0).randbytes(300_000)
    write_bytes(tmp_path / "a", data)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_parquet_round_trip_and_every_flipped_bit_of_a_page_is_caught(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"x": pa.array([None, *range(500)]), "y": ["é" * (i % 7) for i in range(501)]})
    write_parquet(path, table)
    assert read_parquet(path).equals(table)

    good = path.read_bytes()
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    first = column.dictionary_page_offset
    dice = random.Random(0)
    for _ in range(50):
        bad = bytearray(good)
        bad[first + dice.randrange(column.total_compressed_size)] ^= 1 << dice.randrange(8)
        path.write_bytes(bad)
        try:
            read = read_parquet(path)
        except (OSError, pa.ArrowException):
            continue
        # A flip in the padding of a page header may change nothing, but never a value.
        assert read.equals(table)


SAVE = """
import sys
from pathlib import Path
from reclora.files import write_text
write_text(Path(sys.argv[1]), "new")
"""


@pytest.mark.skipif(
    shutil.which("strace") is None, reason="strace, which kills at a call, is missing"
)
@pytest.mark.parametrize("call", ["write", "fsync", "rename", "chmod"])
def test_killed_at_any_call_old_or_new_bytes_are_there(call: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "a.txt"
        for nth in range(1, 20):
            path.write_text("old")
            inject = f"inject={call}:signal=SIGKILL:when={nth}"
            command = ["strace", "-f", "-qq", "-e", f"trace={call}", "-e", inject]
            command += [sys.executable, "-c", SAVE, str(path)]
            code = subprocess.run(command, capture_output=True, check=False).returncode
            assert path.read_text() in {"old", "new"}
            if code == 0:
                assert path.read_text() == "new"
                assert nth > 1
                return
            assert code == -signal.SIGKILL
        pytest.fail(f"{call} was hit twenty times in one save")
