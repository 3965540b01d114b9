"""gc: what goes, what stays, what is young, and what is said of what went."""

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest

from reclora.stacks import AdapterStack
from reclora.store import AdapterStore, StoreError
from reclora.store.folders import ABANDONED_S
from reclora.store.lineage import Lineages
from reclora.store.packs import pack_file
from reclora.store.retired import read_kept_from
from tests.small_stores import BASE, adapter, adapters, candidates, contents, pack_of

NOW = timedelta(0)


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "store")


def filled(store: AdapterStore, number: int) -> AdapterStore:
    """With so many releases, each with a pack of its own and decisions."""
    for value in range(1, number + 1):
        table = pd.DataFrame({"segment": ["de"], "gain": [value / 7]})
        store.publish(adapters({"de": value}), reason=f"{value}", decisions=table)
    return store


def made_older(paths: Iterable[Path], seconds: float) -> None:
    for path in paths:
        then = path.stat().st_mtime - seconds
        os.utime(path, (then, then))


def files_of(store: AdapterStore, *folders: str) -> list[str]:
    return sorted(path.name for folder in folders for path in (store.root / folder).iterdir())


def test_packs_go_and_the_history_stays(store: AdapterStore) -> None:
    filled(store, 5)
    packs = [pack_of(store, "de", number) for number in range(1, 6)]
    sizes = {path: path.stat().st_size for path in packs[:3]}
    collected = store.gc(keep=2, grace=NOW)
    assert (collected.files, collected.retired, collected.pinned) == (sizes, (1, 2, 3), ())
    assert [path.exists() for path in packs] == [False, False, False, True, True]
    again = AdapterStore(store.root)
    assert [release.reason for release in again.history()] == ["5", "4", "3", "2", "1"]
    decided = again.decisions(1)
    assert decided is not None and decided["gain"].tolist() == [1 / 7]
    assert len(again.diff(1, 2)) == 1
    assert contents(again, 4) == {"de": 4} and contents(again) == {"de": 5}
    for refused in (
        lambda: contents(again, 3),
        lambda: again.load("de", base_fingerprint=BASE, release=3),
        lambda: again.rollback(3, reason="x"),
        lambda: again.rollback(3, ["de"], reason="x"),
    ):
        text = f"{packs[2]} was removed by gc: release 3 is older than those it kept, 4 and later"
        with pytest.raises(StoreError, match=text):
            refused()
    assert again.check().problems == () and again.check().retired == (1, 2, 3)
    assert store.gc(keep=2, grace=NOW).files == {}


def test_a_reader_that_has_read_a_pack_is_told_that_it_went(store: AdapterStore) -> None:
    filled(store, 2)
    store.load_all(base_fingerprint=BASE, release=1)
    store.gc(keep=1, grace=NOW)
    with pytest.raises(StoreError, match="was removed by gc"):
        store.load("de", base_fingerprint=BASE, release=1)
    # It can come back: the same adapters are the same pack.
    store.publish(adapters({"de": 1}), reason="again")
    assert contents(store, 1) == {"de": 1}


def test_what_a_kept_release_needs_stays(store: AdapterStore) -> None:
    """Packs carried over, parents of parents, candidates and what was rolled back to."""
    pooled = adapter("pooled", 9, parent=adapter("root", 8))
    store.publish([adapter("de", 1, parent=pooled), adapter("fr", 1)], reason="1")
    store.publish(adapters({"it": 2}), reason="2", canary=0.5)
    store.publish(adapters({"fr": 3}), reason="3")
    store.publish(adapters({"fr": 4}), reason="4")
    store.rollback(3, ["fr"], reason="5")
    gone = {pack_of(store, "fr", 4), pack_of(store, "fr", 1)}
    collected = store.gc(keep=1, grace=NOW)
    assert collected.files.keys() == gone and collected.retired == (1, 2, 4)
    again = AdapterStore(store.root)
    assert contents(again) == {"de": 1, "fr": 3} and candidates(again) == {"it": 2}
    assert contents(again, 3) == {"de": 1, "fr": 3}
    again.verify()


