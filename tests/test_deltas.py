"""The delta kinds equal their formulas, start at nothing, and have gradients of a batch's rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reclora.deltas import (
    BasisDelta,
    BiasDelta,
    Delta,
    FullDelta,
    FullWeight,
    LowRank,
    LowRankWeight,
    MapDelta,
    Owners,
    RowDropout,
    RowsDelta,
    ScaleDelta,
    TableDelta,
    TouchedRows,
    WeightDelta,
)
from reclora.deltas.per_row import signs
from reclora.optim import RowwiseAdagrad
from tests import reference

N, D, R, SCALING = 9, 4, 2, 1.5
OUT, IN = 3, 5
SIZE = LowRank(R, SCALING)
AnyDelta = TypeVar("AnyDelta", bound=Delta)

TABLE_KINDS: dict[str, Callable[[TouchedRows, Owners], TableDelta]] = {
    "scale": lambda _, owners: ScaleDelta(owners, D),
    "map": lambda _, owners: MapDelta(owners, D, SIZE),
    "basis": lambda touched, owners: BasisDelta(touched, owners, D, SIZE),
    "rows": lambda touched, owners: RowsDelta(touched, owners, D, SIZE),
    "rows with magnitude": lambda touched, owners: RowsDelta(touched, owners, D, SIZE, True),
    "full": lambda touched, owners: FullDelta(touched, owners, D),
    "bias": lambda _, owners: BiasDelta(owners, D),
}
WEIGHT_KINDS: dict[str, Callable[[Owners], WeightDelta]] = {
    "low_rank": lambda owners: LowRankWeight(owners, (OUT, IN), SIZE),
    "full": lambda owners: FullWeight(owners, (OUT, IN)),
}
PER_ROW = ("basis", "rows", "rows with magnitude", "full")


@dataclass(frozen=True)
class Stacks:
    """What stacked deltas are made from: the rows that each segment touches; who has a delta."""

    rows: list[list[int]]
    codes: list[int]

    @property
    def owners(self) -> Owners:
        return Owners.of(self.codes, len(self.rows), generators(len(self.rows)))

    @property
    def touched(self) -> TouchedRows:
        return touched_rows(self.rows).only(self.codes)

    def table_delta(self, kind: str) -> TableDelta:
        return TABLE_KINDS[kind](self.touched, self.owners)

    def weight_delta(self, kind: str) -> WeightDelta:
        return WEIGHT_KINDS[kind](self.owners)


row_lists = st.lists(st.lists(st.integers(0, N - 1), max_size=6), min_size=1, max_size=4)


@st.composite
def stacks(draw: st.DrawFn) -> Stacks:
    rows = draw(row_lists)
    return Stacks(rows, sorted(draw(st.sets(st.sampled_from(range(len(rows))), min_size=1))))


@st.composite
def batches(draw: st.DrawFn) -> tuple[Stacks, Tensor, Tensor]:
    """Stacks, and the segments and rows of a batch: -1 is nobody, and one may stand there twice."""
    made = draw(stacks())
    segments = draw(st.lists(st.integers(-1, len(made.rows) - 1), min_size=1, max_size=5))
    seed = draw(st.integers(0, 100))
    ids = torch.randint(N, (len(segments), 6), generator=torch.Generator().manual_seed(seed))
    return made, ids, torch.tensor(segments)


SOME = Stacks([[1, 2, 5], [], [0, 8], [3, 4]], [0, 1, 3])
"""Segment 1 touches nothing and segment 2 has no delta."""


def touched_rows(rows: list[list[int]], num_rows: int = N) -> TouchedRows:
    return TouchedRows.of([torch.tensor(r, dtype=torch.int64) for r in rows], num_rows)


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def filled(delta: AnyDelta, num_segments: int) -> AnyDelta:
    """Random numbers everywhere but in padding rows."""
    for segment in range(num_segments):
        for number, (name, part) in enumerate(delta.slices(segment).items()):
            place = delta.get_parameter(name)[part]
            place.copy_(random(*place.shape, seed=10 * segment + number) / 2)
    return delta


def own(delta: Delta, segment: int) -> dict[str, list[list[float]]]:
    """A segment's numbers."""
    return {
        name: delta.get_parameter(name)[part].tolist()
        for name, part in delta.slices(segment).items()
    }


