"""An adapter: its numbers, its base, its parent, the identifiers it brings."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reclora.adapters import Adapter, bank_rows, check_base, id_tensors, new_ids
from reclora.configs import AdapterConfig, AdapterError
from reclora.interactions import IdMap
from tests.small_worlds import make_bank, make_base

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
integer = st.integers(-(2**63), 2**63 - 1)


def test_numbers_are_those_that_train() -> None:
    base = make_base()
    adapter = make_bank("rows", base).adapter("日本")
    users, items = len(adapter.tensors["users.rows"]), len(adapter.tensors["items.rows"])
    tables = 3 * users + 3 * 8 + 3 * items + 3 * 8 + items
    tower = (12 * 3 + 3 * 24) + (1 * 1 + 1 * 12)
    assert adapter.num_numbers == tables + tower
    assert f"{adapter.num_numbers:,} numbers" in repr(adapter) and "'日本'" in repr(adapter)


def test_a_parent_is_told_and_its_numbers_are_not_counted() -> None:
    parent = make_bank("full", make_base()).adapter("日本")
    child = replace(make_bank("bias", make_base()).adapter("../up"), parent=parent)
    assert child.num_numbers == len(child.tensors["items.rows"])
    assert "numbers, on '日本', of base" in repr(child) and " on " not in repr(parent)


def test_another_base_is_refused_with_both_fingerprints() -> None:
    base, other = make_base(), make_base(seed=1)
    adapter = make_bank("rows", base).adapter("日本")
    check_base(adapter, base)
    with pytest.raises(AdapterError, match="'日本'") as error:
        check_base(adapter, other)
    assert base.fingerprint in str(error.value) and other.fingerprint in str(error.value)


@given(st.lists(text, unique=True) | st.lists(integer, unique=True))
@settings(deadline=None)
def test_identifiers_travel_as_tensors(ids: list[str] | list[int]) -> None:
    kind = pa.int64() if ids and isinstance(ids[0], int) else pa.large_string()
    array = pa.array(ids, kind)
    adapter = Adapter("s", AdapterConfig(), "", id_tensors("users", array))
    assert new_ids(adapter, "users", IdMap(array)).equals(array)


def test_new_rows_are_found_by_their_identifiers() -> None:
    ids = IdMap(np.array([10, 20, 30, 5, 7]))  # 10, 20, 30 are the base's
    rows = bank_rows(torch.tensor([0, 2, 3, 4]), pa.array([7, 5]), 3, ids)
    assert rows.tolist() == [0, 2, 4, 3]


def test_an_adapter_is_frozen() -> None:
    adapter = make_bank("bias", make_base()).adapter("日本")
    with pytest.raises(AttributeError):
        adapter.segment = "other"  # type: ignore[misc]
    assert replace(adapter, segment="other").segment == "other"