def test_nothing_young_goes(store: AdapterStore) -> None:
    filled(store, 4)
    paths = [pack_of(store, "de", number) for number in range(1, 5)]
    made_older(paths[:1], 3 * 86_400)
    made_older(paths[1:2], -86_400)
    made_older(paths[2:3], 86_400)
    collected = store.gc(keep=1, grace=timedelta(days=2))
    assert [*collected.files] == paths[:1] and collected.retired == (1,)
    assert [*store.gc(keep=1, grace=NOW).files] == paths[2:3], "what is from the future is young"
    assert store.gc(keep=1).files == {} and contents(store, 2) == {"de": 2}


def test_a_clock_that_is_wrong_changes_nothing(store: AdapterStore) -> None:
    """The age of a file is told by the disk that wrote its time."""
    filled(store, 2)
    script = (
        "import pathlib, sys, time; from reclora.store import AdapterStore\n"
        "seconds = time.time() + 86_400 * float(sys.argv[2])\n"
        "time.time, time.time_ns = lambda: seconds, lambda: int(seconds * 1e9)\n"
        "print(len(AdapterStore(pathlib.Path(sys.argv[1])).gc(keep=1).files))"
    )
    for days in ("30", "-30"):
        command = [sys.executable, "-c", script, str(store.root), days]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        assert ran.stdout == "0\n"


def test_a_dry_run_removes_nothing(store: AdapterStore) -> None:
    filled(store, 3)
    before = files_of(store, "packs", "releases", "releases/maps")
    would = store.gc(keep=1, grace=NOW, dry_run=True)
    assert files_of(store, "packs", "releases", "releases/maps") == before
    assert would == store.gc(keep=1, grace=NOW) and len(would.files) == 2


def test_row_02_what_killed_writers_left_goes(store: AdapterStore) -> None:
    filled(store, 1)
    orphans = [
        *("packs/" + "0" * 64 + ".safetensors", "releases/maps/" + "0" * 64 + ".safetensors"),
        *("releases/decisions/" + "0" * 64 + ".parquet", "packs/a.safetensors.tmp.1"),
        *("releases/00000002.json.tmp.ab", "releases/maps/a.tmp.1"),
    ]
    foreign = ["packs/notes.txt", "packs/00ff.safetensors", "releases/maps/notes.txt"]
    for name in [*orphans, *foreign]:
        (store.root / name).write_bytes(b"half")
    found = store.check()
    assert set(found.unneeded) == {store.root / name for name in [*orphans, *foreign]}
    assert set(found.unneeded.values()) == {4} and found.problems == ()
    assert store.gc().files == {}
    collected = store.gc(grace=NOW)
    assert set(collected.files) == {store.root / name for name in orphans}
    assert all((store.root / name).exists() for name in foreign), "not the store's own"
    assert collected.retired == () and read_kept_from(store.root / "releases") == 1
    store.verify()


def test_a_publish_sweeps_what_was_abandoned(store: AdapterStore) -> None:
    filled(store, 1)
    old, young = (store.root / "packs" / f"x.safetensors.tmp.{name}" for name in ("old", "young"))
    for path, age in ((old, ABANDONED_S + 60), (young, ABANDONED_S - 60)):
        path.touch()
        made_older([path], age)
    store.publish(adapters({"fr": 1}), reason="x")
    assert young.exists() and not old.exists()


def test_a_link_is_removed_and_not_what_it_leads_to(store: AdapterStore, tmp_path: Path) -> None:
    filled(store, 1)
    (tmp_path / "precious").touch()
    (store.root / "packs" / ("0" * 64 + ".safetensors")).symlink_to(tmp_path / "precious")
    (store.root / "packs" / ("1" * 64 + ".safetensors")).mkdir()
    assert len(store.gc(grace=NOW).files) == 1 and (tmp_path / "precious").exists()