def plain_row(
    kind: str, delta: TableDelta, made: Stacks, segment: int, row: int, e: list[float]
) -> list[float]:
    """The adapted row by the formula of its kind."""
    touches = sorted(set(made.rows[segment])) if segment >= 0 else []
    if segment not in made.codes or (kind in PER_ROW and row not in touches):
        return e
    factors = own(delta, segment)
    slot = touches.index(row) if kind in PER_ROW else 0
    match kind:
        case "scale":
            return reference.scaled_row(e, factors["c"][0])
        case "map":
            return reference.mapped_row(e, factors["a"], factors["b"], SCALING)
        case "basis":
            return reference.low_rank_row(e, factors["a"][slot], reference.basis(R, D), SCALING)
        case "rows":
            return reference.low_rank_row(e, factors["a"][slot], factors["b"], SCALING)
        case "rows with magnitude":
            v = reference.low_rank_row(e, factors["a"][slot], factors["b"], SCALING)
            return reference.row_of_length(e, v, factors["m"][slot][0])
        case "full":
            return reference.moved_row(e, factors["d"][slot])
        case _:
            return reference.moved_row(e, factors["c"][0])


# Which rows, and who owns what.


@given(row_lists)
@settings(deadline=None)
def test_slots_equal_a_dictionary(rows: list[list[int]]) -> None:
    touched = touched_rows(rows)
    pairs = [(s, row) for s, touches in enumerate(rows) for row in sorted(set(touches))]
    places = {pair: slot for slot, pair in enumerate(pairs)}
    segments = torch.tensor([*range(len(rows)), -1])
    found = touched.slots(torch.arange(N).expand(len(segments), N), segments)
    assert len(touched) == len(pairs) and touched.num_segments == len(rows)
    for s in range(len(rows)):
        assert found[s].tolist() == [places.get((s, row), len(pairs)) for row in range(N)]
        assert touched.rows_T[touched.slice(s)].tolist() == sorted(set(rows[s]))
    assert found[-1].tolist() == [len(pairs)] * N


def test_slots_where_every_segment_touches_every_row() -> None:
    touched = touched_rows([list(range(N))] * 3)
    found = touched.slots(torch.arange(N).expand(3, N), torch.tensor([2, -1, 0]))
    assert found.tolist() == [list(range(2 * N, 3 * N)), [3 * N] * N, list(range(N))]


@given(stacks())
@settings(deadline=None)
def test_only_some_segments_touch_what_they_touched(made: Stacks) -> None:
    whole, some = touched_rows(made.rows), made.touched
    assert (some.num_segments, some.num_rows) == (whole.num_segments, N)
    for s in range(len(made.rows)):
        expected = whole.rows_T[whole.slice(s)].tolist() if s in made.codes else []
        assert some.rows_T[some.slice(s)].tolist() == expected


@pytest.mark.parametrize("row", [-1, N])
def test_a_touched_row_outside_the_table_is_refused(row: int) -> None:
    with pytest.raises(IndexError, match=f"segment 1 touches row {row}, .* rows 0 to {N - 1}"):
        touched_rows([[0], [2, row, 3]])


@given(stacks())
@settings(deadline=None)
def test_owners_have_blocks_in_the_order_of_the_segments(made: Stacks) -> None:
    owners, count = made.owners, len(made.rows)
    param = torch.arange(1.0, 2 * len(owners) + 1).view(-1, 1)
    stacked = torch.cat([param, torch.zeros(1, 1)])
    found = owners.blocks(stacked, torch.arange(-1, count), 2).squeeze(2)
    assert found[0].tolist() == [0, 0]
    for s in range(count):
        assert owners.has(s) == (s in made.codes)
        expected = param[owners.slice(s, 2)].squeeze(1).tolist() if s in made.codes else [0, 0]
        assert found[s + 1].tolist() == expected
    assert [x for s in range(count) for x in param[owners.slice(s, 2)].flatten().tolist()] == (
        param.flatten().tolist()
    )
    everyone = Owners.all(generators(count))
    assert len(everyone) == count and all(everyone.has(s) for s in range(count))


@pytest.mark.parametrize("kind", TABLE_KINDS)
@given(stacks())
@settings(deadline=None, max_examples=15)
def test_slices_part_every_parameter_among_the_owners(kind: str, made: Stacks) -> None:
    check_slices(made.table_delta(kind), made)


