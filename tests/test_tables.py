"""A frozen table: its own rows, grown rows that are its mean, and no row outside."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reclora.tables import BaseError, Table

WEIGHT = torch.arange(12, dtype=torch.float32).view(4, 3) ** 2


@given(st.lists(st.integers(0, 6), max_size=8), st.integers(0, 3))
@settings(deadline=None)
def test_lookup_gives_own_rows_then_the_mean(rows: list[int], grown: int) -> None:
    table = replace(Table.of(WEIGHT), num_rows=4 + grown)
    whole = torch.cat([WEIGHT, WEIGHT.mean(0).expand(grown, -1)])
    assert torch.equal(table.materialised(), whole)
    asked = torch.tensor(rows, dtype=torch.int64)
    if any(row >= 4 + grown for row in rows):
        with pytest.raises(IndexError, match=f"rows 0 to {3 + grown}"):
            table.lookup(asked)
    else:
        assert torch.equal(table.lookup(asked), whole[asked])
        assert torch.equal(table.lookup(asked.view(1, -1, 1)), whole[asked].view(1, -1, 1, 3))


def test_a_negative_row_is_an_error_and_no_row_from_the_end() -> None:
    with pytest.raises(IndexError, match="row -1 was asked"):
        Table.of(WEIGHT).lookup(torch.tensor([0, -1]))


def test_materialised_is_a_copy() -> None:
    table = Table.of(WEIGHT.clone())
    table.materialised().zero_()
    assert torch.equal(table.weight_ND, WEIGHT)


def test_a_table_of_no_rows_has_a_zero_mean() -> None:
    table = Table.of(torch.empty(0, 3))
    assert table.mean_D.tolist() == [0, 0, 0]
    assert replace(table, num_rows=1).lookup(torch.tensor([0])).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused_by_row(wrong: float) -> None:
    weight = WEIGHT.clone()
    weight[2, 1] = weight[3, 0] = wrong
    with pytest.raises(BaseError, match="row 2 of a table .* 2 rows do"):
        Table.of(weight)


@pytest.mark.parametrize("weight", [torch.zeros(3), torch.zeros(2, 2, dtype=torch.float64)])
def test_only_two_dimensional_float32_is_a_table(weight: torch.Tensor) -> None:
    with pytest.raises(BaseError, match="2-D float32"):
        Table.of(weight)
