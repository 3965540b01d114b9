"""The store: law 7 (a killed publish leaves the old release; a foreign base is refused), races."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reclora.adapters import Adapter, AdapterConfig
from reclora.store import AdapterStore, BaseMismatch, StoreError, UnknownSegment

BASE = "ba5e" * 16
OTHER = "f0f0" * 16


def adapter(segment: str, value: float, base: str = BASE, rank: int = 2) -> Adapter:
    rows = 1 + len(segment) % 3
    tensors = {
        "items.rows": torch.arange(rows),
        "item_table.a": torch.full((rows, rank), float(value)),
        "item_table.b": torch.full((rank, 3), -float(value)),
    }
    return Adapter(segment, AdapterConfig(rank=rank), base, tensors)


def value_of(found: Adapter) -> float:
    """The number that `adapter` was given; every tensor must agree on it."""
    (value,) = set(found.tensors["item_table.a"].flatten().tolist())
    assert (found.tensors["item_table.b"] == -value).all()
    return float(value)


def contents(store: AdapterStore, number: int | None = None) -> dict[str, float]:
    loaded = store.load_all(base_fingerprint=BASE, release=number)
    return {found.segment: value_of(found) for found in loaded}


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "store")


def test_publish_and_load(store: AdapterStore) -> None:
    metrics = {"de": {"ndcg@10": 0.25}}
    first = store.publish(
        [adapter("de", 1), adapter("fr", 2)], reason="first", author="ann", metrics=metrics
    )
    assert (first.number, first.parent, first.author, first.reason) == (1, None, "ann", "first")
    assert first.base_fingerprint == BASE
    assert first.segments["de"].metrics == {"ndcg@10": 0.25}
    assert first.segments["fr"].metrics == {}
    assert store.current() == first == AdapterStore(store.root).release(1)
    found = store.load("fr", base_fingerprint=BASE)
    assert found.config == AdapterConfig(rank=2) and value_of(found) == 2
    store.verify()


def test_a_publish_carries_the_other_segments_over(store: AdapterStore) -> None:
    first = store.publish([adapter("de", 1), adapter("fr", 2)], reason="first")
    second = store.publish([adapter("fr", 3), adapter("it", 4, rank=5)], reason="second")
    assert (second.number, second.parent) == (2, 1)
    assert store.releases() == [1, 2]
    assert contents(store) == {"de": 1, "fr": 3, "it": 4}
    assert contents(store, 1) == {"de": 1, "fr": 2}
    assert value_of(store.load("fr", base_fingerprint=BASE, release=first)) == 2
    assert value_of(store.load("fr", base_fingerprint=BASE, release=1)) == 2
    assert store.load("it", base_fingerprint=BASE).config.rank == 5
    assert second.segments["de"] == first.segments["de"]


def test_an_empty_store(store: AdapterStore) -> None:
    assert store.current() is None and store.releases() == []
    with pytest.raises(StoreError, match="no release yet"):
        store.load("de", base_fingerprint=BASE)
    with pytest.raises(StoreError, match="no release 3; it holds nothing"):
        store.release(3)
    assert not store.root.exists()


def test_a_foreign_base_is_refused_showing_both(store: AdapterStore) -> None:
    store.publish([adapter("de", 1)], reason="first")
    for refused in (
        lambda: store.load("de", base_fingerprint=OTHER),
        lambda: store.load_all(base_fingerprint=OTHER),
        lambda: store.publish([adapter("fr", 2, base=OTHER)], reason="foreign"),
        lambda: store.publish([adapter("fr", 2), adapter("it", 2, base=OTHER)], reason="both"),
    ):
        with pytest.raises(BaseMismatch, match=f"{BASE}.*{OTHER}"):
            refused()
    assert store.releases() == [1] and len(os.listdir(store.root / "packs")) == 1


def test_an_unknown_segment_is_refused_with_near_names(store: AdapterStore) -> None:
    store.publish([adapter("us.mobile", 1), adapter("de", 2)], reason="first")
    with pytest.raises(UnknownSegment, match=r"'us.mobil'; near names: 'us.mobile'$"):
        store.load("us.mobil", base_fingerprint=BASE)
    with pytest.raises(KeyError):
        store.load("", base_fingerprint=BASE)
    with pytest.raises(StoreError, match="no release 2; it holds 1 to 1"):
        store.load("de", base_fingerprint=BASE, release=2)


@pytest.mark.parametrize(
    ("adapters", "metrics", "message"),
    [
        ([], {}, "nothing to publish"),
        ([adapter("de", 1), adapter("de", 2)], {}, "'de' comes twice"),
        ([adapter("\ud800", 1)], {}, r"'\\ud800' has half of a surrogate pair"),
        ([adapter("ok", 1), adapter("de", float("nan"))], {}, "'de': item_table.a has NaN"),
        ([adapter("de", 1)], {"fr": {}}, "'fr', which is not published"),
        ([adapter("de", 1)], {"de": {"x": float("inf")}}, "'de': metric 'x' is infinite"),
    ],
)
def test_what_cannot_be_published_leaves_nothing_behind(
    store: AdapterStore,
    adapters: list[Adapter],
    metrics: dict[str, dict[str, float]],
    message: str,
) -> None:
    with pytest.raises(StoreError, match=message):
        store.publish(adapters, reason="bad", metrics=metrics)
    assert not store.root.exists()


HARD_NAMES = [
    "",
    "..",
    "../x",
    "/etc/x",
    "a\\b",
    "CON",
    "a\0b",
    "\u00e9",
    "e\u0301",
    "DE",
    "de",
    "🎬" * 1024,
]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text() | st.sampled_from(HARD_NAMES), min_size=1, max_size=8, unique=True))
def test_any_text_names_a_segment_and_stays_inside_the_store(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("names")
    store = AdapterStore(folder / "store")
    wanted = {name: float(i) for i, name in enumerate(names)}
    store.publish([adapter(name, value) for name, value in wanted.items()], reason="names")
    again = AdapterStore(folder / "store")
    assert contents(again) == wanted
    for name, value in wanted.items():
        assert value_of(again.load(name, base_fingerprint=BASE)) == value
    assert [path.name for path in folder.iterdir()] == ["store"]
    assert sum(path.is_file() for path in folder.rglob("*")) == 2


def test_hard_names_all_at_once(store: AdapterStore) -> None:
    wanted = {name: float(i) for i, name in enumerate(HARD_NAMES)}
    store.publish([adapter(name, value) for name, value in wanted.items()], reason="names")
    assert contents(store) == wanted and len(wanted) == len(HARD_NAMES)


def test_remains_of_a_killed_publish_are_harmless(store: AdapterStore) -> None:
    store.publish([adapter("de", 1)], reason="first")
    for remains in ("packs/00ff.safetensors", "packs/00.tmp.1", "releases/00000002.json.tmp.ab"):
        (store.root / remains).write_bytes(b"half")
    assert contents(store) == {"de": 1}
    assert store.publish([adapter("de", 2)], reason="second").number == 2
    store.verify()


def test_publishing_the_same_again_heals_a_damaged_pack(store: AdapterStore) -> None:
    pack = store.publish([adapter("de", 1)], reason="first").segments["de"].pack
    path = store.root / "packs" / f"{pack}.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    assert store.publish([adapter("de", 1)], reason="again").segments["de"].pack == pack
    assert path.read_bytes() == data


def test_verify_names_every_missing_or_damaged_pack(store: AdapterStore) -> None:
    packs = [
        store.publish([adapter(name, i)], reason=name).segments[name].pack
        for i, name in enumerate(["gone", "flipped", "fine"], start=1)
    ]
    gone, flipped, fine = (store.root / "packs" / f"{pack}.safetensors" for pack in packs)
    gone.unlink()
    data = bytearray(flipped.read_bytes())
    data[-len("flipped") - 4] ^= 1
    flipped.write_bytes(data)
    with pytest.raises(StoreError, match="sha256 is not its name") as caught:
        AdapterStore(store.root).verify()
    assert f"{gone} is missing, release 3 needs it" in str(caught.value)
    assert str(fine) not in str(caught.value)
    with pytest.raises(StoreError, match="is missing"):
        AdapterStore(store.root).load("gone", base_fingerprint=BASE)


def test_a_pack_of_another_base_is_refused(store: AdapterStore, tmp_path: Path) -> None:
    wanted = store.publish([adapter("de", 1)], reason="first").segments["de"].pack
    foreign = AdapterStore(tmp_path / "foreign")
    other = foreign.publish([adapter("de", 1, base=OTHER)], reason="x").segments["de"].pack
    shutil.copy(
        foreign.root / "packs" / f"{other}.safetensors",
        store.root / "packs" / f"{wanted}.safetensors",
    )
    with pytest.raises(BaseMismatch, match=f"{OTHER}.*{BASE}"):
        AdapterStore(store.root).load("de", base_fingerprint=BASE)


def test_a_history_is_read_without_torch(store: AdapterStore) -> None:
    store.publish([adapter("de", 1)], reason="first")
    script = (
        "import pathlib, sys; from reclora.store import AdapterStore;"
        "print(AdapterStore(pathlib.Path(sys.argv[1])).current().reason, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", script, str(store.root)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["first", "False"]


# --- killed, failing and racing publishers ---------------------------------------------------

PRELUDE = """
import ctypes, os, sys, time
from pathlib import Path
import torch
from reclora.adapters import Adapter, AdapterConfig
from reclora.store import AdapterStore

