"""Adapters on a parent: a segment's residual stands on another adapter, which stays frozen."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reclora.adapters import Adapter
from reclora.bank import AdapterBank
from reclora.base import BaseModel
from reclora.configs import AdapterConfig, AdapterError
from reclora.interactions import Interactions
from reclora.store import AdapterStore
from reclora.training import HeldOutLoss, train
from tests.plain_models import PlainModel
from tests.small_worlds import (
    ALL_KINDS,
    KINDS,
    SIZES,
    configs_of,
    fill,
    make_bank,
    make_base,
    make_log,
    numbers,
)
from tests.test_training import LOG, SHORT, VALIDATION, largest_difference

BASE = make_base()
USERS, ITEMS = torch.arange(len(BASE.users)), torch.arange(len(BASE.items))


def make_parent(kind: str, base: BaseModel = BASE) -> Adapter:
    """Of a segment that touches some rows, and not all."""
    return make_bank(kind, base).adapter("日本")


def residuals(
    kind: str, parent: Adapter, base: BaseModel = BASE, log: Interactions | None = None
) -> AdapterBank:
    """A fresh bank on a parent."""
    log = log or make_log(base, seed=1)
    return AdapterBank.for_log(base, log, configs_of(kind, log.segment_names), parent=parent)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_fresh_residual_is_its_parent_bit_for_bit(kind: str) -> None:
    parent = make_parent("mixed")
    bank, alone = residuals(kind, parent), AdapterBank.of(BASE, [parent])
    expected = alone.scorer("日本").scores(USERS)
    for name in SIZES:
        assert torch.equal(bank.scorer(name).scores(USERS), expected)
        assert bank.merged(name).fingerprint == alone.merged("日本").fingerprint
    assert not torch.equal(expected, BASE.scorer().scores(USERS))


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("below", ["ladder", "full"])
def test_scores_equal_plain_loops_on_top_of_the_parents(kind: str, below: str) -> None:
    base = make_base(num_users=9, num_items=7, hidden=(4,))
    bank = fill(residuals(kind, make_parent(below, base), base), seed=5)
    for name in ("market 0", "日本", "one row"):
        expected = PlainModel.of(base).adapted(bank.adapter(name)).scores()
        for scorer in (bank.scorer(name), bank.merged(name).scorer()):
            torch.testing.assert_close(scorer.scores(torch.arange(9)), expected)


def test_a_parent_may_have_a_parent() -> None:
    base = make_base(num_users=9, num_items=7, hidden=(4,))
    bank = residuals("rows", make_parent("map", base), base)
    for kind in ("basis", "full"):
        bank = residuals(kind, fill(bank).adapter("market 0"), base)
    found = fill(bank, seed=2).scorer("../up").scores(torch.arange(9))
    expected = PlainModel.of(base).adapted(bank.adapter("../up")).scores()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_lookups_are_rows_of_the_merged_tables(kind: str) -> None:
    """And come with the parent's; a segment that nobody knows is the parent's."""
    parent = make_parent("ladder")
    bank, below = fill(residuals(kind, parent), 7), AdapterBank.of(BASE, [parent]).merged("日本")
    segments = torch.tensor([3, -1, 0])
    users, items = USERS.expand(3, -1), ITEMS.expand(3, -1)
    user_rows, users_below = bank.users(users, segments)
    item_rows, items_below = bank.items(items, segments)
    biases, layers = bank.biases(items, segments), bank.layers(segments)
    for g, code in enumerate(segments.tolist()):
        merged = below if code < 0 else bank.merged(bank.segment_names[code])
        torch.testing.assert_close(user_rows[g], merged.user_table.weight_ND)
        torch.testing.assert_close(item_rows[g], merged.item_table.weight_ND)
        torch.testing.assert_close(biases[g], merged.item_bias.weight_ND.squeeze(1))
        assert merged.tower is not None
        for (weight, bias), *whole in zip(
            layers, merged.tower.weights, merged.tower.biases, strict=True
        ):
            torch.testing.assert_close([weight[g], bias[g]], whole)
    for found, table in ((users_below, below.user_table), (items_below, below.item_table)):
        torch.testing.assert_close(found, table.weight_ND.expand(3, -1, -1))
    assert torch.equal(user_rows[1], users_below[1]) and torch.equal(item_rows[1], items_below[1])


def test_an_adapter_keeps_its_parent_and_a_bank_of_them_is_the_bank() -> None:
    parent = make_parent("ladder")
    bank = fill(residuals("mixed", parent))
    assert all(adapter.parent is parent for adapter in bank.adapters())
    assert "on '日本', of BaseModel" in repr(bank)
    rebuilt = AdapterBank.of(BASE, bank.adapters()[::-1])
    for name in SIZES:
        assert numbers(rebuilt, name) == numbers(bank, name)
        assert torch.equal(rebuilt.scorer(name).scores(USERS), bank.scorer(name).scores(USERS))


def test_an_adapter_without_its_parent_is_another() -> None:
    bank = fill(residuals("rows", make_parent("bias")))
    orphan = AdapterBank.of(BASE, [replace(bank.adapter("日本"), parent=None)])
    left, right = (each.scorer("日本").scores(USERS) for each in (orphan, bank))
    assert not torch.allclose(left, right)


def test_what_does_not_fit_is_refused() -> None:
    parent, other = make_parent("rows"), make_parent("rows")
    foreign = make_parent("rows", make_base(seed=1))
    with pytest.raises(AdapterError, match="'日本' was trained on base"):
        residuals("bias", foreign)
    ours, theirs = (fill(residuals("bias", each)).adapters() for each in (parent, other))
    for mixed in ([ours[0], theirs[1]], [ours[0], make_bank("bias", BASE).adapter("日本")]):
        with pytest.raises(AdapterError, match="a bank holds adapters of one parent"):
            AdapterBank.of(BASE, mixed)


@pytest.mark.parametrize("kind", ["mixed", "rows"])
def test_a_release_whose_segments_are_served_by_their_parent_too_is_one_bank(
    kind: str, tmp_path: Path
) -> None:
    parent = make_parent("ladder")
    bank, store = fill(residuals(kind, parent), seed=5), AdapterStore(tmp_path)
    names = [*SIZES]
    store.publish(
        [bank.adapter(name) for name in names[1:]],
        reason="test",
        serves_parent=[names[0], "new"],
        parent=parent,
    )
    whole = AdapterBank.of(BASE, store.load_all(base_fingerprint=BASE.fingerprint))
    assert {*whole.segment_names} == {*names, "new"}
    below = AdapterBank.of(BASE, [parent]).scorer("日本").scores(USERS)
    for name in whole.segment_names:
        expected = bank.scorer(name).scores(USERS) if name in names[1:] else below
        assert torch.equal(whole.scorer(name).scores(USERS), expected)
        assert whole.has_delta(whole.code(name)) == (name in names[1:])


# Identifiers that the base does not know.


def test_a_parent_brings_identifiers_that_the_base_and_the_log_do_not_know() -> None:
    """The bank's id maps hold them after the log's: the log trains once it is on those."""
    users, items = BASE.users.extended([5000, 6000]), BASE.items.extended(["new"])
    wide = Interactions.from_arrays(
        users=users,
        items=items,
        segment_names=("all",),
        segments=[0, 0, 0],
        user_rows=[3, 40, 41],
        item_rows=[30, 1, 30],
        timestamps=[0, 1, 2],
    )
    pool = fill(AdapterBank.for_log(BASE.grown(users, items), wide, KINDS["rows"]))
    parent = pool.adapter("all")
    bank = residuals("ladder", parent, log=LOG)
    assert (bank.base.users, bank.base.items) == (users, items)
    expected = pool.scorer("all").scores(torch.arange(42))
    assert torch.equal(bank.scorer("日本").scores(torch.arange(42)), expected)
    with pytest.raises(ValueError, match=r"log.onto\(bank.base.users, bank.base.items\)"):
        train(bank, LOG, SHORT, judge=None)
    train(bank, replace(LOG, users=users, items=items), SHORT, judge=None)
    moved = bank.scorer("日本").scores(torch.arange(42))
    assert not torch.allclose(moved[41], expected[41]), "scaled, mapped, though never seen"
    again = AdapterBank.of(BASE, bank.adapters())
    for row, user in enumerate([5000, 6000], start=40):
        place = int(again.base.users.rows_of(pa.array([user]))[0])
        found = again.scorer("日本").scores(torch.tensor([place]))
        torch.testing.assert_close(found[0, again.base.items.rows_of(items.ids)], moved[row])


news = st.tuples(
    st.lists(st.integers(100, 104), max_size=3), st.lists(st.sampled_from("abc"), max_size=3)
)


@given(st.tuples(news, news, news), st.sampled_from(["rows", "ladder", "full"]))
@settings(deadline=None, max_examples=25)
def test_parent_and_children_each_bring_identifiers_of_their_own(
    all_new: tuple[tuple[list[int], list[str]], ...], kind: str
) -> None:
    """Each trained over its own users and items, some common: together they score the same."""
    base = make_base(num_users=3, num_items=2, dim=3, hidden=(2,))
    parent: Adapter | None = None
    children, scores, maps = [], [], []
    for number, (user_ids, item_ids) in enumerate(all_new):
        users = base.users.extended(pa.array(user_ids, pa.int64()))
        items = base.items.extended(pa.array(item_ids, pa.string()))
        rows = [torch.arange(1, len(users))], [torch.arange(1, len(items))]
        config = replace(KINDS[kind], rank=2)
        bank = AdapterBank(base.grown(users, items), [f"{number}"], *rows, config, parent=parent)
        adapter = fill(bank, seed=number).adapter(f"{number}")
        if number == 0:
            parent = adapter
            continue
        children.append(adapter)
        maps.append((bank.base.users.ids, bank.base.items.ids))
        scores.append(bank.scorer(f"{number}").scores(torch.arange(len(bank.base.users))))
    together = AdapterBank.of(base, children)
    for child, (user_ids, item_ids), expected in zip(children, maps, scores, strict=True):
        user_rows = torch.from_numpy(together.base.users.rows_of(user_ids))
        item_rows = torch.from_numpy(together.base.items.rows_of(item_ids))
        found = together.scorer(child.segment).scores(user_rows)[:, item_rows]
        torch.testing.assert_close(found, expected)


# Training on a parent.


@pytest.mark.parametrize("kind", ["ladder", "mixed"])
def test_one_pass_equals_each_alone_on_a_parent_that_is_frozen(kind: str) -> None:
    parent = make_parent("mixed")
    before = {name: tensor.numpy().tobytes() for name, tensor in parent.tensors.items()}

    def trained(log: Interactions, validation: Interactions) -> AdapterBank:
        bank = residuals(kind, parent, log=log)
        assert bank.parent is not None
        frozen = numbers(bank.parent, "日本")
        train(bank, log, SHORT, judge=HeldOutLoss(validation, SHORT))
        assert numbers(bank.parent, "日本") == frozen == before
        assert all(parameter.grad is None for parameter in bank.parent.parameters())
        return bank

    together = trained(LOG, VALIDATION)
    for name in ("market 0", "日本", "../up"):
        alone = trained(LOG.only(name), VALIDATION.only(name))
        assert largest_difference(together, alone, name) < 1e-5
    fresh = residuals(kind, parent, log=LOG)
    assert largest_difference(together, fresh, "market 0") > 0.05
    assert {n: t.numpy().tobytes() for n, t in parent.tensors.items()} == before


def test_a_segment_that_cannot_be_judged_serves_its_parent() -> None:
    parent = make_parent("rows")
    bank = residuals("rows", parent, log=LOG)
    nothing = VALIDATION.select(np.zeros(len(VALIDATION), bool))
    training = train(bank, LOG, SHORT, judge=HeldOutLoss(nothing, SHORT))
    assert set(training.best_epoch.values()) == {0}
    expected = AdapterBank.of(BASE, [parent]).scorer("日本").scores(USERS)
    assert torch.equal(bank.scorer("market 0").scores(USERS), expected)


def test_a_residual_without_numbers_costs_nothing() -> None:
    config = AdapterConfig(user_table="none", item_table="none", item_bias="none", tower="none")
    bank = AdapterBank.for_log(BASE, make_log(BASE), config, parent=make_parent("rows"))
    assert list(bank.deltas()) == [] and bank.adapter("日本").num_numbers == 0
