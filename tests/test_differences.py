"""What two releases differ in."""

import math
import time
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reclora.configs import AdapterConfig, DeltaConfig, config_to_json
from reclora.store import AdapterStore, StoreError
from reclora.store.changes import Change, Tables
from reclora.store.committing import Note, commit
from reclora.store.differences import described, difference
from reclora.store.folders import Folders
from reclora.store.placements import Placement, PlacementTable
from reclora.store.releases import PackSummary, Release
from tests.small_stores import BASE, adapter, adapters


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "store")


def rows(table: pd.DataFrame) -> dict[str, tuple[str, str, str]]:
    columns = table[["segment", "change", "before", "after"]]
    return {segment: tuple(rest) for segment, *rest in columns.itertuples(index=False)}


def test_every_kind_of_difference(store: AdapterStore) -> None:
    names = ("same", "goes", "changes", "tried", "served")
    metrics = {"changes": {"ndcg": 0.25}, "goes": {"ndcg": 0.5}}
    store.publish([adapter(name, 1) for name in names], reason="first", metrics=metrics)
    store.publish(
        [adapter("changes", 2, rank=4), adapter("comes", 2)],
        reason="second",
        serves_parent=["served"],
        parent=adapter("pooled", 9),
        remove=["goes"],
        metrics={"changes": {"ndcg": 0.5, "recall": 0.75}},
    )
    store.publish([adapter("tried", 3)], reason="try", canary=0.5, metrics={"tried": {"recall": 1}})
    found = store.diff(1, 3)
    small, large = (
        f"user_table=rows, item_table=rows, item_bias=bias, tower=low_rank, rank {rank}"
        for rank in (2, 4)
    )
    assert rows(found) == {
        "changes": ("changed", small, large),
        "comes": ("added", "", small),
        "goes": ("removed", small, ""),
        "served": ("changed", small, "parent"),
        "tried": ("candidate", "", small),
    }
    assert [*found.columns[4:]] == ["ndcg before", "ndcg after", "recall before", "recall after"]
    table = found.set_index("segment")
    assert table.loc["changes"].tolist()[3:] == pytest.approx(
        [0.25, 0.5, math.nan, 0.75], nan_ok=True
    )
    assert table.loc["goes", "ndcg before"] == 0.5 and math.isnan(table.loc["goes", "ndcg after"])
    assert table.loc["tried", "recall after"] == 1
    backwards = rows(store.diff(3, 1))
    assert backwards["comes"] == ("removed", small, "") and backwards["tried"][1:] == (small, "")
    for nothing in (store.diff(1, 1), store.diff(store.release(2), 2)):
        assert nothing.empty and [*nothing.columns[:4]] == ["segment", "change", "before", "after"]


def test_the_same_adapter_with_other_numbers_has_changed(store: AdapterStore) -> None:
    for value in (0.5, 0.5, 0.75, math.nan):
        store.publish(adapters({"de": 1}), reason="x", metrics={"de": {"ndcg": value}})
    assert store.diff(1, 2).empty
    assert [*store.diff(2, 3)["change"]] == [*store.diff(3, 4)["change"]] == ["changed"]


def test_a_release_that_is_not_there(store: AdapterStore) -> None:
    store.publish(adapters({"de": 1}), reason="x")
    with pytest.raises(StoreError, match="has no release 2"):
        store.diff(1, 2)


places = st.builds(
    Placement,
    st.sampled_from(["a" * 64, "b" * 64]),
    st.integers(0, 1),
    st.dictionaries(st.sampled_from(["pack", "text", "segment", ""]), st.sampled_from([0.0, 1.0])),
    st.booleans(),
)
live = st.dictionaries(st.sampled_from(["de", "fr", "it", "a\0", "a"]), places)


@settings(max_examples=60, deadline=None)
@given(st.tuples(live, live), st.tuples(live, live))
def test_it_is_what_a_dictionary_would_say(
    tmp_path_factory: pytest.TempPathFactory,
    before: tuple[dict[str, Placement], dict[str, Placement]],
    after: tuple[dict[str, Placement], dict[str, Placement]],
) -> None:
    folders = Folders(tmp_path_factory.mktemp("diff"))
    folders.check_writable()
    releases: list[Release] = []
    packs = [PackSummary(letter * 64, {"deltas": []}, None) for letter in "ab"]
    for current, waiting in (before, after):
        tables = Tables(PlacementTable.of(current), PlacementTable.of(waiting), 0.5)
        change = Change(lambda below, tables=tables: tables, packs)
        releases.append(
            commit(
                folders,
                lambda: None if not releases else releases[-1],
                change,
                BASE,
                Note("x", None),
            )
        )
    found = difference(*releases)
    wanted = {}
    for name in {*before[0], *before[1], *after[0], *after[1]}:
        old, new = before[0].get(name), after[0].get(name)
        if old != new:
            wanted[name] = "added" if old is None else "removed" if new is None else "changed"
        elif before[1].get(name) != after[1].get(name):
            wanted[name] = "candidate"
            old, new = before[1].get(name), after[1].get(name)
        if name in wanted:
            row = found[found["segment"] == name].iloc[0]
            for place, when in ((old, "before"), (new, "after")):
                measured = {} if place is None else place.metrics
                for metric, value in measured.items():
                    assert row[f"{metric} {when}"] == value
    assert dict(zip(found["segment"], found["change"], strict=True)) == wanted
    assert found["segment"].tolist() == sorted(wanted)


def test_settings_in_a_few_words() -> None:
    config = AdapterConfig(user_table="none", item_bias="none", tower="none", rank=3)
    assert described(config_to_json(config)) == "item_table=rows, rank 3"
    deltas = (
        DeltaConfig(("a", "b"), "low_rank", 4),
        DeltaConfig(("c",), "low_rank", 4),
        DeltaConfig(("d",), "bias", 1),
    )
    assert described(config_to_json(deltas)) == "low_rank 4, bias 1"
    assert described({"deltas": "x"}) == "rank None", "a summary may say anything"


def test_five_thousand_segments_differ_in_less_than_a_second(store: AdapterStore) -> None:
    for value in range(2):
        names = [f"segment {i}" for i in range(value, 5_000 + value)]
        store.publish(
            [adapter(name, value) for name in names],
            reason="x",
            metrics={name: {"ndcg": 0.5, "recall": value} for name in names},
        )
    begin = time.process_time()
    assert len(AdapterStore(store.root).diff(1, 2)) == 5_000
    assert time.process_time() - begin < 1
