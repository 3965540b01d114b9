"""Batches are a function of seed, segment, epoch and place alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chisquare

from reclora.batches import chunks_of, epoch_order, segment_seeds, stratified_batches
from reclora.counted import segment_seed
from reclora.interactions import Interactions
from reclora.negatives import Sampler
from tests.small_worlds import SIZES, make_base, make_log

BASE = make_base()
sizes = st.dictionaries(st.text(max_size=5), st.integers(0, 12), min_size=1, max_size=6)


def order_of(log: Interactions, epoch: int = 1, seed: int = 0) -> dict[str, list[int]]:
    """The places within its segment of each segment's rows, in the order of an epoch."""
    order = epoch_order(log, segment_seeds(seed, log), epoch)
    parts = np.split(order, log.offsets[1:-1])
    return {
        name: (part - start).tolist()
        for name, part, start in zip(log.segment_names, parts, log.offsets, strict=False)
    }


def triples(
    log: Interactions, active: NDArray[np.int64], per_step: int, num_negatives: int = 5
) -> dict[str, list[tuple[object, ...]]]:
    """What each segment sees in an epoch, step by step."""
    seen: dict[str, list[tuple[object, ...]]] = {name: [] for name in log.segment_names}
    for batch in stratified_batches(
        log,
        active,
        seeds_S=segment_seeds(3, log),
        epoch=2,
        batch_rows=4,
        sampler=Sampler(log, num_negatives, by_popularity=True),
        segments_per_step=per_step,
    ):
        assert len(batch.segments_G) <= per_step
        assert batch.negative_GJ.shape == (len(batch.segments_G), num_negatives)
        for g, code in enumerate(batch.segments_G.tolist()):
            inside = batch.weight_GB[g] > 0
            seen[log.segment_names[code]].append(
                (
                    batch.user_GB[g][inside].tolist(),
                    batch.item_GB[g][inside].tolist(),
                    batch.weight_GB[g][inside].tolist(),
                    batch.negative_GJ[g].tolist(),
                    batch.log_chance_GJ[g].tolist(),
                    int(batch.streams_G[g]),
                )
            )
    return seen


@given(sizes, st.integers(0, 1000))
@settings(deadline=None)
def test_an_epochs_order_is_a_permutation_of_each_segment(
    sizes: dict[str, int], epoch: int
) -> None:
    for name, places in order_of(make_log(BASE, sizes), epoch).items():
        assert sorted(places) == list(range(sizes[name]))


@given(sizes)
@settings(deadline=None)
def test_an_epochs_order_is_the_same_in_any_company(sizes: dict[str, int]) -> None:
    log = make_log(BASE, sizes)
    together = order_of(log)
    for name in sizes:
        assert order_of(log.only(name)) == {name: together[name]}


def test_an_epochs_order_changes_with_epoch_seed_and_segment() -> None:
    log = make_log(BASE, {"a": 60, "b": 60})
    orders = [order_of(log), order_of(log, epoch=2), order_of(log, seed=1)]
    lists = [tuple(places) for order in orders for places in order.values()]
    assert len(set(lists)) == 6


def test_the_first_row_of_an_epoch_is_uniform() -> None:
    log = make_log(BASE, {"a": 10})
    firsts = [order_of(log, epoch)["a"][0] for epoch in range(2000)]
    assert chisquare(np.bincount(firsts, minlength=10)).pvalue > 1e-3


def test_a_logs_seeds_are_those_of_its_segments() -> None:
    assert segment_seeds(7, make_log(BASE)).tolist() == [segment_seed(7, name) for name in SIZES]


@given(sizes, st.integers(1, 7))
@settings(deadline=None)
def test_an_epoch_has_every_row_once(sizes: dict[str, int], per_step: int) -> None:
    log = make_log(BASE, sizes, weighted=True)
    assert log.weights is not None
    seen = triples(log, np.arange(len(sizes)), per_step)
    for name in sizes:
        only = log.only(name)
        assert only.weights is not None
        weights = only.weights / only.weights.mean() if len(only) else only.weights
        rows = sorted(zip(only.user_rows, only.item_rows, weights, strict=True))
        drawn = [
            row
            for users, items, shares, *_ in seen[name]
            for row in zip(users, items, shares, strict=True)  # type: ignore[call-overload]
        ]
        assert [row[:2] for row in sorted(drawn)] == [row[:2] for row in rows]
        assert [row[2] for row in sorted(drawn)] == pytest.approx([row[2] for row in rows])


@given(sizes, st.integers(1, 7), st.data())
@settings(deadline=None)
def test_a_segment_sees_the_same_batches_in_any_company(
    sizes: dict[str, int], per_step: int, data: st.DataObject
) -> None:
    log = make_log(BASE, sizes)
    active = np.flatnonzero([data.draw(st.booleans()) for _ in sizes])
    seen = triples(log, active, per_step)
    for code, name in enumerate(sizes):
        alone = triples(log.only(name), np.array([0]), 1)[name]
        assert seen[name] == (alone if code in active else [])


def test_each_step_of_each_segment_has_a_stream_of_its_own() -> None:
    log = make_log(BASE)
    streams = [
        int(stream)
        for seed in (0, 1)
        for epoch in (1, 2)
        for batch in stratified_batches(
            log,
            np.arange(len(SIZES)),
            seeds_S=segment_seeds(seed, log),
            epoch=epoch,
            batch_rows=4,
            sampler=Sampler(log, 1, by_popularity=True),
            segments_per_step=2,
        )
        for stream in batch.streams_G
    ]
    steps = sum(-(-size // 4) for size in SIZES.values())
    assert len(set(streams)) == len(streams) == 4 * steps


def test_more_negatives_than_items_is_no_error() -> None:
    seen = triples(make_log(BASE, {"a": 3}), np.array([0]), 1, num_negatives=800)
    negatives = seen["a"][0][3]
    assert set(negatives) == set(range(30))  # type: ignore[call-overload]


@given(st.lists(st.integers(0, 12), max_size=9), st.integers(1, 20))
def test_segments_that_train_together_are_of_like_size_and_few_rows(
    rows: list[int], chunk_rows: int
) -> None:
    sizes_S = np.array(rows, dtype=np.int64)
    chunks = chunks_of(sizes_S, chunk_rows)
    order = [code for chunk in chunks for code in chunk]
    assert order == sorted(range(len(rows)), key=lambda code: (-rows[code], code))
    for at, chunk in enumerate(chunks, 1):
        total = int(sizes_S[list(chunk)].sum())
        assert chunk and (len(chunk) == 1 or total <= chunk_rows)
        # A chunk ends only where the next segment does not fit.
        assert at == len(chunks) or total + rows[chunks[at][0]] > chunk_rows