def test_a_damaged_store_is_left_alone(store: AdapterStore) -> None:
    filled(store, 3)
    before = files_of(store, "packs")
    path = store.root / "releases" / "00000001.json"
    data = path.read_bytes()
    path.write_bytes(data[:-9])
    with pytest.raises(StoreError, match=f"{path} is damaged"):
        store.gc(keep=1, grace=NOW)
    path.write_bytes(data)
    pack = pack_of(store, "de", 2)
    moved = pack.rename(store.root / "moved")
    with pytest.raises(StoreError, match=f"{pack} is missing, release 2 needs it, and what it"):
        store.gc(keep=2, grace=NOW)
    moved.rename(pack)
    assert files_of(store, "packs") == before
    # What goes anyway may be damaged.
    pack.write_bytes(b"")
    assert store.gc(keep=1, grace=NOW).retired == (1, 2)


def test_more_can_be_kept_than_there_is_left(store: AdapterStore) -> None:
    filled(store, 4)
    store.gc(keep=1, grace=NOW)
    assert store.gc(keep=4, grace=NOW).files == {}
    assert read_kept_from(store.root / "releases") == 4


def test_what_gc_cannot_do(store: AdapterStore) -> None:
    with pytest.raises(StoreError, match="no release yet"):
        store.gc()
    filled(store, 1)
    for keep, grace in ((0, NOW), (1, timedelta(-1))):
        with pytest.raises(StoreError, match="at least 1 release and has no negative grace"):
            store.gc(keep=keep, grace=grace)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "damaged"),
        ('{"format": 1, "kept_from": 0}', "expected the number of a release, got 0"),
        ('{"format": 1, "kept_from": true}', "expected the number of a release, got True"),
        ('{"format": 2, "needs": "9.1", "kept_from": 1}', "needs reclora >= 9.1"),
        ('{"format": 1, "kept_from": ' + "1" * 2**12, "damaged"),
    ],
)
def test_a_damaged_note_of_what_went_is_refused(
    store: AdapterStore, text: str, message: str
) -> None:
    filled(store, 2)
    path = store.root / "releases" / "retired.json"
    path.write_text(text)
    with pytest.raises(StoreError, match=message) as caught:
        store.gc(keep=1, grace=NOW)
    assert str(path) in str(caught.value)
    assert contents(store, 1) == {"de": 1}, "only who misses a pack asks why"


def test_lineages_follow_headers(store: AdapterStore) -> None:
    packs, name = store.root / "packs", None
    packs.mkdir(parents=True)
    names = []
    for level in range(3):
        file = pack_file(AdapterStack.of([adapter(f"{level}", level)]), name)
        file.write(packs)
        name = file.name
        names.append(name)
    store.publish(adapters({"de": 1}), reason="x")
    (summary,) = store.release(1).packs
    assert Lineages(packs).needed([summary]) == {summary.pack}
    assert Lineages(packs).needed([replace(summary, pack=names[2])]) == {*names}
    (packs / f"{names[1]}.safetensors").unlink()
    assert Lineages(packs).needed([replace(summary, pack=names[2])]) == {*names[1:]}


def test_a_thousand_releases_are_collected_in_seconds(store: AdapterStore) -> None:
    """Also under the usual limit of open files, 1,024."""
    filled(store, 1)
    text = (store.root / "releases" / "00000001.json").read_text()
    for number in range(2, 1_501):
        path = store.root / "releases" / f"{number:08d}.json"
        path.write_text(text.replace('"number": 1,', f'"number": {number},'))
    store.publish(adapters({"de": 7}), reason="last")
    begin = time.process_time()
    assert len(store.gc(keep=1, grace=NOW).retired) == 1_500
    assert time.process_time() - begin < 5
