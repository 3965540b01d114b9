"""What each verb makes of the release below: candidates, promotion, rolling back, history."""

import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reclora.store import AdapterStore, StoreError, UnknownSegment
from reclora.store.changes import Tables, restoration
from reclora.store.placements import Placement, PlacementTable
from reclora.store.releases import release_path, write_release
from tests.small_stores import BASE, adapter, adapters, candidates, contents, pack_of, value_of


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "store")


@dataclass(frozen=True)
class State:
    """What a release should have."""

    current: dict[str, float]
    candidates: dict[str, float]
    share: float | None = None

    @property
    def said(self) -> tuple[object, ...]:
        """What a release says; without candidates there is no share."""
        return self.current, self.candidates, self.share if self.candidates else None


NAMES = ("de", "fr", "it", "ä/..")
some = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True)
steps = st.tuples(
    st.sampled_from(("publish", "canary", "remove", "promote", "rollback")),
    some,
    st.booleans(),
    st.integers(0, 7),
)


def without(values: dict[str, float], names: list[str]) -> dict[str, float]:
    return {name: value for name, value in values.items() if name not in names}


@settings(max_examples=40, deadline=None)
@given(st.lists(steps, max_size=8))
def test_every_verb_does_what_a_dictionary_would(
    tmp_path_factory: pytest.TempPathFactory, plan: list[tuple[str, list[str], bool, int]]
) -> None:
    store = AdapterStore(tmp_path_factory.mktemp("verbs") / "store")
    store.publish([adapter("de", -1)], reason="first")
    states = [State({"de": -1.0}, {})]
    for value, (verb, names, everything, back) in enumerate(plan):
        below = states[-1]
        values = dict.fromkeys(names, float(value))
        if verb == "publish":
            store.publish(adapters(values), reason=verb)
            new = State({**below.current, **values}, without(below.candidates, names), below.share)
        elif verb == "canary":
            share = 1 / (value + 2)
            store.publish(adapters(values), reason=verb, canary=share)
            new = State(below.current, {**below.candidates, **values}, share)
        elif verb == "remove":
            known = [name for name in names if name in {**below.current, **below.candidates}]
            if not known:
                continue
            store.publish([], reason=verb, remove=known)
            new = replace(
                below,
                current=without(below.current, known),
                candidates=without(below.candidates, known),
            )
        elif verb == "promote":
            chosen = (
                [*below.candidates] if everything else [n for n in names if n in below.candidates]
            )
            if not chosen:
                continue
            store.promote(None if everything else chosen, reason=verb)
            promoted = {name: below.candidates[name] for name in chosen}
            rest = without(below.candidates, chosen)
            new = State({**below.current, **promoted}, rest, below.share)
        else:
            to = back % (len(states) + 1)
            earlier = states[to - 1] if to else State({}, {})
            known = [name for name in names if name in {**below.current, **earlier.current}]
            if not known and not everything:
                continue
            restored = {n: v for n, v in earlier.current.items() if n in known}
            one_by_one = replace(below, current={**without(below.current, known), **restored})
            new = earlier if everything else one_by_one
            chosen = None if everything else known
            if new.said == below.said:
                with pytest.raises(StoreError, match=f"release {to} is what is live already"):
                    store.rollback(to, chosen, reason=verb)
                continue
            store.rollback(to, chosen, reason=verb)
        states.append(new)
    for number, state in enumerate(states, start=1):
        release = store.release(number)
        assert release.parent == (number - 1 or None)
        assert contents(store, number) == state.current
        assert (release.canary is None) == (not state.candidates)
        if release.canary is not None:
            assert candidates(store, number) == state.candidates
            assert release.canary.share == state.share
        store.verify(number)
    assert store.check().problems == ()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(some, st.booleans()), min_size=1, max_size=6), some)
