"""What the kernel may do to a save, and what modes and clocks may be: rows 5, 6 and 38.

Each test is named after its row of the list of faults that a run survives. The saves are real ones
in processes of their own; `strace` and a preloaded library make their faults.
"""

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from reclora.base import BaseModel
from reclora.files import make_folder, write_parquet
from reclora.interactions import IdMap, Interactions, LogContract, prepare_log
from reclora.report import write_report
from reclora.store import AdapterStore
from tests.small_stores import adapters, contents
from tests.small_traces import go_traced
from tests.test_report import example

NAMES = [f"n{i}" for i in range(90)]
MOMENTS = pa.array(range(1_700_000_000, 1_700_000_090), pa.int64())


def save_store(root: Path) -> None:
    AdapterStore(root).publish(adapters({"de": 1, "fr": 2}), reason="night")


def check_store(root: Path) -> None:
    store = AdapterStore(root)
    store.verify()
    assert contents(store) == {"de": 1, "fr": 2}


def save_base(root: Path) -> None:
    ids = IdMap.of(pa.array(NAMES))
    BaseModel.random(ids, ids, 4, (3,), seed=0).save(root)


def check_base(root: Path) -> None:
    BaseModel.load(root).verify()


def save_log(root: Path) -> None:
    source = root.with_name("source.parquet")
    columns = {"user_id": NAMES, "item_id": NAMES, "timestamp": MOMENTS, "segment": ["de"] * 90}
    write_parquet(source, pa.table(columns))
    prepare_log([source], root, LogContract(time_unit="s"))


def check_log(root: Path) -> None:
    log = Interactions.read(root)
    assert len(log) == 90 and log.users.ids.to_pylist() == sorted(NAMES)


def save_page(root: Path) -> None:
    make_folder(root)
    write_report(root / "report.html", example())


def check_page(root: Path) -> None:
    text = (root / "report.html").read_text()
    assert text.lower().startswith("<!doctype html>") and text.rstrip().endswith("</html>")


def save_one_more(root: Path) -> None:
    store = AdapterStore(root)
    store.publish(adapters({"de": 10 + len(store.releases())}), reason="one more")


def save_a_day_early(root: Path) -> None:
    os.environ["SECONDS_AHEAD"] = "-86400"
    save_one_more(root)


def save_a_day_late(root: Path) -> None:
    os.environ["SECONDS_AHEAD"] = "86400"
    save_one_more(root)


SAVES: dict[str, Callable[[Path], None]] = {
    "store": save_store,
    "base": save_base,
    "log": save_log,
    "page": save_page,
}
CHECKS: dict[str, Callable[[Path], None]] = {
    "store": check_store,
    "base": check_base,
    "log": check_log,
    "page": check_page,
}

AT_OTHER_TIMES = {"a day early": save_a_day_early, "a day late": save_a_day_late}

SAVE_WHEN_TOLD = """
import ctypes, os, sys
from pathlib import Path
from tests.test_faults_files import AT_OTHER_TIMES, SAVES

for line in sys.stdin:
    what, root = line.rstrip("\\n").split("\\t")
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            # Where Yama guards ptrace, this lets a stranger attach (PR_SET_PTRACER, any).
            ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)
            os.read(receive, 1)
            (SAVES | AT_OTHER_TIMES)[what](Path(root))
            code = 0
        except OSError:
            code = 1
        finally:
            os._exit(code)
    print(pid, flush=True)
    sys.stdin.readline()
    os.write(send, b"x")
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    os.close(receive)
    os.close(send)
"""
SAVED, REFUSED = 0, 1
"""How a save ends: without an error, with an OSError."""