@pytest.mark.parametrize("kind", WEIGHT_KINDS)
@given(stacks())
@settings(deadline=None, max_examples=15)
def test_slices_part_every_weight_among_the_owners(kind: str, made: Stacks) -> None:
    check_slices(made.weight_delta(kind), made)


def check_slices(delta: Delta, made: Stacks) -> None:
    count = len(made.rows)
    for name, parameter in delta.named_parameters():
        parts = [range(len(parameter))[delta.slices(s)[name]] for s in range(count)]
        assert [row for part in parts for row in part] == list(range(len(parameter) - 1))
        assert all(s in made.codes or not part for s, part in enumerate(parts))
    assert all(delta.slices(s).keys() == dict(delta.named_parameters()).keys() for s in made.codes)


# The formulas.


@pytest.mark.parametrize("kind", TABLE_KINDS)
@given(batches())
@settings(deadline=None, max_examples=25)
def test_a_table_delta_equals_plain_loops(kind: str, batch: tuple[Stacks, Tensor, Tensor]) -> None:
    made, ids, segments = batch
    delta, base = filled(made.table_delta(kind), len(made.rows)), random(N, D)
    found = delta(base[ids], ids, segments)
    for g, segment in enumerate(segments.tolist()):
        for b, row in enumerate(ids[g].tolist()):
            e = base[row].tolist()
            expected = plain_row(kind, delta, made, segment, row, e)
            if expected is e:
                assert torch.equal(found[g, b], base[row]), "what has no delta is not touched"
            else:
                torch.testing.assert_close(found[g, b], torch.tensor(expected))
                assert not torch.equal(found[g, b], base[row])


@given(batches())
@settings(deadline=None, max_examples=25)
def test_kinds_follow_one_another(batch: tuple[Stacks, Tensor, Tensor]) -> None:
    made, ids, segments = batch
    ladder = {
        kind: filled(made.table_delta(kind), len(made.rows))
        for kind in ("scale", "map", "basis", "rows")
    }
    base = random(N, D)
    found = base[ids]
    for delta in ladder.values():
        found = delta(found, ids, segments)
    for g, segment in enumerate(segments.tolist()):
        for b, row in enumerate(ids[g].tolist()):
            expected = base[row].tolist()
            for kind, delta in ladder.items():
                expected = plain_row(kind, delta, made, segment, row, expected)
            torch.testing.assert_close(found[g, b], torch.tensor(expected))


@pytest.mark.parametrize("kind", WEIGHT_KINDS)
@given(stacks(), st.data())
@settings(deadline=None, max_examples=25)
def test_a_weight_delta_equals_plain_loops(kind: str, made: Stacks, data: st.DataObject) -> None:
    count = len(made.rows)
    delta = filled(made.weight_delta(kind), count)
    codes = data.draw(st.lists(st.integers(-1, count - 1), min_size=1, max_size=4))
    weights = random(len(codes), OUT, IN)
    found = delta(weights, torch.tensor(codes))
    for g, segment in enumerate(codes):
        if segment not in made.codes:
            assert torch.equal(found[g], weights[g])
            continue
        factors = own(delta, segment)
        if kind == "full":
            torch.testing.assert_close(found[g], weights[g] + torch.tensor(factors["d"]))
        else:
            expected = reference.low_rank_weight(
                weights[g].tolist(), factors["b"], factors["a"], SCALING
            )
            torch.testing.assert_close(found[g], torch.tensor(expected))
    one = delta(weights[0].expand(len(codes), -1, -1), torch.tensor(codes))
    assert torch.equal(one[0], found[0]), "one weight for all, or one for each"


def test_the_change_of_an_output_is_that_of_the_weight() -> None:
    delta = filled(WEIGHT_KINDS["low_rank"](SOME.owners), 4)
    assert isinstance(delta, LowRankWeight)
    segments, x = torch.tensor([3, -1, 0, 2, 3]), random(5, 6, IN)
    change = delta(torch.zeros(5, OUT, IN), segments)
    torch.testing.assert_close(delta.change(x, segments), x @ change.transpose(1, 2))
    assert not delta.change(x, segments)[[1, 3]].any()