def test_without_a_release_a_rollback_finds_the_last_difference(
    tmp_path_factory: pytest.TempPathFactory, plan: list[tuple[list[str], bool]], names: list[str]
) -> None:
    store = AdapterStore(tmp_path_factory.mktemp("verbs") / "store")
    states: list[dict[str, float]] = []
    for value, (changed, waits) in enumerate(plan):
        waits = waits and bool(states)
        values = dict.fromkeys(changed, float(value))
        store.publish(adapters(values), reason="x", canary=0.5 if waits else None)
        below = states[-1] if states else {}
        states.append(below if waits else {**below, **values})
    wanted = dict(states[-1])
    for name in names:
        others = [state.get(name) for state in states if state.get(name) != states[-1].get(name)]
        if not others:
            with pytest.raises(StoreError, match="the first|as every earlier one|no segment"):
                store.rollback(segments=names, reason="x")
            assert len(store.releases()) == len(states)
            return
        wanted |= {name: others[-1]} if others[-1] is not None else {}
        if others[-1] is None:
            del wanted[name]
    store.rollback(segments=names, reason="x")
    assert contents(store) == wanted
    store.rollback(segments=names, reason="undone")
    assert contents(store) == states[-1]


def test_a_candidate_waits_beside_what_is_current(store: AdapterStore) -> None:
    store.publish(adapters({"de": 1, "fr": 2}), reason="first")
    release = store.publish(
        adapters({"de": 3}), reason="try", canary=0.1, metrics={"de": {"ndcg": 0.5}}, run="r7"
    )
    assert release == AdapterStore(store.root).current() and release.run == "r7"
    assert release.canary is not None and release.canary.share == 0.1
    assert release.canary.segments["de"].metrics == {"ndcg": 0.5}
    assert value_of(store.load("de", base_fingerprint=BASE)) == 1
    assert value_of(store.load("de", base_fingerprint=BASE, candidates=True)) == 3
    with pytest.raises(UnknownSegment, match="no candidate of segment 'fr'"):
        store.load("fr", base_fingerprint=BASE, candidates=True)
    with pytest.raises(StoreError, match="release 1 has no candidates"):
        store.load_stacks(base_fingerprint=BASE, release=1, candidates=True)
    promoted = store.promote(reason="better", author="ann")
    assert (promoted.number, promoted.author, promoted.reason) == (3, "ann", "better")
    assert promoted.canary is None and contents(store) == {"de": 3, "fr": 2}
    assert promoted.segments["de"].metrics == {"ndcg": 0.5}
    with pytest.raises(StoreError, match="no candidate to promote"):
        store.promote(reason="again")


def test_a_segment_that_its_parent_serves_can_be_a_candidate(store: AdapterStore) -> None:
    store.publish(adapters({"de": 1}), reason="first")
    pooled = adapter("pooled", 9)
    store.publish([], reason="try", serves_parent=["de"], parent=pooled, canary=0.5)
    assert not store.load("de", base_fingerprint=BASE).is_served
    assert store.load("de", base_fingerprint=BASE, candidates=True).is_served
    store.promote(["de"], reason="it helps")
    assert store.load("de", base_fingerprint=BASE).is_served
    store.verify()


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_a_canary_is_a_share(store: AdapterStore, share: float) -> None:
    with pytest.raises(StoreError, match="above 0 and below 1"):
        store.publish(adapters({"de": 1}), reason="x", canary=share)
    assert not store.root.exists()


def test_what_is_no_change_is_refused(store: AdapterStore) -> None:
    table = pd.DataFrame({"segment": ["de"], "gain": [0.5]})
    for refused in (
        lambda: store.publish([], reason="x", decisions=table),
        lambda: store.publish([], reason="x", remove=["de"]),
        lambda: store.promote(reason="x"),
        lambda: store.rollback(reason="x"),
    ):
        with pytest.raises(StoreError, match="nothing to publish|no release yet"):
            refused()
    assert not store.root.exists()
    store.publish(adapters({"us.mobile": 1, "de": 2}), reason="first")
    store.publish(adapters({"de.new": 1}), reason="try", canary=0.5)
    for refused, message in (
        (lambda: store.publish([], reason="x"), "nothing to publish"),
        (lambda: store.publish([], reason="x", remove=["us.mobil"]), "near names: 'us.mobile'"),
        (lambda: store.publish([adapter("de", 1)], reason="x", remove=["de"]), "'de' comes twice"),
        (lambda: store.publish([], reason="x", remove="de"), "must be a list of segments"),
        (lambda: store.publish([], reason="x", remove=["de"], canary=0.5), "0.5 of 0 segments"),
        (lambda: store.promote(["de.ne"], reason="x"), "near names: 'de.new'"),
        (lambda: store.promote("de.new", reason="x"), "must be a list of segments"),
        (lambda: store.promote([], reason="x"), "segments is empty"),
        (lambda: store.rollback(1, ["us.mobil"], reason="x"), "near names: 'us.mobile'"),
        (lambda: store.rollback(3, reason="x"), "has no release 3; it holds 1 to 2"),
        (lambda: store.rollback(1, [], reason="x"), "segments is empty"),
    ):
        with pytest.raises(StoreError, match=message):
            refused()
    assert store.releases() == [1, 2]
    with pytest.raises(StoreError, match="half of a surrogate pair"):
        store.rollback(1, ["\ud800"], reason="x")