class Saver:
    """Forks one saving process after the other, each with a fault to meet."""

    def __init__(self, **environment: str) -> None:
        pipe = subprocess.PIPE
        self._script = subprocess.Popen(
            [sys.executable, "-c", SAVE_WHEN_TOLD],
            cwd=Path(__file__).parent.parent,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stdin=pipe,
            stdout=pipe,
            text=True,
        )

    def save(self, what: str, root: Path, *strace: str) -> int:
        """Save one of `SAVES`, under `strace` with these options if any; returns how it ended."""
        pid = self._ask(f"{what}\t{root}")
        if not strace:
            return self._ask("go")
        return go_traced(pid, ["-f", *strace], lambda: self._ask("go"))

    def close(self) -> None:
        self._script.communicate()

    def _ask(self, line: str) -> int:
        assert self._script.stdin is not None and self._script.stdout is not None
        self._script.stdin.write(line + "\n")
        self._script.stdin.flush()
        return int(self._script.stdout.readline())


@pytest.fixture(scope="module")
def traced() -> Iterator[Saver]:
    if shutil.which("strace") is None:
        pytest.skip("strace, which injects faults and lists calls, is missing")
    saver = Saver()
    yield saver
    saver.close()


# --- row 5: short writes, interrupted calls, lost writes ----------------------------------------

SHORT_WRITES = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/stat.h>
#include <unistd.h>

/* At most a hundred bytes at a time go into a regular file, as POSIX allows. */
ssize_t write(int file, const void *data, size_t count)
{
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    struct stat about;
    int regular = fstat(file, &about) == 0 && S_ISREG(about.st_mode);
    return real(file, data, regular && count > 100 ? 100 : count);
}
"""


def preloaded(folder: Path, code: str) -> str:
    """Compile a library that stands before the C library's own; returns its path."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("cc, which makes the libraries that are preloaded, is missing")
    (folder / "fault.c").write_text(code)
    command = [compiler, "-shared", "-fPIC", "-o", "fault.so", "fault.c", "-ldl"]
    subprocess.run(command, check=True, cwd=folder)
    return str(folder / "fault.so")


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saver]:
    saver = Saver(LD_PRELOAD=preloaded(tmp_path_factory.mktemp("short"), SHORT_WRITES))
    yield saver
    saver.close()


@pytest.mark.parametrize("what", SAVES)
def test_row_05_a_save_of_short_writes_is_whole(tmp_path: Path, short: Saver, what: str) -> None:
    assert short.save(what, tmp_path / what) == SAVED
    CHECKS[what](tmp_path / what)


@pytest.mark.parametrize("what", SAVES)
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_row_05_an_interrupted_call_ends_whole_or_in_an_error(
    tmp_path: Path, traced: Saver, what: str, call: str
) -> None:
    for nth in (1, 2, 5):
        root = tmp_path / f"{nth}" / what
        root.parent.mkdir()
        how = traced.save(
            what, root, "-o", "/dev/null", "-e", f"inject={call}:error=EINTR:when={nth}"
        )
        assert how in (SAVED, REFUSED)
        if how == SAVED:
            CHECKS[what](root)


@pytest.mark.parametrize(("what", "writes"), [("store", 3), ("base", 4)])
def test_row_05_a_write_that_kept_fewer_bytes_than_it_said_is_never_published(
    tmp_path: Path, traced: Saver, what: str, writes: int
) -> None:
    """Each of a publish (pack, map and release); of a base those of its tables and first ids."""
    for nth in range(1, writes + 1):
        root = tmp_path / f"{nth}" / what
        root.parent.mkdir()
        how = traced.save(
            what, root, "-o", "/dev/null", "-e", f"inject=write:retval=100:when={nth}"
        )
        assert how == REFUSED, f"write {nth} was lost, and nobody noticed"
        assert not list(root.parent.rglob("*.tmp.*"))
        assert AdapterStore(root).current() is None if what == "store" else not root.exists()


# --- row 6: power cuts --------------------------------------------------------------------------

CALLS = "openat,creat,write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,link,linkat,mkdir"
QUOTED = re.compile(r'"([^"]*)"')
OPENED = re.compile(r"\w+\(\d+<([^>]*)>")