torch.set_num_threads(1)
store = AdapterStore(Path(sys.argv[1]))

def publish(value, *segments):
    config = AdapterConfig(rank=2)
    tensors = {
        "items.rows": torch.arange(1),
        "item_table.a": torch.full((1, 2), value),
        "item_table.b": torch.full((2, 3), -value),
    }
    adapters = [Adapter(segment, config, "BASE", tensors) for segment in segments]
    store.publish(adapters, reason=f"{value:g}")

def fork(work):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid

publish(0.0, "de", "fr", "it")
""".replace("BASE", BASE)

ONE_AT_A_TIME = """
for line in sys.stdin:
    receive, send = os.pipe()

    def work():
        # Where Yama guards ptrace, this lets a stranger attach (PR_SET_PTRACER, any).
        ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)
        os.read(receive, 1)
        publish(float(line), "de", "fr")

    pid = fork(work)
    print(pid, flush=True)
    sys.stdin.readline()
    os.write(send, b"x")
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    os.close(receive)
    os.close(send)
"""

RACE = """
def publisher(own):
    for turn in range(1, 6):
        publish(10.0 * own + turn, f"own {own}", "contested")

def reader():
    while len(store.releases()) < 41:
        values = [a.tensors["item_table.a"][0, 0] for a in store.load_all(base_fingerprint="BASE")]
        assert len(values) >= 3