def test_the_first_release_has_nothing_below(store: AdapterStore) -> None:
    store.publish(adapters({"de": 1}), reason="first")
    for segments in (None, ["de"]):
        with pytest.raises(StoreError, match="release 1 of .* is the first.* release 0 .--to 0."):
            store.rollback(segments=segments, reason="x")
    store.publish([], reason="kept", decisions=pd.DataFrame({"segment": ["de"]}))
    with pytest.raises(StoreError, match="release 2 of .* differs from no earlier one"):
        store.rollback(reason="x")
    assert contents(store, store.rollback(0, reason="x").number) == {}
    assert store.check().problems == ()
    with pytest.raises(StoreError, match="there is no segment 'de' to change; there is none"):
        store.rollback(0, ["de"], reason="x")
    assert contents(store, store.rollback(reason="back").number) == {"de": 1}


def test_the_names_that_there_are_are_offered(store: AdapterStore) -> None:
    store.publish(adapters({"de": 1, "fr": 1, "it": 1, "uk": 1}), reason="first")
    for to in (None, 1):
        with pytest.raises(UnknownSegment, match="'xx' to change; there is 'de', 'fr', 'it' and 1"):
            store.rollback(to, ["xx"], reason="x")


def test_a_second_rollback_undoes_the_first(store: AdapterStore) -> None:
    store.publish(adapters({"de": 1}), reason="first")
    store.publish(adapters({"de": 2, "fr": 3}), reason="second")
    assert contents(store, store.rollback(reason="worse").number) == {"de": 1}
    assert contents(store, store.rollback(reason="it was not").number) == {"de": 2, "fr": 3}
    assert [release.reason for release in store.history()] == [
        *("it was not", "worse", "second", "first")
    ]
    assert len(list((store.root / "packs").iterdir())) == 2


def test_a_rollback_needs_every_pack_but_only_of_its_segments(store: AdapterStore) -> None:
    store.publish([adapter("de", 1, parent=adapter("pooled", 9)), adapter("fr", 2)], reason="first")
    store.publish(adapters({"de": 3, "fr": 4}), reason="second")
    de = store.release(1).segments["de"].pack
    (parent,) = {pack.parent for pack in store.release(1).packs if pack.pack == de}
    lost = store.root / "packs" / f"{parent}.safetensors"
    lost.unlink()
    for segments in (None, ["de"], ["de", "fr"]):
        with pytest.raises(StoreError, match=f"{lost} is missing, release 1 needs it"):
            AdapterStore(store.root).rollback(1, segments, reason="x")
    assert contents(store, store.rollback(1, ["fr"], reason="x").number) == {"de": 3, "fr": 2}


def damaged(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-4] + b"????")


def test_what_is_damaged_does_not_go_live_again(store: AdapterStore) -> None:
    """Neither a pack nor a parent; those of segments that stay as they are do not count."""
    store.publish([adapter("de", 1, parent=adapter("pooled", 9)), adapter("fr", 2)], reason="first")
    store.publish(adapters({"de": 3}), reason="second")
    store.publish(adapters({"fr": 4}), reason="third")
    store.publish(adapters({"it": 5}), reason="try", canary=0.5)
    summaries = {pack.pack: pack for pack in store.release(1).packs}
    parent = summaries[store.release(1).segments["de"].pack].parent
    paths = [
        (store.root / "packs" / f"{parent}.safetensors", lambda: store.rollback(1, reason="x")),
        (pack_of(store, "fr", 1), lambda: store.rollback(2, ["fr"], reason="x")),
        (
            store.root / "packs" / f"{candidate_pack(store)}.safetensors",
            lambda: store.promote(reason="x"),
        ),
    ]
    for path, refused in paths:
        damaged(path)
        with pytest.raises(StoreError, match=f"{path} is damaged: its sha256 is not its name"):
            refused()
    assert store.releases() == [1, 2, 3, 4]
    damaged(pack_of(store, "fr", 3))
    with pytest.raises(StoreError, match=f"{pack_of(store, 'fr', 1)} is damaged"):
        store.rollback(segments=["de", "fr"], reason="x")
    paths[2][0].unlink()
    with pytest.raises(StoreError, match=f"{paths[2][0]} is missing, release 4 needs it"):
        store.promote(reason="x")
    assert store.rollback(0, ["de"], reason="the base is never damaged").number == 5
    assert [*store.rollback(2, ["de"], reason="fr was live all the time").segments] == ["de", "fr"]