def unsynced_at_publish(trace: str, root: Path) -> list[str]:
    """What a power cut could have lost of what was already visible, from a listing of calls.

    A file is lost until an fsync after its last write; a name until an fsync of its folder.
    """
    written, named, problems = set[str](), set[str](), []
    for line in trace.splitlines():
        call, _, rest = line.split(maxsplit=1)[1].partition("(")
        if "= -1 " in rest:
            continue
        paths = [path for path in QUOTED.findall(rest) if path.startswith(str(root))]
        if call in ("openat", "creat") and paths and re.search("O_WRONLY|O_RDWR|O_CREAT", rest):
            written.add(paths[0])
        elif call in ("write", "pwrite64", "fsync", "fdatasync"):
            opened = OPENED.match(f"{call}({rest}")
            path = opened[1] if opened else ""
            if call.startswith("f"):
                written.discard(path)
                named.discard(path)
            elif path.startswith(str(root)):
                written.add(path)
        elif call == "mkdir" and paths:
            named.add(str(Path(paths[0]).parent))
        elif call.startswith(("rename", "link")) and len(paths) == 2:
            source, target = paths
            inside = {path for path in written if path == source or path.startswith(source + "/")}
            if ".tmp." not in Path(target).name:
                problems += [f"{path} was not synced before it became {target}" for path in inside]
                named.add(str(Path(target).parent))
            elif inside:
                written.add(target)
            if not call.startswith("link"):
                written -= inside
        if call.startswith("link") and paths:
            # The release names all of the others: they must outlast it.
            others = {folder for folder in named if folder != str(Path(paths[1]).parent)}
            problems += [f"{folder} was not synced before {paths[1]}" for folder in others]
    problems += [f"folder {folder} was never synced" for folder in named if Path(folder).exists()]
    return problems + [f"{path} was never synced" for path in written if Path(path).exists()]


@pytest.mark.parametrize("what", SAVES)
def test_row_06_files_are_synced_before_they_have_their_names_and_folders_after(
    tmp_path: Path, traced: Saver, what: str
) -> None:
    root, trace = tmp_path / what, tmp_path / "trace.txt"
    options = ("-y", "-s", "4096", "-o", str(trace), "-e", f"trace={CALLS}")
    assert traced.save(what, root, *options) == SAVED
    listing = trace.read_text()
    assert listing.count("fsync(") >= 2 and str(root) in listing
    assert not unsynced_at_publish(listing, root)
    # The listing is read rightly: without its calls of fsync everything could be lost.
    dropped = "\n".join(line for line in listing.splitlines() if "fsync(" not in line)
    assert unsynced_at_publish(dropped, root)


# --- row 38: modes and clocks -------------------------------------------------------------------


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_row_38_every_file_has_the_mode_of_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    old = os.umask(umask)
    try:
        for what, save in SAVES.items():
            save(tmp_path / what)
    finally:
        os.umask(old)
    modes = {p: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*") if p.is_file()}
    assert len(modes) > 12 and {p: found for p, found in modes.items() if found != mode} == {}


SET_CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

int clock_gettime(clockid_t which, struct timespec *now)
{
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(which, now);
    if (!failed && which == CLOCK_REALTIME)
        now->tv_sec += atol(getenv("SECONDS_AHEAD"));
    return failed;
}
"""


def test_row_38_releases_are_ordered_by_number_whatever_the_clock_says(tmp_path: Path) -> None:
    library, root = preloaded(tmp_path, SET_CLOCK), tmp_path / "store"
    save_store(root)
    saver = Saver(LD_PRELOAD=library, SECONDS_AHEAD="0")
    for what in AT_OTHER_TIMES:
        assert saver.save(what, root) == SAVED
    saver.close()
    save_one_more(root)
    store = AdapterStore(root)
    history = store.history()
    assert [release.number for release in history] == [4, 3, 2, 1]
    last, ahead, behind, first = (release.time for release in history)
    assert behind < first <= last < ahead, "the clock was not set"
    assert contents(store) == {"de": 13, "fr": 2}
    assert contents(AdapterStore(root), store.rollback(reason="back")) == {"de": 12, "fr": 2}
    store.verify()
