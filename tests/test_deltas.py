"""The delta kinds equal their formulas, start at nothing, and have gradients of a batch's rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from reclora.deltas import FullDelta, FullWeight, LowRankWeight, RowsDelta, TouchedRows
from tests import reference

N, D, R = 9, 4, 2

row_lists = st.lists(st.lists(st.integers(0, N - 1), max_size=6), min_size=1, max_size=4)


def touched_rows(rows: list[list[int]], num_rows: int = N) -> TouchedRows:
    return TouchedRows.of([torch.tensor(r, dtype=torch.int64) for r in rows], num_rows)


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def make_rows(touched: TouchedRows) -> RowsDelta:
    return RowsDelta(touched, R, D, 1.5, generators(touched.num_segments))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def fill(delta: nn.Module, num_segments: int) -> None:
    """Random numbers everywhere but in padding rows."""
    for segment in range(num_segments):
        for name, part in delta.slices(segment).items():  # type: ignore[operator]
            place = delta.get_parameter(name)[part]
            place.copy_(random(*place.shape, seed=segment + 1))


@given(row_lists)
@settings(deadline=None)
def test_slots_equal_a_dictionary(rows: list[list[int]]) -> None:
    touched = touched_rows(rows)
    pairs = [(s, row) for s, touches in enumerate(rows) for row in sorted(set(touches))]
    places = {pair: slot for slot, pair in enumerate(pairs)}
    ids = torch.arange(N).expand(len(rows), N)
    found = touched.slots(ids, torch.arange(len(rows)))
    assert len(touched) == len(pairs) and touched.num_segments == len(rows)
    for s in range(len(rows)):
        assert found[s].tolist() == [places.get((s, row), len(pairs)) for row in range(N)]
        assert touched.rows_T[touched.slice(s)].tolist() == sorted(set(rows[s]))


@pytest.mark.parametrize("row", [-1, N])
def test_a_touched_row_outside_the_table_is_refused(row: int) -> None:
    with pytest.raises(IndexError, match=f"segment 1 touches row {row}, .* rows 0 to {N - 1}"):
        touched_rows([[0], [2, row, 3]])


@given(row_lists)
@settings(deadline=None, max_examples=40)
def test_table_deltas_equal_plain_loops(rows: list[list[int]]) -> None:
    touched = touched_rows(rows)
    segments = torch.arange(len(rows)).flip(0)
    ids = torch.arange(N).expand(len(rows), N)
    base = random(N, D)
    low_rank, full = make_rows(touched), FullDelta(touched, D)
    for delta in (low_rank, full):
        fill(delta, len(rows))
    found_rows = low_rank(base[ids], ids, segments)
    found_full = full(base[ids], ids, segments)
    for g, s in enumerate(segments.tolist()):
        mine = sorted(set(rows[s]))
        a, b = (low_rank.get_parameter(n)[p] for n, p in low_rank.slices(s).items())
        d = full.d[full.slices(s)["d"]]
        for row in range(N):
            plain = base[row].tolist()
            if row not in mine:
                assert found_rows[g, row].tolist() == found_full[g, row].tolist() == plain
                continue
            slot = mine.index(row)
            expected = reference.low_rank_row(plain, a[slot].tolist(), b.tolist(), 1.5)
            torch.testing.assert_close(found_rows[g, row], torch.tensor(expected))
            torch.testing.assert_close(found_full[g, row], base[row] + d[slot])


def test_weight_deltas_equal_plain_loops() -> None:
    weight, segments = random(3, 5), torch.tensor([2, 0])
    low_rank, full = LowRankWeight((3, 5), R, 0.5, generators(4)), FullWeight((3, 5), 4)
    for delta in (low_rank, full):
        fill(delta, 4)
    for g, s in enumerate(segments.tolist()):
        b, a = (low_rank.get_parameter(n)[p].tolist() for n, p in low_rank.slices(s).items())
        expected = torch.tensor(reference.low_rank_weight(weight.tolist(), b, a, 0.5))
        torch.testing.assert_close(low_rank(weight, segments)[g], expected)
        d = full.d[full.slices(s)["d"]]
        torch.testing.assert_close(full(weight, segments)[g], weight + d)


def test_fresh_deltas_change_nothing() -> None:
    touched = touched_rows([[1, 2], [], [0, 8]])
    ids, segments = torch.arange(N).expand(3, N), torch.arange(3)
    rows, weight = random(N, D), random(3, 5)
    for table_delta in (make_rows(touched), FullDelta(touched, D)):
        assert torch.equal(table_delta(rows[ids], ids, segments), rows[ids])
    for weight_delta in (LowRankWeight((3, 5), R, 0.5, generators(3)), FullWeight((3, 5), 3)):
        assert torch.equal(weight_delta(weight, segments), weight.expand(3, -1, -1))


def test_a_segment_starts_the_same_in_any_company() -> None:
    many, alone = touched_rows([[1], [2, 3], [4]]), touched_rows([[2, 3]])
    together = make_rows(many)
    single = RowsDelta(alone, R, D, 1.5, generators(2)[1:])
    assert torch.equal(together.b[together.slices(1)["b"]], single.b)
    lengths = RowsDelta(touched_rows([[0]]), 64, 256, 1.0, generators(1)).b.norm(dim=1)
    assert 0.8 < lengths.min() and lengths.max() < 1.2


def test_gradients_hold_the_rows_of_the_batch_and_no_padding() -> None:
    height = 100_000
    touched = touched_rows([list(range(0, height, 2)), [5, 7], [9]], height)
    ids, segments = torch.tensor([[0, 4, 4, 3], [5, 6, 5, 8]]), torch.tensor([0, 1])
    expected = {"a": [0, 2, 50_000], "d": [0, 2, 50_000], "b": [0, 1, 2, 3]}
    for delta in (make_rows(touched), FullDelta(touched, D)):
        outputs = delta(random(2, 4, D), ids, segments)
        torch.autograd.backward(outputs.square().sum())
        for name, parameter in delta.named_parameters():
            assert parameter.grad is not None and parameter.grad.is_sparse
            rows = parameter.grad.coalesce().indices()[0].tolist()
            assert rows == expected[name]


def test_weight_gradients_hold_the_segments_of_the_batch() -> None:
    for delta in (LowRankWeight((3, 5), R, 0.5, generators(50)), FullWeight((3, 5), 50)):
        outputs = delta(random(3, 5), torch.tensor([7, 30]))
        torch.autograd.backward(outputs.square().sum())
        for name, parameter in delta.named_parameters():
            assert parameter.grad is not None and parameter.grad.is_sparse
            mine = [range(height)[delta.slices(s)[name]] for s in (7, 30) for height in [1000]]
            rows = parameter.grad.coalesce().indices()[0].tolist()
            assert rows == [row for part in mine for row in part]


@given(row_lists)
@settings(deadline=None, max_examples=30)
def test_slices_part_every_parameter_among_the_segments(rows: list[list[int]]) -> None:
    touched, count = touched_rows(rows), len(rows)
    for delta, padding in (
        (make_rows(touched), {"a": 1}),
        (FullDelta(touched, D), {"d": 1}),
        (LowRankWeight((3, 5), R, 0.5, generators(count)), {}),
        (FullWeight((3, 5), count), {}),
    ):
        for name, parameter in delta.named_parameters():
            owned = [
                row for s in range(count) for row in range(len(parameter))[delta.slices(s)[name]]
            ]
            assert owned == list(range(len(parameter) - padding.get(name, 0)))