def candidate_pack(store: AdapterStore) -> str:
    current = store.current()
    assert current is not None and current.canary is not None
    return current.canary.segments["it"].pack


def test_a_rollback_needs_no_torch(store: AdapterStore) -> None:
    store.publish(adapters({"de": 1}), reason="first")
    store.publish(adapters({"de": 2}), reason="second")
    script = (
        "import pathlib, sys; from reclora.store import AdapterStore;"
        "store = AdapterStore(pathlib.Path(sys.argv[1]));"
        "store.rollback(reason='x'); store.history(); store.gc();"
        "print({'torch', 'pandas'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", script, str(store.root)]
    assert "set()" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_candidates_of_another_release_do_not_come_with_some_segments() -> None:
    def table(**packs: str) -> PlacementTable:
        return PlacementTable.of({name: Placement(pack, 0, {}) for name, pack in packs.items()})

    earlier = Tables(table(de="a", fr="a"), table(de="c"), 0.5)
    below = Tables(table(de="b", it="b"), table(it="d"), 0.25)
    found = restoration(earlier, ["de", "it"], "release 1")(below)
    assert (found.current.names(), found.current.packs) == (["de"], ("a",))
    assert (found.candidates.packs, found.share) == (("d",), 0.25)


def test_decisions_are_kept_with_their_release(store: AdapterStore) -> None:
    first = pd.DataFrame({"segment": ["de", "fr"], "gain": [0.5, float("nan")], "users": [3, 4]})
    made = store.publish(adapters({"de": 1}), reason="first", decisions=first)
    second = first.assign(gain=[0.25, 0.125])
    kept = store.publish([], reason="nothing was better", decisions=second, run="r2")
    assert contents(store) == {"de": 1} and (kept.number, kept.run) == (2, "r2")
    again = AdapterStore(store.root)
    for number, wanted in ((1, first), (2, second)):
        found = again.decisions(number)
        assert found is not None
        pd.testing.assert_frame_equal(found, wanted)
    store.publish(adapters({"de": 2}), reason="third")
    assert again.decisions() is None
    path = store.root / "releases" / "decisions" / f"{made.decisions}.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    for refused in (lambda: again.decisions(1), lambda: again.verify(1)):
        with pytest.raises(StoreError, match=f"{path} is damaged: its sha256"):
            refused()
    path.unlink()
    with pytest.raises(StoreError, match=f"{path} is missing"):
        again.decisions(1)
    again.verify(2)
    with pytest.raises(StoreError, match="decisions cannot be written"):
        store.publish([], reason="x", decisions=pd.DataFrame({"x": [object()]}))


def at_times(store: AdapterStore, *hours: int) -> None:
    """A store of so many releases, published at these hours."""
    store.publish(adapters({"de": 1}), reason="0")
    first = store.release(1)
    shutil.rmtree(store.root / "releases" / "maps", ignore_errors=False)
    release_path(store.root / "releases", 1).unlink()
    for number, hour in enumerate(hours, start=1):
        time = datetime(2026, 7, 1, tzinfo=UTC) + timedelta(hours=hour)
        write_release(store.root / "releases", replace(first, number=number, time=time))


def test_a_history_shows_what_was_live_then(store: AdapterStore) -> None:
    """Also where a clock was set back: numbers order releases, and nothing else does."""
    at_times(store, 1, 5, 3, 8)
    store = AdapterStore(store.root)
    assert [release.number for release in store.history()] == [4, 3, 2, 1]
    for hour, live in ((0, None), (1, 1), (2, 1), (3, 3), (4, 3), (7, 3), (8, 4), (99, 4)):
        found = store.history(datetime(2026, 7, 1, tzinfo=UTC) + timedelta(hours=hour))
        assert [r.number for r in found] == list(range(live or 0, 0, -1))
    with pytest.raises(StoreError, match="no time zone"):
        store.history(datetime(2026, 7, 1))
    assert AdapterStore(store.root / "none").history() == []
