"""The store: law 7 (a killed publish leaves the old release; a foreign base is refused), races."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reclora.adapters import Adapter
from reclora.configs import AdapterConfig, AdapterError
from reclora.stacks import AdapterStack
from reclora.store import AdapterStore, BaseMismatch, StoreError, Superseded, UnknownSegment
from reclora.store.packs import pack_file
from tests.small_stores import BASE, OTHER, adapter, contents, value_of
from tests.small_traces import go_traced


def chain(levels: int) -> Adapter:
    """An adapter that stands on so many others: `0`, on it `1` ..."""
    found: Adapter | None = None
    for level in range(levels + 1):
        found = adapter(f"{level}", level, parent=found)
    assert found is not None
    return found


def lineage(found: Adapter | None) -> list[float]:
    """The values of an adapter and of all that it stands on."""
    values = []
    while found is not None:
        values.append(value_of(found))
        found = found.parent
    return values


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
    assert found.parent is None
    (pack,) = first.packs
    assert pack.config["rank"] == 2 and pack.parent is None
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
    store.verify()
    store.publish([adapter("de", 5)], reason="third")
    fourth = store.publish([adapter("fr", 6)], reason="fourth")
    assert {pack.pack for pack in first.packs}.isdisjoint(pack.pack for pack in fourth.packs)
    assert contents(store) == {"de": 5, "fr": 6, "it": 4}


def test_metrics_of_several_publishes_stay_with_their_segments(store: AdapterStore) -> None:
    store.publish(
        [adapter("de", 1), adapter("fr", 2)],
        reason="first",
        metrics={"de": {"recall": 0.5}, "fr": {"recall": 0.25}},
    )
    metrics = {"fr": {"ndcg": 0.125, "recall": float("nan")}}
    store.publish([adapter("fr", 3), adapter("it", 4)], reason="second", metrics=metrics)
    found = AdapterStore(store.root).release(2).segments
    assert {segment: place.metrics for segment, place in found.items()} == {
        "de": {"recall": 0.5},
        "fr": {"ndcg": 0.125},
        "it": {},
    }


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(st.text(), st.integers(1, 3), min_size=1, max_size=8),
    st.randoms(use_true_random=False),
)
def test_the_order_of_adapters_changes_no_file(
    tmp_path_factory: pytest.TempPathFactory, ranks: dict[str, int], random: Random
) -> None:
    """Nor whether they come one by one, as a stack, or are what another store gave."""
    folder = tmp_path_factory.mktemp("order")
    adapters = [adapter(name, i, rank=rank) for i, (name, rank) in enumerate(ranks.items())]
    first = AdapterStore(folder / "first")
    wanted = first.publish(adapters, reason="x")
    shuffled = random.sample(adapters, len(adapters))
    loaded = first.load_all(base_fingerprint=BASE)
    for turn, given_adapters in enumerate((shuffled, loaded)):
        found = AdapterStore(folder / f"{turn}").publish(given_adapters, reason="x")
        assert (found.packs, found.segments.path.name) == (wanted.packs, wanted.segments.path.name)
    by_stack = AdapterStore(folder / "stacks")
    for rank in {*ranks.values()}:
        stack = AdapterStack.of([a for a in shuffled if a.config.rank == rank])
        found = by_stack.publish(stack, reason="x")
    assert (found.packs, found.segments.path.name) == (wanted.packs, wanted.segments.path.name)
    for stack in by_stack.load_stacks(base_fingerprint=BASE):
        assert list(stack.segments) == sorted(stack.segments)


def test_stacks_are_one_a_pack_and_hold_what_is_live(store: AdapterStore) -> None:
    store.publish([adapter(name, i) for i, name in enumerate("abcd")], reason="first")
    store.publish([adapter("b", 7), adapter("x", 8, rank=3)], reason="second")
    stacks = store.load_stacks(base_fingerprint=BASE)
    assert sorted(stack.segments for stack in stacks) == [("a", "c", "d"), ("b",), ("x",)]
    values = {found.segment: value_of(found) for stack in stacks for found in stack}
    assert values == contents(store) == {"a": 0, "b": 7, "c": 2, "d": 3, "x": 8}
    (whole,) = store.load_stacks(base_fingerprint=BASE, release=1)
    assert whole.segments == tuple("abcd")


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
        lambda: store.load_stacks(base_fingerprint=OTHER),
        lambda: store.publish([adapter("fr", 2, base=OTHER)], reason="foreign"),
        lambda: store.publish([adapter("fr", 2), adapter("it", 2, base=OTHER)], reason="both"),
        lambda: store.publish(
            [adapter("fr", 2, parent=adapter("pooled", 1, base=OTHER))], reason="parent"
        ),
        lambda: store.publish(
            [adapter("fr", 2)],
            reason="served",
            serves_parent=["it"],
            parent=adapter("pooled", 1, base=OTHER),
        ),
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
        ([adapter("de", 1, parent=adapter("\ud800", 1))], {}, "half of a surrogate pair"),
        ([adapter("de", 1, parent=chain(8))], {}, "stands on '8' and at least 8 more"),
        ([adapter("de", 1, parent=adapter("p", float("inf")))], {}, "'p': item_table.a has NaN"),
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


def test_adapters_of_one_config_that_do_not_stack_are_refused(store: AdapterStore) -> None:
    odd = Adapter("fr", AdapterConfig(rank=2), BASE, {"x": torch.ones(1)})
    with pytest.raises(AdapterError, match="'fr' and segment 'de' have one config but"):
        store.publish([adapter("de", 1), odd], reason="odd")
    assert not store.root.exists()


# --- parents ---------------------------------------------------------------------------------


def test_a_parent_comes_with_its_children_and_is_one_object(store: AdapterStore) -> None:
    pooled = adapter("pooled", 9)
    children = [adapter("de", 1, parent=pooled), adapter("fr", 2, rank=3, parent=pooled)]
    release = store.publish([*children, adapter("it", 3)], reason="first")
    assert set(release.segments) == {"de", "fr", "it"}, "the parent serves no segment"
    assert len(release.packs) == 3 and len(os.listdir(store.root / "packs")) == 4
    again = AdapterStore(store.root)
    found = {a.segment: a for a in again.load_all(base_fingerprint=BASE)}
    assert {name: lineage(a) for name, a in found.items()} == {
        "de": [1, 9],
        "fr": [2, 9],
        "it": [3],
    }
    parents = [found["de"].parent, again.load("fr", base_fingerprint=BASE).parent]
    parents += [s.parent for s in again.load_stacks(base_fingerprint=BASE) if s.parent is not None]
    assert len(parents) == 4 and all(parent is parents[0] for parent in parents)
    assert parents[0] is not None and parents[0].segment == "pooled"
    again.verify()


def test_equal_parents_are_one(store: AdapterStore) -> None:
    children = [adapter(name, 1, parent=adapter("pooled", 9)) for name in ("de", "fr")]
    assert len(store.publish(children, reason="first").packs) == 1
    others = [adapter(name, 1, parent=adapter("pooled", i)) for i, name in enumerate("ab")]
    release = store.publish(others, reason="second")
    assert len({pack.parent for pack in release.packs}) == 3
    assert lineage(store.load("b", base_fingerprint=BASE)) == [1, 1]


def test_parents_have_parents_down_to_eight(store: AdapterStore) -> None:
    store.publish([chain(8)], reason="deep")
    assert lineage(AdapterStore(store.root).load("8", base_fingerprint=BASE)) == [*range(8, -1, -1)]
    AdapterStore(store.root).verify()


def test_a_segment_whose_residual_did_not_help_serves_its_parent(store: AdapterStore) -> None:
    pooled = adapter("pooled", 9, parent=adapter("root", 7))
    release = store.publish(
        [adapter("de", 1, parent=pooled)],
        reason="first",
        serves_parent=["tiny", "small"],
        metrics={"tiny": {"ndcg": 0.5}},
    )
    assert release.segments["tiny"].serves_parent and not release.segments["de"].serves_parent
    assert release.segments["tiny"].metrics == {"ndcg": 0.5}
    again = AdapterStore(store.root)
    tiny = again.load("tiny", base_fingerprint=BASE)
    assert (tiny.segment, tiny.config, tiny.tensors) == ("tiny", (), {}) and tiny.is_served
    assert lineage(tiny.parent) == [9, 7]
    loaded = again.load_all(base_fingerprint=BASE)
    assert [(found.segment, found.is_served) for found in loaded] == [
        ("de", False),
        ("small", True),
        ("tiny", True),
    ]
    assert all(found.parent is loaded[0].parent for found in loaded)
    assert [lineage(found.parent) for found in loaded] == [[9, 7]] * 3
    bare = again.load_stacks(base_fingerprint=BASE)[-1]
    assert (bare.segments, bare.tensors, bare.config) == (("small", "tiny"), {}, ())
    assert lineage(bare.parent) == [9, 7]
    again.verify()
    # It stays so until it is published anew; then it has its own again.
    store.publish([adapter("fr", 2)], reason="second")
    assert lineage(store.load("tiny", base_fingerprint=BASE).parent) == [9, 7]
    store.publish([adapter("tiny", 3)], reason="third", serves_parent=["de"], parent=pooled)
    assert lineage(store.load("tiny", base_fingerprint=BASE)) == [3]
    assert lineage(store.load("de", base_fingerprint=BASE).parent) == [9, 7]
    # What was loaded can be published as it is.
    known = store.load_all(base_fingerprint=BASE)
    copied = AdapterStore(store.root / "copy")
    copied.publish(known, reason="a copy")
    for mine, theirs in zip(copied.load_all(base_fingerprint=BASE), known, strict=True):
        assert (mine.segment, mine.is_served) == (theirs.segment, theirs.is_served)
        assert mine.is_served or lineage(mine) == lineage(theirs)
        assert not mine.is_served or lineage(mine.parent) == lineage(theirs.parent)


def test_segments_can_serve_a_parent_when_no_adapter_is_published(store: AdapterStore) -> None:
    store.publish([], reason="only", serves_parent=["de"], parent=adapter("pooled", 9))
    assert lineage(store.load("de", base_fingerprint=BASE).parent) == [9]
    with pytest.raises(StoreError, match="must be a list of segments, got 'de'"):
        store.publish([], reason="only", serves_parent="de", parent=adapter("pooled", 9))


def test_the_parent_itself_can_be_published_beside_its_children(store: AdapterStore) -> None:
    pooled = adapter("pooled", 9)
    adapters = [pooled, adapter("de", 1, parent=pooled)]
    release = store.publish(adapters, reason="first", serves_parent=["fr"])
    assert len(release.packs) == 2
    assert [found.segment for found in store.load_all(base_fingerprint=BASE)] == [
        "de",
        "fr",
        "pooled",
    ]
    assert store.load("fr", base_fingerprint=BASE).is_served


@pytest.mark.parametrize(
    ("parents", "message"),
    [((), "needs the parent"), ((None,), "published here have 0"), ((1, 2), "here have 2")],
)
def test_who_shall_serve_must_be_known(
    store: AdapterStore, parents: tuple[int | None, ...], message: str
) -> None:
    adapters = [
        adapter(f"{i}", i, parent=None if value is None else adapter("pooled", value))
        for i, value in enumerate(parents)
    ]
    with pytest.raises(StoreError, match=f"{message}.*parent="):
        store.publish(adapters, reason="x", serves_parent=["de"])
    assert not store.root.exists()


def test_a_segment_does_not_serve_its_parent_and_its_own(store: AdapterStore) -> None:
    with pytest.raises(StoreError, match="'de' comes twice"):
        store.publish(
            [adapter("de", 1)], reason="x", serves_parent=["de"], parent=adapter("pooled", 9)
        )


@pytest.fixture
def family(store: AdapterStore) -> tuple[AdapterStore, Path]:
    """A store of children, and the pack of their parent."""
    children = [adapter("de", 1, parent=adapter("pooled", 9))]
    release = store.publish(children, reason="first", serves_parent=["tiny"])
    return AdapterStore(store.root), (
        store.root / "packs" / f"{release.packs[0].parent or release.packs[1].parent}.safetensors"
    )


def assert_all_refuse(store: AdapterStore, message: str) -> None:
    for refused in (
        lambda: store.load("de", base_fingerprint=BASE),
        lambda: store.load("tiny", base_fingerprint=BASE),
        lambda: store.load_all(base_fingerprint=BASE),
        lambda: store.load_stacks(base_fingerprint=BASE),
        store.verify,
    ):
        with pytest.raises(StoreError, match=message):
            refused()


def test_a_parent_that_is_missing_or_damaged_is_refused(
    family: tuple[AdapterStore, Path],
) -> None:
    store, parent = family
    data = parent.read_bytes()
    parent.unlink()
    assert_all_refuse(store, f"{parent} is missing, release 1 needs it")
    parent.write_bytes(data[:-1] + b"?")
    assert_all_refuse(store, f"{parent} is damaged: its sha256 is not its name")
    parent.write_bytes(data)
    store.verify()
    assert lineage(store.load("de", base_fingerprint=BASE)) == [1, 9]


@pytest.mark.parametrize(
    ("forged", "message"),
    [
        ([adapter("pooled", 9, base=OTHER)], f"belongs to base {OTHER}, its release 1 to {BASE}"),
        ([adapter("a", 9), adapter("b", 9)], "holds 2 adapters, expected that of one parent"),
        ([adapter("pooled", 9)], "more than 8 parents or on itself"),
    ],
)
def test_a_parent_that_is_none_is_refused(
    family: tuple[AdapterStore, Path], forged: list[Adapter], message: str
) -> None:
    """One of another base, one of several, one that stands on itself."""
    store, path = family
    itself = path.stem if len(forged) == 1 and forged[0].base_fingerprint == BASE else None
    written = pack_file(AdapterStack.of(forged), itself).write(path.parent)
    os.replace(written, path)
    for refused in (
        lambda: store.load("de", base_fingerprint=BASE),
        lambda: store.load("tiny", base_fingerprint=BASE),
        lambda: store.load_stacks(base_fingerprint=BASE),
    ):
        with pytest.raises(StoreError, match=message):
            refused()
    with pytest.raises(StoreError):
        store.verify()


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
    assert sum(path.is_file() for path in folder.rglob("*")) == 3


def test_hard_names_all_at_once(store: AdapterStore) -> None:
    wanted = {name: float(i) for i, name in enumerate(HARD_NAMES)}
    store.publish([adapter(name, value) for name, value in wanted.items()], reason="names")
    assert contents(store) == wanted and len(wanted) == len(HARD_NAMES)


def test_remains_of_a_killed_publish_are_harmless(store: AdapterStore) -> None:
    store.publish([adapter("de", 1)], reason="first")
    for remains in (
        *("packs/00ff.safetensors", "packs/00.tmp.1"),
        *("releases/maps/00.safetensors", "releases/00000002.json.tmp.ab"),
    ):
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


def test_verify_reads_again_what_was_read_before(store: AdapterStore) -> None:
    """Packs, parents and the map."""
    store.publish([adapter("de", 1, parent=adapter("pooled", 9))], reason="first")
    store.load_all(base_fingerprint=BASE)
    store.verify()
    files = sorted(path for path in store.root.rglob("*") if path.suffix == ".safetensors")
    assert len(files) == 3
    for path in files:
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(StoreError, match=f"^{path} is damaged: its sha256 .*") as caught:
            store.verify()
        assert str(caught.value).count("\n") == 0
        path.write_bytes(data)
    store.verify()


def test_a_publish_on_a_damaged_map_is_refused(store: AdapterStore) -> None:
    path = store.publish([adapter("de", 1)], reason="first").segments.path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match=f"{path} is damaged"):
        AdapterStore(store.root).publish([adapter("fr", 1)], reason="second")
    assert store.releases() == [1]


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
        "release = AdapterStore(pathlib.Path(sys.argv[1])).current();"
        "print(release.reason, *release.segments, release.segments['de'].index,"
        "      release.packs[0].config['rank'], 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", script, str(store.root)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["first", "de", "0", "2", "False"]


# --- killed, failing and racing publishers ---------------------------------------------------

PRELUDE = """
import ctypes, os, sys, time
from pathlib import Path
import torch
from reclora.adapters import Adapter
from reclora.configs import AdapterConfig
from reclora.store import AdapterStore