@pytest.mark.parametrize("kind", ["rows", "basis"])
def test_a_sum_of_rows_is_changed_by_the_sum_of_their_row_factors(kind: str) -> None:
    delta = filled(SOME.table_delta(kind), 4)
    assert isinstance(delta, RowsDelta | BasisDelta)
    ids, segments, base = torch.arange(N).expand(4, N), torch.tensor([3, -1, 0, 2]), random(N, D)
    a_GBR = delta.row_factor(ids, segments)
    assert not a_GBR[[1, 3]].any() and not a_GBR[0, [0, 1, 2, 5, 6, 7, 8]].any()
    assert a_GBR[0, 3].tolist() == own(delta, 3)["a"][0]
    found = delta.changed(base[ids].sum(1, keepdim=True), a_GBR.sum(1, keepdim=True), segments)
    torch.testing.assert_close(found, delta(base[ids], ids, segments).sum(1, keepdim=True))


@pytest.mark.parametrize("kind", TABLE_KINDS)
def test_it_is_told_which_kinds_move_rows_never_seen(kind: str) -> None:
    delta = filled(SOME.table_delta(kind), 4)
    base, unseen = random(1, 1, D), torch.tensor([[7]])
    moved = not torch.equal(delta(base, unseen, torch.tensor([0])), base)
    assert moved == delta.moves_all_rows


# How they start.


@pytest.mark.parametrize("kind", TABLE_KINDS)
@given(batches(), st.floats(1e-15, 1e15))
@settings(deadline=None, max_examples=25)
def test_a_fresh_table_delta_changes_no_bit(
    kind: str, batch: tuple[Stacks, Tensor, Tensor], size: float
) -> None:
    made, ids, segments = batch
    rows = random(*ids.shape, D) * size
    rows[0, 0] = 0
    assert torch.equal(made.table_delta(kind)(rows, ids, segments), rows)


@pytest.mark.parametrize("kind", WEIGHT_KINDS)
def test_a_fresh_weight_delta_changes_no_bit(kind: str) -> None:
    weight = random(OUT, IN).expand(4, -1, -1)
    assert torch.equal(SOME.weight_delta(kind)(weight, torch.tensor([3, -1, 0, 2])), weight)


@pytest.mark.parametrize("kind", [*TABLE_KINDS, "low_rank"])
def test_it_is_told_which_factor_starts_at_random(kind: str) -> None:
    made = SOME.weight_delta if kind == "low_rank" else SOME.table_delta
    delta: Delta = made(kind)
    starts = {name for name, parameter in delta.named_parameters() if parameter.any()}
    assert starts == set(delta.random_start)


@pytest.mark.parametrize("init", ["normal", "orthogonal"])
def test_a_segment_starts_the_same_in_any_company(init: str) -> None:
    size = LowRank(R, SCALING, init)  # type: ignore[arg-type]
    together = RowsDelta(SOME.touched, SOME.owners, D, size)
    alone = RowsDelta(touched_rows([[3, 4]]), Owners.all(generators(4)[3:]), D, size)
    assert torch.equal(together.b[together.slices(3)["b"]], alone.b[alone.slices(0)["b"]])
    assert not torch.equal(*(together.b[together.slices(s)["b"]] for s in (0, 1)))


def test_the_random_factor_has_rows_of_length_one() -> None:
    owners = Owners.all(generators(1))
    normal = owners.random(64, 256, "normal")[:-1].norm(dim=1)
    assert 0.8 < normal.min() and normal.max() < 1.2 and 0.95 < normal.mean() < 1.05
    for height in (1, 3, 4):
        orthogonal = owners.random(height, 4, "orthogonal")[:-1].detach()
        torch.testing.assert_close(orthogonal @ orthogonal.T, torch.eye(height))


def test_the_basis_equals_plain_loops_and_its_first_rows_do_not_depend_on_the_rank() -> None:
    for rank, dim in ((1, 1), (3, 5), (8, 64)):
        torch.testing.assert_close(signs(rank, dim), torch.tensor(reference.basis(rank, dim)))
    assert torch.equal(signs(8, 64)[:3], signs(3, 64))
    gram = signs(64, 4096) @ signs(64, 4096).T
    assert (gram - torch.eye(64)).abs().max() < 6 / 4096**0.5


