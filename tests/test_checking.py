"""fsck: what is damaged, what is only old, what nobody needs; each file is read once."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from reclora.stacks import AdapterStack
from reclora.store import AdapterStore, Placement
from reclora.store.changes import Change, Tables
from reclora.store.committing import Note, commit
from reclora.store.folders import Folders
from reclora.store.packs import pack_file
from reclora.store.placements import PlacementTable
from reclora.store.releases import PackSummary
from tests.small_stores import BASE, OTHER, adapter, adapters, pack_of


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    """Three releases: a parent, a candidate, decisions."""
    found = AdapterStore(tmp_path / "store")
    pooled = adapter("pooled", 9)
    table = pd.DataFrame({"segment": ["de"], "gain": [0.5]})
    found.publish([adapter("de", 1, parent=pooled)], reason="1", serves_parent=["tiny"])
    found.publish(adapters({"fr": 2}), reason="2", canary=0.5, decisions=table)
    found.publish(adapters({"it": 3}), reason="3")
    return found


def test_a_whole_store_has_no_problem(store: AdapterStore) -> None:
    found = store.check()
    assert (found.problems, found.unneeded, found.retired) == ((), {}, ())
    empty = AdapterStore(store.root / "none").check()
    assert (empty.problems, empty.unneeded, empty.retired) == ((), {}, ())
    assert not (store.root / "none").exists()


def test_every_damaged_file_is_named_once_whoever_needs_it(store: AdapterStore) -> None:
    files = sorted(path for path in store.root.rglob("*.*") if path.suffix != ".json")
    assert len(files) == 4 + 3 + 1, "packs; maps, one of two releases; decisions"
    newest = pack_of(store, "it", 3)
    for path in files:
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    found = AdapterStore(store.root).check()
    named = sorted(problem.split(" is damaged")[0] for problem in found.problems)
    assert named == [str(path) for path in files]
    for path in files:
        path.unlink()
    problems = AdapterStore(store.root).check().problems
    assert sorted(problem.split(" is missing")[0] for problem in problems) == named
    assert any(f"{newest} is missing, release 3 needs it" in problem for problem in problems)


def test_each_file_is_read_once_over_all_releases(store: AdapterStore) -> None:
    if shutil.which("strace") is None:
        pytest.skip("needs strace, to count how often a file is opened")
    for value in range(3):
        store.publish(adapters({"it": value}), reason="x")
    script = (
        "import pathlib, sys; from reclora.store import AdapterStore;"
        "print(AdapterStore(pathlib.Path(sys.argv[1])).check().problems)"
    )
    log = store.root / "opened"
    ran = subprocess.run(
        [*("strace", "-f", "-qq", "-e", "trace=openat", "-o", str(log)), sys.executable, "-c"]
        + [script, str(store.root)],
        capture_output=True,
        text=True,
    )
    if "ptrace" in ran.stderr:
        pytest.skip(f"strace cannot trace here: {ran.stderr}")
    assert ran.stdout == "()\n", ran.stderr
    lines = log.read_text().splitlines()
    for path in store.root.rglob("*.safetensors"):
        opened = sum(f'"{path}"' in line for line in lines)
        # A pack's header, and then all of it.
        assert opened == (2 if path.parent.name == "packs" else 1), path


def test_a_gap_and_a_renamed_release_are_problems(store: AdapterStore) -> None:
    folder = store.root / "releases"
    (folder / "00000002.json").rename(folder / "00000005.json")
    problems = AdapterStore(store.root).check().problems
    for text in ("00000002.json is missing, later", "00000004.json is missing, later"):
        assert sum(text in problem for problem in problems) == 1
    assert sum("calls itself release 2; files were renamed" in p for p in problems) == 1
    assert len(problems) == 3


def foreign_base(store: AdapterStore, path: Path) -> None:
    os.replace(
        pack_file(AdapterStack.of([adapter("it", 3, base=OTHER)]), None).write(path.parent), path
    )


def other_segment(store: AdapterStore, path: Path) -> None:
    """Placed under its own name, but as another segment's."""
    place = store.release(3).segments["it"]
    wrong = {"es": place, "it": Placement(place.pack, 7, {})}
    release = store.release(3)
    change = Change(lambda below: Tables(PlacementTable.of(wrong)), release.packs)
    commit(Folders(store.root), store.current, change, BASE, Note("forged", None))


def serving_two(store: AdapterStore, path: Path) -> None:
    file = pack_file(AdapterStack.of([adapter("a", 1), adapter("b", 2)]), None)
    file.write(path.parent)
    table = PlacementTable.of({"de": Placement(file.name, 0, {}, serves_parent=True)})
    change = Change(lambda below: Tables(table), [PackSummary(file.name, {}, None)])
    commit(Folders(store.root), store.current, change, BASE, Note("forged", None))


def on_itself(store: AdapterStore, path: Path) -> None:
    os.replace(pack_file(AdapterStack.of([adapter("it", 3)]), path.stem).write(path.parent), path)


def on_nine(store: AdapterStore, path: Path) -> None:
    name = None
    for level in range(10):
        file = pack_file(AdapterStack.of([adapter("it", level)]), name)
        file.write(path.parent)
        name = file.name
    assert name is not None
    table = PlacementTable.of({"it": Placement(name, 0, {})})
    change = Change(lambda below: Tables(table), [PackSummary(name, {}, None)])
    commit(Folders(store.root), store.current, change, BASE, Note("forged", None))


@pytest.mark.parametrize(
    ("forge", "message", "count"),
    [
        (foreign_base, "its sha256 is not its name", 1),
        (other_segment, "index . is not segment '(es|it)', as a release has it, and 1 more", 1),
        (serving_two, "holds 2 adapters, expected that of one parent", 1),
        (on_itself, "its sha256 is not its name", 1),
        (on_nine, "stands on more than 8 parents or on itself", 1),
    ],
)
def test_what_contradicts_itself_is_a_problem(
    store: AdapterStore, forge: Callable[[AdapterStore, Path], None], message: str, count: int
) -> None:
    forge(store, pack_of(store, "it", 3))
    fresh = AdapterStore(store.root)
    problems = fresh.check().problems
    assert len(problems) == count, problems
    with pytest.raises(ValueError, match=message) as caught:
        fresh.verify()
    assert str(caught.value) == problems[0]


def test_a_pack_of_another_base_is_a_problem_once(store: AdapterStore) -> None:
    """Though three releases need it, and its bytes are what its name says."""
    foreign = pack_file(AdapterStack.of([adapter("it", 3, base=OTHER)]), None)
    foreign.write(store.root / "packs")
    table = PlacementTable.of({"it": Placement(foreign.name, 0, {})})
    change = Change(lambda below: Tables(table), [PackSummary(foreign.name, {}, None)])
    for _ in range(3):
        commit(Folders(store.root), store.current, change, BASE, Note("forged", None))
    (problem,) = AdapterStore(store.root).check().problems
    assert f"belongs to base {OTHER}, its release 6 to {BASE}" in problem