torch.set_num_threads(1)

def publish(store, value, *segments):
    config = AdapterConfig(rank=2)
    tensors = {
        "items.rows": torch.arange(1),
        "item_table.a": torch.full((1, 2), value),
        "item_table.b": torch.full((2, 3), -value),
    }
    parent = Adapter("pooled", config, "BASE", tensors)
    adapters = [Adapter(segment, config, "BASE", tensors, parent) for segment in segments]
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
""".replace("BASE", BASE)

ONE_AT_A_TIME = """
for line in sys.stdin:
    receive, send = os.pipe()

    def work():
        # Where Yama guards ptrace, this lets a stranger attach (PR_SET_PTRACER, any).
        ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)
        os.read(receive, 1)
        number, root = line.rstrip("\\n").split(" ", 1)
        store, value = AdapterStore(Path(root)), float(number)
        if value < 0:
            store.rollback(int(-value), reason=f"{value:g}")
        else:
            publish(store, value, "de", "fr", *([] if value else ["it"]))

    pid = fork(work)
    print(pid, flush=True)
    sys.stdin.readline()
    os.write(send, b"x")
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    os.close(receive)
    os.close(send)
"""

RACE = """
store = AdapterStore(Path(sys.argv[1]))
publish(store, 0.0, "de", "fr", "it")