# Gradients.


def numeric_gradient(f: Callable[[], float], at: Tensor) -> Tensor:
    """By central differences."""
    gradient, flat = torch.zeros_like(at), at.detach().view(-1)
    for place in range(len(flat)):
        values = []
        for step in (1e-6, -1e-6):
            flat[place] += step
            values.append(f())
            flat[place] -= step
        gradient.view(-1)[place] = (values[0] - values[1]) / 2e-6
    return gradient


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("kind", TABLE_KINDS)
def test_a_table_deltas_gradient_is_the_numeric_one(kind: str, dropped: bool) -> None:
    delta = filled(SOME.table_delta(kind), 4).double()
    if isinstance(delta, BasisDelta):
        delta.basis_RD = delta.basis_RD.double()
    segments, ids = torch.tensor([3, 0, -1, 2, 0]), torch.arange(N).expand(5, N)
    rows = random(5, N, D).double().requires_grad_()
    weight = random(5, N, D, seed=1).double()
    dropout = RowDropout(0.4, np.arange(5, dtype=np.uint64)) if dropped else None

    def total() -> Tensor:
        changed: Tensor = delta(rows, ids, segments, dropout)
        return (weight * changed.sin()).sum()

    torch.autograd.backward(total())
    for at in (rows, *delta.parameters()):
        assert at.grad is not None
        expected = numeric_gradient(lambda: total().item(), at)
        found = at.grad.to_dense()
        own_rows = slice(None) if at is rows else slice(-1)  # the last row is padding
        torch.testing.assert_close(found[own_rows], expected[own_rows], atol=1e-7, rtol=1e-6)
        assert at is rows or not found[-1].any()


@pytest.mark.parametrize("kind", WEIGHT_KINDS)
def test_a_weight_deltas_gradient_is_the_numeric_one(kind: str) -> None:
    delta = filled(SOME.weight_delta(kind), 4).double()
    segments = torch.tensor([3, -1, 0, 2, 3])
    weights = random(5, OUT, IN).double().requires_grad_()
    x = random(5, 2, IN, seed=1).double()

    def total() -> Tensor:
        result: Tensor = (x @ delta(weights, segments).transpose(1, 2)).sin().sum()
        if isinstance(delta, LowRankWeight):
            result = result + delta.change(x, segments).cos().sum()
        return result

    torch.autograd.backward(total())
    for at in (weights, *delta.parameters()):
        assert at.grad is not None
        expected = numeric_gradient(lambda: total().item(), at)
        own_rows = slice(None) if at is weights else slice(-1)
        torch.testing.assert_close(
            at.grad.to_dense()[own_rows], expected[own_rows], rtol=1e-6, atol=1e-7
        )


@pytest.mark.parametrize("kind", TABLE_KINDS)
def test_gradients_hold_the_rows_of_the_batch_and_no_padding(kind: str) -> None:
    height = 100_000
    touches = [list(range(0, height, 2)), [5, 7], [9], []]
    touched = touched_rows(touches, height).only([0, 1, 2])
    delta = filled(TABLE_KINDS[kind](touched, Owners.of([0, 1, 2], 4, generators(4))), 4)
    ids = torch.tensor([[0, 4, 4, 3], [5, 6, 5, 8], [0, 2, 5, 9], [9, 9, 9, 9]])
    segments = torch.tensor([0, 1, 3, -1])
    torch.autograd.backward(delta(random(4, 4, D), ids, segments).square().sum())
    for name, parameter in delta.named_parameters():
        assert parameter.grad is not None and parameter.grad.is_sparse
        blocks = [range(len(parameter))[delta.slices(s)[name]] for s in (0, 1)]
        expected = (
            [0, 2, 50_000]
            if kind in PER_ROW and name != "b"
            else [row for block in blocks for row in block]
        )
        assert parameter.grad.coalesce().indices()[0].tolist() == expected


@pytest.mark.parametrize("kind", WEIGHT_KINDS)
def test_weight_gradients_hold_the_segments_of_the_batch(kind: str) -> None:
    delta = WEIGHT_KINDS[kind](Owners.all(generators(50)))
    outputs = delta(random(3, OUT, IN), torch.tensor([7, -1, 30]))
    torch.autograd.backward(outputs.square().sum())
    for name, parameter in delta.named_parameters():
        assert parameter.grad is not None and parameter.grad.is_sparse
        mine = [range(len(parameter))[delta.slices(s)[name]] for s in (7, 30)]
        rows = parameter.grad.coalesce().indices()[0].tolist()
        assert rows == [row for part in mine for row in part]