pids = [fork(lambda own=own: publisher(own)) for own in range(8)] + [fork(reader), fork(reader)]
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
assert codes == [0] * 10, codes
""".replace("BASE", BASE)


class Publisher:
    """Forks one publishing process after the other, each under `strace` with a fault to meet."""

    def __init__(self, root: Path) -> None:
        command = [sys.executable, "-c", PRELUDE + ONE_AT_A_TIME, str(root)]
        pipe = subprocess.PIPE
        self._script = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
        )

    def publish(self, value: float, injection: str) -> int:
        """Publish `value` for two segments; returns the exit code, negative if a signal came."""
        pid = self._ask(f"{value}")
        command = ["strace", "-qq", "-o", "/dev/null", "-e", f"inject={injection}", "-p", str(pid)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
            while "TracerPid:\t0" in Path(f"/proc/{pid}/status").read_text():
                if tracer.poll() is not None:
                    self._ask("go")
                    pytest.skip(f"strace cannot attach here: {tracer.communicate()[1]}")
                time.sleep(0.001)
            return self._ask("go")

    def close(self) -> None:
        self._script.communicate()

    def _ask(self, line: str) -> int:
        assert self._script.stdin is not None and self._script.stdout is not None
        self._script.stdin.write(line + "\n")
        self._script.stdin.flush()
        return int(self._script.stdout.readline())


@pytest.fixture
def publisher(store: AdapterStore) -> Iterator[Publisher]:
    if shutil.which("strace") is None:
        pytest.skip("needs strace, to kill a publish at a chosen system call")
    script = Publisher(store.root)
    yield script
    script.close()


WRITING = ("openat", "write", "fsync", "chmod", "link", "linkat", "rename", "unlink")


def test_a_publish_killed_at_any_step_leaves_a_whole_release(
    store: AdapterStore, publisher: Publisher
) -> None:
    live, deaths, value = 0.0, dict.fromkeys(WRITING, 0), 0.0
    for call in WRITING:
        code = -signal.SIGKILL
        while code == -signal.SIGKILL:
            value += 1
            code = publisher.publish(value, f"{call}:signal=SIGKILL:when={deaths[call] + 1}")
            deaths[call] += code == -signal.SIGKILL
            reader = AdapterStore(store.root)
            found = contents(reader)
            assert found in (
                {"de": live, "fr": live, "it": 0},
                {"de": value, "fr": value, "it": 0},
            )
            live = found["de"]
            reader.verify()
        assert code == 0 and live == value
    # Two files are written, fsynced and moved into two folders.
    assert deaths["fsync"] == 4 and deaths["write"] >= 2 and deaths["rename"] == 1
    assert deaths["link"] + deaths["linkat"] == 1


def test_a_publish_that_the_disk_refuses_leaves_nothing_behind(
    store: AdapterStore, publisher: Publisher
) -> None:
    for fault in (
        *("write:error=ENOSPC:when=1", "write:error=ENOSPC:when=2"),
        *("fsync:error=EIO:when=1", "fsync:error=EIO:when=3"),
        *("rename:error=ENOSPC", "link,linkat:error=ENOSPC"),
    ):
        assert publisher.publish(1, fault) == 1, fault
        assert contents(store) == {"de": 0, "fr": 0, "it": 0}
        assert not list(store.root.rglob("*.tmp.*"))
    # The last fsync comes after the release can be seen: others may have built on it by now.
    assert publisher.publish(1, "fsync:error=EIO:when=4") == 1
    assert contents(store) == {"de": 1, "fr": 1, "it": 0}


def test_racing_publishers_lose_nothing(store: AdapterStore) -> None:
    command = [sys.executable, "-c", PRELUDE + RACE, str(store.root)]
    subprocess.run(command, check=True, timeout=60)
    assert store.releases() == list(range(1, 42))
    wanted = contents(store, 1)
    for number in store.releases()[1:]:
        release = store.release(number)
        assert release.parent == number - 1
        value = float(release.reason)
        wanted |= {f"own {int(value // 10)}": value, "contested": value}
        assert contents(store, number) == wanted
    assert {f"own {own}": 10.0 * own + 5 for own in range(8)}.items() <= wanted.items()
    store.verify()