def publisher(own):
    for turn in range(1, 6):
        publish(store, 10.0 * own + turn, f"own {own}", "contested")

def reader():
    while len(store.releases()) < 41:
        values = [a.tensors["item_table.a"][0, 0] for a in store.load_all(base_fingerprint="BASE")]
        assert len(values) >= 3

pids = [fork(lambda own=own: publisher(own)) for own in range(8)] + [fork(reader), fork(reader)]
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
assert codes == [0] * 10, codes
""".replace("BASE", BASE)


class Publishers:
    """Forks one publishing process after the other: importing takes seconds."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        self._script = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + ONE_AT_A_TIME],
            stdin=pipe,
            stdout=pipe,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, line: str) -> int:
        assert self._script.stdin is not None and self._script.stdout is not None
        self._script.stdin.write(line + "\n")
        self._script.stdin.flush()
        return int(self._script.stdout.readline())

    def close(self) -> None:
        self._script.communicate()


class Publisher:
    """Publishes to one store, each time under `strace` with a fault to meet."""

    def __init__(self, publishers: Publishers, root: Path) -> None:
        self._publishers, self._root = publishers, root

    def publish(self, value: float, injection: str) -> int:
        """Publish `value` for two segments, or roll back to release -`value`; returns the exit
        code, negative if a signal came.
        """
        pid = self._publishers.ask(f"{value} {self._root}")
        injecting = ["-o", "/dev/null", "-e", f"inject={injection}"]
        return go_traced(pid, injecting, lambda: self._publishers.ask("go"))

    def begin(self) -> None:
        """The first release, of three segments."""
        self._publishers.ask(f"0 {self._root}")
        assert self._publishers.ask("go") == 0