@pytest.mark.parametrize("kind", TABLE_KINDS)
def test_padding_stays_zero_through_training(kind: str) -> None:
    """And so do the segments that are not in a batch."""
    delta = SOME.table_delta(kind)
    before = [parameter.detach().clone() for parameter in delta.parameters()]
    optimizer = RowwiseAdagrad(delta.parameters(), lr=0.1)
    ids, segments = torch.arange(N).expand(4, N), torch.tensor([0, -1, 2, 0])
    for step in range(3):
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(
            (delta(random(4, N, D, seed=step), ids, segments) - 1).square().sum()
        )
        optimizer.step()
    for start, (name, parameter) in zip(before, delta.named_parameters(), strict=True):
        assert not parameter[-1].any()
        moved = ((parameter - start) != 0).any(1).nonzero().squeeze(1).tolist()
        assert moved == list(range(len(parameter))[delta.slices(0)[name]])


def test_a_row_of_zeros_has_a_magnitude_and_no_nan() -> None:
    delta = SOME.table_delta("rows with magnitude")
    optimizer = RowwiseAdagrad(delta.parameters(), lr=0.1)
    ids, segments, rows = torch.tensor([[1, 2]]), torch.tensor([0]), torch.zeros(1, 2, D)
    for _ in range(5):
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward((delta(rows, ids, segments) - 1).square().sum())
        optimizer.step()
        assert all(torch.isfinite(parameter).all() for parameter in delta.parameters())
    assert delta(rows, ids, segments).abs().max() > 0.05, "a row of zeros can learn"


# Dropout of the row factor.

streams = st.integers(0, 2**64 - 1)


@given(st.lists(streams, min_size=1, max_size=3), st.floats(0, 0.99), st.integers(0, 2**31))
@settings(deadline=None)
def test_dropout_equals_plain_loops(streams_G: list[int], p: float, first: int) -> None:
    ids = first + torch.arange(5).expand(len(streams_G), 5)
    a = random(len(streams_G), 5, R)
    found = RowDropout(p, np.array(streams_G, dtype=np.uint64))(a, ids)
    expected = [
        [reference.dropped_row(x.tolist(), first + i, s, p) for i, x in enumerate(part)]
        for s, part in zip(streams_G, a, strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_dropout_leaves_the_mean_and_drops_its_share() -> None:
    p, steps = 0.3, 4000
    drop = RowDropout(p, np.random.default_rng(0).integers(2**63, size=steps).astype(np.uint64))
    found = drop(torch.ones(steps, 3, R), torch.arange(3).expand(steps, 3))
    error = (p / (1 - p) / steps) ** 0.5
    assert (found.mean(0) - 1).abs().max() < 4 * error
    assert ((found == 0).float().mean() - p).abs() < 0.01
    kept = (found > 0).double().view(steps, -1)
    correlation = torch.corrcoef(kept.T) - torch.eye(3 * R)
    assert correlation.abs().max() < 5 / steps**0.5, "each number is dropped for itself"


@pytest.mark.parametrize("kind", ["rows", "basis"])
def test_a_row_drops_the_same_wherever_it_stands(kind: str) -> None:
    delta, base = filled(SOME.table_delta(kind), 4), random(1, 1, D)
    both = RowDropout(0.5, np.array([7, 8], dtype=np.uint64))
    ids, segments = torch.tensor([[1, 2, 5, 5], [5, 1, 2, 8]]), torch.tensor([0, 0])
    found = delta(base.expand(2, 4, -1), ids, segments, both)
    assert torch.equal(found[0, 2], found[0, 3])
    again = RowDropout(0.5, np.array([8], dtype=np.uint64))
    alone = delta(base.expand(1, 3, -1), torch.tensor([[2, 5, 1]]), segments[:1], again)
    assert torch.equal(alone[0], found[1, [2, 0, 1]])
    assert not torch.equal(found[0, [2, 0, 1]], alone[0]), "each step draws anew"
