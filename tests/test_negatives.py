"""Negatives: how often each item is drawn, what it counts for, and that company changes nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from reclora.batches import segment_seeds
from reclora.negatives import Sampler
from tests.small_worlds import make_base, make_log

BASE = make_base()


@pytest.mark.parametrize("num_items", [7, 1000])
def test_negatives_are_uniform_and_independent(num_items: int) -> None:
    """Single draws are uniform, and so is the difference of each draw and a neighbour."""
    base = make_base(num_items=num_items)
    log = make_log(base, {"a": 5, "b": 5})
    sampler, seeds = Sampler(log, 64, by_popularity=False), segment_seeds(0, log)
    drawn_TGJ = np.stack(
        [
            sampler.draw(np.arange(2), seeds, epoch, step)[0].numpy()
            for epoch in (1, 2)
            for step in range(200)
        ]
    )
    for uniform in (
        drawn_TGJ,
        drawn_TGJ[:, 0],
        drawn_TGJ[:, :, :8],
        drawn_TGJ[1:] - drawn_TGJ[:-1],
        drawn_TGJ[200:] - drawn_TGJ[:200],
        drawn_TGJ[:, 1] - drawn_TGJ[:, 0],
        drawn_TGJ[:, :, 1:] - drawn_TGJ[:, :, :-1],
    ):
        counts = np.bincount(uniform.ravel() % num_items, minlength=num_items)
        assert chisquare(counts).pvalue > 1e-3


def test_half_of_the_draws_follow_the_segments_own_popularity() -> None:
    log = make_log(BASE, {"a": 40, "b": 3})
    N = len(log.items)
    sampler, seeds = Sampler(log, 64, by_popularity=True), segment_seeds(0, log)
    drawn = np.stack([sampler.draw(np.arange(2), seeds, 1, step)[0].numpy() for step in range(400)])
    for s in range(2):
        rows = log.item_rows[log.offsets[s] : log.offsets[s + 1]]
        chances = (np.bincount(rows, minlength=N) / len(rows) + 1 / N) / 2
        counts = np.bincount(drawn[:, s].ravel(), minlength=N)
        assert chisquare(counts, chances * counts.sum()).pvalue > 1e-3


@given(
    st.dictionaries(st.text(max_size=3), st.integers(1, 9), min_size=1, max_size=5),
    st.integers(1, 12),
    st.integers(0, 50),
)
@settings(deadline=None)
def test_a_draw_says_its_chance_and_is_the_same_in_any_company(
    sizes: dict[str, int], J: int, step: int
) -> None:
    log = make_log(BASE, sizes)
    N, seeds = len(log.items), segment_seeds(3, log)
    codes = np.arange(len(sizes))
    rows_GJ, log_GJ = Sampler(log, J, by_popularity=True).draw(codes, seeds, 2, step)
    assert rows_GJ.shape == log_GJ.shape == (len(sizes), J)
    for s, name in enumerate(sizes):
        rows = log.item_rows[log.offsets[s] : log.offsets[s + 1]]
        for item, found in zip(rows_GJ[s].tolist(), log_GJ[s].tolist(), strict=True):
            expected = (J // 2) * (rows == item).mean() + (J - J // 2) / N
            assert found == pytest.approx(np.log(expected), abs=1e-5)
        alone = log.only(name)
        own = Sampler(alone, J, by_popularity=True).draw(
            np.arange(1), segment_seeds(3, alone), 2, step
        )
        assert own[0][0].equal(rows_GJ[s]) and own[1][0].equal(log_GJ[s])


@pytest.mark.parametrize("num_negatives", [1, 3, 16])
def test_the_corrected_sum_is_expected_to_be_that_over_the_catalogue(num_negatives: int) -> None:
    log = make_log(BASE, {"a": 30})
    scores_N = torch.randn(len(log.items), generator=torch.Generator().manual_seed(0)).double()
    sampler, seeds = Sampler(log, num_negatives, by_popularity=True), segment_seeds(0, log)
    sums, counts_N = [], torch.zeros(len(log.items))
    for step in range(3000):
        (rows_J,), (log_J,) = sampler.draw(np.arange(1), seeds, 1, step)
        sums.append(float((scores_N[rows_J] - log_J).exp().sum()))
        counts_N.index_add_(0, rows_J, (-log_J).exp())
    assert (counts_N / len(sums) - 1).abs().max() < 0.5, "each item counts once"
    error = np.std(sums) / len(sums) ** 0.5
    assert abs(np.mean(sums) - float(scores_N.exp().sum())) < 4 * error


def test_uniform_draws_have_no_correction() -> None:
    log = make_log(BASE, {"a": 5})
    _, log_GJ = Sampler(log, 8, by_popularity=False).draw(np.arange(1), segment_seeds(0, log), 1, 0)
    assert not log_GJ.any()


def test_steps_epochs_and_segments_draw_new_negatives() -> None:
    log = make_log(make_base(num_items=5000), {"a": 5, "b": 5})
    sampler, seeds = Sampler(log, 64, by_popularity=False), segment_seeds(0, log)
    drawn = [
        tuple(rows.tolist())
        for epoch in (1, 2)
        for step in range(64)
        for rows in sampler.draw(np.arange(2), seeds, epoch, step)[0]
    ]
    assert len(set(drawn)) == 2 * 64 * 2


@given(
    st.dictionaries(st.text(max_size=3), st.integers(1, 9), min_size=1, max_size=5),
    st.integers(1, 12),
    st.data(),
)
@settings(deadline=None)
def test_what_a_user_took_in_the_segment_is_no_negative(
    sizes: dict[str, int], J: int, data: st.DataObject
) -> None:
    """Of other segments' rows it knows nothing: they change nothing here."""
    log = make_log(BASE, sizes)
    codes = np.arange(len(sizes))
    sampler = Sampler(log, J, by_popularity=True)
    negative_GJ, _ = sampler.draw(codes, segment_seeds(1, log), 1, 0)
    rows_GB = np.array(
        [
            data.draw(st.lists(st.integers(int(a), int(b) - 1), min_size=3, max_size=3))
            for a, b in zip(log.offsets, log.offsets[1:], strict=False)
        ]
    )
    found_GBJ = sampler.own(rows_GB, negative_GJ)
    for g in range(len(sizes)):
        inside = slice(int(log.offsets[g]), int(log.offsets[g + 1]))
        for b, row in enumerate(rows_GB[g]):
            his = log.user_rows[inside] == log.user_rows[row]
            taken = set(log.item_rows[inside][his].tolist())
            expected = [int(j) in taken for j in negative_GJ[g]]
            assert found_GBJ[g, b].tolist() == expected


def test_what_was_taken_before_is_no_negative_either() -> None:
    log, before = make_log(BASE, {"a": 6, "b": 6}), make_log(BASE, {"a": 20, "b": 20}, seed=7)
    sampler = Sampler(log, 60, by_popularity=True, taken=before)
    negative_GJ, _ = sampler.draw(np.arange(2), segment_seeds(0, log), 1, 0)
    rows_GB = np.arange(12).reshape(2, 6)
    found_GBJ = sampler.own(rows_GB, negative_GJ)
    marked = 0
    for g in range(2):
        for b, row in enumerate(rows_GB[g]):
            taken = {
                int(item)
                for its in (log, before)
                for segment, user, item in zip(
                    its.segment_rows, its.user_rows, its.item_rows, strict=True
                )
                if segment == g and user == log.user_rows[row]
            }
            expected = [int(j) in taken for j in negative_GJ[g]]
            assert found_GBJ[g, b].tolist() == expected
            marked += sum(int(j) in taken - {int(log.item_rows[row])} for j in negative_GJ[g])
    assert marked