@pytest.fixture(scope="module")
def publishers() -> Iterator[Publishers]:
    if shutil.which("strace") is None:
        pytest.skip("needs strace, to kill a publish at a chosen system call")
    script = Publishers()
    yield script
    script.close()


@pytest.fixture
def publisher(store: AdapterStore, publishers: Publishers) -> Publisher:
    one = Publisher(publishers, store.root)
    one.begin()
    return one


WRITING = ("openat", "write", "fsync", "chmod", "link", "linkat", "rename", "unlink")


def test_row_01_a_publish_killed_at_any_step_leaves_a_whole_release(
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
    # Four files are written, fsynced and moved into three folders: the parent's pack, the pack, the
    # map, the release.
    assert deaths["fsync"] == 8 and deaths["write"] >= 4 and deaths["rename"] == 3
    assert deaths["link"] + deaths["linkat"] == 1


def test_a_rollback_killed_at_any_step_leaves_a_whole_release(
    store: AdapterStore, publisher: Publisher
) -> None:
    """Every call that the rollback makes, the locks too."""
    publisher.publish(1, "write:delay_enter=1:when=1")
    states = {1: {"de": 0.0, "fr": 0.0, "it": 0.0}, 2: {"de": 1.0, "fr": 1.0, "it": 0.0}}
    live, deaths = states[2], dict.fromkeys((*WRITING, "flock", "mkdir"), 0)
    for call in deaths:
        code = -signal.SIGKILL
        while code == -signal.SIGKILL:
            to = 1 if live == states[2] else 2
            code = publisher.publish(-to, f"{call}:signal=SIGKILL:when={deaths[call] + 1}")
            deaths[call] += code == -signal.SIGKILL
            reader = AdapterStore(store.root)
            found = contents(reader)
            assert found in (live, states[to])
            live = found
            reader.verify()
        assert code == 0 and live == states[to]
    # The map and the release are written, each fsynced into its folder; no pack is.
    assert (deaths["fsync"], deaths["rename"], deaths["link"] + deaths["linkat"]) == (4, 1, 1)
    assert deaths["flock"] == 1 and len(list((store.root / "packs").glob("*.safetensors"))) == 4
    assert store.check().problems == ()
    store.gc(grace=timedelta(0))
    assert not list(store.root.rglob("*.tmp.*")) and contents(store) == live


def test_row_04_a_publish_that_the_disk_refuses_leaves_nothing_behind(
    store: AdapterStore, publisher: Publisher
) -> None:
    for fault in (
        *(f"write:error=ENOSPC:when={n}" for n in (1, 2, 3, 4)),
        *(f"fsync:error=EIO:when={n}" for n in (1, 3, 5, 7)),
        *("rename:error=ENOSPC", "link,linkat:error=ENOSPC"),
    ):
        assert publisher.publish(1, fault) == 1, fault
        assert contents(store) == {"de": 0, "fr": 0, "it": 0}
        assert not list(store.root.rglob("*.tmp.*"))
    # The last fsync comes after the release can be seen: others may have built on it by now.
    assert publisher.publish(1, "fsync:error=EIO:when=8") == 1
    assert contents(store) == {"de": 1, "fr": 1, "it": 0}


def test_a_change_for_one_release_is_not_made_on_another(store: AdapterStore) -> None:
    store.publish([adapter("de", 1)], reason="first", onto=0)
    with pytest.raises(Superseded, match="release 1 is current, not 0"):
        store.publish([adapter("de", 2)], reason="late", onto=0)
    store.publish([adapter("fr", 3)], reason="second", onto=1)
    for late in (0, 1, 3):
        with pytest.raises(Superseded, match="release 2 is current"):
            store.publish([adapter("de", 2)], reason="late", onto=late)
    assert store.releases() == [1, 2] and contents(store) == {"de": 1, "fr": 3}
    assert store.sha256(store.release(1)) != store.sha256(store.release(2))


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
